from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import queue
import re
import socket
import statistics
import threading
import time

import pytest

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlopsnb.serving import tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{PARENT}-{flags}" for flags in ("01", "00"))
INFER = "/v2/models/affine/infer"


class Collector:
    """An OTLP/HTTP collector: takes protobuf, keeps the spans and the resources that they came from."""

    def __init__(self):
        self.spans = queue.Queue()
        self.resources = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                collector.take(self.path, self.headers, self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path, headers, body):
        assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values(part.resource.attributes))
            for scope in part.scope_spans:
                for span in scope.spans:
                    self.spans.put((scope.scope.name, span))

    def all(self):
        """Return the spans so far, in the order in which they began."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self.spans.get_nowait()[1])
        return sorted(found, key=lambda span: (span.start_time_unix_nano, -span.end_time_unix_nano))

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def values(attributes):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def traced(serve, make_package, collector):
    """Start a server that exports to the collector; spans come at its end."""

    def start(*options, package=None, **environment):
        return serve(
            package or make_package(),
            *("--port", "0", *options),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="60000",
            **environment,
        )

    return start


def kinds(spans):
    return [(span.name, span.kind) for span in spans]


@pytest.mark.parametrize("path", [INFER, f"{INFER}?slow"], ids=["fast lane", "ASGI"])
def test_a_request_its_wait_and_its_call_of_the_model(traced, collector, body, path):
    runtime = traced()
    headers = {"traceparent": SAMPLED, "tracestate": "a=1,b=2", "x-request-id": "r1"}
    answer = runtime.request("POST", path, json.dumps(body([[1, 2, 3, 4]] * 3)), headers)
    assert (answer.status, runtime.stop(), runtime.errors) == (200, 0, "")
    spans = collector.all()
    server, internal = 2, 1
    assert kinds(spans) == [(f"POST {INFER}", server), ("queue", internal), ("model", internal)]
    request, wait, model = spans
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert request.trace_state == "a=1,b=2"
    assert wait.parent_span_id == model.parent_span_id == request.span_id
    assert request.start_time_unix_nano <= wait.start_time_unix_nano <= wait.end_time_unix_nano
    assert wait.end_time_unix_nano == model.start_time_unix_nano < model.end_time_unix_nano
    assert model.end_time_unix_nano <= request.end_time_unix_nano
    assert abs(request.start_time_unix_nano / 1e9 - time.time()) < 60
    assert values(request.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": INFER,
        "mlopsnb.model.name": "affine",
        "mlopsnb.model.version": "1",
        "mlopsnb.request.id": "r1",
        "mlopsnb.request.rows": 3,
        "url.path": INFER,
        "url.scheme": "http",
    }
    assert values(model.attributes) == {
        "mlopsnb.batch.calls": 1,
        "mlopsnb.batch.requests": 1,
        "mlopsnb.batch.rows": 3,
    }
    assert (request.status.code, model.status.code) == (0, 0)
    [line] = [json.loads(line) for line in runtime.log_lines]
    assert (line["trace_id"], line["span_id"]) == (TRACE, request.span_id.hex())
    assert answer.headers["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"


def test_the_scheme_is_that_of_the_public_address(traced, collector, authority, body):
    certificate, key = authority.issue("server")
    runtime = traced("--tls-certificate", str(certificate), "--tls-key", str(key))
    with contextlib.closing(
        http.client.HTTPSConnection("localhost", runtime.port, timeout=20, context=authority.trusted())
    ) as connection:
        connection.request("POST", INFER, json.dumps(body()))
        assert connection.getresponse().status == 200
    runtime.stop()
    request, *_ = collector.all()
    assert values(request.attributes)["url.scheme"] == "https"


def test_without_a_parent_a_trace_begins_here_and_the_log_names_it(traced, collector, body):
    runtime = traced()
    assert "traceparent" not in runtime.infer(body()).headers
    runtime.get("/v2")  # what is no prediction is not traced
    runtime.stop()
    request, *_ = collector.all()
    assert request.parent_span_id == b""
    predicted, shown = [json.loads(line) for line in runtime.log_lines]
    assert (predicted["trace_id"], predicted["span_id"]) == (request.trace_id.hex(), request.span_id.hex())
    assert "trace_id" not in shown


def test_errors_in_spans(traced, collector, body):
    runtime = traced()
    with socket.create_connection(("127.0.0.1", runtime.port)) as sock:
        sock.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
    while b'code="499"' not in runtime.get("/metrics").body:
        pass
    statuses = [
        runtime.infer(content).status for content in (b"{", body([[666, 0, 0, 0]]), body([[13, 0, 0, 0]]))
    ]
    assert statuses == [400, 422, 500]
    runtime.stop()
    spans = [span for span in collector.all() if span.name.startswith("POST")]
    found = [values(span.attributes) for span in spans]
    told = [
        (a.get("http.response.status_code"), a.get("error.type"), s.status.code)
        for a, s in zip(found, spans, strict=True)
    ]
    assert told == [(None, "client_left", 0), (400, None, 0), (422, None, 0), (500, "500", 2)]


def test_a_request_that_is_cut_has_a_span_for_each_piece(traced, collector, body):
    runtime = traced("--max-batch-size", "4")
    assert runtime.infer(body([[1, 0, 0, 0]] * 10)).status == 200
    runtime.stop()
    request, *parts = collector.all()
    rows = [values(span.attributes)["mlopsnb.batch.rows"] for span in parts if span.name == "model"]
    assert sorted(rows) == [2, 4, 4]
    assert len(parts) == 6
    assert {span.parent_span_id for span in parts} == {request.span_id}


def test_grpc_has_its_own_attributes(traced, collector):
    grpc = pytest.importorskip("grpc")
    from mlopsnb.serving.rpc.messages import SERVICE, message

    runtime = traced("--grpc-port", "0", "--version", "7")
    with grpc.insecure_channel(runtime.report["grpc"]) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for first, status in ((1, "OK"), (666, "INVALID_ARGUMENT"), (13, "INTERNAL")):
            request = message("ModelInferRequest")(model_name="affine")
            contents = request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents
            contents.fp32_contents.extend([first, 2, 3, 4])
            request.inputs.add(name="n", datatype="INT8", shape=[1]).contents.int_contents.append(5)
            metadata = [("traceparent", SAMPLED), ("x-request-id", status)]
            call = infer.future(request.SerializeToString(), metadata=metadata, timeout=30)
            assert call.code().name == status
    runtime.stop()
    spans = [span for span in collector.all() if span.kind == 2]
    assert {span.name for span in spans} == {f"{SERVICE}/ModelInfer"}
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in spans} == {(TRACE, PARENT)}
    common = {
        "mlopsnb.model.name": "affine",
        "mlopsnb.model.version": "7",
        "mlopsnb.request.rows": 1,
        "rpc.method": f"{SERVICE}/ModelInfer",
        "rpc.system.name": "grpc",
    }
    assert [(values(span.attributes), span.status.code) for span in spans] == [
        ({**common, "mlopsnb.request.id": "OK", "rpc.response.status_code": "OK"}, 0),
        (
            {
                **common,
                "mlopsnb.request.id": "INVALID_ARGUMENT",
                "rpc.response.status_code": "INVALID_ARGUMENT",
            },
            0,
        ),
        (
            {
                **common,
                "mlopsnb.request.id": "INTERNAL",
                "rpc.response.status_code": "INTERNAL",
                "error.type": "INTERNAL",
            },
            2,
        ),
    ]


def test_the_caller_decides_and_else_the_sampler_does(traced, collector, body):
    runtime = traced(OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0")
    answers = [
        runtime.infer(body(), headers)
        for headers in ({}, {"traceparent": SAMPLED}, {"traceparent": UNSAMPLED})
    ]
    runtime.stop()
    assert [span.name for span in collector.all()] == [f"POST {INFER}", "queue", "model"]
    found = [answer.headers.get("traceparent", "") for answer in answers]
    assert [re.sub("-[0-9a-f]{16}-", "-SPAN-", text) for text in found] == [
        "",
        f"00-{TRACE}-SPAN-01",
        f"00-{TRACE}-SPAN-00",
    ]
    lines = [json.loads(line) for line in runtime.log_lines]
    assert [line.get("trace_id") for line in lines] == [None, TRACE, TRACE]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("affine", None)),
        ({"OTEL_SERVICE_NAME": "tumor"}, ("tumor", None)),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,team=b"}, ("a", "b")),
    ],
)
def test_the_service_is_named_by_the_environment_or_else_after_the_model(
    traced, collector, body, variables, expected
):
    runtime = traced(**variables)
    runtime.infer(body())
    runtime.stop()
    [resource] = collector.resources
    assert (resource["service.name"], resource.get("team")) == expected


@pytest.mark.parametrize(
    ("environment", "asked", "expected"),
    [
        ({}, False, []),
        ({}, True, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, False, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False, []),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, False, ["otlp", "console"]),
        ({"OTEL_TRACES_EXPORTER": "none"}, True, []),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False, []),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_TRACES_EXPORTER": "otlp"}, True, []),
        ({"OTEL_SERVICE_NAME": "tumor"}, False, []),
    ],
)
def test_what_switches_it_on(environment, asked, expected):
    assert tracing._exporters(environment, asked) == expected


def test_a_collector_that_is_not_there_is_said_once_and_costs_nothing_but_spans(serve, make_package, body):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        runtime = serve(
            make_package(),
            *("--port", "0", "--otel"),
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free.getsockname()[1]}",
            OTEL_BSP_SCHEDULE_DELAY="5",
            OTEL_BSP_MAX_QUEUE_SIZE="8",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4",
        )
        with contextlib.closing(runtime.connect()) as connection:
            while "Transient error" not in runtime.errors or "Queue full" not in runtime.errors:
                timed(connection, body)
            times = [timed(connection, body) for _ in range(300)]
        begin = time.monotonic()
        assert runtime.stop() == 0
        assert time.monotonic() - begin < tracing.FLUSH_SECONDS + 5
    assert statistics.median(times) < 0.1
    lines = runtime.errors.splitlines()
    assert [line[:30] for line in sorted(lines)] == [
        "OpenTelemetry: Queue full, dro",
        "OpenTelemetry: Transient error",
    ]
    assert all(line.endswith("(said once; predictions go on, spans are lost)") for line in lines)


def timed(connection, body):
    begin = time.monotonic()
    connection.request("POST", INFER, json.dumps(body()))
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["outputs"][0]["data"]) == (200, [25.0])
    return time.monotonic() - begin


def test_a_collector_that_never_answers_delays_the_end_by_no_more_than_was_said(serve, make_package, body):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        runtime = serve(
            make_package(),
            *("--port", "0"),
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces",
        )
        assert runtime.infer(body()).status == 200
        begin = time.monotonic()
        assert runtime.stop() == 0
        assert tracing.FLUSH_SECONDS <= time.monotonic() - begin < tracing.FLUSH_SECONDS + 5


@pytest.fixture
def without_otel(tmp_path):
    """A path on which OpenTelemetry cannot be imported."""
    site = tmp_path / "without"
    site.mkdir()
    (site / "opentelemetry.py").write_text(
        "raise ModuleNotFoundError('No module named opentelemetry', name='opentelemetry')\n"
    )
    return site


@pytest.mark.parametrize("asked", [True, False])
def test_where_it_is_not_installed_only_who_asked_is_refused(
    serve, make_package, environment, body, without_otel, asked
):
    path = os.pathsep.join([str(without_otel), environment["PYTHONPATH"]])
    options = ("--otel",) if asked else ()
    runtime = serve(
        make_package(),
        "--port",
        "0",
        *options,
        PYTHONPATH=path,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    if asked:
        assert runtime.process.wait(20) == 4
        assert runtime.report == {
            "ready": False,
            "error": "'opentelemetry-sdk' is not installed",
            "hint": "pip install 'mlopsnb[otel]'",
        }
        return
    assert runtime.infer(body()).status == 200
    runtime.stop()
    assert runtime.errors == (
        "no traces, though OTEL_* asks for them: 'opentelemetry-sdk' is not installed; pip install 'mlopsnb[otel]'\n"
    )


def test_an_exporter_that_is_not_installed_ends_the_start(serve, make_package):
    runtime = serve(make_package(), "--port", "0", OTEL_TRACES_EXPORTER="zipkin")
    assert runtime.process.wait(20) == 2
    assert runtime.report["error"].startswith(
        "no OpenTelemetry exporter 'zipkin' is installed; there are console"
    )
    runtime = serve(make_package("b"), "--port", "0", "--otel", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert runtime.process.wait(20) == 2
    assert runtime.report["hint"].endswith("install opentelemetry-exporter-otlp-proto-grpc")


def test_what_is_off_is_not_even_imported(serve, make_package, body, without_otel, environment):
    path = os.pathsep.join([str(without_otel), environment["PYTHONPATH"]])
    runtime = serve(make_package(), "--port", "0", PYTHONPATH=path)
    assert runtime.infer(body()).status == 200
    assert (runtime.stop(), runtime.errors) == (0, "")


def test_an_answer_from_the_cache_had_no_call_of_the_model(traced, collector, body):
    runtime = traced("--cache-bytes", "1000000")
    assert [runtime.infer(body()).status for _ in range(2)] == [200, 200]
    runtime.stop()
    assert [span.name for span in collector.all()] == [f"POST {INFER}", "queue", "model", f"POST {INFER}"]
