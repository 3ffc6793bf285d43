from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.rpc import codec
from mlopsnb.serving.rpc.codec import Codec
from mlopsnb.serving.rpc.messages import message

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


def row_signature():
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
    )


def pieces(rows, fill):
    """The parts of a message that follow each other in any order, each encoded by itself."""
    tensor = message("ModelInferRequest")()
    tensor.inputs.add(name="x", datatype="FP32", shape=[rows, 2])
    made = [tensor, *(message("ModelInferRequest")(**{k: v}) for k, v in (("model_name", "m"), ("id", "7")))]
    made.append(message("ModelInferRequest")(raw_input_contents=[fill * (8 * rows)]))
    made.append(message("ModelInferRequest")(id="\x3a\x08" + "\0" * 8))
    return [part.SerializeToString() for part in made]


@settings(max_examples=500, deadline=None)
@given(
    order=st.lists(st.sampled_from([0, 1, 2, 3, 3, 4]), min_size=2, max_size=5),
    rows=st.integers(1, 2),
    changes=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=3),
)
def test_a_message_that_is_known_is_read_as_any_other(order, rows, changes):
    made = Codec(row_signature(), name="m", version="1")
    first = b"".join(pieces(rows, b"\0")[at] for at in order)
    second = bytearray(b"".join(pieces(rows, b"\1")[at] for at in order))
    for at, value in changes:
        second[at % len(second)] = value
    request = message("ModelInferRequest").FromString(first)
    with contextlib.suppress(BadRequest):
        made.remember(first, request, made.decode(request))
    found = made.recognize(bytes(second))
    if found is None:
        return
    read = made.decode(message("ModelInferRequest").FromString(bytes(second)))
    assert found.inputs["x"].tolist() == read.inputs["x"].tolist()
    assert (found.rows, found.id, found.outputs, found.binary) == (
        read.rows,
        read.id,
        read.outputs,
        read.binary,
    )


def test_the_same_message_with_other_numbers_is_known():
    made = Codec(row_signature(), name="m", version="1")
    for fill, known in ((b"\0", False), (b"\1", True), (b"\xff", False)):  # the last are no numbers
        raw = b"".join(pieces(2, fill)[at] for at in (1, 0, 3))
        found = made.recognize(raw)
        assert (found is not None) == known
        if fill == b"\0":
            request = message("ModelInferRequest").FromString(raw)
            made.remember(raw, request, made.decode(request))


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
