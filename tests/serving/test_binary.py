from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlopsnb.client import Client
from mlopsnb.errors import StepError, UserError
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.protocols import open_inference
from mlopsnb.serving.rawrequests import RawRequests

ALL_DTYPES = sorted(v2.DATATYPES)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


def spec(name, array, *, allow_nan=True):
    dtype = "str" if array.dtype == object else array.dtype.name
    return TensorSpec(
        name=name,
        dtype=dtype,
        shape=(None, *array.shape[1:]),
        allow_nan=allow_nan and array.dtype.kind == "f",
    )


def signature_of(**named):
    return Signature(
        inputs=tuple(spec(name, a) for name, a in named.items()),
        outputs=tuple(TensorSpec(name=n, dtype="float32", shape=(None,)) for n in ("y", "z")),
    )


def arrays(dtype):
    shape = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    if dtype == "str":
        return shape.flatmap(lambda s: hnp.arrays(object, s, elements=TEXT, fill=st.nothing()))
    return shape.flatmap(lambda s: hnp.arrays(dtype, s))


def assert_same(found, given):
    assert (found.dtype, found.shape) == (given.dtype, given.shape)
    assert found.tolist() == given.tolist() if given.dtype == object else found.tobytes() == given.tobytes()


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_binary_request_is_read_as_it_was_written(dtype, data):
    a = data.draw(arrays(dtype))
    b = np.ones((a.shape[0], 3), np.int16)
    body, length = v2.encode_binary_request({"a": a, "b": b})
    request = v2.decode_request(body, signature_of(a=a, b=b), header_length=length)
    assert (request.rows, request.binary) == (a.shape[0], {"y", "z"})
    assert_same(request.inputs["a"], a)
    assert_same(request.inputs["b"], b)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_binary_answer_is_read_as_it_was_written(dtype, data):
    array = data.draw(arrays(dtype))
    request = v2.InferRequest(inputs={}, rows=1, id="9", binary=frozenset({"y"}))
    content, length = v2.answer(request, {"y": array}, model_name="m", model_version="1")
    assert json.loads(content[:length])["id"] == "9"
    found = v2.decode_response(content, header_length=length)["y"]
    assert_same(found, array)
    assert found.flags.writeable


def message(*inputs, raw=b"", **top):
    header = json.dumps({"inputs": inputs, **top}).encode()
    return header + raw, len(header)


def tensor(name="x", shape=(1, 2), datatype="FP32", **more):
    size = more.pop("size", None)
    parameters = {} if size is None else {"parameters": {"binary_data_size": size}}
    return {"name": name, "shape": list(shape), "datatype": datatype, **parameters, **more}


X = TensorSpec(name="x", dtype="float32", shape=(None, 2))
N = TensorSpec(name="n", dtype="int8", shape=(None,))
OUT = (TensorSpec(name="y", dtype="float32", shape=(None,)), TensorSpec(name="z", dtype="str", shape=(None,)))
BOTH = Signature(inputs=(X, N), outputs=OUT)
RAW = np.array([1, -2.5], "<f4").tobytes()


def test_json_and_binary_tensors_in_one_request():
    for first in ([tensor(size=8), tensor("n", [1], "INT8", data=[7])], [tensor("n", [1], "INT8", data=[7])]):
        inputs = first if len(first) == 2 else [*first, tensor(size=8)]
        body, length = message(*inputs, raw=RAW)
        request = v2.decode_request(body, BOTH, header_length=length)
        assert {k: a.tolist() for k, a in request.inputs.items()} == {"x": [[1.0, -2.5]], "n": [7]}


def test_a_large_aligned_tensor_is_not_copied():
    header = json.dumps({"inputs": [tensor(size=8)]}).encode()
    for pad in range(4):
        body = np.frombuffer(header + b" " * pad + RAW, np.uint8).copy().data
        found = v2.decode_request(
            body, Signature(inputs=(X,), outputs=()), header_length=len(header) + pad
        ).inputs["x"]
        assert found.tolist() == [[1.0, -2.5]]
        aligned = np.frombuffer(body, np.uint8)[len(header) + pad :].ctypes.data % 4 == 0
        assert np.shares_memory(found, np.frombuffer(body, np.uint8)) == aligned
        assert found.flags.aligned


WANTED = {
    "nothing said": ({}, set()),
    "all by default": ({"parameters": {"binary_data_output": True}}, {"y", "z"}),
    "one of two": ({"outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]}, {"y"}),
    "all but one": (
        {
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}],
        },
        {"y"},
    ),
}


