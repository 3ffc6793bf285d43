from __future__ import annotations

import contextlib
import json
import re
import socket

import pytest

import mlopsnb


def test_a_prediction(served, body):
    answer = served.infer(body([[1, 2, 3, 4], [0, 0, 0, -9]], id="42"), {"x-request-id": "abc-1"})
    assert (answer.status, answer.json()) == (
        200,
        {
            "id": "42",
            "model_name": "affine",
            "model_version": "1",
            "outputs": [
                {"name": "y", "shape": [2], "datatype": "FP32", "data": [25.0, -13.0]},
                {"name": "sign", "shape": [2], "datatype": "BYTES", "data": ["+", "-"]},
            ],
        },
    )
    assert answer.headers["content-type"] == "application/json"
    assert {k: v for k, v in answer.headers.items() if k.startswith("x-")} == {
        "x-request-id": "abc-1",
        "x-model-name": "affine",
        "x-model-version": "1",
    }


def test_a_missing_value_and_one_output_of_a_named_version(served, body):
    content = body(x={"data": [1, None, 3, 4]}, outputs=[{"name": "y"}])
    answer = served.request("POST", "/v2/models/affine/versions/1/infer", json.dumps(content))
    assert answer.json()["outputs"] == [{"name": "y", "shape": [1], "datatype": "FP32", "data": [None]}]


def test_an_empty_batch(served, body):
    assert [o["shape"] for o in served.infer(body([])).json()["outputs"]] == [[0], [0]]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/healthz", {"live": True}),
        ("/ready", {"name": "affine", "ready": True}),
        ("/v2", {"name": "mlopsnb", "version": mlopsnb.__version__, "extensions": ["binary_tensor_data"]}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"name": "affine", "ready": True}),
        ("/v2/models/affine/ready", {"name": "affine", "ready": True}),
        ("/v2/models/affine/versions/1/ready", {"name": "affine", "ready": True}),
    ],
)
def test_what_there_is_to_get(served, path, content):
    answer = served.get(path)
    assert (answer.status, answer.json()) == (200, content)


def test_metadata(served):
    answer = served.get("/v2/models/affine")
    assert answer.body == served.get("/v2/models/affine/versions/1").body
    assert {k: v for k, v in answer.json().items() if k not in ("inputs", "outputs", "parameters")} == {
        "name": "affine",
        "versions": ["1"],
        "platform": "mlopsnb_affine",
    }
    assert [(t["name"], t["datatype"], t["shape"]) for t in answer.json()["inputs"]] == [
        ("x", "FP32", [-1, 4]),
        ("n", "INT8", [-1]),
    ]


BAD = {
    "no body": (b"", 400, "the request has no body; expected JSON"),
    "not JSON": (b"{", 400, "the request is not JSON: Input data was truncated"),
    "NaN": (
        b'{"inputs": [NaN]}',
        400,
        (
            "the request is not JSON: JSON is malformed: invalid character (byte 12); "
            "JSON has no NaN: send null for a missing value"
        ),
    ),
    "missing": (
        {"inputs": []},
        400,
        "missing input 'x' (FP32 [-1, 4]), 'n' (INT8 [-1]); found no inputs",
    ),
    "unknown": (
        {"inputs": [{"name": "age", "shape": [1], "datatype": "FP32", "data": [1]}]},
        400,
        "unknown input 'age'; the model's inputs are x, n",
    ),
}
BAD_PARTS = {
    "shape": ({"x": {"shape": [4]}}, "input 'x': expected shape [-1, 4], found [4]; one row is [1, 4]"),
    "length": ({"x": {"data": [1]}}, "input 'x': shape [1, 4] takes 4 values, found 1 in data"),
    "datatype": ({"x": {"datatype": "INT64"}}, "input 'x': expected datatype FP32, found 'INT64'"),
    "range": (
        {"n": {"data": [300]}},
        "input 'n': expected a whole number from -128 to 127, found 300 at data[0]",
    ),
    "overflow": (
        {"x": {"data": [1, 2, 3, -1e39]}},
        "input 'x': expected a number within float32's range or null, found -1e39 at data[3]",
    ),
    "null": (
        {"n": {"data": [None]}},
        "input 'n': expected a whole number from -128 to 127, found null at data[0]",
    ),
    "rows": (
        {"n": {"shape": [2], "data": [1, 2]}},
        "the inputs disagree on the number of rows: 'x' has 1, 'n' has 2",
    ),
    "output": ({"outputs": [{"name": "z"}]}, "unknown output 'z'; the model's outputs are y, sign"),
    "twice": ({"n": {"name": "x", "shape": [1, 4], "datatype": "FP32"}}, "input 'x' is given twice"),
}


def test_every_bad_request_is_answered_in_words(served, body):
    expected = {name: (status, {"error": message}) for name, (_, status, message) in BAD.items()}
    expected |= {name: (400, {"error": message}) for name, (_, message) in BAD_PARTS.items()}
    answers = {name: served.infer(content) for name, (content, _, _) in BAD.items()}
    answers |= {name: served.infer(body(**parts)) for name, (parts, _) in BAD_PARTS.items()}
    assert {name: (a.status, a.json()) for name, a in answers.items()} == expected


def test_input_that_the_model_rejects(served, body):
    answer = served.infer(body([[666, 0, 0, 0]]))
    assert (answer.status, answer.json()) == (
        422,
        {
            "error": "the model cannot take this input: ValueError: 666 is not for me; "
            "the inputs were 'x' float32 [1, 4], 'n' int8 [1]"
        },
    )
    assert served.get("/ready").status == 200


