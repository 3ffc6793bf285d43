"""Between JSON lists of values and one numpy array. Knows no protocol and no HTTP.

A missing value is NaN here and null there, since JSON has no NaN; infinity cannot be said in JSON either and
becomes null too. Floats are written with the fewest digits that read back as the same value of their dtype.
"""

from __future__ import annotations

import binascii
import math
from functools import cache
from itertools import chain
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import orjson

from mlopsnb.serving.errors import BadRequest
from mlopsnb.tensors import STRING, Array

if TYPE_CHECKING:
    from mlopsnb.records import TensorSpec

_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_RANGES = {name: (int(np.iinfo(name).min), int(np.iinfo(name).max)) for name in _INTEGERS}
_FLOATS = ("float16", "float32", "float64")


def element(dtype: str) -> Any:
    """Return the type that msgspec reads a value of *dtype* as; of uint64 the bounds are left to numpy."""
    if dtype in _FLOATS or dtype == "uint64":  # msgspec's bounds end at int64
        return float if dtype in _FLOATS else int
    if dtype in _RANGES:
        low, high = _RANGES[dtype]
        return Annotated[int, msgspec.Meta(ge=low, le=high)]
    return bool if dtype == "bool" else str


_TYPED: dict[str, msgspec.json.Decoder[list[Any]]] = {
    dtype: msgspec.json.Decoder(GenericAlias(list, (element(dtype),)))
    for dtype in (*_RANGES, *_FLOATS, "bool", STRING)
}
_BEYOND = {  # from here on a number rounds to infinity: half a step above the largest
    dtype: int(limits.max) + (int(limits.max) - int(np.nextafter(limits.max, limits.dtype.type(0)))) // 2
    for dtype, limits in ((name, np.finfo(name)) for name in _FLOATS)
}
_UNSTABLE = np.float32(7.038531e-26)
"""The one float32 whose shortest decimal, read as a double, rounds to its neighbour. It is written as a double."""
_UNSTABLE_JSON = orjson.dumps(_UNSTABLE, option=orjson.OPT_SERIALIZE_NUMPY)

_ANYTHING = msgspec.json.Decoder(object)
_TOLD_BYTES = 1 << 20
"""Data up to this size is read again, whatever it holds, to say which value is wrong; it takes 30 times its size."""


def from_json(raw: msgspec.Raw, dtype: str, shape: tuple[int, ...], *, allow_nan: bool, where: str) -> Array:
    """Return the values of the JSON list *raw*, flat or nested, as an array of *dtype* and *shape*.

    Raises `BadRequest`, which names *where* and the first value that does not fit. Text that is no JSON raises
    what msgspec raises.
    """
    try:
        values = _TYPED[dtype].decode(raw)
    except msgspec.ValidationError:  # nested, null, or a value that does not fit: look at each
        values = _inspected(raw, dtype, shape, allow_nan, where)
    if len(values) != math.prod(shape):
        raise BadRequest(
            f"{where}: shape {list(shape)} takes {math.prod(shape)} values, found {len(values)} in data"
        )
    array = _array(values, dtype)
    if array is None:
        _inspect(values, dtype, allow_nan, where)
        raise BadRequest(f"{where}: a value does not fit {dtype}")
    try:
        return array.reshape(shape)
    except ValueError as exc:  # an axis of 0 beside one that is beyond all bounds
        raise BadRequest(f"{where}: shape {list(shape)} is impossible") from exc


def from_lists(content: object, spec: TensorSpec, *, where: str) -> Array:
    """Return parsed JSON, nested as deep as the shape of *spec*, as an array; free axes get the size that is found.

    Text may be given as an object `{"b64": ...}` too. Raises `BadRequest`, which names *where* and the first value
    that does not fit.
    """
    wanted = [-1 if n is None else n for n in spec.shape]
    shape: list[int] = []
    parts: list[Any] = [content]
    for axis, size in enumerate(wanted):
        for part in parts:
            if not isinstance(part, list) or size not in (-1, len(part)):
                found = f"a list of {len(part)}" if isinstance(part, list) else shown(part)
                length = "" if size == -1 else f" of {size}"
                raise BadRequest(
                    f"{where}: values must follow shape {wanted}, with lists{length} on axis {axis}; found {found}"
                )
            size = len(part)  # noqa: PLW2901  a free axis has the size of its first list
        shape.append(max(size, 0))
        parts = list(chain.from_iterable(parts))
    return _from_flat(parts, spec, where).reshape(shape)


def _from_flat(values: list[Any], spec: TensorSpec, where: str) -> Array:
    if spec.dtype == STRING:
        values = [_text(value, where) for value in values]
    if not _at_once(values, spec.dtype, spec.allow_nan):
        _inspect(values, spec.dtype, spec.allow_nan, where)
    array = _array(values, spec.dtype)
    if array is None:
        _inspect(values, spec.dtype, spec.allow_nan, where)
        raise BadRequest(f"{where}: a value does not fit {spec.dtype}")
    return array


def _at_once(values: list[Any], dtype: str, allow_nan: bool) -> bool:
    """Say, faster than by a look at each, that *values* are all of *dtype* but for the range of floats."""
    kinds = set(map(type, values))
    if dtype in _FLOATS:
        return kinds <= ({int, float, type(None)} if allow_nan else {int, float})
    if dtype in _RANGES:
        low, high = _RANGES[dtype]
        return kinds <= {int} and low <= min(values, default=0) and max(values, default=0) <= high
    return kinds <= ({bool} if dtype == "bool" else {str})


