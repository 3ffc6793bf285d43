"""The Open Inference Protocol, version 2, as JSON: requests, answers and metadata, both ways.

Pure: bytes to arrays and back, for the runtime and for its clients. Knows no HTTP and no model.
Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import orjson

from mlopsnb.errors import StepError, nearest
from mlopsnb.serving import values
from mlopsnb.serving.errors import BadRequest
from mlopsnb.tensors import STRING, Array, dtype_name

if TYPE_CHECKING:
    from mlopsnb.manifest import Manifest
    from mlopsnb.records import Signature, TensorSpec

DATATYPES = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    STRING: "BYTES",
}
"""The protocol's name for each of our dtypes."""

_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_NOT_JSON = re.compile(rb"\b(?:NaN|-?Infinity|nan|inf)\b")


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    outputs: list[_Output] | None = None


class _Response(msgspec.Struct):
    outputs: list[_Tensor]


_REQUEST = msgspec.json.Decoder(_Request)
_RESPONSE = msgspec.json.Decoder(_Response)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A request that fits the signature. `outputs` are the names asked for, None for all; `rows` its batch."""

    inputs: Mapping[str, Array]
    rows: int
    id: str | None = None
    outputs: tuple[str, ...] | None = None


def decode_request(body: bytes, signature: Signature) -> InferRequest:
    """Return the request in *body*, its inputs in the order, dtypes and shapes of *signature*.

    Whatever the bytes are, raises nothing but `BadRequest`.
    """
    try:
        request = _REQUEST.decode(body)
        arrays = _inputs(request.inputs, signature)
    except msgspec.ValidationError as exc:
        raise BadRequest(
            f"the request is not Open Inference Protocol v2: {exc}; "
            'expected {"inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": [...]}]}',
            kind="malformed",
        ) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(_why_not_json(body, exc), kind="malformed") from exc
    return InferRequest(
        id=request.id,
        inputs=arrays,
        outputs=_wanted(request.outputs, signature.outputs),
        rows=_rows(arrays, signature.inputs),
    )


def _why_not_json(body: bytes, exc: Exception) -> str:
    if not body.strip():
        return "the request has no body; expected JSON"
    found = _NOT_JSON.search(body)
    advice = f"; JSON has no {found.group().decode()}: send null for a missing value" if found else ""
    return f"the request is not JSON: {exc}{advice}"


def _inputs(tensors: Sequence[_Tensor], signature: Signature) -> dict[str, Array]:
    specs = {s.name: s for s in signature.inputs}
    found: dict[str, _Tensor] = {}
    for tensor in tensors:
        if tensor.name not in specs:
            advice = nearest(tensor.name, specs)
            raise BadRequest(
                f"unknown input {tensor.name[:80]!r}; the model's inputs are {', '.join(specs)}"
                + (f"; {advice}" if advice else "")
            )
        if tensor.name in found:
            raise BadRequest(f"input {tensor.name!r} is given twice")
        found[tensor.name] = tensor
    missing = [_described(s) for s in signature.inputs if s.name not in found]
    if missing:
        raise BadRequest(f"missing input {', '.join(missing)}; found {', '.join(found) or 'no inputs'}")
    return {name: _input(found[name], spec) for name, spec in specs.items()}


def _described(spec: TensorSpec) -> str:
    return f"{spec.name!r} ({DATATYPES[spec.dtype]} {_shape(spec)})"


def _shape(spec: TensorSpec) -> list[int]:
    return [-1 if n is None else n for n in spec.shape]


def _input(tensor: _Tensor, spec: TensorSpec) -> Array:
    where = f"input {spec.name!r}"
    if tensor.datatype != DATATYPES[spec.dtype]:
        raise BadRequest(
            f"{where}: expected datatype {DATATYPES[spec.dtype]}, found {tensor.datatype[:80]!r}"
        )
    fits = len(tensor.shape) == len(spec.shape) and all(
        n >= 0 and want in (None, n) for n, want in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        row = [1, *_shape(spec)[1:]] if spec.shape and spec.shape[0] is None else []
        raise BadRequest(
            f"{where}: expected shape {_shape(spec)}, found {tensor.shape[:64]}"
            + (f"; one row is {row}" if row and -1 not in row else "")
        )
    if not memoryview(tensor.data).nbytes:
        raise BadRequest(f"{where}: it has no data")
    return values.from_json(
        tensor.data, spec.dtype, tuple(tensor.shape), allow_nan=spec.allow_nan, where=where
    )


def _rows(arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> int:
    batched = {s.name: arrays[s.name].shape[0] for s in specs if s.shape and s.shape[0] is None}
    if len(set(batched.values())) > 1:
        found = ", ".join(f"{name!r} has {rows}" for name, rows in batched.items())
        raise BadRequest(f"the inputs disagree on the number of rows: {found}")
    return next(iter(batched.values()), 1)


def _wanted(asked: Sequence[_Output] | None, specs: Sequence[TensorSpec]) -> tuple[str, ...] | None:
    if not asked:
        return None
    known = [s.name for s in specs]
    for output in asked:
        if output.name not in known:
            raise BadRequest(
                f"unknown output {output.name[:80]!r}; the model's outputs are {', '.join(known)}"
            )
    return tuple(dict.fromkeys(output.name for output in asked))


def encode_request(inputs: Mapping[str, Array], id: str | None = None) -> bytes:
    """Return a request for *inputs*. NaN goes as null; raises `BadRequest` for infinity, which JSON cannot say."""
    for name, array in inputs.items():
        if array.dtype.kind == "f" and bool(np.isinf(array).any()):
            raise BadRequest(f"input {name!r} holds infinity, which JSON cannot say")
    tensors = [_tensor(name, array) for name, array in inputs.items()]
    return _dumps({"inputs": tensors} if id is None else {"id": id, "inputs": tensors})


def encode_response(
    outputs: Mapping[str, Array],
    *,
    model_name: str,
    model_version: str,
    id: str | None = None,
) -> bytes:
    """Return the answer that carries *outputs*. NaN and infinity go as null."""
    message = {
        "model_name": model_name,
        "model_version": model_version,
        "outputs": [_tensor(name, array) for name, array in outputs.items()],
    }
    return _dumps(message if id is None else {"id": id, **message})


def _tensor(name: str, array: Array) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": DATATYPES[dtype_name(array)],
        "data": values.to_json(array),
    }


def _dumps(message: object) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_response(body: bytes) -> dict[str, Array]:
    """Return the outputs in the answer *body* by name; `StepError` if it is no such answer."""
    try:
        return {t.name: _output(t) for t in _RESPONSE.decode(body).outputs}
    except (BadRequest, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise StepError(
            f"the answer is not Open Inference Protocol v2: {exc}", hint=f"it begins with {body[:200]!r}"
        ) from exc


def _output(tensor: _Tensor) -> Array:
    where = f"output {tensor.name!r}"
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        raise BadRequest(f"{where} has the unknown datatype {tensor.datatype[:80]!r}")
    if any(n < 0 for n in tensor.shape) or len(tensor.shape) > 32:
        raise BadRequest(f"{where} has the impossible shape {tensor.shape[:64]}")
    if not memoryview(tensor.data).nbytes:
        raise BadRequest(f"{where} has no data")
    return values.from_json(tensor.data, dtype, tuple(tensor.shape), allow_nan=True, where=where)


def metadata(name: str, version: str, manifest: Manifest) -> dict[str, Any]:
    """Return what the protocol says of a model: its inputs and outputs; -1 is a free axis."""
    return {
        "name": name,
        "versions": [version],
        "platform": f"mlopsnb_{manifest.format}",
        "inputs": [_metadata_tensor(s) for s in manifest.signature.inputs],
        "outputs": [_metadata_tensor(s) for s in manifest.signature.outputs],
    }


def _metadata_tensor(spec: TensorSpec) -> dict[str, Any]:
    """Describe one tensor; `parameters` is the protocol's place for what is ours."""
    told = {"feature_names": list(spec.feature_names)} if spec.feature_names else {}
    return {
        "name": spec.name,
        "datatype": DATATYPES[spec.dtype],
        "shape": _shape(spec),
        "parameters": {**told, "allow_nan": spec.allow_nan},
    }
