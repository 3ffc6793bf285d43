from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlopsnb.errors import StepError
from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import v2
from mlopsnb.serving.errors import BadRequest

X = TensorSpec(name="x", dtype="float32", shape=(None, 4))
ALL_DTYPES = sorted(v2.DATATYPES)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


def arrays(dtype):
    shape = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    if dtype == "str":
        return shape.flatmap(lambda s: hnp.arrays(object, s, elements=TEXT, fill=st.nothing()))
    elements = {"allow_infinity": False} if np.dtype(dtype).kind == "f" else None
    return shape.flatmap(lambda s: hnp.arrays(dtype, s, elements=elements))


def signature_of(**named):
    return Signature(
        inputs=tuple(
            TensorSpec(
                name=name,
                dtype="str" if a.dtype == object else a.dtype.name,
                shape=(None, *a.shape[1:]),
                allow_nan=a.dtype.kind == "f",
            )
            for name, a in named.items()
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
    )


def assert_equal(found, given):
    assert found.dtype == given.dtype
    assert found.shape == given.shape
    np.testing.assert_array_equal(found, given)
    if given.dtype.kind == "f":
        np.testing.assert_array_equal(
            np.signbit(found[~np.isnan(found)]), np.signbit(given[~np.isnan(given)])
        )


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_request_is_read_as_it_was_written(dtype, data):
    array = data.draw(arrays(dtype))
    request = v2.decode_request(v2.encode_request({"a": array}, id="7"), signature_of(a=array))
    assert (request.id, request.rows, list(request.inputs)) == ("7", array.shape[0], ["a"])
    assert_equal(request.inputs["a"], array)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_an_answer_is_read_as_it_was_written(dtype, data):
    array = data.draw(arrays(dtype))
    body = v2.encode_response({"y": array}, model_name="m", model_version="1")
    (name, found), *more = v2.decode_response(body).items()
    assert (name, more) == ("y", [])
    assert_equal(found, array)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_nested_data_reads_as_flat_data(dtype, data):
    array = data.draw(arrays(dtype))
    nested = json.loads(v2.encode_request({"a": array}))
    flat = iter(nested["inputs"][0]["data"])

    def nest(shape):
        return [nest(shape[1:]) if len(shape) > 1 else next(flat) for _ in range(shape[0])]

    nested["inputs"][0]["data"] = nest(array.shape)
    request = v2.decode_request(json.dumps(nested).encode(), signature_of(a=array))
    assert_equal(request.inputs["a"], array)


def test_every_float16_survives():
    array = np.arange(2**16, dtype=np.uint16).view(np.float16)
    array = array[np.isfinite(array)]
    assert_equal(v2.decode_request(v2.encode_request({"a": array}), signature_of(a=array)).inputs["a"], array)


@given(st.integers(0, 2**32 - 1).map(lambda bits: np.array([bits], np.uint32).view(np.float32)))
@example(np.array([7.038531e-26, -7.038531e-26], np.float32))
@example(np.array([np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal], np.float32))
def test_finite_float32_survive_to_the_bit(array):
    array = array[np.isfinite(array)]
    request = v2.decode_request(v2.encode_request({"a": array}), signature_of(a=array))
    assert request.inputs["a"].tobytes() == array.tobytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "n", "z"]) | JSON,
        "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=3) | JSON,
        "datatype": st.sampled_from(["FP32", "INT8"]) | JSON,
        "data": st.lists(st.floats() | st.integers() | st.none(), max_size=8) | JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXT | JSON,
        "inputs": st.lists(TENSORS, max_size=3) | JSON,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["y", "z"])})) | JSON,
    },
)


def assert_request_or_bad_request(raw, signature):
    try:
        request = v2.decode_request(raw, signature)
    except BadRequest:
        return
    for spec in signature.inputs:
        assert request.inputs[spec.name].dtype == (object if spec.dtype == "str" else spec.dtype)
        assert request.inputs[spec.name].ndim == len(spec.shape)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=60, deadline=None)
@given(content=REQUESTS)
def test_any_json_is_a_request_or_a_bad_request(dtype, content):
    signature = Signature(
        inputs=(
            TensorSpec(name="x", dtype=dtype, shape=(None, None)),
            TensorSpec(name="n", dtype="int8", shape=(None,)),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
    )
    assert_request_or_bad_request(json.dumps(content).encode(), signature)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(JSON, max_size=5) | st.lists(st.lists(st.integers() | st.none(), max_size=2), max_size=3),
    shape=st.lists(st.integers(0, 4) | st.just(10**30), min_size=2, max_size=2),
)
def test_any_data_is_an_array_or_a_bad_request(dtype, data, shape):
    signature = Signature(inputs=(TensorSpec(name="x", dtype=dtype, shape=(None, None)),), outputs=())
    tensor = {"name": "x", "shape": shape, "datatype": v2.DATATYPES[dtype], "data": data}
    assert_request_or_bad_request(json.dumps({"inputs": [tensor]}).encode(), signature)


