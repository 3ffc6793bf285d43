from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import grpc
import numpy as np
import pytest
import torch

import mlopsnb as ml
from mlopsnb import manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving.fallback import differences
from mlopsnb.serving.rpc.messages import SERVICE, message

PATHS = ["/v2/models/affine/infer", "/v2/models/affine/infer?not=plain"]
BREAKS, SLOW, QUICK, REJECTED = ([[n, 0, 0, 0]] for n in (13, 100, 1, 666))
MAIN, SPARE = 2.0 + 5, 10.0 + 5  # what each answers to QUICK


@pytest.fixture
def spare(make_package):
    """A fallback that answers other values, and breaks at nothing."""
    return make_package("spare", scale=10.0, sturdy=True)


@pytest.fixture
def both(serve, make_package, spare, gate):
    def start(*options):
        return serve(make_package(), "--port", "0", "--fallback", str(spare), *options, AFFINE_GATE=str(gate))

    return start


def told(connection):
    """Return the status of an answer, y's first value, and what the answer says of a fallback."""
    answer = connection.getresponse()
    content = json.loads(answer.read())
    value = content["outputs"][0]["data"][0] if answer.status == 200 else content["error"]
    return answer.status, value, answer.getheader("x-model-degraded"), answer.getheader("x-model-fallback")


def answered(runtime, name="affine"):
    label = f'model_name="{name}",model_version="1"'
    found = runtime.samples("mlopsnb_fallback_total")
    return {
        reason: found[f'mlopsnb_fallback_total{{{label},reason="{reason}"}}']
        for reason in ("failure", "overloaded", "deadline")
    }


def wait_for(runtime, name, value):
    while list(runtime.samples(f"{name}{{").values()) != [value]:
        pass


def keep_busy(runtime, client):
    slow = client(runtime, SLOW)
    wait_for(runtime, "mlopsnb_request_in_progress", 1)
    wait_for(runtime, "mlopsnb_queue_rows", 0)
    return slow


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [(), ("--cache-bytes", "1MB"), ("--instances", "1")])
def test_it_answers_when_the_model_has_failed(both, spare, client, path, options):
    runtime = both(*options)
    digest = manifest.read(spare).digest
    assert told(client(runtime, QUICK, path)) == (200, MAIN, None, None)
    assert runtime.get("/v2/models/affine").json()["parameters"]["fallback"]["model_failed"] is False
    assert told(client(runtime, BREAKS, path)) == (200, 5.0, "fallback", digest)
    assert told(client(runtime, QUICK, path)) == (200, SPARE, "fallback", digest)
    assert runtime.get("/ready").status == runtime.get("/v2/health/ready").status == 200
    shown = runtime.get("/v2/models/affine").json()["parameters"]["fallback"]
    assert {k: shown[k] for k in ("digest", "format", "ready", "model_failed")} == {
        "digest": digest,
        "format": "affine",
        "ready": True,
        "model_failed": True,
    }
    assert answered(runtime) == {"failure": 2, "overloaded": 0, "deadline": 0}
    assert list(runtime.samples("mlopsnb_degraded{").values()) == [1]
    runtime.stop()
    lines = [json.loads(line) for line in runtime.log_lines if '"POST"' in line]
    assert [(line["status"], line.get("fallback")) for line in lines] == [
        (200, None),
        (200, "failure"),
        (200, "failure"),
    ]


@pytest.mark.parametrize("path", PATHS)
def test_it_answers_what_the_model_has_no_room_for(both, client, gate, path):
    runtime = both("--instances", "1", "--max-queue-rows", "1")
    slow = keep_busy(runtime, client)
    waits = client(runtime, QUICK, path)
    wait_for(runtime, "mlopsnb_queue_rows", 1)
    assert told(client(runtime, QUICK, path))[:3] == (200, SPARE, "fallback")
    gate.write_bytes(b"")
    assert [told(one)[:3] for one in (slow, waits)] == [(200, 205.0, None), (200, MAIN, None)]
    assert answered(runtime) == {"failure": 0, "overloaded": 1, "deadline": 0}
    assert list(runtime.samples("mlopsnb_degraded{").values()) == [0]


