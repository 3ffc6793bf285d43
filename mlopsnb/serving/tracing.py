"""Spans of predictions for OpenTelemetry: the request, its wait for the model, and the model's calls.

Switched on by OpenTelemetry's own environment variables, which its SDK reads: exporter, sampler, resource, batches.
Spans are exported in the background; an exporter that cannot deliver costs spans, and neither time nor answers.
Imports OpenTelemetry only where it is used, so that a server without it need not have it.
Sources: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/,
https://opentelemetry.io/docs/specs/semconv/http/http-spans/, https://opentelemetry.io/docs/specs/semconv/rpc/grpc/.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import MissingExtra
from mlopsnb.serving.errors import BadOption
from mlopsnb.serving.tracecontext import Trace
from mlopsnb.version import __version__

if TYPE_CHECKING:
    from mlopsnb.serving.batcher import Batch, Job
    from mlopsnb.serving.calls import Call
    from mlopsnb.serving.model import Ran

FLUSH_SECONDS = 3.0
"""How long the end of the server waits for the exporter to take the last spans."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CLIENT_LEFT = 499
_GRPC_STATUSES = {
    200: "OK",
    413: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    _CLIENT_LEFT: "CANCELLED",
}
_log = logging.getLogger("mlopsnb.serving")


def from_environment(name: str, version: str, *, scheme: str = "http", asked: bool = False) -> Tracing | None:
    """Return what traces the model *name* as the environment says; None if it says nothing, or no.

    *scheme* is that of the public address, http or https.

    With *asked* it is on unless it is switched off. Raises `MissingExtra` then if OpenTelemetry is not installed;
    without, that is said in the log, as such variables are often set for whatever runs on a machine.
    Raises `BadOption` for an exporter that is not installed.
    """
    if not (exporters := _exporters(os.environ, asked)):
        return None
    try:
        import_module("opentelemetry.sdk.trace.export")
    except ModuleNotFoundError as exc:
        if not (exc.name or "").startswith("opentelemetry"):
            raise
        missing = MissingExtra("opentelemetry-sdk", "otel")
        if asked:
            raise missing from exc
        _log.warning("no traces, though OTEL_* asks for them: %s; %s", missing.message, missing.hint)
        return None
    return Tracing(name, version, scheme, exporters)


def _exporters(environ: Mapping[str, str], asked: bool) -> list[str]:
    """Return the names of the exporters that are asked for, none if traces are off."""
    names = [part.strip() for part in environ.get("OTEL_TRACES_EXPORTER", "").split(",") if part.strip()]
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or "none" in names:
        return []
    return names or (["otlp"] if asked or any(environ.get(variable) for variable in _ENDPOINTS) else [])


def _entry_point(name: str) -> str:
    """Return the name under which the exporter *name* is installed; OTLP goes over HTTP unless told otherwise."""
    if name != "otlp":
        return name
    protocol = next(filter(None, map(os.environ.get, _PROTOCOLS)), "http/protobuf").strip()
    return {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}.get(protocol, f"otlp {protocol}")