def _text(value: object, where: str) -> object:
    """Return what *value* says if it is `{"b64": text}`, else itself."""
    if not isinstance(value, dict) or set(value) != {"b64"} or not isinstance(value["b64"], str):
        return value
    try:
        return binascii.a2b_base64(value["b64"].encode(), strict_mode=True).decode()
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise BadRequest(f"{where}: b64 should hold UTF-8 text in base64: {exc}") from exc


def _array(values: list[Any], dtype: str) -> Array | None:
    """Return *values* as a flat array, null as NaN, or None if one is beyond the range of *dtype*."""
    if dtype == STRING:
        return np.array(values, dtype=object)
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    except OverflowError:
        return None
    return None if dtype in _FLOATS and bool(np.isinf(array).any()) else array


def _inspected(
    raw: msgspec.Raw, dtype: str, shape: tuple[int, ...], allow_nan: bool, where: str
) -> list[Any]:
    try:
        values = _nested(raw, dtype, len(shape))
    except msgspec.ValidationError as exc:  # too large to look at each, or a number that no type holds
        raise BadRequest(f"{where}: data must hold {_expected(dtype, allow_nan)}s; {exc}") from exc
    if not isinstance(values, list):
        raise BadRequest(f"{where}: data must be a list, found {shown(values)}")
    for axis, size in enumerate(shape[1:], start=1):
        if not any(isinstance(v, list) for v in values):
            break
        for part in values:
            if not isinstance(part, list) or len(part) != size:
                found = f"a list of {len(part)}" if isinstance(part, list) else shown(part)
                raise BadRequest(
                    f"{where}: nested data must follow shape {list(shape)}, with lists of {size} on axis {axis}; "
                    f"found {found}"
                )
        values = list(chain.from_iterable(values))
    if not _at_once(values, dtype, allow_nan):
        _inspect(values, dtype, allow_nan, where)
    return values


def _nested(raw: msgspec.Raw, dtype: str, rank: int) -> Any:
    """Return the data in *raw*: lists as deep as it begins, if that is within *rank*, or whatever else is there."""
    begin = bytes(memoryview(raw)[:1024]).translate(None, b" \t\r\n")
    depth = len(begin) - len(begin.lstrip(b"["))
    try:
        return _typed_nested(dtype, max(min(depth, rank), 1)).decode(raw)
    except msgspec.ValidationError:
        if memoryview(raw).nbytes > _TOLD_BYTES:
            raise
        return _ANYTHING.decode(raw)


@cache
def _typed_nested(dtype: str, depth: int) -> msgspec.json.Decoder[list[Any]]:
    kind: Any = (
        (float | None) if dtype in _FLOATS else str if dtype == STRING else bool if dtype == "bool" else int
    )
    for _ in range(depth):
        kind = GenericAlias(list, (kind,))
    return msgspec.json.Decoder(kind)


def _inspect(values: list[Any], dtype: str, allow_nan: bool, where: str) -> None:
    """Raise `BadRequest` for the first of *values* that is no value of *dtype*."""
    for index, value in enumerate(values):
        if not _fits(value, dtype, allow_nan):
            raise BadRequest(
                f"{where}: expected {_expected(dtype, allow_nan)}, found {shown(value)} at data[{index}]"
            )


def _fits(value: object, dtype: str, allow_nan: bool) -> bool:
    if dtype in (STRING, "bool") or isinstance(value, str | bool):
        return type(value).__name__ == dtype
    if value is None:
        return dtype in _FLOATS and allow_nan
    if not isinstance(value, int | float):
        return False
    if dtype in _RANGES:
        low, high = _RANGES[dtype]
        whole = isinstance(value, int) or value.is_integer()  # JSON has one kind of number
        return whole and low <= value <= high
    if isinstance(value, float) and math.isnan(value):
        return allow_nan
    beyond = _BEYOND[dtype]
    return -beyond < value < beyond


def _expected(dtype: str, allow_nan: bool) -> str:
    if dtype in _RANGES:
        low, high = _RANGES[dtype]
        return f"a whole number from {low} to {high}"
    if dtype in _FLOATS:
        return f"a number within {dtype}'s range" + (" or null" if allow_nan else "")
    return "true or false" if dtype == "bool" else "a string"


def shown(value: object) -> str:
    """Return *value* as JSON would show it, cut short; containers by their kind alone."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, float) and math.isinf(value):
        return "infinity"
    try:
        text = msgspec.json.encode(value).decode()
    except (OverflowError, ValueError):
        return "a number beyond all ranges"
    return text if len(text) <= 40 else text[:37] + "..."


def dumps(array: Array) -> bytes:
    """Return *array* flat, as a JSON list."""
    if array.dtype.kind in "OSU":
        return orjson.dumps([v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()])
    flat = np.ascontiguousarray(array).ravel()
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"e" in text and _UNSTABLE_JSON in text and flat.dtype == np.float32:  # a letter is found sooner
        return orjson.dumps(flat.astype(np.float64), option=orjson.OPT_SERIALIZE_NUMPY)
    return text


def more_than(count: int, mark: bytes, text: bytes) -> bool:
    """Say whether *mark* is in *text* more than *count* times, far sooner than all are counted."""
    at = -1
    for _ in range(count + 1):
        at = text.find(mark, at + 1)
        if at < 0:
            return False
    return True


def to_json(array: Array) -> Array | list[Any]:
    """Return *array* flat, as orjson takes it with its numpy option."""
    if array.dtype.kind in "OSU":
        return [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
    flat = np.ascontiguousarray(array).ravel()
    if flat.dtype == np.float32 and bool((np.abs(flat) == _UNSTABLE).any()):
        return flat.astype(np.float64)
    return flat
