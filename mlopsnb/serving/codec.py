"""The Open Inference Protocol in JSON, made for one signature: reads and writes what most requests are, in one pass.

What is not plain (parameters, chosen outputs, nested data, free axes besides the rows) and whatever is wrong is left
to `v2`, which knows every form and explains every error. Both say the same; a property test holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import GenericAlias
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import orjson

from mlopsnb.serving import documents, v2, values
from mlopsnb.serving.documents import Documents
from mlopsnb.serving.routes import Prediction, Reply
from mlopsnb.tensors import STRING

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec
    from mlopsnb.serving.routes import ServedModel
    from mlopsnb.tensors import Array

_TENSOR_KEYS = ["data", "datatype", "name", "shape"]


class _Given:
    """What a plain request has of one input, by the names of the protocol."""

    __slots__ = ("datatype", "dtype", "free", "name", "row", "shape", "size")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.dtype = np.dtype(object if spec.dtype == STRING else spec.dtype)
        self.datatype = v2.DATATYPES[spec.dtype]
        self.shape = list(spec.shape)
        self.free = bool(spec.shape) and spec.shape[0] is None
        self.row = self.shape[1:] if self.free else self.shape
        self.size = math.prod(n or 0 for n in self.row)


class Codec:
    """Reads requests to *model* and writes answers to them."""

    def __init__(self, model: ServedModel) -> None:
        signature = model.signature
        self._inputs = [_Given(s) for s in signature.inputs]
        self._decode = _decoder(signature)
        self._numbers = (
            documents.NUMBERS.get(documents.kind(signature.inputs[0].dtype)) if self._decode else None
        )
        self._documents = Documents()
        head = orjson.dumps({"model_name": model.name, "model_version": model.version})[1:-1]
        self._head = b"{%b," % head
        self._outputs = [
            (
                s.name,
                b'{"name":%b,"shape":' % orjson.dumps(s.name),
                b',"datatype":"%b","data":' % v2.DATATYPES[s.dtype].encode(),
            )
            for s in signature.outputs
        ]

    def decode(self, body: bytes) -> Prediction | None:
        """Return the request in *body*, or None if it is not plain, or not right: then ask `v2`."""
        if self._decode is None:
            return None
        found = self._in_bulk(body) if len(body) > documents.LARGE_BYTES else None
        if found is not None:
            return found
        try:
            with np.errstate(over="raise"):  # a number beyond the range of the dtype
                return self._plain(body)
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
            return None

    def _plain(self, body: bytes) -> Prediction | None:
        assert self._decode is not None
        request = self._decode(body)
        tensors = request.inputs
        if len(tensors) != len(self._inputs) or request.outputs or request.parameters:
            return None
        arrays: dict[str, Array] = {}
        rows = None
        for given, tensor in zip(self._inputs, tensors, strict=True):
            if tensor.name != given.name or tensor.datatype != given.datatype or tensor.parameters:
                return None
            shape, data = tensor.shape, tensor.data
            if not _fits(given, shape, len(data)):
                return None
            if given.free:
                if rows is not None and rows != shape[0]:
                    return None
                rows = shape[0]
            arrays[given.name] = np.array(data, given.dtype).reshape(shape)
        return self._prediction(arrays, rows, request.id)

    def _in_bulk(self, body: bytes) -> Prediction | None:
        """Read *body* with simdjson; None if it has nested data as well."""
        if self._numbers is None or body[:1] != b"{":
            return None
        if values.more_than(1 + 2 * len(self._inputs), b"[", body):
            return None
        return self._documents.read(body, self._from_document)

    def _from_document(self, document: Any) -> Prediction | None:
        assert self._numbers is not None
        letter, wide = self._numbers
        keys = sorted(document.keys())
        tensors = document["inputs"]
        if keys not in (["inputs"], ["id", "inputs"]) or len(tensors) != len(self._inputs):
            return None
        arrays: dict[str, Array] = {}
        rows = None
        for given, tensor in zip(self._inputs, tensors, strict=True):
            if sorted(tensor.keys()) != _TENSOR_KEYS:
                return None
            shape, data = tensor["shape"].as_list(), tensor["data"]
            if tensor["name"] != given.name or tensor["datatype"] != given.datatype:
                return None
            if not all(type(n) is int for n in shape) or not _fits(given, shape, len(data)):
                return None
            if given.free:
                if rows is not None and rows != shape[0]:
                    return None
                rows = shape[0]
            array = np.frombuffer(data.as_buffer(of_type=letter), wide)
            arrays[given.name] = _narrowed(array, given.dtype).reshape(shape)
        id = document["id"] if len(keys) == 2 else None
        return None if id is not None and not isinstance(id, str) else self._prediction(arrays, rows, id)

    def _prediction(self, arrays: Mapping[str, Array], rows: int | None, id: str | None) -> Prediction:
        encode: Callable[[Mapping[str, Array]], Reply]
        encode = self.reply if id is None else lambda outputs: self.reply(outputs, id)
        return Prediction(arrays, 1 if rows is None else rows, encode)

    def reply(self, outputs: Mapping[str, Array], id: str | None = None) -> Reply:
        """Return the answer that carries all *outputs*, in JSON."""
        parts = [self._head if id is None else b'{"id":%b,%b' % (orjson.dumps(id), self._head[1:])]
        mark = b'"outputs":['
        for name, before, after in self._outputs:
            array = outputs[name]
            parts += (mark, before, orjson.dumps(array.shape), after, values.dumps(array))
            mark = b"},"
        parts.append(b"}]}")
        return Reply(200, b"".join(parts))


def _decoder(signature: Signature) -> Callable[[bytes], Any] | None:
    """Return what reads a request whose inputs have one dtype; None if they have several."""
    dtypes = {s.dtype for s in signature.inputs}
    if len(dtypes) != 1:
        return None
    element = values.element(dtypes.pop())
    if all(s.allow_nan for s in signature.inputs):
        element = element | None
    fields = {"name": str, "shape": list[int], "datatype": str, "data": GenericAlias(list, (element,))}
    tensor = msgspec.defstruct("Tensor", [*fields.items(), _optional("parameters")], gc=False)
    request = msgspec.defstruct(
        "Request",
        [
            ("inputs", GenericAlias(list, (tensor,))),
            ("id", str | None, None),
            _optional("outputs"),
            _optional("parameters"),
        ],
        gc=False,
    )
    return msgspec.json.Decoder(request).decode


def _optional(name: str) -> tuple[str, Any, None]:
    """Return the field *name*, of which only matters whether it is there."""
    return name, msgspec.Raw | None, None


def _fits(given: _Given, shape: list[int], count: int) -> bool:
    if not given.free:
        return shape == given.shape and count == given.size
    return len(shape) == len(given.shape) and shape[1:] == given.row and 0 <= count == shape[0] * given.size


def _narrowed(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return *array* as *dtype*, in memory of its own; raises for a number beyond its range."""
    if dtype.kind in "iu" and array.size:
        bounds = np.iinfo(dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise OverflowError
    return array.astype(dtype)
