from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.protocols import tfserving

Y = TensorSpec(name="y", dtype="float32", shape=(None,))
X = TensorSpec(name="x", dtype="float32", shape=(None, 2), allow_nan=True)
N = TensorSpec(name="n", dtype="int8", shape=(None,))
ONE = Signature(inputs=(X,), outputs=(Y,))
TWO = Signature(inputs=(X, N), outputs=(Y,))


def signature(dtype, shape, *, allow_nan=False):
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=shape, allow_nan=allow_nan),), outputs=(Y,)
    )


def read(content, what):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return tfserving.decode(body, what)


def lists(request):
    return {name: array.tolist() for name, array in request.inputs.items()}


def test_rows_of_one_input_with_its_name_and_without():
    for rows in ([[1, 2], [3, 4]], [{"x": [1, 2]}, {"x": [3, 4]}]):
        request = read({"instances": rows}, ONE)
        assert (request.rows, lists(request)) == (2, {"x": [[1.0, 2.0], [3.0, 4.0]]})
        assert request.inputs["x"].dtype == np.float32


def test_rows_and_columns_of_several_inputs():
    by_row = {
        "instances": [{"x": [1, 2], "n": 7}, {"n": 8, "x": [3, 4]}],
        "signature_name": "serving_default",
    }
    by_column = {"inputs": {"n": [7, 8], "x": [[1, 2], [3, 4]]}}
    for content in (by_row, by_column):
        assert lists(read(content, TWO)) == {"x": [[1.0, 2.0], [3.0, 4.0]], "n": [7, 8]}


def test_the_one_input_by_column_with_its_name_and_without():
    for content in ([[1, 2]], {"x": [[1, 2]]}):
        assert lists(read({"inputs": content}, ONE)) == {"x": [[1.0, 2.0]]}


def test_a_free_axis_has_the_size_that_is_found_and_no_rows_are_rows():
    free = signature("int32", (None, None, 2))
    assert read({"instances": [[[1, 2]] * 3]}, free).inputs["x"].shape == (1, 3, 2)
    for content in ({"instances": []}, {"inputs": []}):
        request = read(content, free)
        assert (request.inputs["x"].shape, request.inputs["x"].dtype, request.rows) == (
            (0, 0, 2),
            np.int32,
            0,
        )


def test_a_scalar_input():
    request = read({"inputs": 2.5}, signature("float64", ()))
    assert (lists(request), request.rows) == ({"x": 2.5}, 1)


def test_text_in_base64():
    what = signature("str", (None,))
    for content in (
        {"instances": ["a", {"b64": "w6k="}]},
        {"instances": [{"x": "a"}, {"x": {"b64": "w6k="}}]},
    ):
        assert lists(read(content, what)) == {"x": ["a", "é"]}


def test_nan_is_null_where_it_may_be_and_text_that_looks_like_it_stays():
    assert (
        str(lists(read(b'{"instances": [[NaN, 1], [null, -0.0]]}', ONE)))
        == "{'x': [[nan, 1.0], [nan, -0.0]]}"
    )
    both = Signature(inputs=(X, TensorSpec(name="s", dtype="str", shape=(None,))), outputs=(Y,))
    request = read(b'{"inputs": {"x": [[NaN, 1]], "s": ["NaN \\" NaN"]}}', both)
    assert lists(request)["s"] == ['NaN " NaN']