@pytest.mark.parametrize("name", WANTED)
def test_outputs_are_sent_as_asked_for(name):
    top, binary = WANTED[name]
    body, length = message(tensor(data=[1, 2]), tensor("n", [1], "INT8", data=[7]), **top)
    request = v2.decode_request(body, BOTH)
    assert request.binary == binary
    outputs = {"y": np.array([np.inf], np.float32), "z": np.array(["é"], object)}
    content, length = v2.answer(request, outputs, model_name="m", model_version="1")
    if not binary:
        assert (length, json.loads(content)["outputs"][0]["data"]) == (None, [None])
        return
    found = v2.decode_response(content, header_length=length)
    assert {k: a.tolist() for k, a in found.items()} == {"y": [np.inf], "z": ["é"]}
    tensors = json.loads(content[:length])["outputs"]
    assert {t["name"] for t in tensors if "parameters" in t and "data" not in t} == binary
    assert {t["name"] for t in tensors if "data" in t} == {"y", "z"} - binary


TEXTS = TensorSpec(name="s", dtype="str", shape=(None,))
FLAGS = TensorSpec(name="b", dtype="bool", shape=(None,))
BAD = {
    "too few bytes": (
        X,
        tensor(size=4),
        RAW[:4],
        None,
        "input 'x': 2 values of float32 are 8 bytes, found 4",
    ),
    "header longer than the body": (
        X,
        tensor(size=8),
        RAW,
        10**6,
        "the JSON header should have 1000000 bytes; the whole body has 100",
    ),
    "no header": (X, tensor(size=8), RAW, 0, "the JSON header should have 0 bytes; the whole body has 100"),
    "size beyond the body": (
        X,
        tensor(size=80),
        RAW,
        None,
        "tensor 'x' should have 80 bytes; 8 are left behind the JSON",
    ),
    "negative size": (
        X,
        tensor(size=-1),
        RAW,
        None,
        "tensor 'x' should have -1 bytes; 8 are left behind the JSON",
    ),
    "bytes left over": (X, tensor(data=[1, 2]), RAW, None, "8 bytes behind the JSON belong to no tensor"),
    "data twice": (
        X,
        tensor(size=8, data=[1, 2]),
        RAW,
        None,
        "tensor 'x' has both data and binary_data_size",
    ),
    "NaN": (
        X,
        tensor(size=8),
        np.array([1, np.nan], "<f4").tobytes(),
        None,
        "input 'x': expected a number, found NaN at element 1",
    ),
    "not a boolean": (
        FLAGS,
        tensor("b", [3], "BOOL", size=3),
        b"\0\1\2",
        None,
        "input 'b': expected the byte 0 or 1, found 2 at element 2",
    ),
    "length cut off": (
        TEXTS,
        tensor("s", [1], "BYTES", size=3),
        b"\1\0\0",
        None,
        "input 's': the length of element 0 is cut off",
    ),
    "text cut off": (
        TEXTS,
        tensor("s", [1], "BYTES", size=6),
        b"\3\0\0\0ab",
        None,
        "input 's': element 0 should have 3 bytes, found 2",
    ),
    "too many texts": (
        TEXTS,
        tensor("s", [1], "BYTES", size=8),
        b"\0\0\0\0" * 2,
        None,
        "input 's': shape [1] takes 1 values, found 2",
    ),
    "not UTF-8": (
        TEXTS,
        tensor("s", [1], "BYTES", size=5),
        b"\1\0\0\0\xff",
        None,
        "input 's': element 0 is not UTF-8 text: invalid start byte",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_binary_request_says_what_is_wrong(name):
    what, content, raw, length, told = BAD[name]
    body, right = message(content, raw=raw)
    with pytest.raises(BadRequest) as caught:
        v2.decode_request(
            body, Signature(inputs=(what,), outputs=()), header_length=right if length is None else length
        )
    assert caught.value.message == told.replace("has 100", f"has {len(body)}")


def test_a_size_without_the_header_and_a_class_are_refused():
    signature = Signature(inputs=(X,), outputs=OUT)
    with pytest.raises(BadRequest, match="inference-header-content-length is not given"):
        v2.decode_request(message(tensor(size=8))[0], signature)
    body, _ = message(tensor(data=[1, 2]), outputs=[{"name": "y", "parameters": {"classification": 2}}])
    with pytest.raises(BadRequest, match="classification extension is not supported") as caught:
        v2.decode_request(body, signature)
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("told", [b"", b"-1", b"1.5", b"9" * 30, b"\xb2", b"0x1"])
def test_the_header_must_be_a_number(told):
    with pytest.raises(BadRequest, match="should be a number of bytes"):
        open_inference.header_length({b"inference-header-content-length": told})


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4) | st.just(10**30), min_size=2, max_size=2),
    size=st.integers(-1, 40) | st.none() | st.just(2**70),
    raw=st.binary(max_size=40),
    cut=st.integers(-3, 3),
)
def test_any_bytes_behind_the_json_are_a_tensor_or_a_bad_request(dtype, shape, size, raw, cut):
    what = TensorSpec(name="x", dtype=dtype, shape=(None, None))
    body, length = message(tensor("x", shape, v2.DATATYPES[dtype], size=size), raw=raw)
    try:
        request = v2.decode_request(
            body, Signature(inputs=(what,), outputs=()), header_length=length + (max(0, cut))
        )
    except BadRequest:
        return
    assert list(request.inputs["x"].shape) == shape


