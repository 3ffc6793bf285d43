"""Large requests of plain numbers in nested lists, read into arrays without an object for each number.

Reads what is right and plain; whatever is not, it leaves to the readers that know every form and explain every error,
so that it may say None for any reason. What it reads, it reads as they do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.serving import documents, values
from mlopsnb.serving.documents import NUMBERS, Documents

if TYPE_CHECKING:
    from mlopsnb.records import Signature
    from mlopsnb.tensors import Array


class Bulk:
    """Reads large requests to a model of one signature."""

    def __init__(self, signature: Signature) -> None:
        self._specs = {s.name: s for s in signature.inputs}
        self._numbers = all(documents.kind(s.dtype) in NUMBERS and s.shape for s in signature.inputs)
        self._documents = Documents()

    def read(
        self, body: bytes, forms: Sequence[str], optional: Mapping[str, Sequence[object]] | None = None
    ) -> tuple[str, dict[str, Array]] | None:
        """Return which of *forms* the object *body* has, and the inputs that are there.

        `instances` are rows of the one input; `inputs` are its values, or an object with those of each input or feature;
        `dataframe_split` is `{"columns": …, "data": …}`. Beside it may be *optional* keys, with a value that is allowed.
        """
        allowed = optional or {}

        def found(document: Any) -> tuple[str, dict[str, Array]] | None:
            keys = list(document.keys())
            [form] = [key for key in keys if key not in allowed]
            if form not in forms or len(set(keys)) != len(keys):
                return None
            if any(document[key] not in allowed[key] for key in keys if key != form):
                return None
            content, brackets = document[form], _brackets(body)
            inputs = (
                self._from_frame(content, brackets)
                if form == "dataframe_split"
                else self._from_lists(content, brackets, named=form == "inputs")
            )
            return None if inputs is None else (form, inputs)

        if not self._numbers or len(body) <= documents.LARGE_BYTES or body[:1] != b"{":
            return None
        if values.more_than(2, b"{", body):  # rows are objects: those are read faster elsewhere
            return None
        return self._documents.read(body, found)

    def _from_lists(self, content: Any, brackets: int, *, named: bool) -> dict[str, Array] | None:
        if not hasattr(content, "keys"):
            [name] = self._specs
            given = {name: content}
        elif not named:
            return None
        elif sorted(content.keys()) == sorted(self._specs):
            given = {name: content[name] for name in self._specs}
        else:
            return self._from_columns(content, brackets)
        shapes = {name: _shape(lists, self._specs[name].shape) for name, lists in given.items()}
        # As many lists as the shapes have, in the whole message: so a number is nowhere in a list of its own.
        if brackets != sum(map(_lists, shapes.values())):
            return None
        return {name: _array(lists, self._specs[name].dtype, shapes[name]) for name, lists in given.items()}

    def _from_columns(self, columns: Any, brackets: int) -> dict[str, Array] | None:
        """Return the one input from a list for each of its features."""
        [spec] = self._specs.values()
        if len(spec.shape) != 2 or sorted(columns.keys()) != sorted(spec.feature_names):
            return None
        parts = [columns[name] for name in spec.feature_names]
        shape = _shape(parts, (len(parts), spec.shape[0]))
        if brackets != len(parts):
            return None
        return {spec.name: np.stack([_array(part, spec.dtype, shape[1:]) for part in parts], axis=-1)}

    def _from_frame(self, frame: Any, brackets: int) -> dict[str, Array] | None:
        [spec] = self._specs.values()
        keys = sorted(frame.keys())
        names = frame["columns"].as_list()
        if keys not in (["columns", "data"], ["columns", "data", "index"]) or spec.name in names:
            return None
        shape = _shape(frame["data"], (None, len(names)))
        if brackets != _lists(shape) + len(keys) - 1:  # of the columns and of the index, if it is there
            return None
        if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
            return None
        if len(spec.shape) != 2 or not (spec.feature_names or spec.shape[1] in (None, len(names))):
            return None
        found = _array(frame["data"], spec.dtype, shape)
        if spec.feature_names and tuple(names) != spec.feature_names:
            found = np.ascontiguousarray(found[:, [names.index(name) for name in spec.feature_names]])
        return {spec.name: found}


def _brackets(body: bytes) -> int:
    """Count the lists in *body*, several times as fast as `bytes.count` does."""
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord("[")))


def _shape(lists: Any, wanted: Sequence[int | None]) -> list[int]:
    """Return the shape of nested lists, which fits *wanted*; ValueError if they have none, or nothing in them."""
    shape: list[int] = []
    level = [lists]
    for axis, size in enumerate(wanted):
        [found] = set(map(len, level))
        if not found or size not in (None, found):
            raise ValueError
        shape.append(found)
        if axis + 1 < len(wanted):
            level = [part for part in level for part in part]
    return shape


def _lists(shape: Sequence[int]) -> int:
    """Return how many lists make an array of *shape*."""
    return sum(math.prod(shape[:axis]) for axis in range(len(shape)))


def _array(lists: Any, dtype: str, shape: Sequence[int]) -> Array:
    """Return the numbers in *lists* as *dtype*; raises for one beyond its range."""
    letter, wide = NUMBERS[documents.kind(dtype)]
    array: Array = np.frombuffer(lists.as_buffer(of_type=letter), wide)
    if wide.kind in "iu":
        bounds = np.iinfo(dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise OverflowError
    return array.astype(dtype).reshape(shape)
