from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import documents, v2
from mlopsnb.serving.bulk import Bulk
from mlopsnb.serving.codec import Codec
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.protocols import mlflow, tfserving
from mlopsnb.serving.routes import ServedModel

Y = TensorSpec(name="y", dtype="float32", shape=(None,))
NUMBERS = sorted(set(v2.DATATYPES) - {"bool", "str"})


def of(*inputs):
    return Signature(inputs=inputs, outputs=(Y,))


def tensor(dtype="float32", shape=(None, 3), name="x", features=(), allow_nan=False):
    return TensorSpec(name=name, dtype=dtype, shape=shape, feature_names=features, allow_nan=allow_nan)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(documents, "LARGE_BYTES", 0)


def read(content, signature, forms=("instances", "inputs", "dataframe_split")):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    found = Bulk(signature).read(body, forms, {"signature_name": (None, "")})
    return found and {name: array.tolist() for name, array in found[1].items()}


ABC = tensor(features=("a", "b", "c"))
PAIR = of(tensor(), tensor("int8", (None,), "n"))
FRAME = {"columns": ["c", "id", "a", "b"], "index": [7, 9], "data": [[3, 0, 1, 2], [6, 0, 4, 5]]}
ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
GOOD = {
    "rows": ({"instances": ROWS}, of(tensor())),
    "with a key that may be there": ({"signature_name": "", "instances": ROWS}, of(tensor())),
    "values": ({"inputs": ROWS}, of(tensor())),
    "by name": ({"inputs": {"x": ROWS}}, of(tensor())),
    "columns": ({"inputs": {"b": [2, 5], "a": [1, 4], "c": [3, 6]}}, of(ABC)),
    "a frame": ({"dataframe_split": FRAME}, of(ABC)),
    "a frame without names that matter": (
        {"dataframe_split": {"columns": ["p", "q", "r"], "data": ROWS}},
        of(tensor()),
    ),
    "free axes": ({"inputs": ROWS}, of(tensor(shape=(None, None)))),
}


@pytest.mark.parametrize("name", GOOD)
def test_forms(name):
    content, signature = GOOD[name]
    assert read(content, signature) == {"x": ROWS}


def test_several_inputs():
    assert read({"inputs": {"n": [7, -8], "x": ROWS}}, PAIR) == {"x": ROWS, "n": [7, -8]}


def test_deep_lists():
    array = np.arange(48, dtype=np.uint16).reshape(2, 3, 4, 2)
    found = read({"instances": array.tolist()}, of(tensor("uint16", (None, 3, None, 2))))
    assert found == {"x": array.tolist()}


LEFT = {
    "nothing": b"",
    "no object": b"[[1,2,3]]",
    "cut": b'{"instances": [[1,2,3]',
    "NaN": b'{"instances": [[1,2,NaN]]}',
    "null": b'{"instances": [[1,2,null]]}',
    "a boolean": b'{"instances": [[1,2,true]]}',
    "text": b'{"instances": [[1,2,"3"]]}',
    "ragged": b'{"instances": [[1,2,3],[1,2],[1,2,3,4]]}',
    "deeper": b'{"instances": [[1,2,[3]]]}',
    "flatter": b'{"instances": [1,2,3]}',
    "too wide": b'{"instances": [[1,2,3,4]]}',
    "no rows": b'{"instances": []}',
    "another key": b'{"instances": [[1,2,3]], "more": 1}',
    "a key twice": b'{"instances": 1, "instances": [[1,2,3]]}',
    "an optional key with another value": b'{"instances": [[1,2,3]], "signature_name": "train"}',
    "too large a number": b'{"instances": [[1,2,1e39]]}',
    "far too large": b'{"instances": [[1,2,' + b"9" * 400 + b"]]}",
    "rows by name": b'{"instances": {"x": [[1,2,3]]}}',
    "objects": b'{"instances": [{"x": [1,2,3]}]}',
    "an unknown name": b'{"inputs": {"z": [[1,2,3]]}}',
    "a bracket in text": b'{"inputs": {"[": [[1,2,3]]}}',
    "a frame without columns": b'{"dataframe_split": {"data": [[1,2,3]]}}',
    "a frame with the input's name": b'{"dataframe_split": {"columns": ["x", "b", "c"], "data": [[1,2,3]]}}',
    "a frame with a name twice": b'{"dataframe_split": {"columns": ["a", "a", "c"], "data": [[1,2,3]]}}',
    "a frame with nested rows": b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1,2,[3]]]}}',
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("signature", [of(tensor()), of(ABC)], ids=["plain", "features"])
def test_what_is_left_to_others(name, signature):
    assert read(LEFT[name], signature) is None


