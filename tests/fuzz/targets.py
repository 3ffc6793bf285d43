"""What is fuzzed: each codec of the server as a function of bytes, with seeds, and what must hold of its outcome.

Whatever the bytes are, there is a prediction that fits the signature, or a `BadRequest` that can be sent to the
client. Needs no fuzzer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from google.protobuf.message import DecodeError

from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import protocols, v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.routes import ServedModel
from mlopsnb.serving.rpc import codec
from mlopsnb.serving.rpc.messages import message

LONGEST_MESSAGE = 8192
Y = (TensorSpec(name="y", dtype="float32", shape=(None,)),)
PLAIN = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 2)),), outputs=Y)
MIXED = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float64", shape=(None, None), allow_nan=True),
        TensorSpec(name="n", dtype="int8", shape=(None,)),
        TensorSpec(name="t", dtype="str", shape=(None, 1)),
        TensorSpec(name="b", dtype="bool", shape=(None, 2)),
    ),
    outputs=Y,
)
FRAME = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=(None, 2), feature_names=("a", "b"), allow_nan=True),
        TensorSpec(name="n", dtype="int64", shape=(None, 1), feature_names=("c",)),
    ),
    outputs=Y,
)
ARRAYS = {
    "x": np.array([[1.5, -2.0], [3.0, 4.25]]),
    "n": np.array([1, -2], np.int8),
    "t": np.array([["a"], ["naïve"]], object),
    "b": np.array([[True, False], [False, True]]),
}

MANY = (np.arange(4000, dtype=np.float32) / 8).reshape(2000, 2)
"""Large bodies are read in another way than small ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`run` takes the bytes; `seeds` are good ones, `words` what may be put into them."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]


def mutated(data: bytes, words: Sequence[bytes], random: Random) -> bytes:
    """Return *data* with some of it cut, doubled, exchanged or replaced by one of *words*."""
    for _ in range(random.choice((1, 1, 2, 4))):
        begin, end = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
        end = min(end, begin + random.choice((0, 1, 4, 16, len(data))))
        part = data[begin:end]
        match random.randrange(7):
            case 0:
                part = b""
            case 1:
                part = part * random.choice((2, 3, 50))
            case 2:
                part = bytes(random.randbytes(random.randint(1, 8)))
            case 3:
                part = _number(random).encode()
            case 4:
                part = part[::-1]
            case _:
                part = random.choice(words)
        data = data[:begin] + part + data[end:]
    return data


def _number(random: Random) -> str:
    """Return a number at the edge of something."""
    edge = random.choice((7, 8, 15, 16, 24, 31, 32, 53, 63, 64, 128, 1023, 1024, 14_000))
    number = random.choice((-1, 1)) * (2**edge + random.choice((-1, 0, 1)))
    return str(number) if edge < 10_000 else "9" * 4300


def check(signature: Signature, decode: Callable[[], object], error: Callable[[int, str], bytes]) -> object:
    """Return what *decode* gives, or None for a `BadRequest`; AssertionError unless it is as it must be."""
    try:
        found = decode()
    except BadRequest as exc:
        told = exc.message
    else:
        told = None
    if told is not None:
        assert len(told) <= LONGEST_MESSAGE, len(told)
        json.loads(error(400, told))
        return None
    assert list(found.inputs) == [s.name for s in signature.inputs]
    for spec in signature.inputs:
        fits(found.inputs[spec.name], spec)
    rows = {a.shape[0] for a in found.inputs.values()}
    assert rows == {found.rows}, (rows, found.rows)
    return found


def fits(array: np.ndarray, spec: TensorSpec) -> None:
    assert array.dtype == (object if spec.dtype == "str" else spec.dtype), array.dtype
    assert len(array.shape) == len(spec.shape), array.shape
    assert all(want in (None, n) for n, want in zip(array.shape, spec.shape, strict=True)), array.shape
    if array.dtype == object:
        assert all(type(v) is str for v in array.ravel())
    if array.dtype.kind == "f" and not spec.allow_nan:
        assert not np.isnan(array).any()


def over_http(path: str, signature: Signature, headers: Callable[[bytes], dict[bytes, bytes]]) -> Callable:
    """Return what lets the route at *path* read bytes; *headers* are made of them too."""
    model = ServedModel(
        name="m", version="1", manifest=Manifest(format="echo", signature=signature, files={})
    )
    route = protocols.routes(model)[path]
    return lambda data: check(signature, lambda: route.decode(data, headers(data)), route.error)


def without(data: bytes) -> dict[bytes, bytes]:
    return {}


def binary(data: bytes) -> dict[bytes, bytes]:
    """Say that the JSON ends behind the last brace, so that what comes behind it is raw."""
    return {b"inference-header-content-length": b"%d" % (data.rfind(b"}") + 1)}


def over_grpc(signature: Signature) -> Callable[[bytes], object]:
    """Return what reads the message of a call for a model of *signature*."""
    made = codec.Codec(signature, name="m", version="1")

    def read(data: bytes) -> object:
        try:
            request = message("ModelInferRequest").FromString(data)
        except DecodeError:  # the service answers that
            return None
        return check(signature, lambda: made.decode(request), lambda _, text: json.dumps(text).encode())

    return read


