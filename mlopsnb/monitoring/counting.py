"""What one server counts, read from its page for Prometheus; differences in time, sums over replicas, and figures.

Counters only rise while a process lives. A restart is seen by a counter that fell, as Prometheus' `increase` does
(https://prometheus.io/docs/prometheus/latest/querying/functions/#increase), or by the start of the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from mlopsnb.extras import need
from mlopsnb.monitoring.estimation import CLASSIFICATION, REGRESSION

_RESTARTED = 2.0
"""Seconds by which the start of a process may seem to move, as a machine's clock is corrected."""

_INFINITY = float("inf")
CLIENT_LEFT = 499
"""What is noted where a client left before its answer: nobody's failure (nginx's number)."""

KINDS: Mapping[str, Callable[[int], bool]] = {
    "server error": lambda code: code >= 500 and code not in (503, 504),
    "overloaded": lambda code: code in (429, 503),
    "deadline passed": lambda code: code == 504,
    "client error": lambda code: 400 <= code < 500 and code not in (429, CLIENT_LEFT),
}
"""Kinds of failed requests, by status code. A model that raises on a request is told as the client's error too."""

_OURS = ("server error", "overloaded", "deadline passed")


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram: observations at or below each bound, and their sum. The last bound is infinity."""

    below: Mapping[float, float] = field(default_factory=dict)
    total: float = 0.0

    @property
    def count(self) -> float:
        """All observations."""
        return self.below.get(_INFINITY, 0.0)

    @property
    def mean(self) -> float:
        """Their mean; NaN if there are none."""
        return self.total / self.count if self.count else math.nan

    def __add__(self, other: Buckets) -> Buckets:
        if not self.below or not other.below:
            return self if self.below else other
        shared = self.below.keys() & other.below.keys()  # servers of two versions may have other bounds
        return Buckets({b: self.below[b] + other.below[b] for b in sorted(shared)}, self.total + other.total)

    def since(self, older: Buckets) -> Buckets:
        """Return what came after *older*."""
        below = {bound: count - older.below.get(bound, 0.0) for bound, count in self.below.items()}
        return Buckets(below, self.total - older.total)

    def fell(self, older: Buckets) -> bool:
        """Say whether less was counted than before."""
        return any(self.below.get(bound, 0.0) < count for bound, count in older.below.items())

    def quantile(self, q: float) -> float:
        """Return the *q*-quantile (0 to 1) as Prometheus' `histogram_quantile` does; NaN without observations.

        Linear within a bucket, from 0 in the first; what lies beyond the last finite bound is told as that bound
        (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile).
        """
        bounds = sorted(self.below)
        if not self.count or len(bounds) < 2:
            return math.nan
        rank = q * self.count
        at = next((i for i, bound in enumerate(bounds[:-1]) if self.below[bound] >= rank), len(bounds) - 1)
        if at == len(bounds) - 1:
            return bounds[-2]
        if at == 0 and bounds[0] <= 0:
            return bounds[0]
        start, before = (bounds[at - 1], self.below[bounds[at - 1]]) if at else (0.0, 0.0)
        inside = self.below[bounds[at]] - before
        return start + (bounds[at] - start) * ((rank - before) / inside if inside else 0.0)

    def above(self, value: float) -> float:
        """Return how many observations are surely above *value*: above the first bound that is not below it."""
        bound = min((b for b in self.below if b >= value), default=_INFINITY)
        return self.count - self.below.get(bound, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What was counted in some time, in one replica or the sum over several. Durations are in seconds."""

    codes: Mapping[int, float] = field(default_factory=dict)
    duration: Buckets = field(default_factory=Buckets)
    rows: Buckets = field(default_factory=Buckets)
    queue: Buckets = field(default_factory=Buckets)
    cpu: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        codes = sorted(self.codes.keys() | other.codes.keys())
        return Counts(
            codes={code: self.codes.get(code, 0.0) + other.codes.get(code, 0.0) for code in codes},
            duration=self.duration + other.duration,
            rows=self.rows + other.rows,
            queue=self.queue + other.queue,
            cpu=self.cpu + other.cpu,
        )

    @property
    def requests(self) -> float:
        """Prediction requests that were answered."""
        return sum(self.codes.values())

    @property
    def errors(self) -> float:
        """Those that failed: 4xx and 5xx, but not those whose client left."""
        return sum(self.kinds.values())

    @property
    def server_errors(self) -> float:
        """Those that failed and were no client's fault: 5xx, and 429 for too many requests."""
        kinds = self.kinds
        return sum(kinds[kind] for kind in _OURS)

    @property
    def kinds(self) -> dict[str, float]:
        """Failed requests by kind."""
        return {kind: sum(n for code, n in self.codes.items() if of(code)) for kind, of in KINDS.items()}

    def since(self, older: Counts) -> Counts:
        """Return what came after *older*, which the same process counted."""
        return Counts(
            codes={code: n - older.codes.get(code, 0.0) for code, n in self.codes.items()},
            duration=self.duration.since(older.duration),
            rows=self.rows.since(older.rows),
            queue=self.queue.since(older.queue),
            cpu=self.cpu - older.cpu,
        )

    def fell(self, older: Counts) -> bool:
        """Say whether any counter is lower than in *older*, so that the process must be another one."""
        return (
            any(self.codes.get(code, 0.0) < n for code, n in older.codes.items())
            or any(getattr(self, h).fell(getattr(older, h)) for h in ("duration", "rows", "queue"))
            or self.cpu < older.cpu
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What is so at one moment, in one replica or the sum over several: rows that wait, memory in bytes, replicas."""

    queue_rows: float = 0.0
    memory: float = 0.0
    replicas: int = 0

    def __add__(self, other: Levels) -> Levels:
        return Levels(
            queue_rows=self.queue_rows + other.queue_rows,
            memory=self.memory + other.memory,
            replicas=self.replicas + other.replicas,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One replica at one moment. Times are Unix seconds; `started` is its process's, 0 if it does not say."""

    at: float
    counts: Counts
    levels: Levels
    started: float = 0.0

    def since(self, older: Sample | None) -> Counts:
        """Return what this replica counted after *older*.

        All of it if the process is another one by now; nothing if we see it for the first time and do not know since when
        it counts.
        """
        if older is None:
            return Counts()
        moved = bool(self.started and older.started) and self.started - older.started > _RESTARTED
        return self.counts if moved or self.counts.fell(older.counts) else self.counts.since(older.counts)


_HISTOGRAMS = {
    "mlopsnb_request_duration_seconds": "duration",
    "mlopsnb_batch_size": "rows",
    "mlopsnb_queue_seconds": "queue",
}
SINGLE = {
    "mlopsnb_queue_rows": "queue_rows",
    "process_resident_memory_bytes": "memory",
    "process_cpu_seconds_total": "cpu",
    "process_start_time_seconds": "started",
}
SERIES = (
    "mlopsnb_request_total",
    *SINGLE,
    *(f"{name}_{part}" for name in _HISTOGRAMS for part in ("bucket", "sum")),
)
"""All that a sample is made of."""

Series = tuple[str, Mapping[str, str], float]
"""A name, its labels and its value."""


def read(page: bytes, at: float) -> Sample:
    """Return what a server's `/metrics` page says; other series than ours are passed over. ValueError if it is none."""
    parser = need("prometheus_client.parser", extra="deploy")
    families = parser.text_string_to_metric_families(page.decode("utf-8"))
    return gather(((s.name, s.labels, s.value) for family in families for s in family.samples), at)


def gather(series: Iterable[Series], at: float) -> Sample:
    """Make one replica's sample of its *series*."""
    codes: dict[int, float] = {}
    below: dict[str, dict[float, float]] = {}
    totals: dict[str, float] = {}
    single: dict[str, float] = {}
    for name, labels, value in series:
        stem, _, part = name.rpartition("_")
        if name == "mlopsnb_request_total":
            codes[int(labels["code"])] = codes.get(int(labels["code"]), 0.0) + value
        elif name in SINGLE:
            single[SINGLE[name]] = value
        elif stem in _HISTOGRAMS and part == "bucket":
            below.setdefault(_HISTOGRAMS[stem], {})[float(labels["le"])] = value
        elif stem in _HISTOGRAMS and part == "sum":
            totals[_HISTOGRAMS[stem]] = value
    histograms = {name: Buckets(found, totals.get(name, 0.0)) for name, found in below.items()}
    return Sample(
        at=at,
        counts=Counts(codes=codes, cpu=single.get("cpu", 0.0), **histograms),
        levels=Levels(queue_rows=single.get("queue_rows", 0.0), memory=single.get("memory", 0.0), replicas=1),
        started=single.get("started", 0.0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The traffic of one revision over *seconds* that ended `at` (Unix time), summed over its replicas.

    `drifted` is how many features and outputs have drifted, and `performance` has the model's metrics, for who asked about
    these too; they are not of these seconds alone.
    """

    at: float
    seconds: float
    counts: Counts
    levels: Levels
    drifted: float = math.nan
    performance: Mapping[str, float] = field(default_factory=dict)


def joined(windows: Iterable[Window]) -> Window | None:
    """Return windows that follow each other as one; what is so at a moment is as in the last. None if there are none."""
    whole: Window | None = None
    for window in windows:
        if whole is not None:
            window = Window(  # noqa: PLW2901  the sum so far
                at=window.at,
                seconds=whole.seconds + window.seconds,
                counts=whole.counts + window.counts,
                levels=window.levels,
            )
        whole = window
    return whole


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a window: what it is called for people, and how it comes about. NaN where there is nothing to say."""

    label: str
    of: Callable[[Window], float]


FIGURES: Mapping[str, Figure] = {
    "requests": Figure("requests", lambda w: w.counts.requests),
    "qps": Figure("requests a second", lambda w: _share(w.counts.requests, w.seconds)),
    "error_rate": Figure("error rate", lambda w: _share(w.counts.errors, w.counts.requests)),
    "server_error_rate": Figure("of the server", lambda w: _share(w.counts.server_errors, w.counts.requests)),
    "p50_ms": Figure("P50, ms", lambda w: w.counts.duration.quantile(0.5) * 1000),
    "p90_ms": Figure("P90, ms", lambda w: w.counts.duration.quantile(0.9) * 1000),
    "p99_ms": Figure("P99, ms", lambda w: w.counts.duration.quantile(0.99) * 1000),
    "batch_rows": Figure("rows in a batch, mean", lambda w: w.counts.rows.mean),
    "queue_rows": Figure("rows waiting", lambda w: w.levels.queue_rows),
    "queue_p99_ms": Figure("P99 of the wait, ms", lambda w: w.counts.queue.quantile(0.99) * 1000),
    "cpu_cores": Figure("CPU, cores", lambda w: _share(w.counts.cpu, w.seconds)),
    "memory_mb": Figure("memory, MB", lambda w: w.levels.memory / 1e6),
    "replicas": Figure("replicas", lambda w: float(w.levels.replicas)),
}
"""All figures of traffic by the names that rules use."""

DRIFTED = "drifted_features"
PERFORMANCE = (*CLASSIFICATION, *REGRESSION)


def _metric(name: str, window: Window) -> float:
    return window.performance.get(name, math.nan)


WATCHED: Mapping[str, Figure] = {
    **FIGURES,
    DRIFTED: Figure("features that drifted", lambda w: w.drifted),
    **{name: Figure(name, partial(_metric, name)) for name in PERFORMANCE},
}
"""The figures that alerts may name: drift and performance too, which are seen over more rows than a gate waits for."""


def figure_text(name: str, value: float) -> str:
    """Return a figure as people read it: rates in percent, others with three digits."""
    if math.isnan(value):
        return "none"
    if name in ("error_rate", "server_error_rate"):
        return f"{value:.3g}" if 0 < value < 0.0001 else f"{value:.2%}"
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
