"""What the runtime counts, for Prometheus. Counts predictions only, not probes, so that rates mean something."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The counters of one server; each series has the labels `model_name` and `model_version`."""

    def __init__(self, name: str, version: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        labels = ("model_name", "model_version")
        self._requests = Counter(
            "mlopsnb_request",
            "Prediction requests by status code.",
            (*labels, "code"),
            registry=self._registry,
        )
        self._duration = Histogram(
            "mlopsnb_request_duration_seconds",
            "Prediction requests from the head read to the answer ready.",
            labels,
            buckets=_SECONDS,
            registry=self._registry,
        ).labels(name, version)
        self._in_progress = Gauge(
            "mlopsnb_request_in_progress", "Prediction requests now in work.", labels, registry=self._registry
        ).labels(name, version)
        self._rows = Histogram(
            "mlopsnb_batch_size",
            "Rows in one call of the model.",
            labels,
            buckets=_ROWS,
            registry=self._registry,
        ).labels(name, version)
        self._model = Histogram(
            "mlopsnb_model_seconds",
            "Seconds in one call of the model.",
            labels,
            buckets=_SECONDS,
            registry=self._registry,
        ).labels(name, version)
        self._labels = (name, version)

    def started(self) -> None:
        """A prediction request has come."""
        self._in_progress.inc()

    def finished(self, code: int, seconds: float) -> None:
        """A prediction request was answered with *code*."""
        self._in_progress.dec()
        self._requests.labels(*self._labels, str(code)).inc()
        self._duration.observe(seconds)

    def ran(self, rows: int, seconds: float) -> None:
        """The model was called once."""
        self._rows.observe(rows)
        self._model.observe(seconds)

    def expose(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
