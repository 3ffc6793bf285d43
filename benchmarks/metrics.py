"""What counting one request costs, beside prometheus_client's own objects counting the same.

    python benchmarks/metrics.py [REQUESTS]

A request in a call of the model of its own is the dearest case: one of it started and finished, one wait, one call.
The two take turns, so that a slow moment of the machine hits both alike; the medians over the turns count, in
nanoseconds of CPU time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mlopsnb.serving.metrics import Metrics

TURNS = 9
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
FINE_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, *SECONDS)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def ours(requests: int) -> None:
    """Count *requests* as the server does."""
    metrics = Metrics("m", "1")
    for _ in range(requests):
        metrics.started()
        metrics.waited(0.00002, [0.0])
        metrics.ran(1, 0.00001)
        metrics.finished(200, 0.00006)


def theirs(requests: int) -> None:
    """Count *requests* in the same series with prometheus_client's objects, labels looked up where they vary."""
    registry = CollectorRegistry()
    names, values = ["model_name", "model_version"], ["m", "1"]
    codes = Counter("request", "-", [*names, "code"], registry=registry)
    in_progress = Gauge("request_in_progress", "-", names, registry=registry).labels(*values)
    duration, waited, model, rows = (
        Histogram(name, "-", names, buckets=buckets, registry=registry).labels(*values)
        for name, buckets in (
            ("request_duration_seconds", SECONDS),
            ("queue_seconds", FINE_SECONDS),
            ("model_seconds", FINE_SECONDS),
            ("batch_size", ROWS),
        )
    )
    for _ in range(requests):
        in_progress.inc()
        waited.observe(0.00002)
        rows.observe(1)
        model.observe(0.00001)
        in_progress.dec()
        codes.labels("m", "1", "200").inc()
        duration.observe(0.00006)


def nanoseconds(count: Callable[[int], None], requests: int) -> float:
    """Return the CPU time of one request."""
    begin = time.process_time_ns()
    count(requests)
    return (time.process_time_ns() - begin) / requests


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    turns = [(nanoseconds(ours, requests), nanoseconds(theirs, requests)) for _ in range(TURNS)]
    mine, other = (statistics.median(times) for times in zip(*turns, strict=True))
    print(f"median of {TURNS} turns of {requests} requests, Python {sys.version.split()[0]}")
    print(f"mlopsnb            {mine:7.0f} ns a request")
    print(f"prometheus_client  {other:7.0f} ns a request, {other / mine:.1f} times as much")


if __name__ == "__main__":
    main()