BAD = {
    "nothing": (b"", ONE, "the request has no body; expected JSON"),
    "cut": (b'{"instances": [', ONE, "the request is not JSON: Input data was truncated"),
    "infinity": (
        b'{"instances": [[Infinity, 1]]}',
        ONE,
        "the request is not JSON: JSON is malformed: invalid character (byte 16); JSON has no Infinity",
    ),
    "a list": ([1], ONE, "the request should be a JSON object, found a list"),
    "neither": (
        {},
        ONE,
        'expected {"instances": [...]}, row by row, or {"inputs": ...}, input by input; found neither',
    ),
    "both": (
        {"inputs": [], "instances": []},
        ONE,
        (
            'expected {"instances": [...]}, row by row, or {"inputs": ...}, input by input; '
            "found 'inputs', 'instances'"
        ),
    ),
    "signature": (
        {"signature_name": "train", "inputs": []},
        ONE,
        "there is no signature 'train'; there is 'serving_default'",
    ),
    "no list": ({"instances": 3}, ONE, "instances must be a list, found 3"),
    "no names": ({"instances": [[1, 2]]}, TWO, "the model has 2 inputs (x, n); give each by its name"),
    "unknown": (
        {"inputs": {"x": [[1, 2]], "m": [1]}},
        TWO,
        "the model takes x, n; missing: n; unknown: m",
    ),
    "one lacks": ({"instances": [{"x": [1, 2]}, {"n": 1, "x": [1, 2]}]}, TWO, None),
    "mixed rows": (
        {"instances": [{"x": [1, 2]}, [1, 2]]},
        ONE,
        "row 1 should be an object like the others, found a list",
    ),
    "ragged": (
        {"instances": [[1, 2], [3]]},
        ONE,
        "input 'x': values must follow shape [-1, 2], with lists of 2 on axis 1; found a list of 1",
    ),
    "too flat": (
        {"instances": [1, 2]},
        ONE,
        "input 'x': values must follow shape [-1, 2], with lists of 2 on axis 1; found 1",
    ),
    "too deep": (
        {"instances": [[[1], 2]]},
        ONE,
        "input 'x': expected a number within float32's range or null, found a list at data[0]",
    ),
    "kind": (
        {"instances": [[1, True]]},
        ONE,
        "input 'x': expected a number within float32's range or null, found true at data[1]",
    ),
    "range": (
        {"instances": [1, 300]},
        signature("int8", (None,)),
        "input 'x': expected a whole number from -128 to 127, found 300 at data[1]",
    ),
    "overflow": (
        {"instances": [[1, 1e39]]},
        ONE,
        "input 'x': expected a number within float32's range or null, found 1e39 at data[1]",
    ),
    "beyond all floats": (
        {"instances": [[1, 10**400]]},
        ONE,
        f"input 'x': expected a number within float32's range or null, found 1{'0' * 36}... at data[1]",
    ),
    "rows": (
        {"inputs": {"x": [[1, 2]], "n": [1, 2]}},
        TWO,
        "the inputs disagree on the number of rows: 'x' has 1, 'n' has 2",
    ),
    "base64": (
        {"instances": [{"b64": "w6k"}]},
        signature("str", (None,)),
        "input 'x': b64 should hold UTF-8 text in base64: Incorrect padding",
    ),
}
BAD["one lacks"] = (
    *BAD["one lacks"][:2],
    "input 'n': expected a whole number from -128 to 127, found null at data[0]",
)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_says_what_was_expected_and_what_came(name):
    content, what, message = BAD[name]
    with pytest.raises(BadRequest) as caught:
        read(content, what)
    assert caught.value.message == message


def answer(content, what, **outputs):
    reply = read(content, what).encode(outputs)
    assert (reply.status, reply.content_type) == (200, b"application/json")
    return json.loads(reply.body)


def test_answers_by_row_and_by_column():
    y, z = np.array([1.5, np.nan], np.float32), np.array([[1, 2], [3, 4]], np.uint8)
    rows, column = {"instances": [[1, 2], [3, 4]]}, {"inputs": [[1, 2], [3, 4]]}
    assert answer(rows, ONE, y=y) == {"predictions": [1.5, None]}
    assert answer(column, ONE, y=y) == {"outputs": [1.5, None]}
    assert answer(rows, ONE, y=y, z=z) == {"predictions": [{"y": 1.5, "z": [1, 2]}, {"y": None, "z": [3, 4]}]}
    assert answer(column, ONE, y=y, z=z) == {"outputs": {"y": [1.5, None], "z": [[1, 2], [3, 4]]}}


def test_text_is_bytes_where_the_name_says_so():
    text = np.array(["é", "a"], object)
    assert answer({"instances": [[1, 2], [3, 4]]}, ONE, t=text, t_bytes=text) == {
        "predictions": [{"t": "é", "t_bytes": {"b64": "w6k="}}, {"t": "a", "t_bytes": {"b64": "YQ=="}}]
    }


def test_an_output_without_rows_goes_by_column_alone():
    with pytest.raises(BadRequest) as caught:
        answer({"instances": [[1, 2]]}, ONE, y=np.array(2.5))
    assert caught.value.message == (
        "output 'y' of shape [] has no row for each of the 1 instances; send the request as inputs"
    )
    assert answer({"inputs": [[1, 2]]}, ONE, y=np.array(2.5, np.float32)) == {"outputs": 2.5}