def requests(arrays: dict[str, np.ndarray], *, raw: bool = False) -> tuple[bytes, ...]:
    if raw:
        return (v2.encode_binary_request(arrays)[0],)
    return v2.encode_request(arrays), v2.encode_request(arrays, id="7")


def messages(signature: Signature) -> Iterator[bytes]:
    for raw in (False, True):
        request = message("ModelInferRequest")(model_name="m", id="7")
        for spec in signature.inputs:
            name = spec.name
            array = ARRAYS[name] if spec.dtype == "str" else ARRAYS[name].astype(spec.dtype)
            tensor = request.inputs.add(name=name, datatype=v2.DATATYPES[spec.dtype], shape=array.shape)
            values = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
            if raw:
                request.raw_input_contents.append(v2.binary.to_bytes(array))
            else:
                getattr(tensor.contents, codec._CONTENTS[spec.dtype]).extend(values)
        yield request.SerializeToString()


def dumps(content: object) -> bytes:
    return json.dumps(content).encode()


NESTED = {name: array.tolist() for name, array in ARRAYS.items()}
ROWS = [{name: values[row] for name, values in NESTED.items()} for row in range(2)]
JSON_WORDS = (
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"1e-400",
        b"-0.0",
        b'""',
    ),
    *(
        b"9" * 400,
        b"[" * 2000,
        b'{"a":' * 1200,
        b"\\ud800",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"0.1",
        b"128",
        b"-129",
    ),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"[0,4611686018427387904]"),
    *(b'{"b64":"YQ=="}', b'{"b64":1}', b'"x":', b'"x":1,"x":2', b'"shape":[-1,2]', b'"binary_data_size":4'),
    *(b'"parameters":{"binary_data_output":true}', b'"outputs":[{"name":"y"}]', b'"id":7'),
)
TARGETS = {
    "v2": Target(
        run=over_http("/v2/models/m/infer", MIXED, without), seeds=requests(ARRAYS), words=JSON_WORDS
    ),
    "v2-plain": Target(
        run=over_http("/v2/models/m/infer", PLAIN, without),
        seeds=(*requests({"x": ARRAYS["x"].astype(np.float32)}), *requests({"x": MANY})),
        words=JSON_WORDS,
    ),
    "v2-binary": Target(
        run=over_http("/v2/models/m/infer", MIXED, binary), seeds=requests(ARRAYS, raw=True), words=JSON_WORDS
    ),
    "tfserving": Target(
        run=over_http("/v1/models/m:predict", MIXED, without),
        seeds=(dumps({"instances": ROWS}), dumps({"inputs": NESTED, "signature_name": "serving_default"})),
        words=(*JSON_WORDS, b'"instances":', b'"inputs":'),
    ),
    "tfserving-plain": Target(
        run=over_http("/v1/models/m:predict", PLAIN, without),
        seeds=tuple(
            dumps({key: MANY[:rows].tolist()}) for key in ("instances", "inputs") for rows in (2, 2000)
        ),
        words=(*JSON_WORDS, b'"instances":', b'"inputs":'),
    ),
    "mlflow-plain": Target(
        run=over_http("/invocations", PLAIN, lambda _: {b"content-type": b"application/json"}),
        seeds=(
            *(dumps({key: MANY.tolist()}) for key in ("instances", "inputs")),
            dumps({"dataframe_split": {"columns": ["a", "b"], "data": MANY.tolist()}}),
        ),
        words=(*JSON_WORDS, b'"instances":', b'"inputs":', b'"columns":', b'"data":'),
    ),
    "mlflow-json": Target(
        run=over_http("/invocations", FRAME, lambda _: {b"content-type": b"application/json"}),
        seeds=(
            dumps({"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1.5, None, 3], [1, 2, 3]]}}),
            dumps({"dataframe_records": [{"a": 1, "b": 2, "c": 3, "more": 4}]}),
            dumps({"inputs": {"x": [[1, 2]], "n": [[3]]}}),
            dumps({"instances": [{"x": [1, 2], "n": [3]}]}),
        ),
        words=(*JSON_WORDS, b'"dataframe_split":', b'"columns":', b'"data":', b'"instances":', b'"inputs":'),
    ),
    "mlflow-csv": Target(
        run=over_http("/invocations", FRAME, lambda _: {b"content-type": b"text/csv; charset=utf-8"}),
        seeds=(b"a,b,c\n1.5,,3\n-1e3,nan,4\n", b'\xef\xbb\xbfc,"a",b,more\r\n1,2,3,"x""y\r\n"\r\n'),
        words=(
            b"\n",
            b"\r\n",
            b",",
            b'"',
            b"nan",
            b"-NAN",
            b"inf",
            b"1e999",
            b"\x00",
            b"9" * 400,
            b"1_0",
            b"\xd9\xa1",
        ),
    ),
    "grpc": Target(
        run=over_grpc(MIXED),
        seeds=tuple(messages(MIXED)),
        words=(b"\xff" * 9, b"\x00" * 8, b"FP64", b"INT8", b"BYTES", b"\x01", b"\x80" * 9 + b"\x01"),
    ),
    "grpc-plain": Target(
        run=over_grpc(PLAIN),
        seeds=tuple(messages(PLAIN)),
        words=(b"\xff" * 9, b"\x00" * 8, b"FP32", b"\x1a\x00", b"\x1a\x02\x02\x02", b"\x80" * 9 + b"\x01"),
    ),
}