def test_numbers_that_do_not_fit_are_left_to_others():
    for value in (300, -129, 1.5, 1.0):
        assert read({"inputs": [value]}, of(tensor("int8", (None,)))) is None
    assert read({"inputs": [2**64 - 1]}, of(tensor("uint64", (None,)))) == {"x": [2**64 - 1]}
    assert read({"inputs": ["a"]}, of(tensor("str", (None,)))) is None


def test_a_parser_reads_one_after_the_other():
    reader = Bulk(of(tensor()))
    for body in [b'{"inputs": [[1,2,3]]}', b'{"inputs": [[1,2', b'{"inputs": [[4,5,6]]}'] * 3:
        found = reader.read(body, ("inputs",))
        assert (found is None) == (body[-1:] != b"}")


NUMBER = (
    st.integers(-(2**65), 2**65)
    | st.floats(width=32)
    | st.floats()
    | st.sampled_from([0, -0.0, 127, 128, 65519.99, 65520])
)
TEXT = st.sampled_from(["x", "n", "a", "b", "c", "[", "{", "é"])
VALUE = NUMBER | st.none() | st.booleans() | TEXT
NESTED = st.recursive(
    VALUE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=12
)
TABLE = st.integers(0, 4).flatmap(lambda n: st.lists(st.lists(NUMBER, min_size=n, max_size=n), max_size=4))
LISTS = NESTED | TABLE | st.lists(NUMBER, max_size=4)
OBJECT = st.dictionaries(TEXT, LISTS, max_size=3)
SPLIT = st.fixed_dictionaries(
    {"columns": st.permutations(["a", "b", "c"]) | st.lists(TEXT, max_size=4), "data": TABLE | NESTED},
    optional={"index": st.lists(st.integers(), max_size=3)},
)
SPECS = st.sampled_from(
    [
        of(tensor(d, s, allow_nan=nan))
        for d in NUMBERS
        for s in ((None,), (None, 3), (None, None))
        for nan in (True, False)
    ]
    + [of(ABC), of(tensor("int64", features=("a", "b", "c"))), PAIR, of(tensor("float64", ()))]
)


def outcome(decode, *args):
    try:
        request = decode(*args)
    except BadRequest as exc:
        return exc.kind, exc.message
    return request.rows, {name: (a.dtype, a.shape, a.tobytes()) for name, a in request.inputs.items()}


@settings(max_examples=600, deadline=None)
@given(
    signature=SPECS,
    content=st.fixed_dictionaries(
        {},
        optional={
            "instances": LISTS,
            "inputs": LISTS | OBJECT,
            "dataframe_split": SPLIT,
            "signature_name": TEXT | st.none(),
        },
    ),
)
@example(of(tensor()), {"instances": [[1, 2, 3]] * 3})
def test_every_request_means_what_it_means_without(signature, content):
    body = json.dumps(content).encode()
    reader = Bulk(signature)
    assert outcome(tfserving.decode, body, signature, reader) == outcome(tfserving.decode, body, signature)
    what = "application/json"
    assert outcome(mlflow.decode, body, what, signature, reader) == outcome(
        mlflow.decode, body, what, signature
    )


@pytest.mark.parametrize("dtype", NUMBERS)
def test_large_requests_of_the_open_inference_protocol_are_read_in_bulk(dtype):
    package = type("Package", (), {"signature": of(tensor(dtype, (None, 2)))})()
    codec = Codec(ServedModel(name="m", version="1", manifest=package))
    array = np.arange(6).astype(dtype).reshape(3, 2)
    message = {"name": "x", "shape": [3, 2], "datatype": v2.DATATYPES[dtype], "data": array.ravel().tolist()}
    found = codec._in_bulk(json.dumps({"inputs": [message]}).encode())
    assert (found.inputs["x"].dtype, found.inputs["x"].tolist()) == (array.dtype, array.tolist())


def test_over_a_server(serve, make_echo):
    array = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    runtime = serve(make_echo({"x": array[:2]}), "--port", "0")
    for path, key in (("/v1/models/echo:predict", "outputs"), ("/invocations", "predictions")):
        answer = runtime.request(
            "POST", path, json.dumps({"inputs": array.tolist()}), {"content-type": "application/json"}
        )
        assert answer.status == 200
        assert np.array_equal(np.array(answer.json()[key], np.float32), array)
