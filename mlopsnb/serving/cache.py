"""Answers that are kept, in bounded memory, and what they are kept under. Pure: it is told the time and asks no model.

A row's key is all its bytes, or a digest of them that nobody can steer: blake2b with a salt of this process. Equal
keys are equal inputs to the bit, so -0.0 is not 0.0, and NaN is itself. Where rows cannot be told apart, the whole
request has one key.
"""

from __future__ import annotations

import math
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlopsnb.serving import batcher, binary
from mlopsnb.tensors import STRING, Array, dtype_name

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec
    from mlopsnb.serving.batcher import Outputs

SHORT_KEY = 256
"""Bytes up to which a row is its own key, which is exact and six times as fast as a digest."""

_ENTRY_BYTES = 400
"""What an entry takes beside its key and its value: the ordered dict's part at its worst, the tuple, the time."""

_SALT = os.urandom(blake2b.SALT_SIZE)


class Keeping(Protocol):
    """How requests are cut into what is kept."""

    by_rows: bool

    def keys(self, inputs: Mapping[str, Array], rows: int) -> list[bytes]:
        """Return the keys of a request of *rows* rows, 1 or more."""

    def take(self, inputs: Mapping[str, Array], places: Sequence[int]) -> Mapping[str, Array]:
        """Return the inputs that belong to the keys at *places*."""

    def cut(self, outputs: Outputs, count: int) -> list[Any] | None:
        """Return what is kept for each of *count* keys; None if the outputs are not as the signature says."""

    def join(self, values: Sequence[Any]) -> Outputs:
        """Return the outputs of kept values, one after the other: `cut` undone, to the bit."""

    def nbytes(self, value: Any) -> int:
        """Return the memory that a kept value takes."""


class ByRows:
    """Keeps the answer to each row as bytes. For signatures that `fits`."""

    by_rows = True

    def __init__(self, signature: Signature) -> None:
        self._inputs = signature.inputs
        self._free = batcher.free_inputs(signature)
        self._digests = bool(self._free) or any(s.dtype == STRING for s in signature.inputs)
        self._numbers = [(s, _width(s)) for s in signature.outputs if s.dtype != STRING]
        self._texts = [(s, math.prod(s.shape[1:])) for s in signature.outputs if s.dtype == STRING]  # type: ignore[arg-type]
        self._width = sum(width for _, width in self._numbers)
        self._order = [s.name for s in signature.outputs]

    @staticmethod
    def fits(signature: Signature) -> bool:
        """Say whether every row of an answer has the same shape, so that any may stand beside any."""
        return batcher.may_join(signature) and not any(None in s.shape[1:] for s in signature.outputs)

    def keys(self, inputs: Mapping[str, Array], rows: int) -> list[bytes]:
        """Return the key of each row."""
        numbers = [
            _raw(inputs[s.name], rows) for s in self._inputs if s.dtype != STRING and inputs[s.name].size
        ]
        texts = [inputs[s.name] for s in self._inputs if s.dtype == STRING and inputs[s.name].size]
        found = _rows_of_bytes(numbers, rows)
        if texts:
            found = [row + b"".join([_text(t[at]) for t in texts]) for at, row in enumerate(found)]
        if self._free:
            shapes = repr([inputs[name].shape[1:] for name in self._free]).encode()
            found = [shapes + row for row in found]
        if self._digests or len(found[0]) > SHORT_KEY:
            return [_digest(row) for row in found]
        return found

    def take(self, inputs: Mapping[str, Array], places: Sequence[int]) -> Mapping[str, Array]:
        """Return some rows of *inputs*."""
        return {name: array[places] for name, array in inputs.items()}

    def cut(self, outputs: Outputs, count: int) -> list[bytes] | None:
        """Return the rows of *outputs* as bytes."""
        for spec in (*self._numbers, *self._texts):
            array = outputs[spec[0].name]
            if array.shape != (count, *spec[0].shape[1:]) or dtype_name(array) != spec[0].dtype:
                return None
        found = _rows_of_bytes([_raw(outputs[s.name], count) for s, width in self._numbers if width], count)
        if not self._texts:
            return found
        texts = [outputs[s.name] for s, size in self._texts if size]
        try:
            return [
                row + b"".join([binary.to_bytes(t[at : at + 1]) for t in texts])
                for at, row in enumerate(found)
            ]
        except UnicodeEncodeError:
            return None

    def join(self, values: Sequence[bytes]) -> Outputs:
        """Return rows as outputs, which are read-only."""
        rows = len(values)
        found = self._joined_texts([value[self._width :] for value in values], rows) if self._texts else {}
        if self._texts:
            values = [value[: self._width] for value in values]
        raw = np.frombuffer(b"".join(values), np.uint8).reshape(rows, self._width)
        start = 0
        for spec, width in self._numbers:
            part = np.ascontiguousarray(raw[:, start : start + width])
            found[spec.name] = part.reshape(-1).view(spec.dtype).reshape(rows, *_row(spec))
            start += width
        return {name: found[name] for name in self._order}

    def _joined_texts(self, values: Sequence[bytes], rows: int) -> dict[str, Array]:
        each = sum(size for _, size in self._texts)
        flat = binary.from_bytes(b"".join(values), STRING, (rows, each), allow_nan=False, where="the cache")
        found, start = {}, 0
        for spec, size in self._texts:
            found[spec.name] = flat[:, start : start + size].reshape(rows, *_row(spec))
            start += size
        return found

    def nbytes(self, value: bytes) -> int:
        """Return what Python takes for *value*."""
        return sys.getsizeof(value)