@pytest.mark.parametrize("dtype", sorted(v2.DATATYPES))
def test_every_dtype_comes_back(dtype):
    texts = dtype == "str"
    array = np.array([["a", ""], ["é", "b"]], object) if texts else np.array([[0, 1], [1, 0]], dtype)
    content = {"inputs": array.tolist()}
    request = read(content, signature(dtype, (None, 2)))
    assert (request.inputs["x"].dtype, request.inputs["x"].tolist()) == (array.dtype, array.tolist())
    assert answer(content, signature(dtype, (None, 2)), y=array) == {"outputs": array.tolist()}
    assert answer({"instances": array.tolist()}, signature(dtype, (None, 2)), y=array) == {
        "predictions": array.tolist()
    }


TEXT = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["x", "n", "b64"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize("dtype", sorted(v2.DATATYPES))
@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(["instances", "inputs"]), content=JSON)
def test_any_json_is_a_request_or_a_bad_request(dtype, key, content):
    x = TensorSpec(name="x", dtype=dtype, shape=(None, None), allow_nan=True)
    for inputs in ((x,), (x, N)):
        try:
            request = read({key: content}, Signature(inputs=inputs, outputs=(Y,)))
        except BadRequest:
            continue
        assert request.inputs["x"].dtype == (object if dtype == "str" else dtype)
        assert request.inputs["x"].ndim == 2


VALID = b'{"signature_name": "", "instances": [[1, 2.5], [NaN, 4e2]]}'


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60) | st.tuples(st.integers(0, len(VALID)), st.integers(0, 20), st.binary(max_size=6))
)
@example((VALID.index(b"NaN"), 3, b"[" * 100_000))
@example((VALID.index(b"2.5"), 3, b"[" * 100_000))
@example((VALID.index(b"2.5"), 3, b"1" * 5000))
@example((VALID.index(b"2.5"), 3, b'"\\ud800"'))
def test_any_bytes_are_a_request_or_a_bad_request(raw):
    if isinstance(raw, tuple):
        start, cut, new = raw
        raw = VALID[:start] + new + VALID[start + cut :]
    try:
        request = read(raw, ONE)
    except BadRequest:
        return
    assert request.inputs["x"].ndim == 2


def post(runtime, path, content):
    answer = runtime.request("POST", path, json.dumps(content))
    return answer.status, answer.json()


def test_over_a_server(served):
    rows = {"instances": [{"x": [1, 2, 3, 4], "n": 5}, {"x": [0, 0, 0, -9], "n": 5}]}
    expected = {"predictions": [{"y": 25.0, "sign": "+"}, {"y": -13.0, "sign": "-"}]}
    for path in ("/v1/models/affine:predict", "/v1/models/affine/versions/1:predict"):
        assert post(served, path, rows) == (200, expected)
    columns = {"inputs": {"x": [[1, 2, 3, 4]], "n": [5]}}
    assert post(served, "/v1/models/affine:predict", columns) == (
        200,
        {"outputs": {"y": [25.0], "sign": ["+"]}},
    )
    assert post(served, "/v1/models/affine:predict", {"instances": [{"x": [666, 0, 0, 0], "n": 1}]}) == (
        422,
        {
            "error": "the model cannot take this input: ValueError: 666 is not for me; "
            "the inputs were 'x' float32 [1, 4], 'n' int8 [1]"
        },
    )


def test_status_and_metadata(served):
    status = {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    for path in ("/v1/models/affine", "/v1/models/affine/versions/1"):
        assert served.get(path).json() == status
        metadata = served.get(f"{path}/metadata").json()
        assert metadata["model_spec"] == {"name": "affine", "signature_name": "", "version": "1"}
        described = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert described["inputs"]["x"] == {
            "dtype": "DT_FLOAT",
            "tensor_shape": {
                "dim": [{"size": "-1", "name": ""}, {"size": "4", "name": ""}],
                "unknown_rank": False,
            },
            "name": "x",
        }
        assert {k: v["dtype"] for k, v in described["outputs"].items()} == {
            "y": "DT_FLOAT",
            "sign": "DT_STRING",
        }


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/v1/models/fraud:predict",
            "no model at /v1/models/fraud:predict; this server has 'affine', version '1'",
        ),
        (
            "/v1/models/affine/versions/2:predict",
            "no such version at /v1/models/affine/versions/2:predict; this server has 'affine', version '1'",
        ),
    ],
)
def test_what_is_not_there(served, path, message):
    assert post(served, path, {}) == (404, {"error": message})
