"""The Open Inference Protocol, version 2: requests, answers and metadata, both ways.

Pure: bytes to arrays and back, for the runtime and for its clients. Knows no HTTP and no model.
A message is JSON; with the extension `binary_tensor_data` the raw bytes of tensors follow it, in the order in which
the JSON names them, and the length of the JSON travels beside the message (`header_length`).
Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md), and for the
extension see `binary`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import orjson

from mlopsnb.errors import StepError, nearest
from mlopsnb.serving import binary, values
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


EXTENSIONS = ("binary_tensor_data",)
"""What we understand beyond the protocol; a server lists it in its metadata."""


class _TensorParameters(msgspec.Struct):
    binary_data_size: int | None = None


_Size = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_MOST_EMPTY_ROWS = 65_536


class _Tensor(msgspec.Struct):
    name: str
    shape: list[_Size]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: _TensorParameters | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _Parameters(msgspec.Struct):
    binary_data_output: bool = False


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: _Parameters | None = None


class _Response(msgspec.Struct):
    outputs: list[_Tensor]


_REQUEST = msgspec.json.Decoder(_Request)
_RESPONSE = msgspec.json.Decoder(_Response)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A request that fits the signature. `outputs` are the names asked for, None for all; `rows` its batch.

    `binary` are the outputs that the client wants as raw bytes.
    """

    inputs: Mapping[str, Array]
    rows: int
    id: str | None = None
    outputs: tuple[str, ...] | None = None
    binary: frozenset[str] = frozenset()


def decode_request(body: bytes, signature: Signature, *, header_length: int | None = None) -> InferRequest:
    """Return the request in *body*, its inputs in the order, dtypes and shapes of *signature*.

    *header_length* is the length of the JSON if raw bytes of tensors follow it. Whatever the bytes are, raises
    nothing but `BadRequest`.
    """
    header, raw = _split(body, header_length)
    try:
        request = _REQUEST.decode(header)
        arrays = _inputs(request.inputs, _blobs(request.inputs, raw), signature)
    except msgspec.ValidationError as exc:
        raise BadRequest(
            f"the request is not Open Inference Protocol v2: {exc}; "
            'expected {"inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": [...]}]}',
            kind="malformed",
        ) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(_why_not_json(bytes(header), exc), kind="malformed") from exc
    return InferRequest(
        id=request.id,
        inputs=arrays,
        outputs=wanted([output.name for output in request.outputs or ()], signature),
        rows=rows_of(arrays, signature),
        binary=_wanted_binary(request, signature.outputs),
    )


def _split(body: bytes, header_length: int | None) -> tuple[bytes | memoryview, memoryview | None]:
    """Return the JSON and what follows it; None if the message is JSON alone."""
    if header_length is None:
        return body, None
    if not 0 < header_length <= len(body):
        raise BadRequest(
            f"the JSON header should have {header_length} bytes; the whole body has {len(body)}",
            kind="malformed",
        )
    whole = memoryview(body)
    return whole[:header_length], whole[header_length:]


def _blobs(tensors: Sequence[_Tensor], raw: memoryview | None) -> dict[int, memoryview]:
    """Return the raw bytes of each tensor that has some, by its place in *tensors*."""
    found: dict[int, memoryview] = {}
    start, end = 0, 0 if raw is None else raw.nbytes
    for place, tensor in enumerate(tensors):
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if size is None:
            continue
        where = f"tensor {tensor.name[:80]!r}"
        if bytes(tensor.data) not in (b"", b"null"):
            raise BadRequest(f"{where} has both data and binary_data_size", kind="malformed")
        if raw is None and size == 0:  # of no values KServe's client sends null, and no bytes behind the JSON
            found[place] = memoryview(b"")
            continue
        if raw is None:
            raise BadRequest(
                f"{where} has binary_data_size, but inference-header-content-length is not given",
                kind="malformed",
            )
        if not 0 <= size <= end - start:
            raise BadRequest(
                f"{where} should have {size} bytes; {end - start} are left behind the JSON", kind="malformed"
            )
        found[place] = raw[start : start + size]
        start += size
    if start != end:
        raise BadRequest(f"{end - start} bytes behind the JSON belong to no tensor", kind="malformed")
    return found


def raw_places(header: bytes) -> dict[str, slice] | None:
    """Return where behind the JSON *header* of a sound request the bytes of each tensor are; None if one has none."""
    places: dict[str, slice] = {}
    start = 0
    for tensor in _REQUEST.decode(header).inputs:
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if size is None:
            return None
        places[tensor.name] = slice(start, start + size)
        start += size
    return places