class Whole:
    """Keeps answers to whole requests, as arrays."""

    by_rows = False

    def keys(self, inputs: Mapping[str, Array], rows: int) -> list[bytes]:
        """Return the one key of the request."""
        told = repr([(a.shape, dtype_name(a)) for a in inputs.values()]).encode()
        return [_digest(told + b"".join([_bytes(a) for a in inputs.values()]))]

    def take(self, inputs: Mapping[str, Array], places: Sequence[int]) -> Mapping[str, Array]:
        """Return *inputs*."""
        return inputs

    def cut(self, outputs: Outputs, count: int) -> list[Outputs] | None:
        """Return *outputs*, copied: they may be a part of something larger."""
        return [{name: _frozen(array) for name, array in outputs.items()}]

    def join(self, values: Sequence[Outputs]) -> Outputs:
        """Return the one that there is."""
        return values[0]

    def nbytes(self, value: Outputs) -> int:
        """Return what Python takes for *value*."""
        texts = [a for a in value.values() if a.dtype == object]
        return (
            sys.getsizeof(value)
            + sum(map(sys.getsizeof, value.values()))
            + sum(sum(map(sys.getsizeof, a.ravel().tolist())) for a in texts)
        )


def _frozen(array: Array) -> Array:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def _row(spec: TensorSpec) -> list[int]:
    return [n or 0 for n in spec.shape[1:]]


def _width(spec: TensorSpec) -> int:
    """Return the bytes of one row of numbers."""
    return math.prod(_row(spec)) * np.dtype(spec.dtype).itemsize


def _raw(array: Array, rows: int) -> Array:
    """Return the bytes of each row of numbers, as a matrix."""
    return np.ascontiguousarray(array).reshape(rows, -1).view(np.uint8)


def _rows_of_bytes(parts: Sequence[Array], rows: int) -> list[bytes]:
    """Return the rows of several matrices of bytes, side by side."""
    if not parts:
        return [b""] * rows
    matrix = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    found: list[bytes] = matrix.view(f"V{matrix.shape[1]}").reshape(-1).tolist()
    return found


def _text(row: object) -> bytes:
    """Return one row of text, each with its length before it, so that no two read alike."""
    values = [row] if isinstance(row, str) else np.asarray(row, object).ravel().tolist()
    raw = [value.encode("utf-8", "surrogatepass") for value in values]
    return b"".join([len(value).to_bytes(8, "little") + value for value in raw])


def _bytes(array: Array) -> bytes:
    return _text(array) if array.dtype == object else array.tobytes()


def _digest(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=16, salt=_SALT).digest()


class Store:
    """Values by key, the least recently used of which go first. `nbytes` counts all that they take.

    It never takes more than *limit* bytes; what would not fit even alone is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self.evicted = 0
        self._entries: OrderedDict[bytes, tuple[Any, float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Sequence[bytes], since: float) -> list[Any]:
        """Return the value of each key, None where there is none that was put at *since* or later."""
        entries, used = self._entries, self._entries.move_to_end
        found: list[Any] = []
        for key in keys:
            entry = entries.get(key)
            if entry is None or entry[1] < since:
                found.append(None)
            else:
                used(key)
                found.append(entry[0])
        return found

    def put(self, key: bytes, value: Any, nbytes: int, now: float) -> bool:
        """Keep *value*, which takes *nbytes*, in the place of what was under *key*; say whether it fits."""
        entries = self._entries
        size = nbytes + sys.getsizeof(key) + _ENTRY_BYTES
        old = entries.pop(key, None)
        if old is not None:
            self.nbytes -= old[2]
        if size > self.limit:
            return False
        while self.nbytes + size > self.limit:
            self.nbytes -= entries.popitem(last=False)[1][2]
            self.evicted += 1
        entries[key] = value, now, size
        self.nbytes += size
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.nbytes = 0
