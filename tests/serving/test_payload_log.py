from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import numpy as np
import orjson
import pytest

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import v2
from mlopsnb.serving.calls import begin
from mlopsnb.serving.errors import BadOption, BadRequest
from mlopsnb.serving.payloads import PayloadLog, check_mask

INFER = "/v2/models/affine/infer"
SECRET = 73125.25
"""A value that is nowhere else: not in a time, an id or a duration."""

TABLE = Signature(
    inputs=(
        TensorSpec(name="table", dtype="float32", shape=(None, 3), feature_names=("age", "income", "score")),
        TensorSpec(name="note", dtype="str", shape=(None,)),
    ),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
)


class Kept(list):
    def write(self, data):
        self.append(data)

    def flush(self):
        pass


class Loop:
    """In the place of the event loop: what is noted is written when the test flushes."""

    def call_later(self, seconds, callback):
        pass


@pytest.fixture
def write(monkeypatch):
    monkeypatch.setattr("mlopsnb.serving.requestlog.asyncio.get_running_loop", Loop)

    def lines(calls, signature=TABLE, **options):
        kept = Kept()
        log = PayloadLog(kept, signature, **{"rate": 1.0, **options})
        for request_id, rows, inputs, outcome in calls:
            call = begin("POST", INFER, {b"x-request-id": request_id.encode()}, [])
            call.rows = rows
            log.write(call, 422 if isinstance(outcome, Exception) else 200, inputs, outcome)
        log.flush()
        return b"".join(kept).splitlines(keepends=True)

    return lines


def table(rows=2, *, note="n"):
    x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) / 10
    notes = np.array([f"{note}{n}" for n in range(rows)], dtype=object)
    return {"table": x, "note": notes}, {"y": np.arange(rows, dtype=np.float32)}


def test_a_line_says_what_went_in_and_what_came_out(write):
    inputs, outputs = table()
    inputs["table"][0, 0] = math.nan
    [line] = write([("a", 2, inputs, outputs)], about={"model": "m", "version": "7"})
    found = json.loads(line)
    assert found.pop("time")[:2] == "20"
    assert found == {
        "request_id": "a",
        "status": 200,
        "rows": 2,
        "model": "m",
        "version": "7",
        "inputs": {
            "table": {"age": [None, 0.3], "income": [0.1, 0.4], "score": [0.2, 0.5]},
            "note": ["n0", "n1"],
        },
        "outputs": {"y": [0.0, 1.0]},
    }


def test_what_is_masked_is_not_there_whatever_it_is(write):
    inputs, outputs = table()
    found = [
        {k: json.loads(write([("a", 2, inputs, outputs)], mask=[name])[0])[k] for k in ("inputs", "outputs")}
        for name in ("table", "note", "y", "income")
    ]
    columns = {"age": [0.0, 0.3], "income": [0.1, 0.4], "score": [0.2, 0.5]}
    assert found == [
        {"inputs": {"table": "***", "note": ["n0", "n1"]}, "outputs": {"y": [0.0, 1.0]}},
        {"inputs": {"table": columns, "note": "***"}, "outputs": {"y": [0.0, 1.0]}},
        {"inputs": {"table": columns, "note": ["n0", "n1"]}, "outputs": {"y": "***"}},
        {
            "inputs": {"table": {**columns, "income": "***"}, "note": ["n0", "n1"]},
            "outputs": {"y": [0.0, 1.0]},
        },
    ]


def test_a_feature_that_is_no_column_of_a_table_masks_the_whole_input(write):
    cube = replace(TABLE.inputs[0], shape=(None, 2, 3))
    inputs = {"table": np.ones((1, 2, 3), np.float32)}
    signature = Signature(inputs=(cube,), outputs=())
    assert json.loads(write([("a", 1, inputs, {})], signature, mask=["age"])[0])["inputs"] == {"table": "***"}
    assert json.loads(write([("a", 1, inputs, {})], signature)[0])["inputs"] == {
        "table": [[[1, 1, 1], [1, 1, 1]]]
    }


def test_of_an_error_the_inputs_are_logged_and_not_its_words(write):
    inputs, _ = table()
    [line] = write([("a", 2, inputs, BadRequest("secret", kind="rejected"))], mask=["table"])
    found = json.loads(line)
    assert (found["status"], found["inputs"], found["outputs"]) == (
        422,
        {"table": "***", "note": ["n0", "n1"]},
        {},
    )
    assert b"secret" not in line


