"""Between the messages of `ModelInfer` and arrays. Pure; knows nothing of the connection.

Takes both forms of tensors, typed contents and raw bytes, and answers in the form that the request came in.
Encodings are protobuf's own work; what is the same in all of a model's messages is done once.
Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_grpc.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from mlopsnb.serving import binary, v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.rpc.messages import message
from mlopsnb.tensors import STRING, Array, dtype_name

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec

_REQUEST = message("ModelInferRequest")
_RESPONSE = message("ModelInferResponse")
_SHAPES_KEPT = 256
_MOST_KNOWN_BYTES = 16384
_CONTENTS = {
    "bool": "bool_contents",
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    "int64": "int64_contents",
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    STRING: "bytes_contents",
}
"""Where typed contents of each dtype are; float16 goes as raw bytes alone."""


@dataclass(frozen=True, slots=True)
class _Plain:
    """What is known of an input whose raw bytes are its numbers: `row` is the shape of one row."""

    name: str
    datatype: str
    row: tuple[int, ...]
    row_bytes: int
    dtype: np.dtype[Any]
    refuses_nan: bool


def _plain(spec: TensorSpec) -> _Plain | None:
    if spec.dtype in (STRING, "bool") or not spec.shape or spec.shape[0] is not None:
        return None
    row, dtype = tuple(n or 0 for n in spec.shape[1:]), np.dtype(spec.dtype).newbyteorder("<")
    if 0 in row or not dtype.isnative:  # an axis is free or empty, or bytes have to be turned round
        return None
    row_bytes = math.prod(row) * dtype.itemsize
    refuses_nan = dtype.kind == "f" and not spec.allow_nan
    return _Plain(spec.name, v2.DATATYPES[spec.dtype], row, row_bytes, dtype, refuses_nan)


@dataclass(frozen=True, slots=True)
class _Known:
    """A message that came, up to the numbers of its one input, which end it."""

    head: bytes
    plain: _Plain
    shape: tuple[int, ...]


class Codec:
    """Reads and writes the messages of one model."""

    def __init__(self, signature: Signature, *, name: str, version: str) -> None:
        self._signature = signature
        self._name, self._version = name, version
        plain = [_plain(spec) for spec in signature.inputs]
        self._plain = [p for p in plain if p is not None] if all(plain) else []
        self._datatypes = {s.name: v2.DATATYPES[s.dtype] for s in signature.outputs}
        self._names = tuple(self._datatypes)
        self._raw_outputs = frozenset(self._names)
        self._beginning = lru_cache(_SHAPES_KEPT)(self._encoded_description)
        self._known: dict[int, _Known] = {}

    def recognize(self, raw: bytes) -> v2.InferRequest | None:
        """Return what `decode` would of the message *raw*, if it is like one that was given to `remember`."""
        known = self._known.get(len(raw))
        if known is None or not raw.startswith(known.head):
            return None
        array = np.frombuffer(raw, known.plain.dtype, offset=len(known.head)).copy()  # aligned
        if known.plain.refuses_nan and np.isnan(array).any():
            return None
        inputs = {known.plain.name: array.reshape(known.shape)}
        return v2.InferRequest(inputs=inputs, rows=known.shape[0], binary=self._raw_outputs)

    def remember(self, raw: bytes, request: Any, read: v2.InferRequest) -> None:
        """Keep what *raw*, that is *request*, has before its numbers, as clients send that again and again.

        What comes after it in another message is its numbers there as well: it is whole but for those, and messages
        that follow each other are one, merged.
        """
        if len(raw) > _MOST_KNOWN_BYTES or len(self._plain) != 1 or len(request.raw_input_contents) != 1:
            return
        numbers = _encoded(_REQUEST(raw_input_contents=request.raw_input_contents))
        before = raw.removesuffix(numbers)
        size = len(request.raw_input_contents[0])
        if not size or len(before) == len(raw) or read.id or read.outputs:
            return
        try:
            if _REQUEST.FromString(before).raw_input_contents:
                return
        except DecodeError:  # the numbers are in the middle of something else
            return
        if len(self._known) >= _SHAPES_KEPT:
            self._known.clear()
        [plain] = self._plain
        self._known[len(raw)] = _Known(raw[: len(raw) - size], plain, read.inputs[plain.name].shape)

    def decode(self, request: Any) -> v2.InferRequest:
        """Return the `ModelInferRequest` *request* as it fits the signature; raises nothing but `BadRequest`."""
        return self._usual(request) or decode(request, self._signature)

    def _usual(self, request: Any) -> v2.InferRequest | None:
        """Return what `decode` does, if the request is like most: numbers as raw bytes, all outputs asked for.

        None for any other, also if something is wrong with it: `decode` knows what to say.
        """
        tensors, raw, known = request.inputs, request.raw_input_contents, self._plain
        if not known or len(raw) != len(known) or len(tensors) != len(known) or request.outputs:
            return None
        inputs: dict[str, Array] = {}
        rows = -1
        for tensor, part, plain in zip(tensors, raw, known, strict=True):
            if not tensor.shape:
                return None
            found, *row = tensor.shape
            if (
                tensor.name != plain.name
                or tensor.datatype != plain.datatype
                or found < 0
                or rows not in (found, -1)
                or tuple(row) != plain.row
                or len(part) != found * plain.row_bytes
                or tensor.HasField("contents")
            ):
                return None
            array = np.frombuffer(part, plain.dtype)
            if plain.refuses_nan and np.isnan(array).any():
                return None
            inputs[plain.name] = array.reshape((found, *row))
            rows = found
        return v2.InferRequest(inputs=inputs, rows=rows, id=request.id or None, binary=self._raw_outputs)

    def encode(self, request: v2.InferRequest, outputs: Mapping[str, Array]) -> bytes:
        """Return the `ModelInferResponse` to *request*, encoded."""
        names = request.outputs or self._names
        arrays = [outputs[name] for name in names]
        if request.binary or any(a.dtype == np.float16 for a in arrays):
            beginning = self._beginning(names, tuple([a.shape for a in arrays]))
            rest = _RESPONSE(raw_output_contents=map(binary.to_bytes, arrays))
            if request.id:
                rest.id = request.id
            return beginning + _encoded(rest)  # messages that follow each other are one, merged
        response = self._described(names, [a.shape for a in arrays])
        response.id = request.id or ""
        for tensor, array in zip(response.outputs, arrays, strict=True):
            getattr(tensor.contents, _CONTENTS[dtype_name(array)]).extend(_values(array))
        return _encoded(response)

    def _described(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Any:
        """Return the answer without its values: whose it is, and the names, datatypes and shapes of the outputs."""
        response = _RESPONSE(model_name=self._name, model_version=self._version)
        for name, shape in zip(names, shapes, strict=True):
            response.outputs.add(name=name, datatype=self._datatypes[name], shape=shape)
        return response

    def _encoded_description(self, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> bytes:
        return _encoded(self._described(names, shapes))


def _encoded(response: Any) -> bytes:
    encoded: bytes = response.SerializeToString()
    return encoded


def decode(request: Any, signature: Signature) -> v2.InferRequest:
    """Return the `ModelInferRequest` *request* as it fits *signature*; raises nothing but `BadRequest`.

    `binary` are the outputs to be answered as raw bytes: all if the inputs came so.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(
            f"raw_input_contents should have {len(request.inputs)} parts, one an input, found {len(raw)}",
            kind="malformed",
        )
    places = v2.places([tensor.name for tensor in request.inputs], signature)
    inputs = {
        spec.name: _input(request.inputs[places[spec.name]], raw[places[spec.name]] if raw else None, spec)
        for spec in signature.inputs
    }
    for output in request.outputs:
        if "classification" in output.parameters:
            raise BadRequest(
                f"output {output.name[:80]!r}: the classification extension is not supported",
                kind="unsupported",
            )
    outputs = v2.wanted([output.name for output in request.outputs], signature)
    return v2.InferRequest(
        inputs=inputs,
        rows=v2.rows_of(inputs, signature),
        id=request.id or None,
        outputs=outputs,
        binary=frozenset(s.name for s in signature.outputs) if raw else frozenset(),
    )