def test_a_model_that_broke_is_no_longer_ready(served, body):
    answer = served.infer(body([[13, 0, 0, 0]]))
    assert (answer.status, answer.json()) == (
        500,
        {"error": "the model fails, on its own example too: RuntimeError: the weights are gone"},
    )
    assert {p: served.get(p).status for p in ("/ready", "/v2/models/affine/ready", "/healthz")} == {
        "/ready": 503,
        "/v2/models/affine/ready": 503,
        "/healthz": 200,
    }
    served.stop()
    assert "RuntimeError: the weights are gone" in served.errors


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/v2/models/fraud/infer",
            "no model at /v2/models/fraud/infer; this server has 'affine', version '1'",
        ),
        (
            "/v2/models/affine/versions/9",
            "no such version at /v2/models/affine/versions/9; this server has 'affine', version '1'",
        ),
        (
            "/predict",
            (
                "nothing at /predict; predictions are made at /v2/models/affine/infer, /v1/models/affine:predict, "
                "/invocations"
            ),
        ),
    ],
)
def test_a_wrong_path_is_told_what_there_is(served, path, message):
    answer = served.get(path)
    assert (answer.status, answer.json()) == (404, {"error": message})


def test_a_wrong_method_is_told_the_right_one(served):
    answer = served.get("/v2/models/affine/infer")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.json() == {"error": "/v2/models/affine/infer takes POST, not GET"}
    assert served.request("PUT", "/ready").headers["allow"] == "GET, HEAD"


def test_probes_may_use_head(served):
    answer = served.request("HEAD", "/ready")
    assert (answer.status, answer.body) == (200, b"")


def test_a_compressed_body_is_refused(served):
    answer = served.infer(b"{}", {"content-encoding": "gzip"})
    assert (answer.status, answer.json()) == (
        415,
        {"error": "content-encoding 'gzip' is not supported; send the body as it is"},
    )


def test_a_body_beyond_the_limit_is_refused_unread(served):
    with contextlib.closing(served.connect()) as connection:
        connection.putrequest("POST", "/v2/models/affine/infer")
        connection.putheader("content-length", "10001")
        connection.endheaders()
        response = connection.getresponse()
        assert (response.status, response.getheader("connection")) == (413, "close")
        assert json.loads(response.read()) == {"error": "the body has 10001 bytes; the limit is 10000"}


def test_a_body_without_a_length_is_counted(served):
    with contextlib.closing(served.connect()) as connection:
        chunks = (b" " * 4000 for _ in range(3))
        connection.request("POST", "/v2/models/affine/infer", chunks, encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())) == (
            413,
            {"error": "the body has more than 10000 bytes, the limit"},
        )


def test_a_request_id_that_is_not_sane_is_replaced(served):
    answer = served.request("GET", "/v2", headers={"x-request-id": 'a"b c'})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_client_that_leaves_is_logged_and_harms_nobody(served, body):
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(b"POST /v2/models/affine/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    while not served.log_lines:
        assert served.get("/healthz").status == 200
    served.stop()
    statuses = [json.loads(line)["status"] for line in served.log_lines]
    assert 499 in statuses


def test_the_log_has_one_line_a_request_and_no_payload(served, body):
    served.infer(body([[123.25, 2, 3, 4], [5, 6, 7, 8]]), {"x-request-id": "one"})
    served.request("GET", "/v2?token=hidden", headers={"x-request-id": "two"})
    assert served.get("/ready").status == 200  # what probes ask is left out
    served.infer(body(x={"data": ["secret"]}), {"x-request-id": "three"})
    served.stop()
    lines = [json.loads(line) for line in served.log_lines]
    keys = ["time", "request_id", "method", "path", "status", "duration_ms", "rows", "model", "version"]
    assert [list(line) for line in lines] == [keys] * 3
    assert [(r["request_id"], r["method"], r["path"], r["status"], r["rows"]) for r in lines] == [
        ("one", "POST", "/v2/models/affine/infer", 200, 2),
        ("two", "GET", "/v2", 200, None),
        ("three", "POST", "/v2/models/affine/infer", 400, None),
    ]
    for payload in ("123.25", "hidden", "secret"):
        assert payload not in "\n".join(served.log_lines) + served.errors
    assert served.errors == ""


def test_metrics_count_predictions(served, body):
    served.infer(body([[1, 2, 3, 4]] * 3))
    served.infer(body())
    served.infer(b"{")
    served.get("/ready")
    answer = served.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    labels = 'model_name="affine",model_version="1"'
    samples = dict(
        line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if not line.startswith("#")
    )
    expected = {
        f'mlopsnb_request_total{{code="200",{labels}}}': "2.0",
        f'mlopsnb_request_total{{code="400",{labels}}}': "1.0",
        f"mlopsnb_request_duration_seconds_count{{{labels}}}": "3.0",
        f"mlopsnb_request_in_progress{{{labels}}}": "0.0",
        f"mlopsnb_batch_size_count{{{labels}}}": "2.0",
        f"mlopsnb_batch_size_sum{{{labels}}}": "4.0",
        f"mlopsnb_model_seconds_count{{{labels}}}": "2.0",
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert float(samples["process_resident_memory_bytes"]) > 0