class Tracing:
    """Makes the spans of one server's predictions. Is called on the event loop alone."""

    def __init__(self, name: str, version: str, scheme: str, exporters: Sequence[str]) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api = trace
        self._scheme = scheme
        self._nothing = Context()
        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": name}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._running = [_exporter(exporter) for exporter in exporters]
        for exporter in self._running:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("mlopsnb.serving", __version__)
        self._model = {"mlopsnb.model.name": name, "mlopsnb.model.version": version}
        _say_once()

    def start(self, call: Call) -> None:
        """Begin the span of *call* and put it there, if the sampler takes it; its trace goes there in any case."""
        api = self._api
        remote = call.trace
        parent = self._nothing if remote is None else self._parent(remote)
        since = time.time_ns() - time.perf_counter_ns()
        span = self.tracer.start_span(
            f"POST {call.path}" if call.method != "gRPC" else call.path[1:],
            parent,
            api.SpanKind.SERVER,
            self._attributes(call),
            start_time=since + int(call.started * 1e9),
        )
        context = span.get_span_context()
        if remote is not None:
            remote.span_id, remote.flags = f"{context.span_id:016x}", int(context.trace_flags)
        if not span.is_recording():
            return
        if remote is None:
            call.trace = Trace(
                f"{context.trace_id:032x}", f"{context.span_id:016x}", int(context.trace_flags)
            )
        call.span = RequestSpan(self.tracer, span, api.set_span_in_context(span, self._nothing), since)

    def _parent(self, remote: Trace) -> Any:
        api = self._api
        context = api.SpanContext(
            trace_id=int(remote.trace_id, 16),
            span_id=int(remote.parent_id, 16),
            is_remote=True,
            trace_flags=api.TraceFlags(remote.flags),
            trace_state=api.TraceState.from_header([remote.state]) if remote.state else None,
        )
        return api.set_span_in_context(api.NonRecordingSpan(context), self._nothing)

    def _attributes(self, call: Call) -> dict[str, str]:
        """Return what is known at the beginning, by which samplers decide."""
        if call.method == "gRPC":
            return {"rpc.system.name": "grpc", "rpc.method": call.path[1:], **self._model}
        return {
            "http.request.method": "POST",
            "url.scheme": self._scheme,
            "url.path": call.path,
            "http.route": call.path,
            **self._model,
        }

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Export what is left, for *seconds* at the most, and end."""
        ending = threading.Thread(target=self._provider.shutdown, name="otel-shutdown", daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            for exporter in self._running:
                exporter.shutdown()  # wakes what waits to try again


class RequestSpan:
    """The span of one request that is recorded. `since` turns the clock that times requests into that of spans."""

    __slots__ = ("_context", "_since", "_span", "_tracer")

    def __init__(self, tracer: Any, span: Any, context: Any, since: int) -> None:
        self._tracer = tracer
        self._span = span
        self._context = context
        self._since = since

    def ran(self, job: Job, batch: Batch, ran: Ran) -> None:
        """Record the wait for the calls of the model that *ran* tells of, and those."""
        begin = self._at(ran.begin)
        self._tracer.start_span("queue", self._context, start_time=self._at(job.stamp)).end(begin)
        attributes: dict[str, int] = {
            "mlopsnb.batch.rows": sum(piece.stop - piece.start for piece in batch),
            "mlopsnb.batch.requests": len(batch),
            "mlopsnb.batch.calls": len(ran.calls),
        }
        span = self._tracer.start_span("model", self._context, attributes=attributes, start_time=begin)
        span.end(self._at(ran.begin + ran.seconds))

    def end(self, call: Call, status: int) -> None:
        """End the span with the *status* of the answer."""
        span = self._span
        span.set_attribute("mlopsnb.request.id", call.request_id)
        if call.rows is not None:
            span.set_attribute("mlopsnb.request.rows", call.rows)
        if call.method == "gRPC":
            told: int | str = _GRPC_STATUSES.get(status, "INVALID_ARGUMENT")
            span.set_attribute("rpc.response.status_code", told)
        else:
            told = status
            if status != _CLIENT_LEFT:  # nobody received it
                span.set_attribute("http.response.status_code", status)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            from opentelemetry.trace import Status, StatusCode

            span.set_status(Status(StatusCode.ERROR))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == _CLIENT_LEFT:
            span.set_attribute("error.type", "client_left" if status == _CLIENT_LEFT else str(told))
        span.end(self._at(call.started + call.seconds))

    def _at(self, moment: float) -> int:
        return self._since + int(moment * 1e9)


def _exporter(name: str) -> Any:
    """Return the exporter that is installed as *name*; it finds its settings in the environment."""
    from importlib.metadata import entry_points  # slow to import, for servers that trace alone

    known = {point.name: point for point in entry_points(group="opentelemetry_traces_exporter")}
    wanted = _entry_point(name)
    if wanted not in known:
        raise BadOption(
            f"no OpenTelemetry exporter {wanted!r} is installed; there are {', '.join(sorted(known))}",
            hint="look at OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL, or install "
            f"opentelemetry-exporter-{wanted.replace('_', '-')}",
        )
    return known[wanted].load()()


class _Once(logging.Filter):
    """Lets each logger speak once: an exporter that cannot deliver would say so for ever."""

    def filter(self, record: logging.LogRecord) -> bool:
        logging.getLogger(record.name).setLevel(logging.CRITICAL)
        record.msg = f"OpenTelemetry: {record.getMessage()} (said once; predictions go on, spans are lost)"
        record.args = ()
        return True


def _say_once() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(_Once())
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(handler)
    logger.propagate = False
