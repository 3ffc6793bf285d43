"""The quick reader and writer of v2's JSON says what the thorough one says, or nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import documents, v2
from mlopsnb.serving.codec import Codec
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.routes import ServedModel

NUMBERS = [
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "bool"),
]
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)


OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=(None,)),)


def codec_of(*inputs, outputs=OUTPUTS):
    signature = Signature(inputs=inputs, outputs=outputs)
    manifest = Manifest(format="none", signature=signature, files={})
    return Codec(ServedModel(name='m"', version="1", manifest=manifest)), signature


def x(dtype, *shape, allow_nan=False, name="x"):
    return TensorSpec(name=name, dtype=dtype, shape=shape, allow_nan=allow_nan)


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Read every body as a small one, or as a large one."""
    monkeypatch.setattr(documents, "LARGE_BYTES", 1 << 30 if request.param == "small" else 0)


def assert_as_v2(codec, signature, body):
    """Return whether *codec* has read *body*; what it has read is what v2 reads."""
    found = codec.decode(body)
    if found is None:
        return False
    wanted = v2.decode_request(body, signature)
    assert list(found.inputs) == list(wanted.inputs)
    for name, array in wanted.inputs.items():
        assert (found.inputs[name].dtype, found.inputs[name].shape) == (array.dtype, array.shape)
        if array.dtype.hasobject:
            assert found.inputs[name].tolist() == array.tolist()
        else:
            assert found.inputs[name].tobytes() == array.tobytes()
    assert found.rows == wanted.rows
    outputs = {"y": np.zeros(found.rows, np.float32)}
    reply = v2.encode_response(outputs, model_name='m"', model_version="1", id=wanted.id)
    assert found.encode(outputs).body == reply
    assert (wanted.outputs, wanted.binary) == (None, frozenset())
    return True


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("dtype", [*NUMBERS, "str"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_a_client_writes_is_read_in_one_pass(dtype, data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    if dtype == "str":
        array = data.draw(hnp.arrays(object, shape, elements=TEXT))
    else:
        array = data.draw(hnp.arrays(dtype, shape))
    spec = x(dtype, None, *shape[1:], allow_nan=dtype.startswith("float"))
    codec, signature = codec_of(spec)
    with np.errstate(all="ignore"):
        array = np.where(np.isinf(array), 0, array).astype(dtype) if array.dtype.kind == "f" else array
    assert assert_as_v2(codec, signature, v2.encode_request({"x": array}, data.draw(st.none() | TEXT)))


TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "n", "z", "["]),
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "datatype": st.sampled_from(["FP32", "INT8"]),
        "data": st.lists(
            st.floats()
            | st.integers()
            | st.none()
            | st.lists(st.integers(0, 3), max_size=2)
            | st.sampled_from([1e39, 127, 128, -128, 2**63, 2**64, 10**30, True, "1", -0.0]),
            max_size=6,
        ),
    },
    optional={"parameters": st.none() | st.just({"binary_data_size": 3}) | st.just({}), "more": st.just(1)},
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, min_size=1, max_size=2)},
    optional={
        "id": st.none() | TEXT | st.integers(),
        "outputs": st.sampled_from([None, [], [{"name": "y"}], [{"name": "z"}]]),
        "parameters": st.sampled_from([None, {}, {"binary_data_output": True}]),
    },
)


@pytest.mark.usefixtures("size")
@settings(max_examples=400, deadline=None)
@given(request=REQUEST, dtype=st.sampled_from(["float32", "int8"]), data=st.data())
def test_what_it_reads_v2_reads_as_the_same(request, dtype, data):
    codec, signature = codec_of(x(dtype, None, 2), x(dtype, 2, name="n"))
    single, its_signature = codec_of(x(dtype, None, allow_nan=data.draw(st.booleans()) and dtype != "int8"))
    body = json.dumps(request).encode()
    assert_as_v2(codec, signature, body)
    assert_as_v2(single, its_signature, body)


@pytest.mark.usefixtures("size")
@settings(max_examples=400, deadline=None)
@given(place=st.integers(0, 80), new=st.binary(max_size=3), gone=st.integers(0, 3))
@example(place=0, new=b"\xef\xbb\xbf", gone=0)
@example(place=5, new=b'":1,"in', gone=0)
def test_a_damaged_body_is_read_as_v2_reads_it_or_not_at_all(place, new, gone):
    codec, signature = codec_of(x("float32", None, 2))
    body = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,2]}]}'
    assert_as_v2(codec, signature, body[:place] + new + body[place + gone :])


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize(
    "data", ["[[1],[2]]", "[[1,5],[]]", "[1,[2]]", "[1e39,1]", "[1,null]", "[1,true]", "[1,2,3]", "[1,NaN]"]
)
def test_what_is_nested_or_wrong_is_left_to_v2(data):
    codec, signature = codec_of(x("float32", None, 1))
    body = b'{"inputs":[{"name":"x","shape":[2,1],"datatype":"FP32","data":%b}]}' % data.encode()
    assert codec.decode(body) is None
    if data != "[[1],[2]]":
        with pytest.raises(BadRequest):
            v2.decode_request(body, signature)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize(
    "inputs",
    [
        '{"x":[[[1]]]}',
        '["x"]',
        '[{"name":"x","shape":{},"datatype":"FP32","data":[1]}]',
        '[{"name":"x","shape":[1,1],"datatype":"FP32","data":"1"}]',
    ],
)
def test_what_has_another_form_is_left_to_v2(inputs):
    codec, signature = codec_of(x("float32", None, 1))
    body = b'{"inputs":%b}' % inputs.encode()
    assert codec.decode(body) is None
    with pytest.raises(BadRequest):
        v2.decode_request(body, signature)


def test_a_large_body_is_read_in_bulk(monkeypatch):
    codec, signature = codec_of(x("float32", None, 64))
    array = np.random.default_rng(0).normal(size=(5000, 64)).astype(np.float32)
    body = v2.encode_request({"x": array}, id="a")
    monkeypatch.setattr(codec, "_plain", None)
    for _ in range(2):
        assert assert_as_v2(codec, signature, body)
    assert len(body) > documents.KEEP_BYTES


def test_inputs_of_several_dtypes_and_free_axes_are_left_to_v2():
    mixed, _ = codec_of(x("float32", None), x("int8", None, name="n"))
    free, _ = codec_of(x("float32", None, None))
    for codec in (mixed, free):
        assert codec.decode(b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[1]}]}') is None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_answers_are_what_v2_writes(data):
    specs, outputs = [], {}
    for name in data.draw(st.lists(TEXT, min_size=1, max_size=3, unique=True)):
        dtype = data.draw(st.sampled_from([*NUMBERS, "str"]))
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        elements = TEXT if dtype == "str" else None
        outputs[name] = data.draw(hnp.arrays(object if dtype == "str" else dtype, shape, elements=elements))
        specs.append(TensorSpec(name=name, dtype=dtype, shape=shape))
    codec, _ = codec_of(x("float32", None), outputs=tuple(specs))
    id = data.draw(st.none() | TEXT)
    wanted = v2.encode_response(outputs, model_name='m"', model_version="1", id=id)
    assert codec.reply(outputs, id).body == wanted
