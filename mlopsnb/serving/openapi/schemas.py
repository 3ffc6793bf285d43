"""JSON Schemas of one model's messages, made from its signature. Pure; the protocols themselves are in `protocols`.

A schema never refuses what the server takes, so that a gateway may validate with it, and says as much of the rest as
JSON Schema can. What it cannot say: that the lists of a message have equally many rows, and that a flat list has as
many values as its shape says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.serving.v2 import DATATYPES
from mlopsnb.tensors import STRING

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec

Schema = dict[str, Any]

_FORMATS = {"float32": "float", "float64": "double"}
"""What OpenAPI's registry of formats calls them; integers have their own names there."""

_BASE64: Schema = {
    "type": "object",
    "description": "UTF-8 text in base64.",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
}


def scalar(spec: TensorSpec, *, answered: bool = False) -> Schema:
    """Return the schema of one value; of one that is *answered*, since NaN and infinity are answered as null."""
    if spec.dtype in (STRING, "bool"):
        return {"type": "string" if spec.dtype == STRING else "boolean"}
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return {
            "type": "integer",
            "format": dtype.name,
            "minimum": int(bounds.min),
            "maximum": int(bounds.max),
        }
    named = {"format": _FORMATS[dtype.name]} if dtype.name in _FORMATS else {}
    kind = ["number", "null"] if answered or spec.allow_nan else "number"
    return {"type": kind, **named, **_range(dtype)}


def _range(dtype: np.dtype[Any]) -> Schema:
    """Return the bounds of floats of *dtype*: what is written of a smaller one may be rounded to its largest number."""
    largest = np.finfo(dtype).max
    if dtype == np.float64:
        return {"minimum": -float(largest), "maximum": float(largest)}
    limit = float(largest) + (float(largest) - float(np.nextafter(largest, dtype.type(0)))) / 2
    return {"exclusiveMinimum": -limit, "exclusiveMaximum": limit}


def nested(item: Schema, shape: Sequence[int | None]) -> Schema:
    """Return the schema of lists of *item*, nested as *shape* says; None is a free axis."""
    for size in reversed(shape):
        item = _list(item, size)
    return item


def _list(item: Schema, size: int | None) -> Schema:
    length = {} if size is None else {"minItems": size, "maxItems": size}
    return {"type": "array", "items": item, **length}


def _flat(item: Schema, shape: Sequence[int | None]) -> Schema:
    sizes = [size for size in shape if size is not None]
    return _list(item, int(np.prod(sizes)) if len(sizes) == len(shape) else None)


def _shape(spec: TensorSpec) -> Schema:
    size: Schema = {"type": "integer", "minimum": 0}
    axes = [size if n is None else {"const": n} for n in spec.shape]
    told = ", ".join("-1" if n is None else str(n) for n in spec.shape)
    return {
        **_list(size, len(axes)),
        "description": f"[{told}], where -1 is free." if None in spec.shape else f"[{told}].",
        **({"prefixItems": axes} if axes else {}),
    }


def _tensor(spec: TensorSpec, data: Schema) -> Schema:
    """Return the schema of a tensor of the Open Inference Protocol."""
    properties = {
        "name": {"const": spec.name},
        "shape": _shape(spec),
        "datatype": {"const": DATATYPES[spec.dtype]},
        "data": data,
    }
    features = f" Its last axis: {', '.join(spec.feature_names)}." if spec.feature_names else ""
    return {
        "type": "object",
        "description": f"{DATATYPES[spec.dtype]}.{features}",
        "properties": properties,
        "required": list(properties),
    }


