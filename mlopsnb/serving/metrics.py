"""What the runtime counts, for Prometheus. Counts predictions only, not probes, so that rates mean something.

Counting is plain addition, on the event loop alone, as it is done for every request; names, labels and text come
in when somebody asks, and so does prometheus_client, which a server can start without. Of several workers each counts
for itself, where the others see it; any of them tells the sums.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

from mlopsnb.serving.board import Alone, Part, Row
from mlopsnb.version import __version__

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_FINE_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, *_SECONDS)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CODES = 600
_OTHERS = 64


class _Histogram:
    """Counts by bucket, of which the last has no bound, and behind them the sum."""

    __slots__ = ("_bounds", "_cells", "_part")

    def __init__(self, bounds: Sequence[float], counters: Alone | Row) -> None:
        self._bounds = tuple(map(float, bounds))
        self._part = counters.take(len(bounds) + 2)
        self._cells = self._part.own

    def observe(self, value: float) -> None:
        cells = self._cells
        cells[bisect_left(self._bounds, value)] += 1
        cells[-1] += value

    def family(self, name: str, told: str, labels: dict[str, str]) -> Metric:
        buckets: list[tuple[str, float]] = []
        below = 0.0
        *counts, total = self._part.total()
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            below += count
            buckets.append((bound, below))
        from prometheus_client.metrics_core import HistogramMetricFamily

        family = HistogramMetricFamily(name, told, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, total)
        return family


class _Others:
    """What others count for themselves, noted where all workers see it. They always tell the same series."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._before = list(part.own)

    def note(self, families: Iterable[Metric]) -> None:
        """Note the present values; counters go on from where the last worker in this place was."""
        values = [
            (family.type == "counter", sample.value) for family in families for sample in family.samples
        ]
        for cell, (counts, value) in enumerate(values):
            self._part.own[cell] = value + (self._before[cell] if counts else 0)

    def summed(self, families: Sequence[Metric]) -> Iterator[Metric]:
        """Yield *families* with the sums over all workers."""
        self.note(families)
        totals = iter(self._part.total())
        for family in families:
            family.samples = [sample._replace(value=next(totals)) for sample in family.samples]
            yield family


class Metrics:
    """The counters of one server; each series has the labels `model_name` and `model_version`.

    `queue_rows` tells what waits, `format` is the model's; whoever loads the model sets both. `also` are those who
    count for themselves: each is given these labels and returns its families; those of `summed` are of all workers
    already. *counters* is where we keep ours,
    *processes* tells what the system knows of the processes that serve.
    """

    def __init__(
        self,
        name: str,
        version: str,
        *,
        counters: Alone | Row | None = None,
        processes: Collector | None = None,
    ) -> None:
        counters = counters or Alone()
        self._labels = {"model_name": name, "model_version": version}
        self._all_requests = counters.take(_CODES)
        self._requests = self._all_requests.own
        self._all_checks = counters.take(_CODES)
        self._checks = self._all_checks.own
        self._all_now = counters.take(2)
        self._now = self._all_now.own
        self._now[0] = self._now[1] = 0
        self._duration = _Histogram(_SECONDS, counters)
        self._rows = _Histogram(_ROWS, counters)
        self._waited = _Histogram(_FINE_SECONDS, counters)
        self._model = _Histogram(_FINE_SECONDS, counters)
        self._others = _Others(counters.take(_OTHERS))
        self.queue_rows: Callable[[], int] = lambda: 0
        self.also: list[Callable[[Mapping[str, str]], Iterable[Metric]]] = []
        self.summed: list[Callable[[Mapping[str, str]], Iterable[Metric]]] = []
        self.format = ""
        self._processes = processes
        self._registry: Any = None

    def started(self) -> None:
        """A prediction request has come."""
        self._now[0] += 1

    def finished(self, code: int, seconds: float) -> None:
        """A prediction request was answered with *code*."""
        self._now[0] -= 1
        self._requests[code] += 1
        self._duration.observe(seconds)

    def checked(self, code: int) -> None:
        """A proof of a deploy was answered with *code*: no traffic, so that rates and quantiles leave it out."""
        self._now[0] -= 1
        self._checks[code] += 1

    def note(self) -> None:
        """Note what is not counted here but looked up, for the workers beside us."""
        self._now[1] = self.queue_rows()
        self._others.note(self._told_by_others())

    def _told_by_others(self) -> list[Metric]:
        return [family for families in self.also for family in families(self._labels)]

    def waited(self, until: float, since: Iterable[float]) -> None:
        """Requests, or pieces of them, that came at *since* have waited for their call of the model *until* now."""
        observe = self._waited.observe
        for begin in since:
            observe(until - begin)

    def ran(self, rows: int, seconds: float) -> None:
        """The model was called once."""
        self._rows.observe(rows)
        self._model.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, as prometheus_client asks for."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        names, values = list(self._labels), list(self._labels.values())
        build = InfoMetricFamily(
            "mlopsnb_build", "The server's version and the format of its model.", labels=names
        )
        build.add_metric(values, {"version": __version__, "format": self.format})
        yield build
        for name, told, part in (
            ("mlopsnb_request", "Prediction requests by status code.", self._all_requests),
            (
                "mlopsnb_check",
                "Proofs of a deploy with the golden example, by status code.",
                self._all_checks,
            ),
        ):
            requests = CounterMetricFamily(name, told, labels=[*names, "code"])
            for code, count in enumerate(part.total()):
                if count:
                    requests.add_metric([*values, str(code)], count)
            yield requests
        self._now[1] = self.queue_rows()
        in_progress, queue_rows = self._all_now.total()
        for name, told, value in (
            ("mlopsnb_request_in_progress", "Prediction requests now in work.", in_progress),
            ("mlopsnb_queue_rows", "Rows that wait for the model.", queue_rows),
        ):
            gauge = GaugeMetricFamily(name, told, labels=names)
            gauge.add_metric(values, value)
            yield gauge
        for name, told, histogram in (
            (
                "mlopsnb_request_duration_seconds",
                "Prediction requests from the head read to the answer ready.",
                self._duration,
            ),
            ("mlopsnb_batch_size", "Rows in one call of the model.", self._rows),
            ("mlopsnb_queue_seconds", "Seconds that requests waited for the model.", self._waited),
            ("mlopsnb_model_seconds", "Seconds in one call of the model.", self._model),
        ):
            yield histogram.family(name, told, self._labels)
        yield from self._others.summed(self._told_by_others())
        for families in self.summed:
            yield from families(self._labels)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Return all of it and its content type: Prometheus' text format, or OpenMetrics if *accept* asks for it."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        if self._registry is None:
            self._registry = CollectorRegistry()
            self._registry.register(self._processes or ProcessCollector(registry=None))
            self._registry.register(self)
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
