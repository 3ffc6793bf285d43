"""A digest of data: equal for equal values, types and names, different after any change. Keeps and sends no rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.tensors import is_frame, to_array

if TYPE_CHECKING:
    from collections.abc import Iterable

    Hash = hashlib._Hash

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 20
"""Values that are normalised at a time: small enough to stay in the processor's cache."""


def data_digest(value: object) -> str:
    """Return `sha256:…` of a DataFrame, an array, a tensor, or a dict of them.

    Counts are names, their order in a frame, types, shapes and values; a frame's index is not data. As in
    `DataFrame.equals`, one missing value is like another and 0.0 is like -0.0.
    Raises `UserError` for what is no array.
    """
    sha = hashlib.sha256()
    _value(sha, value)
    return f"sha256:{sha.hexdigest()}"


def _value(sha: Hash, value: object) -> None:
    if isinstance(value, Mapping):
        _text(sha, "dict", len(value))
        for name in sorted(value, key=str):
            _text(sha, name)
            _value(sha, value[name])
    elif is_frame(value):
        frame: Any = value
        _text(sha, "frame", *frame.shape)
        for position, name in enumerate(frame.columns):
            _text(sha, name)
            _column(sha, frame.iloc[:, position])
    elif hasattr(value, "dtype") and hasattr(value, "to_numpy"):
        _column(sha, value)
    else:
        _array(sha, value if isinstance(value, np.ndarray) else to_array(value, "the reference"))


def _text(sha: Hash, *parts: object) -> None:
    """Add *parts* so that no two lists of parts give the same bytes."""
    for part in parts:
        raw = f"{type(part).__name__}:{part}".encode("utf-8", "surrogatepass")
        sha.update(len(raw).to_bytes(8, "little") + raw)


def _column(sha: Hash, series: Any) -> None:
    dtype = series.dtype
    _text(sha, str(dtype))
    if isinstance(dtype, np.dtype):
        _array(sha, series.to_numpy())
    elif hasattr(dtype, "categories"):
        _text(sha, dtype.ordered, len(dtype.categories))
        _objects(sha, dtype.categories)
        _array(sha, series.cat.codes.to_numpy())
    elif getattr(dtype, "kind", "O") in "biuf":  # nullable numbers: where they are missing, and the rest
        missing = series.isna().to_numpy()
        _array(sha, missing)
        _array(sha, series.fillna(0).to_numpy(dtype=getattr(dtype, "numpy_dtype", None)))
    else:
        _objects(sha, series)


def _array(sha: Hash, array: Array) -> None:
    kind = array.dtype.kind
    _text(sha, array.dtype.newbyteorder("<").str, *array.shape)
    if kind == "O":
        _objects(sha, array.ravel().tolist())
        return
    if array.dtype.itemsize == 0 or array.size == 0:
        return
    flat = array.ravel()
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if kind in "fc":
            part = part + 0.0  # a copy in which -0.0 is 0.0
            part[np.isnan(part)] = np.nan
        part = np.ascontiguousarray(part.astype(part.dtype.newbyteorder("<"), copy=False))
        sha.update(part.view(np.uint8).data)


def _objects(sha: Hash, values: Iterable[object]) -> None:
    """Add values of any type; text, the usual case, in one piece."""
    listed = list(values)
    text = all(type(v) is str for v in listed)
    words: list[str] = listed if text else [_word(v) for v in listed]  # type: ignore[assignment]  # checked above
    _text(sha, "text" if text else "objects", len(words))
    sha.update(np.fromiter(map(len, words), dtype="<i8", count=len(words)).tobytes())
    sha.update("".join(words).encode("utf-8", "surrogatepass"))


def _word(value: object) -> str:
    if isinstance(value, np.ndarray):  # numpy leaves out the middle of a long array when it shows it
        return data_digest(value)
    missing = value is None or type(value).__name__ in ("NAType", "NaTType") or value != value  # noqa: PLR0124  NaN
    return "missing" if missing else f"{type(value).__name__}:{value!r}"