def infer_request(signature: Signature) -> Schema:
    """Return the schema of an inference request in JSON; inputs come in any order, each once."""

    def tensor(spec: TensorSpec) -> Schema:
        value = scalar(spec)
        data = _flat(value, spec.shape)
        if len(spec.shape) > 1:
            data = {"anyOf": [data, nested(value, spec.shape)]}
        found = _tensor(spec, {**data, "description": "The values row by row, flat or nested."})
        found["properties"]["parameters"] = {"type": ["object", "null"]}
        return found

    parameters: Schema = {"type": ["object", "null"]}
    binary = {"type": "boolean", "description": "Answer with raw bytes, for which see the binary form."}
    output = {
        "type": "object",
        "properties": {
            "name": {"enum": [s.name for s in signature.outputs]},
            "parameters": {
                **parameters,
                "properties": {"binary_data": {**binary, "type": ["boolean", "null"]}},
            },
        },
        "required": ["name"],
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": ["string", "null"], "description": "Comes back with the answer."},
            "inputs": _each_once([(s.name, tensor(s)) for s in signature.inputs]),
            "outputs": {
                "type": ["array", "null"],
                "description": "The outputs that are wanted; without it all are answered.",
                "items": output,
            },
            "parameters": {**parameters, "properties": {"binary_data_output": binary}},
        },
        "required": ["inputs"],
    }


def _each_once(items: Sequence[tuple[str, Schema]]) -> Schema:
    tensors = [schema for _, schema in items]
    if len(tensors) == 1:
        return _list(tensors[0], 1)
    there = [{"contains": {"properties": {"name": {"const": name}}}} for name, _ in items]
    return {**_list({"oneOf": tensors}, len(tensors)), "allOf": there}


def infer_response(signature: Signature, name: str, version: str) -> Schema:
    """Return the schema of an inference answer in JSON: all outputs, or those asked for."""
    outputs = [_tensor(s, _flat(scalar(s, answered=True), s.shape)) for s in signature.outputs]
    for output in outputs:
        output["properties"]["shape"].pop(
            "prefixItems", None
        )  # readers of answers mistake it, schemathesis is one
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "model_name": {"const": name},
            "model_version": {"const": version},
            "outputs": {"type": "array", "items": outputs[0] if len(outputs) == 1 else {"oneOf": outputs}},
        },
        "required": ["model_name", "model_version", "outputs"],
    }


def by_row(signature: Signature) -> Schema | None:
    """Return the schema of a list of rows; None if an input has no axis to count them."""
    if not all(s.shape for s in signature.inputs):
        return None
    first = signature.inputs[0]
    rows = _list(records(signature), first.shape[0])
    return rows if len(signature.inputs) > 1 else {"anyOf": [nested(_sent(first), first.shape), rows]}


def records(signature: Signature) -> Schema:
    """Return the schema of one row as an object of values by name."""

    def row(spec: TensorSpec) -> Schema:
        return nested(_sent(spec), spec.shape[1:])

    return _by_name(signature, row, may_lack=True)


def by_column(signature: Signature) -> Schema:
    """Return the schema of all values by name, or of the one input's values."""

    def column(spec: TensorSpec) -> Schema:
        return nested(_sent(spec), spec.shape)

    columns = _by_name(signature, column, may_lack=False)
    if len(signature.inputs) > 1:
        return columns
    return {"anyOf": [column(signature.inputs[0]), columns]}


def _sent(spec: TensorSpec) -> Schema:
    """Return the schema of a value where text may come in base64 as well."""
    value = scalar(spec)
    return {"anyOf": [value, _BASE64]} if spec.dtype == STRING else value


def _by_name(signature: Signature, held: Callable[[TensorSpec], Schema], *, may_lack: bool) -> Schema:
    """Return the schema of an object with what is *held* by each input, or by each feature of an input.

    With *may_lack*, a name may be left out where its value may be missing.
    """
    properties: dict[str, Schema] = {}
    needed: list[Schema] = []
    for spec in signature.inputs:
        properties[spec.name] = held(spec)
        features = features_of(spec)
        properties |= dict.fromkeys(features, held(_column(spec)))
        if may_lack and spec.allow_nan and (features or len(spec.shape) == 1):
            continue
        alone: Schema = {"required": [spec.name]}
        needed.append({"anyOf": [{"required": list(features)}, alone]} if features else alone)
    found: Schema = {"type": "object", "properties": properties}
    if len(needed) == 1:
        found |= needed[0]
    elif needed:
        found["allOf"] = needed
    if any(features_of(s) for s in signature.inputs):
        return found
    found["additionalProperties"] = False
    by_position = _by_position(signature, held)
    return {"anyOf": [found, by_position]} if by_position else found