@pytest.mark.parametrize("path", PATHS)
def test_it_answers_what_the_model_would_answer_too_late(both, client, gate, path):
    runtime = both("--instances", "1")
    slow = keep_busy(runtime, client)
    late = client(runtime, QUICK, path, {"x-request-timeout": "0.05"})
    assert told(late)[:3] == (200, SPARE, "fallback")
    gate.write_bytes(b"")
    assert told(slow)[:3] == (200, 205.0, None)
    assert answered(runtime) == {"failure": 0, "overloaded": 0, "deadline": 1}
    assert list(runtime.samples("mlopsnb_batch_size_sum").values()) == [1]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_wrong_with_a_request_is_not_tried_elsewhere(both, client, path):
    runtime = both()
    status, message, degraded, _ = told(client(runtime, REJECTED, path))
    assert (status, message[:57], degraded) == (
        422,
        "the model cannot take this input: ValueError: 666 is not ",
        None,
    )
    assert told(client(runtime, [[1, 2]], path))[0] == 400
    assert answered(runtime) == {"failure": 0, "overloaded": 0, "deadline": 0}


def test_if_it_fails_as_well_the_answer_is_what_the_model_said(serve, make_package, client):
    runtime = serve(make_package(), "--port", "0", "--fallback", str(make_package("spare")))
    first = told(client(runtime, BREAKS))
    assert (first[0], first[1][:48], first[2]) == (
        500,
        "the model fails, on its own example too: Runtime",
        None,
    )
    assert told(client(runtime, QUICK))[:2] == (500, "the model has failed, and so has the fallback")
    assert runtime.get("/ready").status == 503
    assert answered(runtime) == {"failure": 0, "overloaded": 0, "deadline": 0}


def test_what_it_answers_is_not_kept(both, client, gate):
    runtime = both("--instances", "1", "--max-queue-rows", "1", "--cache-bytes", "1MB")
    slow = keep_busy(runtime, client)
    waits = client(runtime, [[2, 0, 0, 0]])
    wait_for(runtime, "mlopsnb_queue_rows", 1)
    assert told(client(runtime, QUICK))[:3] == (200, SPARE, "fallback")
    gate.write_bytes(b"")
    for one in (slow, waits):
        one.getresponse().read()
    assert told(client(runtime, QUICK))[:3] == (200, MAIN, None)


def test_over_grpc(both, spare):
    runtime = both("--grpc-port", "0", "--cache-bytes", "1MB")
    with grpc.insecure_channel(runtime.report["grpc"]) as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=message("ModelInferRequest").SerializeToString,
            response_deserializer=message("ModelInferResponse").FromString,
        )

        def call(value, **metadata):
            request = message("ModelInferRequest")(model_name="affine")
            x = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
            x.contents.fp32_contents.extend([value, 0, 0, 0])
            request.inputs.add(name="n", datatype="INT8", shape=[1]).contents.int_contents.append(5)
            response, done = infer.with_call(request, timeout=30, metadata=list(metadata.items()))
            headers = {k: v for k, v in done.trailing_metadata() if k.startswith(("x-model", "cache"))}
            return response.outputs[0].contents.fp32_contents[0], headers

        assert call(1) == (MAIN, {"cache-status": "mlopsnb; fwd=miss; stored"})
        assert call(1) == (MAIN, {"cache-status": "mlopsnb; hit"})
        with pytest.raises(grpc.RpcError) as caught:
            call(2, **{"cache-control": "only-if-cached"})
        assert (caught.value.code().name, caught.value.details()) == (
            "DEADLINE_EXCEEDED",
            "only-if-cached, but the answers to 1 of 1 rows are not kept",
        )
        told = {"x-model-degraded": "fallback", "x-model-fallback": manifest.read(spare).digest}
        assert call(13) == (5.0, told)
        assert call(1) == (SPARE, told)


def rewritten(package, **changes):
    """Change the signature of a package."""
    now = manifest.read(package)
    manifest.write(package, replace(now, signature=replace(now.signature, **changes)))
    return package


def test_another_signature_is_refused(serve, make_package, signature):
    x, n = signature.inputs
    other = rewritten(make_package("other"), inputs=(replace(x, allow_nan=False), replace(n, dtype="int16")))
    runtime = serve(make_package(), "--port", "0", "--fallback", str(other))
    assert runtime.report == {
        "ready": False,
        "error": f"{other} cannot be the fallback: input 'x' may have missing values, which the fallback does not "
        "take; input 'n' is int8 for the model and int16 for the fallback",
        "hint": "a fallback takes all inputs of the model and gives the same outputs",
    }
    assert runtime.process.wait(30) == 3