def outcome(read, body, length):
    """Return all that *read* makes of the request, or the message with which it refuses it."""
    try:
        request = read(body, length)
    except BadRequest as exc:
        return exc.kind, exc.message
    inputs = [
        (name, a.dtype, a.shape, a.tobytes()) for name, a in request.inputs.items() if a.dtype != object
    ]
    texts = [(name, a.shape, a.tolist()) for name, a in request.inputs.items() if a.dtype == object]
    return inputs, texts, request.rows, request.outputs, request.binary


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), raw=st.binary(max_size=40), cut=st.integers(-3, 3), json=st.booleans())
def test_behind_json_that_is_known_bytes_are_read_as_they_are_behind_new(dtype, data, raw, cut, json):
    a = data.draw(arrays(dtype))
    signature = signature_of(b=np.ones((a.shape[0], 2), np.int8), a=a)
    body, length = v2.encode_binary_request({"a": a, "b": np.ones((a.shape[0], 2), np.int8)})
    if json:
        body, length = message(
            tensor("a", a.shape, v2.DATATYPES[dtype], size=len(body) - length - 2 * len(a)),
            tensor("b", (len(a), 2), "INT8", data=[1] * 2 * len(a)),
            raw=body[length : len(body) - 2 * len(a)],
        )
    reader = RawRequests(signature)
    head, sent = body[:length], body[length:]
    for other in (
        sent,
        raw[: len(sent)].ljust(len(sent), b"\x02"),
        sent[: len(sent) - cut],
        sent + raw,
        sent,
    ):
        wanted = outcome(lambda b, n: v2.decode_request(b, signature, header_length=n), head + other, length)
        assert outcome(reader.decode, head + other, length) == wanted
    assert bool(reader._known) != json


def test_only_so_many_heads_are_kept_and_none_with_an_id():
    reader = RawRequests(Signature(inputs=(X,), outputs=OUT))
    for number in range(200):
        reader.decode(*message(tensor(size=8), raw=RAW, id=str(number)))
        assert not reader._known
    for number in range(200):
        reader.decode(*message(tensor(size=8), raw=RAW, parameters={"n": number}))
        assert 0 < len(reader._known) <= 64


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(-1, 100))
@example(b"{}", 2)
def test_any_bytes_are_an_answer_or_a_step_error(raw, length):
    try:
        v2.decode_response(raw, header_length=length)
    except StepError:
        return


def test_our_client_gets_back_every_value(serve, make_echo):
    sent = {
        "f": np.array([[np.inf, -np.inf, np.nan], [0.1, -0.0, 1e-45]], np.float32),
        "s": np.array(["ü", ""], object),
    }
    runtime = serve(make_echo(sent), "--port", "0")
    with Client(runtime.report["url"], "echo") as client:
        found = client.infer(sent)
        found["out_f"][0, 0] = 1  # what users get is theirs
        again = client.infer(sent)
    assert_same(again["out_f"], sent["f"])
    assert_same(again["out_s"], sent["s"])


def test_nan_in_raw_bytes_is_refused_where_the_example_had_none(serve, make_echo):
    runtime = serve(make_echo({"f": np.ones((1, 2))}, nan=False), "--port", "0")
    with (
        Client(runtime.report["url"], "echo") as client,
        pytest.raises(UserError, match="input 'f': expected a number, found NaN at element 1"),
    ):
        client.infer({"f": np.array([[1, np.nan]])})


def test_a_bad_header_over_http(served, body):
    answer = served.infer(body(), {"inference-header-content-length": "x"})
    assert (answer.status, answer.json()) == (
        400,
        {"error": "inference-header-content-length should be a number of bytes, found 'x'"},
    )