def _by_position(signature: Signature, held: Callable[[TensorSpec], Schema]) -> Schema | None:
    """Return the schema of columns of any names, which the one input without feature names takes in their order."""
    if len(signature.inputs) > 1 or len(signature.inputs[0].shape) not in (1, 2):
        return None
    spec = signature.inputs[0]
    count = spec.shape[1] if len(spec.shape) == 2 else 1
    length = {"minProperties": 1} if count is None else {"minProperties": count, "maxProperties": count}
    return {
        "type": "object",
        "description": "Columns of any names, in the model's order.",
        "additionalProperties": held(_column(spec)),
        **length,
    }


def features_of(spec: TensorSpec) -> tuple[str, ...]:
    """Return the names by which the columns of *spec* can be sent, one by one; none where they are ambiguous."""
    names = spec.feature_names
    fits = len(spec.shape) == 2 and len(names) == len(set(names)) == spec.shape[1]
    return names if fits and spec.name not in names else ()


def _column(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=spec.shape[:1], feature_names=())


def data_frame(signature: Signature) -> Schema:
    """Return the schema of a data frame as pandas splits it; columns come in any order."""
    return {
        "type": "object",
        "properties": {
            "columns": {"type": ["array", "null"], "uniqueItems": True},
            "index": {"description": "Left aside."},
            "data": {"type": "array", "items": _frame_row(signature)},
        },
        "required": ["data"],
    }


def _frame_row(signature: Signature) -> Schema:
    if any(features_of(s) for s in signature.inputs):
        return {"type": "array", "minItems": len(signature.inputs)}  # what is where, the columns say
    rows = [nested(_sent(s), s.shape[1:]) for s in signature.inputs]
    if len(rows) > 1:
        return _list({"anyOf": rows}, len(rows))
    return {"anyOf": [rows[0], _list(rows[0], 1)]}


def columns_of(signature: Signature) -> tuple[str, ...] | None:
    """Return the columns of a table of scalars that makes the inputs; None if there is no such table."""
    names: list[str] = []
    for spec in signature.inputs:
        if features_of(spec):
            names += features_of(spec)
        elif len(spec.shape) == 1:
            names.append(spec.name)
        elif len(signature.inputs) == 1 and len(spec.shape) == 2 and spec.shape[1] is not None:
            names += map(str, range(spec.shape[1]))
        else:
            return None
    return tuple(dict.fromkeys(names))


def exactly_one(forms: Mapping[str, Schema], others: Mapping[str, Schema]) -> Schema:
    """Return the schema of an object with exactly one of *forms*, and perhaps *others*."""
    branches = [
        {
            "title": name,
            "type": "object",
            "properties": {name: schema, **others, **{other: False for other in forms if other != name}},
            "required": [name],
        }
        for name, schema in forms.items()
    ]
    return branches[0] if len(branches) == 1 else {"oneOf": branches}


def predictions(signature: Signature) -> Schema:
    """Return the schema of an answer row by row: values alone if there is one output, else objects."""
    rows = {s.name: nested(_answered(s), s.shape[1:]) for s in signature.outputs}
    if len(rows) == 1:
        return _list(next(iter(rows.values())), None)
    return _list({"type": "object", "properties": rows, "required": list(rows)}, None)


def outputs(signature: Signature, *, as_bytes: bool = True) -> Schema:
    """Return the schema of an answer output by output: the values alone if there is one, else by name.

    *as_bytes* is the rule of TensorFlow Serving for text of outputs whose names end so.
    """
    found = {
        s.name: nested(_answered(s) if as_bytes else scalar(s, answered=True), s.shape)
        for s in signature.outputs
    }
    if len(found) == 1:
        return next(iter(found.values()))
    return {"type": "object", "properties": found, "required": list(found)}


def _answered(spec: TensorSpec) -> Schema:
    as_bytes = spec.dtype == STRING and spec.name.endswith("_bytes")
    return _BASE64 if as_bytes else scalar(spec, answered=True)