def _why_not_json(body: bytes, exc: Exception) -> str:
    if not body.strip():
        return "the request has no body; expected JSON"
    found = _NOT_JSON.search(body)
    advice = f"; JSON has no {found.group().decode()}: send null for a missing value" if found else ""
    return f"the request is not JSON: {exc}{advice}"


def _inputs(
    tensors: Sequence[_Tensor], blobs: Mapping[int, memoryview], signature: Signature
) -> dict[str, Array]:
    found = places([tensor.name for tensor in tensors], signature)
    return {
        spec.name: _input(tensors[found[spec.name]], blobs.get(found[spec.name]), spec)
        for spec in signature.inputs
    }


def places(names: Sequence[str], signature: Signature) -> dict[str, int]:
    """Return where in *names* each input is; `BadRequest` if one is missing, there twice, or unknown."""
    known = [s.name for s in signature.inputs]
    found: dict[str, int] = {}
    for place, name in enumerate(names):
        if name not in known:
            advice = nearest(name[:80], known)
            raise BadRequest(
                f"unknown input {name[:80]!r}; the model's inputs are {', '.join(known)}"
                + (f"; {advice}" if advice else "")
            )
        if name in found:
            raise BadRequest(f"input {name!r} is given twice")
        found[name] = place
    missing = [_described(s) for s in signature.inputs if s.name not in found]
    if missing:
        raise BadRequest(f"missing input {', '.join(missing)}; found {', '.join(found) or 'no inputs'}")
    return found


def _described(spec: TensorSpec) -> str:
    return f"{spec.name!r} ({DATATYPES[spec.dtype]} {_shape(spec)})"


def _shape(spec: TensorSpec) -> list[int]:
    return [-1 if n is None else n for n in spec.shape]


def _input(tensor: _Tensor, blob: memoryview | None, spec: TensorSpec) -> Array:
    where = f"input {spec.name!r}"
    check_tensor(tensor.datatype, tensor.shape, spec)
    shape = tuple(tensor.shape)
    if blob is not None:
        return binary.from_bytes(blob, spec.dtype, shape, allow_nan=spec.allow_nan, where=where)
    if not memoryview(tensor.data).nbytes:
        raise BadRequest(f"{where}: it has no data")
    return values.from_json(tensor.data, spec.dtype, shape, allow_nan=spec.allow_nan, where=where)