VALID = (
    b'{"id": "1", "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, -3, 4e2]}]}'
)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60) | st.tuples(st.integers(0, len(VALID)), st.integers(0, 20), st.binary(max_size=6))
)
@example(b"[" * 100_000)
@example((VALID.index(b"[1,") + 1, 3, b"[" * 100_000))
@example((VALID.index(b"2.5"), 3, b"1" * 5000))
@example((VALID.index(b"2.5"), 3, b"\xff"))
@example((VALID.index(b"2.5"), 3, b'"\\ud800"'))
def test_any_bytes_are_a_request_or_a_bad_request(raw):
    if isinstance(raw, tuple):
        start, cut, new = raw
        raw = VALID[:start] + new + VALID[start + cut :]
    assert_request_or_bad_request(raw, Signature(inputs=(X,), outputs=()))


@settings(max_examples=200, deadline=None)
@given(REQUESTS.map(lambda r: json.dumps(r).replace("inputs", "outputs").encode()) | st.binary(max_size=40))
def test_any_answer_is_arrays_or_a_step_error(raw):
    try:
        outputs = v2.decode_response(raw)
    except StepError:
        return
    assert all(isinstance(a, np.ndarray) for a in outputs.values())


def tensor(name="x", shape=(1, 4), datatype="FP32", data=(1, 2, 3, 4)):
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


INT = TensorSpec(name="n", dtype="int8", shape=(None,))


@pytest.mark.parametrize(
    ("specs", "content", "kind", "message"),
    [
        ((X,), b"", "malformed", "the request has no body; expected JSON"),
        ((X,), b'{"a', "malformed", "the request is not JSON: Input data was truncated"),
        (
            (X,),
            b'{"inputs": [{"name": "x", "data": [1, NaN]}]}',
            "malformed",
            (
                "the request is not JSON: JSON is malformed: invalid character (byte 38); "
                "JSON has no NaN: send null for a missing value"
            ),
        ),
        (
            (X,),
            {"inputs": [{"name": "x"}]},
            "malformed",
            (
                "the request is not Open Inference Protocol v2: Object missing required field `shape` - at "
                '`$.inputs[0]`; expected {"inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": [...]}]}'
            ),
        ),
        ((X,), [], "mismatch", "missing input 'x' (FP32 [-1, 4]); found no inputs"),
        ((X, INT), [tensor()], "mismatch", "missing input 'n' (INT8 [-1]); found x"),
        (
            (X,),
            [tensor(), tensor("xx")],
            "mismatch",
            "unknown input 'xx'; the model's inputs are x; did you mean 'x'?",
        ),
        ((X,), [tensor(), tensor()], "mismatch", "input 'x' is given twice"),
        (
            (X,),
            [tensor(shape=[4])],
            "mismatch",
            "input 'x': expected shape [-1, 4], found [4]; one row is [1, 4]",
        ),
        (
            (X,),
            [tensor(shape=[-1, 4])],
            "mismatch",
            "input 'x': expected shape [-1, 4], found [-1, 4]; one row is [1, 4]",
        ),
        (
            (X,),
            [tensor(data=[1, 2])],
            "mismatch",
            "input 'x': shape [1, 4] takes 4 values, found 2 in data",
        ),
        ((X,), [tensor(datatype="FP64")], "mismatch", "input 'x': expected datatype FP32, found 'FP64'"),
        ((X,), [{k: v for k, v in tensor().items() if k != "data"}], "mismatch", "input 'x': it has no data"),
        ((X,), [tensor(data=5)], "mismatch", "input 'x': data must be a list, found 5"),
        (
            (X,),
            [tensor(data=[1, 2, 3, "4"])],
            "mismatch",
            "input 'x': expected a number within float32's range, found \"4\" at data[3]",
        ),
        (
            (X,),
            [tensor(data=[1, 2, None, 4])],
            "mismatch",
            "input 'x': expected a number within float32's range, found null at data[2]",
        ),
        (
            (X,),
            [tensor(data=[1, 1e39, 3, 4])],
            "mismatch",
            "input 'x': expected a number within float32's range, found 1e39 at data[1]",
        ),
        (
            (X,),
            [tensor(shape=[2, 4], data=[[1, 2, 3, 4], [1, 2, 3]])],
            "mismatch",
            "input 'x': nested data must follow shape [2, 4], with lists of 4 on axis 1; found a list of 3",
        ),
        (
            (INT,),
            [tensor("n", [2], "INT8", [1, 128])],
            "mismatch",
            "input 'n': expected a whole number from -128 to 127, found 128 at data[1]",
        ),
        (
            (INT,),
            [tensor("n", [1], "INT8", [1.5])],
            "mismatch",
            "input 'n': expected a whole number from -128 to 127, found 1.5 at data[0]",
        ),
        (
            (TensorSpec(name="n", dtype="uint64", shape=(None,)),),
            [tensor("n", [1], "UINT64", [-1])],
            "mismatch",
            "input 'n': expected a whole number from 0 to 18446744073709551615, found -1 at data[0]",
        ),
        (
            (TensorSpec(name="b", dtype="bool", shape=(None,)),),
            [tensor("b", [1], "BOOL", [1])],
            "mismatch",
            "input 'b': expected true or false, found 1 at data[0]",
        ),
        (
            (TensorSpec(name="s", dtype="str", shape=(None,)),),
            [tensor("s", [1], "BYTES", [True])],
            "mismatch",
            "input 's': expected a string, found true at data[0]",
        ),
        (
            (X, INT),
            [tensor(), tensor("n", [2], "INT8", [1, 2])],
            "mismatch",
            "the inputs disagree on the number of rows: 'x' has 1, 'n' has 2",
        ),
        (
            (X,),
            {"inputs": [tensor()], "outputs": [{"name": "z"}]},
            "mismatch",
            "unknown output 'z'; the model's outputs are y",
        ),
    ],
)
def test_a_bad_request_says_what_was_expected_and_what_came(specs, content, kind, message):
    if not isinstance(content, bytes):
        content = json.dumps(content if isinstance(content, dict) else {"inputs": content}).encode()
    signature = Signature(inputs=specs, outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),))
    with pytest.raises(BadRequest) as caught:
        v2.decode_request(content, signature)
    assert (caught.value.kind, caught.value.message) == (kind, message)