def _input(tensor: Any, raw: bytes | None, spec: TensorSpec) -> Array:
    where = f"input {spec.name!r}"
    v2.check_tensor(tensor.datatype, tensor.shape, spec)
    shape = tuple(tensor.shape)
    if raw is not None:
        if tensor.HasField("contents"):
            raise BadRequest(f"{where} has both contents and raw_input_contents", kind="malformed")
        return binary.from_bytes(raw, spec.dtype, shape, allow_nan=spec.allow_nan, where=where)
    field = _CONTENTS.get(spec.dtype)
    if field is None:
        raise BadRequest(f"{where}: {spec.dtype} goes in raw_input_contents alone")
    values = getattr(tensor.contents, field)
    if spec.dtype == STRING:
        texts = [binary.text(value, where, at) for at, value in enumerate(values)]
        return binary.shaped(np.array(texts, dtype=object), shape, where)
    array = np.array(
        values, dtype=spec.dtype if spec.dtype[0] in "bf" else f"{spec.dtype.rstrip('0123456789')}64"
    )
    return binary.checked(_narrowed(array, spec.dtype, where), shape, allow_nan=spec.allow_nan, where=where)


def _narrowed(array: Array, dtype: str, where: str) -> Array:
    """Return 64-bit integers in the dtype that the tensor has; the message has one field for several."""
    if array.dtype == dtype:
        return array
    limits = np.iinfo(dtype)
    beyond = (array < limits.min) | (array > limits.max)
    if bool(beyond.any()):
        at = int(np.argmax(beyond))
        raise BadRequest(
            f"{where}: expected a whole number from {limits.min} to {limits.max}, found {array[at]} at element {at}"
        )
    return array.astype(dtype)


def _values(array: Array) -> Sequence[Any]:
    values: list[Any] = array.ravel().tolist()
    return [v.encode() if isinstance(v, str) else v for v in values] if array.dtype.kind in "OSU" else values
