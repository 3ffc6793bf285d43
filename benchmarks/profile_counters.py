"""What counting live rows on a reference profile costs a request of 32 numbers, and what merging the counters costs.

    python benchmarks/profile_counters.py [REQUESTS]

Requests of one row go through the application as they come from a connection, JSON in and JSON out, with a model that
does next to nothing, once with the counters and once without; beside it the counters alone, over single rows and over
64 rows at a time. All take turns, so that a slow moment of the machine hits them alike; of the turns the median is told
and the quietest, in microseconds of CPU time, the rings' being counted included.
"""

from __future__ import annotations

import asyncio
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlopsnb import profiles
from mlopsnb.manifest import Manifest
from mlopsnb.profiles import DriftProfile, Feature
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import windows
from mlopsnb.serving.app import App
from mlopsnb.serving.calls import begin
from mlopsnb.serving.counters import Counters
from mlopsnb.serving.engine import Engine
from mlopsnb.serving.metrics import Metrics
from mlopsnb.serving.model import Model, Package
from mlopsnb.serving.tuning import Options, Plan
from mlopsnb.serving.windows import Layout

TURNS = 41
FEATURES, BINS, SNAPSHOTS = 32, 64, 240
MOST_MICROSECONDS, MOST_MERGE_MILLISECONDS = 2.5, 2.0
PATH = "/v2/models/m/infer"
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(None, FEATURES)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
)
RNG = np.random.default_rng(0)
Row = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def feature(name: str, column: int | None, tensor: str = "x", role: str = "input") -> Feature:
    edges = np.quantile(RNG.normal(size=20_000), np.linspace(0, 1, BINS + 1)[1:-1]).tolist()
    return Feature(
        name=name,
        tensor=tensor,
        column=column,
        role=role,  # type: ignore[arg-type]
        edges=tuple(edges),
        counts=(1,) * BINS,
        low=edges[0],
        high=edges[-1],
    )


PROFILE = DriftProfile(
    features=(*(feature(f"f{i}", i) for i in range(FEATURES)), feature("y", None, "y", "output")), rows=20_000
)


def counters() -> Counters:
    layout = Layout.fitting(PROFILE.digest, PROFILE.cells, 2 * len(PROFILE.features), 1)
    assert layout is not None
    return Counters(PROFILE, SIGNATURE, windows.in_memory(layout, time.time))


def app(counted: Counters | str) -> App:
    golden = {"x": np.zeros((1, FEATURES), np.float32)}
    package = Package(
        path=Path(), manifest=Manifest(format="none", signature=SIGNATURE, files={}), golden=golden
    )
    plan = Plan(
        inline=True,
        instances=1,
        threads=0,
        joins=True,
        max_batch_size=32,
        inline_rows=100,
        row_seconds=1e-5,
        forward_seconds=1e-5,
    )
    model = Model(package, lambda inputs: {"y": inputs["x"][:, 0]})
    engine = Engine(package, model, plan, Options(), Metrics("m", "1"))
    return App(engine, name="m", version="1", max_body_bytes=1 << 20, log=io.BytesIO(), counters=counted)


def requests(made: App, bodies: list[bytes], count: int) -> None:
    """Let *made* answer *count* requests, as the fast lane does."""
    route = made.predictions[PATH]
    for number in range(count):
        call = begin("POST", PATH, {}, ())
        made.started(call)
        made.predict(call, route, bodies[number % len(bodies)], lambda reply: None, alone=True)
        made.finished(call, 200)
    if made.counters is not None:
        made.counters.count()


def alone(counted: Counters, rows: list[Row], size: int, count: int) -> None:
    """Count *count* requests of *size* rows."""
    for number in range(count):
        counted.note(size, *rows[number % len(rows)])
    counted.count()


def microseconds(run: Callable[[], None], count: int) -> float:
    begun = time.process_time_ns()
    run()
    return (time.process_time_ns() - begun) / count / 1000


def made_rows(size: int) -> list[Row]:
    return [
        (
            {"x": RNG.normal(size=(size, FEATURES)).astype(np.float32)},
            {"y": RNG.normal(size=size).astype(np.float32)},
        )
        for _ in range(500)
    ]


def measure_requests(count: int) -> bool:
    """Print what a request costs; say whether that is within the target."""
    single, many = made_rows(1), made_rows(64)
    bodies = [
        json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "shape": [1, FEATURES],
                        "datatype": "FP32",
                        "data": one["x"].ravel().tolist(),
                    }
                ]
            }
        ).encode()
        for one, _ in single
    ]
    without, counting, own = app("measured without"), app(counters()), counters()
    runs: dict[str, tuple[Callable[[], None], int]] = {
        "without": (lambda: requests(without, bodies, count), count),
        "with": (lambda: requests(counting, bodies, count), count),
        "alone": (lambda: alone(own, single, 1, count), count),
        "alone, 64 rows": (lambda: alone(own, many, 64, count // 16), count // 16 * 64),
    }
    turns = [{name: microseconds(*run) for name, run in runs.items()} for _ in range(TURNS)]
    ratio = statistics.median(turn["with"] / turn["without"] for turn in turns)
    print(f"{TURNS} turns of {count} requests, Python {sys.version.split()[0]}, numpy {np.__version__}")
    print("                                  median  quietest")
    for name, what in (
        ("without", "a request without counters"),
        ("with", "a request with counters"),
        ("alone", "counters alone, a row a request"),
        ("alone, 64 rows", "counters alone, of 64 rows, each"),
    ):
        times = [turn[name] for turn in turns]
        print(f"{what:33}{statistics.median(times):6.2f} {min(times):8.2f} us")
    print(f"with counters a request takes {ratio:.2f} times as much")
    took = statistics.median(turn["alone"] for turn in turns)
    return told("counters alone, a row a request", took, MOST_MICROSECONDS, "us")


def measure_merge() -> bool:
    """Print what merging costs; say whether that is within the target."""
    counted, documents = counters(), []
    for number in range(SNAPSHOTS):
        inputs = {"x": RNG.normal(size=(1000, FEATURES)).astype(np.float32)}
        tally = profiles.Tally(PROFILE)
        tally.add_tensors(inputs, "input")
        documents.append(profiles.snapshot_document(tally.take(300 * number, 300 * (number + 1))))
    begun = time.process_time_ns()
    snapshots = [profiles.read_snapshot(document, PROFILE) for document in documents]
    read = (time.process_time_ns() - begun) / 1e6
    times = [microseconds(lambda: merged(snapshots), 1) / 1000 for _ in range(TURNS)]
    took = statistics.median(times)
    size = sum(len(json.dumps(d)) for d in documents) / SNAPSHOTS / 1000
    print(f"merging {SNAPSHOTS} snapshots           {took:6.2f} ms")
    print(f"reading them from JSON           {read:6.2f} ms, {size:.1f} KB each")
    held = counted._windows.layout.nbytes / 1e6
    print(f"a day of windows takes at most   {held:6.2f} MB, in memory or in a file")
    return told(f"merging {SNAPSHOTS} snapshots", took, MOST_MERGE_MILLISECONDS, "ms")


def told(name: str, took: float, most: float, unit: str) -> bool:
    """Print whether a figure meets its target, and return it."""
    met = took <= most
    print(f"{'met' if met else 'NOT MET':8}{name}: {took:.3g} {unit}, target ≤ {most:g} {unit}")
    return met


def merged(snapshots: list[profiles.Snapshot]) -> None:
    profiles.merge(snapshots)


async def main() -> int:
    met = [measure_requests(int(sys.argv[1]) if len(sys.argv) > 1 else 4_000), measure_merge()]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
