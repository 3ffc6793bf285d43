"""From JSON values by row or by column to a model's inputs, as the protocols without shapes and dtypes send them.

Such a message names inputs, or columns that together make an input (the columns of a data frame), or nothing. What
is matched by name is matched by name alone; only what has no names goes by position.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from heapq import nsmallest
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mlopsnb.serving import values
from mlopsnb.serving.errors import BadRequest

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec
    from mlopsnb.tensors import Array

_NAN = re.compile(rb'"(?:[^"\\]|\\.)*+"|\bNaN\b')
_JSON = msgspec.json.Decoder(object)
_SHOWN = 20


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object in *body*; `BadRequest` if it is none.

    Takes NaN for null: clients in Python write it, and both mean a missing value.
    """
    try:
        content = _JSON.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        if b"NaN" not in body:
            raise _not_json(body, exc) from exc
        content = _parse_with_nan(body)
    if not isinstance(content, dict):
        raise BadRequest(
            f"the request should be a JSON object, found {values.shown(content)}", kind="malformed"
        )
    return content


def _parse_with_nan(body: bytes) -> object:
    strict = _NAN.sub(lambda found: b"null" if found.group() == b"NaN" else found.group(), body)
    try:
        return _JSON.decode(strict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _not_json(body, exc) from exc


def _not_json(body: bytes, exc: Exception) -> BadRequest:
    if not body.strip():
        return BadRequest("the request has no body; expected JSON", kind="malformed")
    advice = "; JSON has no Infinity" if b"Infinity" in body else ""
    return BadRequest(f"the request is not JSON: {exc}{advice}", kind="malformed")


def from_rows(instances: object, signature: Signature) -> dict[str, Array]:
    """Return the inputs from a list of rows: objects with a value for each name, or the one input's values."""
    if not isinstance(instances, list):
        raise BadRequest(f"instances must be a list, found {values.shown(instances)}")
    if not instances:
        return empty(signature)
    if any(isinstance(row, dict) and set(row) != {"b64"} for row in instances):
        return from_columns(_transposed(instances, signature), signature)
    return {(spec := _the_input(signature)).name: values.from_lists(instances, spec, where=_where(spec))}


def _the_input(signature: Signature) -> TensorSpec:
    if len(signature.inputs) != 1:
        names = ", ".join(s.name for s in signature.inputs)
        raise BadRequest(f"the model has {len(signature.inputs)} inputs ({names}); give each by its name")
    return signature.inputs[0]


def _transposed(rows: Sequence[object], signature: Signature) -> dict[str, object]:
    """Return objects, one a row, as one list a name; a value that a row lacks is null.

    A name that the model does not know has no values, so that rows of ever other names cost no more than they hold.
    """
    found: list[dict[str, object]] = []
    for at, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadRequest(f"row {at} should be an object like the others, found {values.shown(row)}")
        found.append(row)
    if _goes_by_position(found[0], signature):
        for at, row in enumerate(found):
            if row.keys() != found[0].keys():
                raise BadRequest(f"row {at} has other names than row 0")
        return {name: [row[name] for row in found] for name in found[0]}
    known = {name for s in signature.inputs for name in (s.name, *s.feature_names)}
    return {
        name: [row.get(name) for row in found] if name in known else None
        for name in dict.fromkeys(chain.from_iterable(found))
    }


def _goes_by_position(columns: Collection[str], signature: Signature) -> bool:
    first = signature.inputs[0]
    return len(signature.inputs) == 1 and not first.feature_names and first.name not in columns


def empty(signature: Signature) -> dict[str, Array]:
    """Return inputs without rows; `BadRequest` if one of them has a fixed number of rows."""
    found = {}
    for spec in signature.inputs:
        if not spec.shape or spec.shape[0] is not None:
            raise BadRequest(f"{_where(spec)} cannot be without rows")
        found[spec.name] = np.empty(
            [n or 0 for n in spec.shape], dtype=object if spec.dtype == "str" else spec.dtype
        )
    return found


def from_values(content: object, signature: Signature) -> dict[str, Array]:
    """Return the inputs from an object with all the values of each name, or from the one input's values."""
    if isinstance(content, dict) and set(content) != {"b64"}:
        return from_columns(content, signature)
    spec = _the_input(signature)
    return {spec.name: values.from_lists(content, spec, where=_where(spec))}


def from_columns(columns: Mapping[str, object], signature: Signature) -> dict[str, Array]:
    """Return the inputs from *columns*, which are named after inputs, or after the features of an input.

    An input without feature names takes all columns in their order if it is the only one. Columns that belong to
    no input are left aside if they came with named features, as data frames have more columns than a model needs.
    """
    specs = signature.inputs
    by_feature = [s for s in specs if s.name not in columns and s.feature_names]
    known = [name for s in specs for name in (s.feature_names if s in by_feature else (s.name,))]
    if _goes_by_position(columns, signature):
        return {specs[0].name: _by_position(columns, specs[0])}
    missing = [s.name for s in specs if s.name not in columns and not s.feature_names]
    missing += [name for s in by_feature for name in s.feature_names if name not in columns]
    unknown = columns.keys() - dict.fromkeys(known).keys()
    if missing or (unknown and not by_feature):
        raise BadRequest(
            f"the model takes {_some(known)}; missing: {_some(missing)}; "
            f"unknown: {_some(nsmallest(_SHOWN, unknown), len(unknown))}"
        )
    return {s.name: _by_name(columns, s) for s in specs}


def _some(names: Sequence[str], count: int = 0) -> str:
    """Return the first of *names*, and how many more there are: of *count*, if those are not all."""
    more = max(count, len(names)) - _SHOWN
    return (
        ", ".join(name[:80] for name in names[:_SHOWN]) + (f" and {more} more" if more > 0 else "") or "none"
    )


def _by_name(columns: Mapping[str, object], spec: TensorSpec) -> Array:
    if spec.name in columns:
        return values.from_lists(columns[spec.name], spec, where=_where(spec))
    return _stacked({name: columns[name] for name in spec.feature_names}, spec)


def _by_position(columns: Mapping[str, object], spec: TensorSpec) -> Array:
    if len(spec.shape) == 1 and len(columns) == 1:
        return values.from_lists(next(iter(columns.values())), spec, where=_where(spec))
    if len(spec.shape) != 2 or spec.shape[1] not in (None, len(columns)):
        row = list(spec.shape[1:])
        raise BadRequest(f"{_where(spec)}: a row has the shape {row}, found {len(columns)} columns")
    return _stacked(columns, spec)


def _stacked(columns: Mapping[str, object], spec: TensorSpec) -> Array:
    """Return one array whose last axis are the *columns*."""
    if not columns:
        raise BadRequest(f"{_where(spec)}: there are no columns")
    column = replace(spec, shape=spec.shape[:1], feature_names=())
    parts = [
        values.from_lists(content, column, where=f"{_where(spec)}, column {name[:80]!r}")
        for name, content in columns.items()
    ]
    if len({part.shape for part in parts}) > 1:
        sizes = ", ".join(f"{name[:80]!r} has {len(p)}" for name, p in zip(columns, parts, strict=True))
        raise BadRequest(f"the columns disagree on the number of rows: {sizes[:400]}")
    return np.stack(parts, axis=-1)


def _where(spec: TensorSpec) -> str:
    return f"input {spec.name!r}"


def nested(array: Array) -> object:
    """Return *array* in nested lists, as `json_reply` takes it."""
    flat = values.to_json(array)
    if isinstance(flat, list):
        return np.array(flat, dtype=object).reshape(array.shape).tolist()
    return flat.reshape(array.shape) if array.ndim else flat[0]
