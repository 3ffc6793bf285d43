from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial

import grpc
import numpy as np
import pytest

import mlopsnb
from mlopsnb.serving.rpc.messages import HEALTH, METHODS, NOT_SERVING, SERVICE, SERVING, message


class Stub:
    """The service's calls on a channel, made of the messages alone."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        for name in METHODS:
            call = self.channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=message(f"{name}Request").SerializeToString,
                response_deserializer=message(f"{name}Response").FromString,
            )
            setattr(self, name, call)
        self.Check = self.channel.unary_unary(
            f"/{HEALTH}/Check",
            request_serializer=message("HealthCheckRequest").SerializeToString,
            response_deserializer=message("HealthCheckResponse").FromString,
        )


@pytest.fixture(params=["direct", "aio"])
def lane(request, serve, tmp_path, environment):
    """Start a server whose calls come by each of the lanes: its grpcio lacks what the direct one needs, or not."""
    if request.param == "direct":
        return serve
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "from grpc._cython import cygrpc\ndel cygrpc.SendStatusFromServerOperation\n"
    )
    path = os.pathsep.join((str(site), environment["PYTHONPATH"]))
    return partial(serve, PYTHONPATH=path)


@pytest.fixture
def stub(lane, make_package):
    runtime = lane(make_package(), "--port", "0", "--grpc-port", "0", "--max-body-bytes", "10000")
    stub = Stub(runtime.report["grpc"])
    stub.runtime = runtime
    with stub.channel:
        yield stub


def affine_request(x=((1, 2, 3, 4),), *, name="affine", version="", **more):
    x = np.array(x, np.float32)
    request = message("ModelInferRequest")(model_name=name, model_version=version, **more)
    request.inputs.add(name="x", datatype="FP32", shape=x.shape).contents.fp32_contents.extend(
        x.ravel().tolist()
    )
    request.inputs.add(name="n", datatype="INT8", shape=[len(x)]).contents.int_contents.extend([5] * len(x))
    return request


def refused(call, request, **how):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=how.pop("timeout", 30), **how)
    return caught.value.code().name, caught.value.details()


def test_a_prediction_and_its_log(stub):
    response = stub.ModelInfer(affine_request(id="7"), metadata=[("x-request-id", "abc")], timeout=30)
    assert (response.model_name, response.model_version, response.id) == ("affine", "1", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("y", "FP32", [1]),
        ("sign", "BYTES", [1]),
    ]
    assert list(response.outputs[0].contents.fp32_contents) == [25.0]
    assert list(response.outputs[1].contents.bytes_contents) == [b"+"]
    samples = stub.runtime.get("/metrics").body.decode()
    assert 'mlopsnb_request_total{code="200",model_name="affine",model_version="1"} 1.0' in samples
    assert stub.runtime.stop() == 0
    line = json.loads(stub.runtime.log_lines[0])
    assert {k: line[k] for k in ("request_id", "method", "path", "status", "rows")} == {
        "request_id": "abc",
        "method": "gRPC",
        "path": "/inference.GRPCInferenceService/ModelInfer",
        "status": 200,
        "rows": 1,
    }


def test_what_the_server_says_of_itself(stub):
    assert stub.ServerLive(message("ServerLiveRequest")(), timeout=30).live
    assert stub.ServerReady(message("ServerReadyRequest")(), timeout=30).ready
    assert stub.ModelReady(message("ModelReadyRequest")(name="affine", version="1"), timeout=30).ready
    server = stub.ServerMetadata(message("ServerMetadataRequest")(), timeout=30)
    assert (server.name, server.version) == ("mlopsnb", mlopsnb.__version__)
    model = stub.ModelMetadata(message("ModelMetadataRequest")(name="affine"), timeout=30)
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("x", "FP32", [-1, 4]),
        ("n", "INT8", [-1]),
    ]


def test_statuses(stub):
    here = "this server has 'affine', version '1'"
    assert refused(stub.ModelInfer, affine_request(name="fraud")) == (
        "NOT_FOUND",
        f"no model 'fraud'; {here}",
    )
    assert refused(stub.ModelInfer, affine_request(version="2")) == ("NOT_FOUND", f"no version '2'; {here}")
    assert refused(stub.ModelReady, message("ModelReadyRequest")(name="x"))[0] == "NOT_FOUND"
    assert refused(stub.ModelInfer, affine_request(x=[[1, 2, 3]])) == (
        "INVALID_ARGUMENT",
        "input 'x': expected shape [-1, 4], found [1, 3]; one row is [1, 4]",
    )
    status, told = refused(stub.ModelInfer, affine_request(x=[[666, 0, 0, 0]]))
    assert (status, told[:57]) == (
        "INVALID_ARGUMENT",
        "the model cannot take this input: ValueError: 666 is not ",
    )
    assert refused(stub.ModelInfer, affine_request(x=[[0] * 4] * 1000))[0] == "RESOURCE_EXHAUSTED"
    assert refused(stub.ModelInfer, affine_request(x=[[13, 0, 0, 0]]))[0] == "INTERNAL"
    assert not stub.ServerReady(message("ServerReadyRequest")(), timeout=30).ready


def test_every_answer_tells_its_request_id_and_every_call_is_logged(stub):
    calls = [
        (stub.ModelInfer, affine_request(), 200),
        (stub.ModelInfer, affine_request(name="fraud"), 404),
        (stub.ModelInfer, affine_request(x=[[1, 2, 3]]), 400),
        (stub.ModelReady, message("ModelReadyRequest")(name="fraud"), 404),
        (stub.ServerLive, message("ServerLiveRequest")(), 200),
    ]
    for number, (method, request, _) in enumerate(calls):
        try:
            _, done = method.with_call(request, metadata=[("x-request-id", f"id-{number}")], timeout=30)
        except grpc.RpcError as exc:
            done = exc
        assert dict(done.trailing_metadata())["x-request-id"] == f"id-{number}"
    assert stub.runtime.stop() == 0
    lines = [json.loads(line) for line in stub.runtime.log_lines]
    assert [(line["request_id"], line["status"]) for line in lines] == [
        (f"id-{number}", status) for number, (_, _, status) in enumerate(calls)
    ]


def test_the_standard_health_check(stub):
    request = message("HealthCheckRequest")
    for service in ("", SERVICE):
        assert stub.Check(request(service=service), timeout=30).status == SERVING
    assert refused(stub.Check, request(service="x")) == (
        "NOT_FOUND",
        f"no service 'x'; this server has '{SERVICE}'",
    )
    assert refused(stub.ModelInfer, affine_request(x=[[13, 0, 0, 0]]))[0] == "INTERNAL"
    assert stub.Check(request(), timeout=30).status == NOT_SERVING


def test_what_is_no_call_of_ours_is_refused(stub):
    raw = stub.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    assert refused(raw, b"\xff\xff") == ("INVALID_ARGUMENT", "the message is no ModelInferRequest")
    assert refused(stub.channel.unary_unary(f"/{SERVICE}/ServerLive"), b"\x0f") == (
        "INVALID_ARGUMENT",
        "the message is no ServerLiveRequest",
    )
    assert refused(stub.channel.unary_unary(f"/{SERVICE}/RepositoryIndex"), b"")[0] == "UNIMPLEMENTED"
    assert "Traceback" not in stub.runtime.errors


def gated(lane, make_package, tmp_path, *options):
    os.mkfifo(tmp_path / "gate")
    runtime = lane(
        make_package(), "--port", "0", "--grpc-port", "0", *options, AFFINE_GATE=str(tmp_path / "gate")
    )
    return runtime, Stub(runtime.report["grpc"])


def test_a_deadline_and_a_call_in_work_when_the_server_ends(lane, make_package, tmp_path):
    runtime, stub = gated(lane, make_package, tmp_path)
    with stub.channel:
        working = stub.ModelInfer.future(affine_request(x=[[100, 0, 0, 0]]), timeout=60)
        with (tmp_path / "gate").open("wb"):  # opens when the model reads: the call is in work
            assert refused(stub.ModelInfer, affine_request(), timeout=0.3)[0] == "DEADLINE_EXCEEDED"
            runtime.process.terminate()
            ended = threading.Thread(target=runtime.process.wait)
            ended.start()
            while runtime.process.poll() is None and stub_is_ready(runtime):
                pass
        assert list(working.result(timeout=30).outputs[0].contents.fp32_contents) == [205.0]
        ended.join(30)
    assert runtime.process.returncode == 0


def test_a_compressed_call_is_answered_and_bound_by_what_it_unfolds_to(stub):
    response = stub.ModelInfer(affine_request(), timeout=30, compression=grpc.Compression.Gzip)
    assert list(response.outputs[0].contents.fp32_contents) == [25.0]
    zeros = affine_request(x=[[0] * 4] * 1000)
    assert refused(stub.ModelInfer, zeros, compression=grpc.Compression.Gzip)[0] == "RESOURCE_EXHAUSTED"


def test_calls_that_wait_share_a_call_without_those_that_left(lane, make_package, tmp_path):
    runtime, stub = gated(lane, make_package, tmp_path, "--instances", "1", "--max-queue-rows", "4")
    with stub.channel:
        working = stub.ModelInfer.future(affine_request(x=[[100, 0, 0, 0]]), timeout=60)
        with (tmp_path / "gate").open("wb"):  # opens when the model reads: the call is in work
            waiting = [stub.ModelInfer.future(affine_request(x=[[n, 0, 0, 0]])) for n in range(4)]
            wait_for(runtime, "mlopsnb_queue_rows", 4)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(affine_request(), timeout=60)
            waiting[0].cancel()
            wait_for(runtime, "mlopsnb_queue_rows", 3)
            with pytest.raises(grpc.RpcError) as late:
                stub.ModelInfer(affine_request(), timeout=0.3)
            wait_for(runtime, "mlopsnb_queue_rows", 3)
        answers = [call.result(timeout=30) for call in (working, *waiting[1:])]
    assert caught.value.code().name == "UNAVAILABLE"
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    assert late.value.code().name == "DEADLINE_EXCEEDED"
    assert [list(a.outputs[0].contents.fp32_contents) for a in answers] == [[205.0], [7.0], [9.0], [11.0]]
    assert [sample(runtime, f"mlopsnb_batch_size_{what}") for what in ("sum", "count")] == [4, 2]
    assert runtime.stop() == 0
    statuses = [json.loads(line)["status"] for line in runtime.log_lines if "gRPC" in line]
    assert sorted(statuses) == [200] * 4 + [499, 503, 504]


def sample(runtime, name):
    lines = runtime.get("/metrics").body.decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def wait_for(runtime, name, value):
    while sample(runtime, name) != value:
        pass


def stub_is_ready(runtime):
    try:
        with grpc.insecure_channel(runtime.report["grpc"]) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/ServerReady",
                request_serializer=message("ServerReadyRequest").SerializeToString,
                response_deserializer=message("ServerReadyResponse").FromString,
            )
            return call(message("ServerReadyRequest")(), timeout=1).ready
    except grpc.RpcError:
        return False


def test_a_port_that_is_taken_is_an_error(serve, make_package):
    first = serve(make_package(), "--port", "0", "--grpc-port", "0")
    port = first.report["grpc"].rpartition(":")[2]
    second = serve(make_package("other"), "--port", "0", "--grpc-port", port)
    assert second.report == {
        "ready": False,
        "error": f"cannot listen on 127.0.0.1:{port} for gRPC",
        "hint": "choose another port with --grpc-port, or 0 for any that is free",
    }
    assert second.process.wait(30) == 5


def test_a_message_that_is_none_is_the_clients_fault(serve, make_package):
    runtime = serve(make_package(), "--port", "0", "--grpc-port", "0")
    with grpc.insecure_channel(runtime.report["grpc"]) as channel:
        for method in ("ModelInfer", "ModelMetadata"):
            with pytest.raises(grpc.RpcError) as failed:
                channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff" * 100, timeout=20)
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    runtime.stop()
    assert runtime.errors == ""


def test_grpc_is_loaded_where_it_is_asked_for_alone():
    code = "import sys, mlopsnb.serving.app, mlopsnb.serving.server, mlopsnb.serving.__main__; print('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
