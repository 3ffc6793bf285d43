"""Between a tensor's raw bytes and one numpy array, as the binary tensor extension and gRPC carry it.

Little-endian, row-major, without padding; a boolean is one byte; text is a 4-byte length and then UTF-8. Knows no
message: who sends how many bytes for which tensor is told elsewhere.
Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from __future__ import annotations

import math
import struct

import numpy as np

from mlopsnb.serving.errors import BadRequest
from mlopsnb.tensors import STRING, Array

_LENGTH = struct.Struct("<I")


def to_bytes(array: Array) -> bytes:
    """Return the values of *array* as raw bytes. NaN and infinity stay what they are."""
    if array.dtype.kind in "OSU":
        return b"".join(_element(value) for value in array.ravel().tolist())
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def _element(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return _LENGTH.pack(len(raw)) + raw


def from_bytes(
    raw: bytes | memoryview, dtype: str, shape: tuple[int, ...], *, allow_nan: bool, where: str
) -> Array:
    """Return *raw* as an array of *dtype* and *shape*, without a copy where the memory is aligned.

    Such an array is read-only. Raises `BadRequest`, which names *where*, if the size or a value does not fit.
    """
    count = math.prod(shape)
    if dtype == STRING:
        return shaped(_texts(raw, where), shape, where)
    return checked(_numbers(raw, dtype, count, where), shape, allow_nan=allow_nan, where=where)


def checked(array: Array, shape: tuple[int, ...], *, allow_nan: bool, where: str) -> Array:
    """Return the flat numbers or booleans in *shape*; `BadRequest` unless they fit and are values of their dtype."""
    if array.dtype == bool and bool((array.view(np.uint8) > 1).any()):
        at = int(np.argmax(array.view(np.uint8) > 1))
        found = int(array.view(np.uint8)[at])
        raise BadRequest(f"{where}: expected the byte 0 or 1, found {found} at element {at}")
    if array.dtype.kind == "f" and not allow_nan and bool(np.isnan(array).any()):
        at = int(np.argmax(np.isnan(array)))
        raise BadRequest(f"{where}: expected a number, found NaN at element {at}")
    return shaped(array, shape, where)


def shaped(array: Array, shape: tuple[int, ...], where: str) -> Array:
    """Return the flat *array* in *shape*; `BadRequest` if it does not have as many values."""
    if array.size != math.prod(shape):
        raise BadRequest(f"{where}: shape {list(shape)} takes {math.prod(shape)} values, found {array.size}")
    try:
        return array.reshape(shape)
    except ValueError as exc:  # an axis of 0 beside one that is beyond all bounds
        raise BadRequest(f"{where}: shape {list(shape)} is impossible") from exc


def _numbers(raw: bytes | memoryview, dtype: str, count: int, where: str) -> Array:
    little = np.dtype(dtype).newbyteorder("<")
    size = memoryview(raw).nbytes
    if size != count * little.itemsize:
        raise BadRequest(
            f"{where}: {count} values of {dtype} are {count * little.itemsize} bytes, found {size}"
        )
    array = np.frombuffer(raw, dtype=little)
    if not little.isnative:
        return array.astype(dtype)
    if array.flags.aligned:
        return array
    aligned: Array = np.empty(count, dtype)
    aligned.view(np.uint8)[:] = np.frombuffer(raw, np.uint8)  # half the time of a copy number by number
    return aligned


def _texts(raw: bytes | memoryview, where: str) -> Array:
    raw = memoryview(raw)
    texts: list[str] = []
    start = 0
    while start < raw.nbytes:
        if start + _LENGTH.size > raw.nbytes:
            raise BadRequest(f"{where}: the length of element {len(texts)} is cut off")
        (length,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size
        if start + length > raw.nbytes:
            raise BadRequest(
                f"{where}: element {len(texts)} should have {length} bytes, found {raw.nbytes - start}"
            )
        texts.append(text(raw[start : start + length], where, len(texts)))
        start += length
    return np.array(texts, dtype=object)


def text(raw: bytes | memoryview, where: str, at: int) -> str:
    """Return one element as text; `BadRequest` if it is not UTF-8, the only text that models here take."""
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as exc:
        raise BadRequest(f"{where}: element {at} is not UTF-8 text: {exc.reason}") from exc