def check_tensor(datatype: str, shape: Sequence[int], spec: TensorSpec) -> None:
    """Raise `BadRequest` unless a tensor of *datatype* and *shape* is what *spec* asks for."""
    where = f"input {spec.name!r}"
    if datatype != DATATYPES[spec.dtype]:
        raise BadRequest(f"{where}: expected datatype {DATATYPES[spec.dtype]}, found {datatype[:80]!r}")
    fits = len(shape) == len(spec.shape) and all(
        n >= 0 and want in (None, n) for n, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        row = [1, *_shape(spec)[1:]] if spec.shape and spec.shape[0] is None else []
        raise BadRequest(
            f"{where}: expected shape {_shape(spec)}, found {list(shape[:64])}"
            + (f"; one row is {row}" if row and -1 not in row else "")
        )


def rows_of(arrays: Mapping[str, Array], signature: Signature) -> int:
    """Return how many rows the inputs have, 1 if none counts rows; `BadRequest` if they disagree.

    Rows that hold nothing cost a client nothing, so there may not be as many as it likes.
    """
    batched = {s.name: arrays[s.name].shape[0] for s in signature.inputs if s.shape and s.shape[0] is None}
    if len(set(batched.values())) > 1:
        found = ", ".join(f"{name!r} has {rows}" for name, rows in batched.items())
        raise BadRequest(f"the inputs disagree on the number of rows: {found}")
    rows = next(iter(batched.values()), 1)
    if rows > _MOST_EMPTY_ROWS and not any(array.size for array in arrays.values()):
        raise BadRequest(
            f"the inputs have {rows} rows without any value; at most {_MOST_EMPTY_ROWS} may be empty"
        )
    return rows


def wanted(asked: Sequence[str], signature: Signature) -> tuple[str, ...] | None:
    """Return the names of the outputs asked for, None for all; `BadRequest` if one is unknown."""
    known = [s.name for s in signature.outputs]
    for name in asked:
        if name not in known:
            raise BadRequest(f"unknown output {name[:80]!r}; the model's outputs are {', '.join(known)}")
    return tuple(dict.fromkeys(asked)) or None


def _wanted_binary(request: _Request, specs: Sequence[TensorSpec]) -> frozenset[str]:
    by_default = request.parameters is not None and request.parameters.binary_data_output
    if not request.outputs:
        return frozenset(s.name for s in specs) if by_default else frozenset()
    found = set()
    for output in request.outputs:
        told = output.parameters or _OutputParameters()
        if told.classification:
            raise BadRequest(
                f"output {output.name!r}: the classification extension is not supported", kind="unsupported"
            )
        if by_default if told.binary_data is None else told.binary_data:
            found.add(output.name)
    return frozenset(found)


def encode_request(inputs: Mapping[str, Array], id: str | None = None) -> bytes:
    """Return a request in JSON alone. NaN goes as null; `BadRequest` for infinity, which JSON cannot say."""
    for name, array in inputs.items():
        if array.dtype.kind == "f" and bool(np.isinf(array).any()):
            raise BadRequest(f"input {name!r} holds infinity, which JSON cannot say")
    tensors = [_tensor(name, array) for name, array in inputs.items()]
    return _dumps({"inputs": tensors} if id is None else {"id": id, "inputs": tensors})


def encode_binary_request(inputs: Mapping[str, Array]) -> tuple[bytes, int]:
    """Return a request with raw bytes that asks for raw bytes, and the length of its JSON. Says every value."""
    tensors, blobs = _binary_tensors(inputs, frozenset(inputs))
    header = _dumps({"inputs": tensors, "parameters": {"binary_data_output": True}})
    return b"".join((header, *blobs)), len(header)


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


def answer(
    request: InferRequest, outputs: Mapping[str, Array], *, model_name: str, model_version: str
) -> tuple[bytes, int | None]:
    """Return the answer to *request*, and the length of its JSON if raw bytes follow it."""
    chosen = {name: outputs[name] for name in request.outputs or outputs}
    if not request.binary:
        return encode_response(
            chosen, model_name=model_name, model_version=model_version, id=request.id
        ), None
    tensors, blobs = _binary_tensors(chosen, request.binary)
    message = {"model_name": model_name, "model_version": model_version, "outputs": tensors}
    header = _dumps(message if request.id is None else {"id": request.id, **message})
    return b"".join((header, *blobs)), len(header)


def _binary_tensors(
    arrays: Mapping[str, Array], binary_names: frozenset[str]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, array in arrays.items():
        if name not in binary_names:
            tensors.append(_tensor(name, array))
            continue
        blobs.append(binary.to_bytes(array))
        tensors.append({**_described_array(name, array), "parameters": {"binary_data_size": len(blobs[-1])}})
    return tensors, blobs


def _tensor(name: str, array: Array) -> dict[str, Any]:
    return {**_described_array(name, array), "data": orjson.Fragment(values.dumps(array))}


def _described_array(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": DATATYPES[dtype_name(array)]}


def _dumps(message: object) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_response(body: bytes, *, header_length: int | None = None) -> dict[str, Array]:
    """Return the outputs in the answer *body* by name; `StepError` if it is no such answer."""
    try:
        header, raw = _split(body, header_length)
        tensors = _RESPONSE.decode(header).outputs
        blobs = _blobs(tensors, raw)
        return {t.name: _output(t, blobs.get(place)) for place, t in enumerate(tensors)}
    except (BadRequest, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise StepError(
            f"the answer is not Open Inference Protocol v2: {exc}", hint=f"it begins with {body[:200]!r}"
        ) from exc


def _output(tensor: _Tensor, blob: memoryview | None) -> Array:
    where = f"output {tensor.name!r}"
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        raise BadRequest(f"{where} has the unknown datatype {tensor.datatype[:80]!r}")
    if any(n < 0 for n in tensor.shape) or len(tensor.shape) > 32:
        raise BadRequest(f"{where} has the impossible shape {tensor.shape[:64]}")
    shape = tuple(tensor.shape)
    if blob is not None:
        return binary.from_bytes(
            blob, dtype, shape, allow_nan=True, where=where
        ).copy()  # for users to write on
    if not memoryview(tensor.data).nbytes:
        raise BadRequest(f"{where} has no data")
    return values.from_json(tensor.data, dtype, shape, allow_nan=True, where=where)


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
