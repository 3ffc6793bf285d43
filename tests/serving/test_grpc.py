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
from hypothesis import given, settings
from hypothesis import strategies as st

import mlopsnb
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.rpc import codec
from mlopsnb.serving.rpc.codec import Codec
from mlopsnb.serving.rpc.messages import HEALTH, METHODS, NOT_SERVING, SERVICE, SERVING, message

CONTENTS = {
    "bool": "bool_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "str": "bytes_contents",
}


def every(dtype):
    if dtype == "str":
        return np.array([["", "naïve"], ["日本", "a\nb"]], object)
    if dtype == "bool":
        return np.array([[True, False], [False, False]])
    limits = np.iinfo(dtype) if "int" in dtype else np.finfo(dtype)
    return np.array([[limits.min, 0], [1, limits.max]], dtype)


def signature_of(dtype, *, allow_nan=False):
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=(None, 2), allow_nan=allow_nan),),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=(None, 2)),),
    )


def request_of(array, *, raw=None, datatype=None, name="x", **more):
    dtype = "str" if array.dtype == object else array.dtype.name
    request = message("ModelInferRequest")(model_name="m", **more)
    tensor = request.inputs.add(name=name, datatype=datatype or v2.DATATYPES[dtype], shape=array.shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    else:
        values = array.ravel().tolist()
        getattr(tensor.contents, CONTENTS[dtype]).extend(
            [v.encode() if isinstance(v, str) else v for v in values]
        )
    return request


@pytest.mark.parametrize("dtype", sorted(CONTENTS))
def test_typed_contents_are_read_and_answered(dtype):
    array = every(dtype)
    request = codec.decode(request_of(array, id="5"), signature_of(dtype))
    found = request.inputs["x"]
    assert (found.dtype, found.tolist(), request.rows, request.id) == (array.dtype, array.tolist(), 2, "5")
    encoded = Codec(signature_of(dtype), name="m", version="1").encode(request, {"y": array})
    response = message("ModelInferResponse").FromString(encoded)
    assert (response.id, list(response.outputs[0].shape), len(response.raw_output_contents)) == (
        "5",
        [2, 2],
        0,
    )
    again = request_of(array)
    assert response.outputs[0].contents == again.inputs[0].contents


def bad(mutate, dtype="float32", array=None):
    request = request_of(np.zeros((1, 2), dtype) if array is None else array)
    mutate(request)
    with pytest.raises(BadRequest) as caught:
        codec.decode(request, signature_of(dtype))
    return caught.value.message


def test_bad_requests_say_what_is_wrong():
    def both(r):
        r.raw_input_contents.append(b"\0" * 8)

    def parts(r):
        r.raw_input_contents.extend([b"", b""])

    def short(r):
        del r.inputs[0].contents.fp32_contents[1:]

    def nan(r):
        r.inputs[0].contents.fp32_contents[1] = float("nan")

    def beyond(r):
        r.inputs[0].contents.int_contents[1] = 128

    def text(r):
        r.inputs[0].contents.bytes_contents[0] = b"\xff"

    assert bad(both) == "input 'x' has both contents and raw_input_contents"
    assert bad(parts) == "raw_input_contents should have 1 parts, one an input, found 2"
    assert bad(short) == "input 'x': shape [1, 2] takes 2 values, found 1"
    assert bad(nan) == "input 'x': expected a number, found NaN at element 1"
    assert (
        bad(beyond, "int8") == "input 'x': expected a whole number from -128 to 127, found 128 at element 1"
    )
    assert bad(text, "str", np.array([["a", "b"]], object)) == (
        "input 'x': element 0 is not UTF-8 text: invalid start byte"
    )
    assert bad(lambda r: r.inputs.add(name="z")) == "unknown input 'z'; the model's inputs are x"
    assert bad(lambda r: r.outputs.add(name="z")) == "unknown output 'z'; the model's outputs are y"
    assert bad(lambda r: r.outputs.add(name="y").parameters["classification"]) == (
        "output 'y': the classification extension is not supported"
    )
    assert bad(lambda r: r.inputs[0].shape.append(1)) == (
        "input 'x': expected shape [-1, 2], found [1, 2, 1]; one row is [1, 2]"
    )


@pytest.mark.parametrize("dtype", sorted(v2.DATATYPES))
@settings(max_examples=50, deadline=None)
@given(
    raw=st.binary(max_size=40) | st.none(),
    shape=st.lists(st.integers(-1, 4) | st.just(2**62), min_size=2, max_size=2),
    contents=st.binary(max_size=30),
)
def test_any_message_is_a_request_or_a_bad_request(dtype, raw, shape, contents):
    request = message("ModelInferRequest")()
    tensor = request.inputs.add(name="x", datatype=v2.DATATYPES[dtype], shape=shape)
    if raw is None:
        tensor.contents.int_contents.extend(contents)
        tensor.contents.fp32_contents.extend(contents)
        tensor.contents.bytes_contents.append(contents)
    else:
        request.raw_input_contents.append(raw)
    try:
        found = codec.decode(request, signature_of(dtype))
    except BadRequest:
        return
    assert list(found.inputs["x"].shape) == shape


def plain_signature():
    return Signature(
        inputs=(
            TensorSpec(name="x", dtype="float32", shape=(None, 2)),
            TensorSpec(name="n", dtype="int8", shape=(None,)),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
    )


@settings(max_examples=300, deadline=None)
@given(
    names=st.lists(st.sampled_from(["x", "n", "z"]), min_size=1, max_size=3),
    rows=st.sampled_from([(0, 0), (2, 2), (2, 1), (-1, 2)]),
    datatypes=st.sampled_from([("FP32", "INT8"), ("INT8", "INT8"), ("FP64", "INT8")]),
    raw=st.sampled_from([0, 1, None]),
    more=st.sampled_from(["", "contents", "nan", "outputs", "axis", "id"]),
)
def test_the_short_way_reads_what_the_long_way_reads(names, rows, datatypes, raw, more):
    request = message("ModelInferRequest")(id="5" if more == "id" else "")
    for name in names:
        second = name == "n"
        shape = [rows[second]] if second else [rows[0], 2, *[1] * (more == "axis")]
        tensor = request.inputs.add(name=name, datatype=datatypes[second], shape=shape)
        if more == "contents":
            tensor.contents.fp32_contents.append(1)
        if raw is not None:
            size = max(rows[second], 0) * (1 if second else 8) + raw
            fill = b"\xff" if more == "nan" else b"\0"
            request.raw_input_contents.append(fill * size)
    if more == "outputs":
        request.outputs.add(name="y")
    found = []
    for way in (
        Codec(plain_signature(), name="m", version="1").decode,
        lambda r: codec.decode(r, plain_signature()),
    ):
        try:
            read = way(request)
        except BadRequest as exc:
            found.append(exc.message)
        else:
            arrays = {k: (a.dtype, a.shape, a.tolist()) for k, a in read.inputs.items()}
            found.append((arrays, read.rows, read.id, read.outputs, read.binary))
    assert found[0] == found[1]


def test_a_tensor_without_axes_is_refused_in_the_short_way_too():
    request = message("ModelInferRequest")(model_name="m")
    for spec in plain_signature().inputs:
        request.inputs.add(name=spec.name, datatype=v2.DATATYPES[spec.dtype])
        request.raw_input_contents.append(b"")
    with pytest.raises(BadRequest, match="expected shape"):
        Codec(plain_signature(), name="m", version="1").decode(request)


def test_answers_of_raw_bytes():
    made = Codec(plain_signature(), name="m", version="1")
    for rows in (1, 0, 3, 1):
        for request_id in (None, "17"):
            request = v2.InferRequest(inputs={}, rows=rows, id=request_id, binary=frozenset("y"))
            y = np.arange(rows, dtype=np.float32)
            response = message("ModelInferResponse").FromString(made.encode(request, {"y": y}))
            assert (response.model_name, response.model_version, response.id) == ("m", "1", request_id or "")
            assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [("y", "FP32", [rows])]
            assert list(response.raw_output_contents) == [y.tobytes()]


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