@pytest.mark.parametrize("dtype", [name for name in ALL_DTYPES if "int" in name])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_whole_numbers_may_look_like_floats(dtype, data):
    numbers = data.draw(hnp.arrays(dtype, 4)).tolist()
    said = [float(n) if float(n) == n and data.draw(st.booleans()) else n for n in numbers]
    spec = TensorSpec(name="n", dtype=dtype, shape=(None,))
    body = json.dumps({"inputs": [tensor("n", [4], v2.DATATYPES[dtype], said)]}).encode()
    found = v2.decode_request(body, Signature(inputs=(spec,), outputs=(X,))).inputs["n"]
    assert (found.dtype, found.tolist()) == (dtype, numbers)


def test_null_is_nan_where_the_example_had_nan():
    spec = TensorSpec(name="x", dtype="float32", shape=(None, 2), allow_nan=True)
    raw = json.dumps({"inputs": [tensor(shape=[2, 2], data=[[1, None], [None, 4]])]}).encode()
    request = v2.decode_request(raw, Signature(inputs=(spec,), outputs=()))
    np.testing.assert_array_equal(
        request.inputs["x"], np.array([[1, np.nan], [np.nan, 4]], np.float32), strict=True
    )


def test_a_batch_may_be_empty():
    raw = json.dumps({"inputs": [tensor(shape=[0, 4], data=[])]}).encode()
    request = v2.decode_request(raw, Signature(inputs=(X,), outputs=()))
    assert (request.inputs["x"].shape, request.rows) == ((0, 4), 0)


def test_requested_outputs_are_named_once_in_order():
    outputs = tuple(TensorSpec(name=n, dtype="float32", shape=(None,)) for n in "abc")
    raw = json.dumps(
        {"inputs": [tensor()], "outputs": [{"name": "c"}, {"name": "a"}, {"name": "c"}]}
    ).encode()
    assert v2.decode_request(raw, Signature(inputs=(X,), outputs=outputs)).outputs == ("c", "a")


def test_infinity_cannot_be_requested():
    with pytest.raises(BadRequest, match="input 'x' holds infinity, which JSON cannot say"):
        v2.encode_request({"x": np.array([np.inf])})


def test_an_answer_says_infinity_as_null():
    body = v2.encode_response({"y": np.array([1.5, np.inf])}, model_name="m", model_version="2", id="q")
    assert json.loads(body) == {
        "id": "q",
        "model_name": "m",
        "model_version": "2",
        "outputs": [{"name": "y", "shape": [2], "datatype": "FP64", "data": [1.5, None]}],
    }


def test_metadata_shows_the_signature():
    spec = TensorSpec(name="x", dtype="float32", shape=(None, 2), feature_names=("a", "b"), allow_nan=True)
    out = TensorSpec(name="sign", dtype="str", shape=(None,))
    package = Manifest(format="torchscript", signature=Signature(inputs=(spec,), outputs=(out,)), files={})
    assert v2.metadata("m", "3", package) == {
        "name": "m",
        "versions": ["3"],
        "platform": "mlopsnb_torchscript",
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [-1, 2],
                "parameters": {"feature_names": ["a", "b"], "allow_nan": True},
            }
        ],
        "outputs": [{"name": "sign", "datatype": "BYTES", "shape": [-1], "parameters": {"allow_nan": False}}],
    }