def test_a_fallback_that_cannot_be_loaded(serve, make_package, tmp_path):
    main = make_package()
    nowhere = serve(main, "--port", "0", "--fallback", str(tmp_path / "nowhere"))
    assert nowhere.report["error"].startswith("the fallback: ")
    assert nowhere.process.wait(30) == 3
    exploding = serve(main, "--port", "0", "--fallback", str(make_package("bad", explode="no weights")))
    assert exploding.report["error"].startswith("the fallback: ")
    assert "no weights" in exploding.report["error"]
    assert exploding.process.wait(30) == 4


X = TensorSpec(name="x", dtype="float32", shape=(None, 3), feature_names=("a", "b", "c"))
Y = TensorSpec(name="y", dtype="float32", shape=(None, 3))
MODEL = Signature(inputs=(X,), outputs=(Y,))
SPARES = {
    "the same": (MODEL, []),
    "takes more": (
        Signature(
            inputs=(replace(X, shape=(None, None), allow_nan=True, feature_names=()),),
            outputs=(Y,),
        ),
        [],
    ),
    "takes less": (
        Signature(inputs=(replace(X, shape=(2, 3)),), outputs=(Y,)),
        ["input 'x' has the shape [-1, 3] for the model and [2, 3] for the fallback"],
    ),
    "gives more": (
        Signature(inputs=(X,), outputs=(replace(Y, shape=(None, None)),)),
        ["output 'y' has the shape [-1, 3] for the model and [-1, -1] for the fallback"],
    ),
    "other rank and dtype": (
        Signature(inputs=(X,), outputs=(replace(Y, shape=(None,), dtype="float64"),)),
        [
            "output 'y' is float32 for the model and float64 for the fallback",
            "output 'y' has the shape [-1, 3] for the model and [-1] for the fallback",
        ],
    ),
    "other order of features": (
        Signature(inputs=(replace(X, feature_names=("b", "a", "c")),), outputs=(Y,)),
        ["input 'x' has other features, or in another order"],
    ),
    "other names": (
        Signature(inputs=(replace(X, name="z"),), outputs=(Y, replace(Y, name="w"))),
        ["the model's inputs are x, the fallback's z", "the model's outputs are y, the fallback's y, w"],
    ),
}


@pytest.mark.parametrize("name", SPARES)
def test_what_can_stand_in(name):
    spare, wrong = SPARES[name]
    assert differences(MODEL, spare) == wrong


def test_outputs_that_are_larger_than_the_models_free_axes_are_fine():
    free = Signature(inputs=(X,), outputs=(replace(Y, shape=(None, None)),))
    assert differences(free, MODEL) == []


def test_a_small_torch_model_stands_in_for_a_large_one_under_load(serve, tmp_path):
    class Large(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.full((500, 500), 1e-3))

        def forward(self, x):
            y = self.w + x.sum(dim=1)[:, None, None]
            for _ in range(3):
                y = y @ self.w
            return x * 2 + 0 * y.sum(dim=(1, 2))[:, None]

    class Small(torch.nn.Module):
        def forward(self, x):
            return x * 3

    example = np.arange(4, dtype=np.float32).reshape(2, 2)
    large = ml.export(Large(), {"x": example}, into=tmp_path / "line")
    small = ml.export(Small(), {"x": example}, into=tmp_path / "small")
    options = ("--port", "0", "--fallback", str(small.path), "--instances", "1", "--max-queue-rows", "1")
    runtime = serve(large.path, *options)
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
    with contextlib.ExitStack() as stack:
        open_ones = [stack.enter_context(contextlib.closing(runtime.connect())) for _ in range(12)]
        for connection in open_ones:
            connection.request("POST", "/v2/models/line/infer", body)
        answers = [connection.getresponse() for connection in open_ones]
        found = [
            (json.loads(a.read())["outputs"][0]["data"], a.getheader("x-model-fallback")) for a in answers
        ]
    by_large, by_small = ([2.0, 4.0], None), ([3.0, 6.0], small.digest)
    assert {str(one) for one in found} == {str(by_large), str(by_small)}
    assert answered(runtime, "line")["overloaded"] == found.count(by_small)
