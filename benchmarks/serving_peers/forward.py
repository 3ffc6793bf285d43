"""The forward pass's own limit: what the model alone does in as many processes as there are processors."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving_peers.servers import model_env

if TYPE_CHECKING:
    from serving_peers.cases import Case, Prepared

BATCHES = (1, 2, 4, 8)
"""Requests in one forward; the best of these is the limit."""

SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Rows a second of *instances* models at a time, at the best number of rows in one call."""

    case: str
    round: int
    instances: int
    rows: int
    rows_per_second: float


def counts(case: Case) -> bool:
    """Say whether the model's own time is most of what a request of *case* takes."""
    return case.heavy or case.binary


def limit(prepared: Prepared, number: int) -> Limit:
    """Measure the limit, in round *number*, with one thread an instance, all at once."""
    instances = len(os.sched_getaffinity(0))
    command = [sys.executable, "-P", "-m", "serving_peers.launch_forward", str(SECONDS)]
    env = {**os.environ, **model_env(prepared)}
    with contextlib.ExitStack() as stack:
        models = [
            stack.enter_context(
                subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(instances)
        ]
        for model in models:
            stack.callback(model.kill)
            _said(model)
        found = {n * prepared.case.rows: _together(models, n * prepared.case.rows) for n in BATCHES}
    rows = max(found, key=lambda n: found[n])
    return Limit(
        case=prepared.case.name, round=number, instances=instances, rows=rows, rows_per_second=found[rows]
    )


def _together(models: list[subprocess.Popen[str]], rows: int) -> float:
    for model in models:
        assert model.stdin is not None
        model.stdin.write(f"{rows}\n")
        model.stdin.flush()
    return sum(float(_said(model)) for model in models)


def _said(model: subprocess.Popen[str]) -> str:
    assert model.stdout is not None
    line = model.stdout.readline()
    if not line:
        raise RuntimeError(f"the model alone ended with {model.wait()}")
    return line
