"""What an answer from the cache costs against one from the model, by rows and by how many of them are known.

Run: python benchmarks/cache.py [seconds]. Works in this one process, without HTTP: a request goes to the cache as the
server gives it. The variants take turns, and the least CPU time of each counts. A perceptron is about the least that
a model can be, and says what a hit costs; a convnet says what it saves.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import mlopsnb
from mlopsnb.serving.caching import Cached
from mlopsnb.serving.calls import begin
from mlopsnb.serving.engine import Engine

MODELS = {
    "perceptron 32-64-64-2": (
        torch.nn.Sequential(
            torch.nn.Linear(32, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 2),
        ),
        (32,),
        (1, 10, 100, 1000),
    ),
    "convnet on 3x64x64": (
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(32, 10),
        ),
        (3, 64, 64),
        (1, 10),
    ),
}
KNOWN = {"none": 0.0, "90 %": 0.9, "all": 1.0}
NO_STORE = {b"cache-control": b"no-store"}


async def seconds(cache, inputs, rows, headers):
    """Return the CPU time of one request, in all threads."""
    loop = asyncio.get_running_loop()
    answered = loop.create_future()

    def done(_, outcome):
        answered.set_result(outcome)

    started = time.process_time()
    cache.submit(begin("POST", "/", headers, ()), inputs, rows, done, deadline=None, loop=loop, at_once=True)
    outcome = await answered
    spent = time.process_time() - started
    assert len(next(iter(outcome.values()))) == rows
    return spent


async def measure(cache, x, row, rows, budget):
    """Return the least seconds of a request that the cache does not see, and by the share of rows that it knows."""
    rng = np.random.default_rng(rows)
    known = rng.normal(size=(rows, *row)).astype(np.float32)
    best = dict.fromkeys(("model", *KNOWN), float("inf"))
    await seconds(cache, {x: known}, rows, {})
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        best["model"] = min(best["model"], await seconds(cache, {x: known}, rows, NO_STORE))
        for name, share in KNOWN.items():
            mixed = known.copy()
            new = rows - int(rows * share)
            mixed[:new] = rng.normal(size=(new, *row))
            best[name] = min(best[name], await seconds(cache, {x: mixed}, rows, {}))
    return best


def main(budget=3.0):
    torch.manual_seed(0)
    print(
        f"{'model':24}{'rows':>6}{'model':>12}"
        + "".join(f"{name + ' known':>14}{'ratio':>7}" for name in KNOWN)
    )
    for name, (model, row, sizes) in MODELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            example = np.random.default_rng(0).normal(size=(4, *row)).astype(np.float32)
            engine = Engine.load(
                mlopsnb.export(model, example, into=Path(scratch) / "package", tolerance=0.01).path
            )
            name_of = engine.manifest.signature.inputs[0].name
            try:
                for rows in sizes:
                    best = asyncio.run(
                        measure(Cached.around(engine, 256_000_000), name_of, row, rows, budget)
                    )
                    line = f"{name:24}{rows:6}{best['model'] * 1e6:9.0f} µs"
                    for known in KNOWN:
                        line += f"{best[known] * 1e6:11.0f} µs{best['model'] / best[known]:7.2f}"
                    print(line, flush=True)
            finally:
                engine.close()


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
