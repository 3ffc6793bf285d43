"""What the runtime counts, for Prometheus. Counts predictions only, not probes, so that rates mean something.

Counting is plain addition, on the event loop alone, as it is done for every request; names, labels and text come
in when somebody asks, and so does prometheus_client, which a server can start without.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_FINE_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, *_SECONDS)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Histogram:
    """Counts by bucket, the last one without a bound, and the sum."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(map(float, bounds))
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def family(self, name: str, told: str, labels: dict[str, str]) -> Metric:
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            buckets.append((bound, below))
        from prometheus_client.metrics_core import HistogramMetricFamily

        family = HistogramMetricFamily(name, told, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, self._total)
        return family


class Metrics:
    """The counters of one server; each series has the labels `model_name` and `model_version`.

    `queue_rows` tells what waits, `format` is the model's; whoever loads the model sets both. `also` are those who
    count for themselves: each is given these labels and returns its families.
    """

    def __init__(self, name: str, version: str) -> None:
        self._labels = {"model_name": name, "model_version": version}
        self._requests: dict[int, int] = {}
        self._in_progress = 0
        self._duration = _Histogram(_SECONDS)
        self._rows = _Histogram(_ROWS)
        self._waited = _Histogram(_FINE_SECONDS)
        self._model = _Histogram(_FINE_SECONDS)
        self.queue_rows: Callable[[], int] = lambda: 0
        self.also: list[Callable[[Mapping[str, str]], Iterable[Metric]]] = []
        self.format = ""
        self._registry: Any = None

    def started(self) -> None:
        """A prediction request has come."""
        self._in_progress += 1

    def finished(self, code: int, seconds: float) -> None:
        """A prediction request was answered with *code*."""
        self._in_progress -= 1
        self._requests[code] = self._requests.get(code, 0) + 1
        self._duration.observe(seconds)

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
        from importlib.metadata import version as distribution_version

        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        names, values = list(self._labels), list(self._labels.values())
        build = InfoMetricFamily(
            "mlopsnb_build", "The server's version and the format of its model.", labels=names
        )
        build.add_metric(values, {"version": distribution_version("mlopsnb"), "format": self.format})
        yield build
        requests = CounterMetricFamily(
            "mlopsnb_request", "Prediction requests by status code.", labels=[*names, "code"]
        )
        for code, count in sorted(self._requests.items()):
            requests.add_metric([*values, str(code)], count)
        yield requests
        for name, told, value in (
            ("mlopsnb_request_in_progress", "Prediction requests now in work.", self._in_progress),
            ("mlopsnb_queue_rows", "Rows that wait for the model.", self.queue_rows()),
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
        for families in self.also:
            yield from families(self._labels)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Return all of it and its content type: Prometheus' text format, or OpenMetrics if *accept* asks for it."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        if self._registry is None:
            self._registry = CollectorRegistry()
            ProcessCollector(registry=self._registry)
            self._registry.register(self)
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