@pytest.mark.parametrize("most", [300, 1000, 16_384])
def test_a_line_is_never_longer_than_allowed_and_says_if_rows_are_missing(write, most):
    for rows in (0, 1, 5, 40, 20_000):
        inputs, outputs = table(rows)
        [line] = write([("a", rows, inputs, outputs)], max_bytes=most)
        found = json.loads(line)
        assert len(line) <= most
        shown = len(found["outputs"].get("y", []))
        assert found["rows"] == rows
        assert found.get("truncated", False) == (shown < rows)
        assert found["inputs"].get("note", []) == [f"n{n}" for n in range(shown)]
        if rows:
            more = orjson.dumps(found["inputs"]["note"][-1:])
            assert shown == rows or len(line) > most / 2, more


def test_a_text_longer_than_the_line_is_left_out(write):
    inputs, outputs = table(1, note="x" * 1_000_000)
    [line] = write([("a", 1, inputs, outputs)])
    found = json.loads(line)
    assert (found["inputs"], found["outputs"], found["truncated"]) == ({}, {}, True)


@pytest.mark.parametrize("dtype", sorted(v2.DATATYPES))
def test_every_dtype_can_be_logged(write, dtype):
    signature = Signature(
        inputs=(
            TensorSpec(name="x", dtype=dtype, shape=(None,)),
            TensorSpec(name="s", dtype=dtype, shape=()),
        ),
        outputs=(),
    )
    x = np.array(["é", ""], object) if dtype == "str" else np.array([1, 0], dtype)
    [line] = write([("a", 2, {"x": x, "s": np.array(x[0], x.dtype)}, {})], signature)
    assert json.loads(line)["inputs"] == {"x": x.tolist(), "s": x.tolist()[0]}


def test_which_requests_are_logged_follows_from_their_ids(write):
    ids = [f"{n:032x}" for n in range(20_000)]
    inputs, outputs = table(1)
    calls = [(request_id, 1, inputs, outputs) for request_id in ids]
    found = {
        rate: [json.loads(line)["request_id"] for line in write(calls, rate=rate)]
        for rate in (0.01, 0.1, 1.0)
    }
    for rate, logged in found.items():
        expected, spread = rate * len(ids), math.sqrt(rate * (1 - rate) * len(ids))
        assert abs(len(logged) - expected) <= 4 * spread
    assert set(found[0.01]) <= set(found[0.1])
    assert found[1.0] == ids
    assert [json.loads(line)["request_id"] for line in write(calls, rate=0.01)] == found[0.01]


def test_an_unknown_name_is_refused_with_the_nearest():
    check_mask(["age", "y", "note"], TABLE)
    with pytest.raises(BadOption) as caught:
        check_mask(["incom"], TABLE)
    assert (caught.value.message, caught.value.hint) == (
        "there is no 'incom' to mask; the model has table, note, y and the features age, income, score",
        "did you mean 'income'?",
    )


def test_a_payload_that_cannot_be_written_harms_no_answer(write, caplog):
    inputs, outputs = table(1)
    inputs["note"][0] = "secret\ud800"  # no UTF-8
    assert write([("a", 1, inputs, outputs)]) == []
    assert "the payload of request a cannot be logged" in caplog.text
    assert "secret" not in caplog.text


def everything(runtime):
    return "\n".join([*runtime.log_lines, runtime.errors])


def ask_in_all_ways(runtime, body, value):
    """Send *value* by every protocol and lane, well and badly; return how many requests could be decoded."""
    x = [[value, 2, 3, 4]]
    good = json.dumps(body(x))
    binary, length = v2.encode_binary_request({"x": np.array(x, "float32"), "n": np.array([5], "int8")})
    kind = {"content-type": "application/json"}
    bad = f"{value}"
    sent = [
        (INFER, good, {}),
        (f"{INFER}?slow", good, {}),
        (INFER, binary, {"inference-header-content-length": str(length)}),
        ("/v1/models/affine:predict", json.dumps({"instances": [{"x": x[0], "n": 5}]}), {}),
        ("/invocations", json.dumps({"inputs": {"x": x, "n": [5]}}), kind),
        (INFER, json.dumps(body([[666, value, 0, 0]])), {}),  # rejected by the model
    ]
    refused = [
        (INFER, json.dumps(body(x={"data": [bad, 0, 0, 0]})), {}),
        (f"{INFER}?slow", json.dumps(body(x={"data": [bad, 0, 0, 0]})), {}),
        (INFER, f"{value}", {}),
        ("/v1/models/affine:predict", json.dumps({"instances": [{"x": [bad], "n": 5}]}), {}),
        ("/invocations", json.dumps({"inputs": {"x": [[bad]], "n": [bad]}}), kind),
    ]
    statuses = [runtime.request("POST", path, content, headers).status for path, content, headers in sent]
    assert statuses == [200] * 5 + [422]
    for path, content, headers in refused:
        assert 400 <= runtime.request("POST", path, content, headers).status < 500
    return len(sent)


