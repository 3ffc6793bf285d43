"""Between the messages of `ModelInfer` and arrays. Pure; knows neither the model nor the connection.

Takes both forms of tensors, typed contents and raw bytes, and answers in the form that the request came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.serving import binary, v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.rpc.messages import message
from mlopsnb.tensors import STRING, Array, dtype_name

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec

_RESPONSE = message("ModelInferResponse")
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


def encode(request: v2.InferRequest, outputs: Mapping[str, Array], *, name: str, version: str) -> Any:
    """Return the `ModelInferResponse` to *request*."""
    response = _RESPONSE(model_name=name, model_version=version, id=request.id or "")
    arrays = {output: outputs[output] for output in request.outputs or outputs}
    raw = bool(request.binary) or any(a.dtype == np.float16 for a in arrays.values())
    for output, array in arrays.items():
        tensor = response.outputs.add(
            name=output, datatype=v2.DATATYPES[dtype_name(array)], shape=array.shape
        )
        if raw:
            response.raw_output_contents.append(binary.to_bytes(array))
        else:
            getattr(tensor.contents, _CONTENTS[dtype_name(array)]).extend(_plain(array))
    return response


def _plain(array: Array) -> Sequence[Any]:
    values: list[Any] = array.ravel().tolist()
    return [v.encode() if isinstance(v, str) else v for v in values] if array.dtype.kind in "OSU" else values