@pytest.mark.parametrize("options", [(), ("--log-payloads", "1", "--mask", "x,y")], ids=["off", "masked"])
def test_a_value_that_must_not_be_logged_is_nowhere_in_the_log(serve, make_package, body, options):
    runtime = serve(make_package(), "--port", "0", *options)
    logged = ask_in_all_ways(runtime, body, SECRET)
    assert runtime.infer(body([[13, SECRET, 0, 0]])).status == 500  # and with this the model is broken
    assert runtime.stop() == 0
    found = everything(runtime)
    assert "73125" not in found
    assert "failed" in runtime.errors
    payloads = [line for line in map(json.loads, runtime.log_lines) if "inputs" in line]
    assert len(payloads) == (logged + 1 if options else 0)
    assert all((p["inputs"]["x"], p["inputs"]["n"]) == ("***", [5]) for p in payloads)
    assert {json.dumps(p["outputs"]) for p in payloads} <= {'{"y": "***", "sign": ["+"]}', "{}"}


def test_a_model_that_quotes_its_input_in_an_error_is_not_quoted_in_the_log(
    serve, make_package, body, tmp_path
):
    module = tmp_path / "site"
    module.mkdir()
    (module / "quoting.py").write_text(
        "class Quoting:\n"
        "    def load(self, path, signature):\n"
        "        def predict(inputs):\n"
        "            if inputs['x'].max() > 70000:\n"
        "                self.broken = True\n"
        "            if getattr(self, 'broken', False):\n"
        "                raise KeyError(f'cannot take {inputs}')\n"
        "            return {'y': inputs['x'][:, 0], 'sign': inputs['x'][:, 0].astype(str).astype(object)}\n"
        "        return predict\n"
    )
    info = module / "quoting-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quoting\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mlopsnb.formats]\nquoting = quoting:Quoting\n")
    path = os.pathsep.join(filter(None, (str(module), os.environ.get("PYTHONPATH"))))
    runtime = serve(make_package(format="quoting"), "--port", "0", PYTHONPATH=path)
    assert runtime.infer(body([[SECRET, 0, 0, 0]])).status == 500
    assert runtime.stop() == 0
    assert "73125" not in everything(runtime)
    assert "builtins.KeyError" in runtime.errors  # where it came from is told all the same
    assert "quoting.py" in runtime.errors


def test_payloads_of_grpc_and_a_file_of_their_own(serve, make_package, body, tmp_path):
    grpc = pytest.importorskip("grpc")
    from mlopsnb.serving.rpc.messages import SERVICE, message

    file = tmp_path / "payloads.log"
    options = ("--grpc-port", "0", "--log-payloads", "1", "--log-payload-file", file, "--mask", "n")
    runtime = serve(make_package(), "--port", "0", *options)
    with grpc.insecure_channel(runtime.report["grpc"]) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for first, status in ((1, "OK"), (666, "INVALID_ARGUMENT")):
            request = message("ModelInferRequest")(model_name="affine")
            contents = request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents
            contents.fp32_contents.extend([first, 2, 3, 4])
            request.inputs.add(name="n", datatype="INT8", shape=[1]).contents.int_contents.append(5)
            metadata = [("x-request-id", f"r{first}")]
            call = infer.future(request.SerializeToString(), metadata=metadata, timeout=30)
            assert call.code().name == status
    runtime.infer(body(), {"x-request-id": "http"})
    assert runtime.stop() == 0
    found = [json.loads(line) for line in file.read_text().splitlines()]
    told = [(p["request_id"], p["status"], p["inputs"], p["outputs"]) for p in found]
    x = {"x": [[1.0, 2.0, 3.0, 4.0]], "n": "***"}
    assert told == [
        ("r1", 200, x, {"y": [25.0], "sign": ["+"]}),
        ("r666", 422, {"x": [[666.0, 2.0, 3.0, 4.0]], "n": "***"}, {}),
        ("http", 200, x, {"y": [25.0], "sign": ["+"]}),
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any("inputs" in line for line in runtime.log_lines)


def test_an_unknown_mask_ends_the_start(serve, make_package):
    runtime = serve(make_package(), "--port", "0", "--mask", "x,sing")
    assert runtime.process.wait(20) == 2
    assert runtime.report == {
        "ready": False,
        "error": "there is no 'sing' to mask; the model has x, n, y, sign",
        "hint": "did you mean 'sign'?",
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--log-payloads", "0"), "'0' is no share of requests; expected a number above 0 and up to 1"),
        (("--log-payloads", "1.5"), "'1.5' is no share of requests"),
        (("--log-payloads", "nan"), "'nan' is no share of requests"),
        (("--log-payload-file", "x"), "--log-payload-file needs --log-payloads"),
    ],
)
def test_impossible_options(serve, make_package, options, told):
    runtime = serve(make_package(), "--port", "0", *options)
    assert runtime.process.wait(20) == 2
    assert told in runtime.errors
