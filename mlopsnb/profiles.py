"""What a model's reference data looked like, in counters; and counters of the same shape for what it sees now.

A `DriftProfile` is written when a model is logged and read by the server, which counts live rows into a `Tally` on the
profile's own bins and hands them out as `Snapshot`s; whoever watches reads both. All counters of one profile are one
vector, so snapshots of replicas and of windows merge by addition. Needs numpy only. Compares and judges nothing.

The vector holds, for each feature in turn: its bins, then how many values were missing (infinite ones count as
missing too), then how many of these were infinite. The bins of numbers lie between `edges`, each with its right end:
``(-inf, e0], (e0, e1], …, (ek, inf)``. Those of categories are one for each of `levels`, one for all other levels that
the reference had, one for levels that it had not.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from mlopsnb.errors import UserError

Array = np.ndarray[Any, Any]
Level = str | bool | int | float

PROTOCOL = 1
FILE = "reference.json"
"""The profile's place in a model package."""

LEVELS = 200
"""Levels that have a counter each at most; the others of the reference share one."""

NAMED = 2000
"""Levels of the reference that are known by name at most, besides those counted; with more, new ones cannot be told."""

FARTHEST = 1e6
"""Standard deviations beyond which a value counts as being just there, in the moments: sums stay finite."""

_TAIL = 2  # the cells behind a feature's bins: missing, infinite
_MOST = np.finfo(np.float64).max
_COUNTS, _SUMS = "<i8", "<f8"


class BadProfile(UserError):
    """A file or an answer is no profile, or its counters belong to another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One input or output of a model, as the reference had it.

    `tensor` is the input or output that it is part of, `column` its place on that tensor's last axis (None if the
    tensor has one axis); a profile of a bare table has neither. `mean` and `std` are the reference's, its values
    clipped to `low` and `high`, its 0.1 % and 99.9 % quantiles; both of these are edges. `whole`: the values were
    whole numbers, and few enough for an edge each. `complete`: no level of the reference is unnamed; `singles` of them
    occurred once. `band` is how large the effect gets between parts of the reference themselves (mean and three
    standard deviations, each part left out in turn), None if it had too few rows.
    `skipped` says why there are no counters, if there are none.
    """

    name: str
    kind: Literal["numeric", "category"] = "numeric"
    role: Literal["input", "output"] = "input"
    tensor: str = ""
    column: int | None = None
    edges: tuple[float, ...] = ()
    levels: tuple[Level, ...] = ()
    rare: tuple[Level, ...] = ()
    complete: bool = True
    singles: int = 0
    counts: tuple[int, ...] = ()
    missing: int = 0
    infinite: int = 0
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    whole: bool = False
    band: float | None = None
    skipped: str = ""

    @property
    def bins(self) -> int:
        """How many bins it has; 0 if it is skipped."""
        if self.skipped:
            return 0
        return len(self.edges) + 1 if self.kind == "numeric" else len(self.levels) + 2

    @property
    def present(self) -> int:
        """How many values of the reference were there and finite."""
        return sum(self.counts)


@dataclass(frozen=True, kw_only=True)
class DriftProfile:
    """The reference of a model: *rows* of them, and what each feature and each output looked like."""

    features: tuple[Feature, ...]
    rows: int
    protocol: int = PROTOCOL

    @cached_property
    def places(self) -> tuple[slice, ...]:
        """Where in the vector of counters each feature's cells are."""
        ends = np.cumsum([f.bins + _TAIL for f in self.features]).tolist()
        return tuple(slice(a, b) for a, b in zip([0, *ends], ends, strict=False))

    @property
    def cells(self) -> int:
        """How long the vector of counters is."""
        return self.places[-1].stop if self.features else 0

    @cached_property
    def digest(self) -> str:
        """Identify the bins, so that counters of another profile are not taken for this one's."""
        return "sha256:" + hashlib.sha256(to_json(self).encode()).hexdigest()


def to_json(profile: DriftProfile) -> str:
    """Return *profile* as the text of `reference.json`."""
    return json.dumps(dataclasses.asdict(profile), separators=(",", ":"))


def from_json(text: str | bytes) -> DriftProfile:
    """Read what `to_json` wrote; `BadProfile` if it is something else, or was written by a newer mlopsnb."""
    try:
        data = json.loads(text)
        if data["protocol"] != PROTOCOL:
            raise BadProfile(
                f"the profile has protocol {data['protocol']!r}; this mlopsnb reads {PROTOCOL}",
                hint="log the model again, or install the mlopsnb that wrote it",
            )
        features = tuple(_feature(part) for part in data.pop("features"))
        return DriftProfile(**data, features=features)
    except (KeyError, TypeError, ValueError) as exc:
        raise BadProfile(
            f"that is no profile: {exc!r}", hint="log the model with its reference again"
        ) from exc


_TUPLES = ("edges", "levels", "rare", "counts")


def _feature(data: Mapping[str, Any]) -> Feature:
    made = Feature(**{**data, **{name: tuple(data[name]) for name in _TUPLES}})
    if len(made.counts) != made.bins:
        raise ValueError(f"{made.name} has {len(made.counts)} counts for {made.bins} bins")
    return made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """The counters of one window of time, from `start` to `end` (seconds since 1970), over `rows` rows.

    `cells` is the vector that the module describes (int64); `sums` has two numbers for each feature, the sum and the
    sum of the squares of ``(value - mean) / std``, each first clipped to ±`FARTHEST` (zeros for categories).
    """

    start: float
    end: float
    rows: int
    cells: Array
    sums: Array


def merge(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Return the sum of one or more *snapshots* of the same profile, over the time that they cover together."""
    cells, sums = snapshots[0].cells.copy(), snapshots[0].sums.copy()
    for one in snapshots[1:]:
        cells += one.cells
        sums += one.sums
    return Snapshot(
        start=min(s.start for s in snapshots),
        end=max(s.end for s in snapshots),
        rows=sum(s.rows for s in snapshots),
        cells=cells,
        sums=sums,
    )


def by_window(snapshots: Iterable[Snapshot]) -> tuple[Snapshot, ...]:
    """Merge what started at the same time, as the same window of several replicas did; the oldest comes first."""
    found: dict[float, list[Snapshot]] = {}
    for one in snapshots:
        found.setdefault(one.start, []).append(one)
    return tuple(merge(found[start]) for start in sorted(found))


def snapshot_document(snapshot: Snapshot) -> dict[str, object]:
    """Return *snapshot* as JSON takes it: the counters as zlib in base64 of little-endian 64-bit numbers."""
    return {
        "start": snapshot.start,
        "end": snapshot.end,
        "rows": snapshot.rows,
        "cells": _pack(snapshot.cells, _COUNTS),
        "sums": _pack(snapshot.sums, _SUMS),
    }


def read_snapshot(document: Mapping[str, Any], profile: DriftProfile) -> Snapshot:
    """Read what `snapshot_document` made; `BadProfile` if it has not *profile*'s shape."""
    try:
        cells, sums = _unpack(document["cells"], _COUNTS), _unpack(document["sums"], _SUMS)
        if (len(cells), len(sums)) != (profile.cells, 2 * len(profile.features)):
            raise ValueError(f"{len(cells)} counters where the profile has {profile.cells}")
        return Snapshot(
            start=float(document["start"]),
            end=float(document["end"]),
            rows=int(document["rows"]),
            cells=cells.astype(np.int64),
            sums=sums.astype(np.float64),
        )
    except (KeyError, TypeError, ValueError, zlib.error) as exc:
        raise BadProfile(
            f"the counters do not fit the profile: {exc}", hint="another revision may serve now; ask again"
        ) from exc


def _pack(array: Array, dtype: str) -> str:
    return base64.b64encode(zlib.compress(array.astype(dtype).tobytes(), 1)).decode()


def _unpack(text: str, dtype: str) -> Array:
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype)


class Tally:
    """Counts rows on the bins of *profile*. Not safe to share between threads: give each its own, and merge."""

    def __init__(self, profile: DriftProfile) -> None:
        self.profile = profile
        self.rows = 0
        self.cells = np.zeros(profile.cells, np.int64)
        self.sums = np.zeros(2 * len(profile.features))
        # What lies below the first is -inf, what lies behind the last is NaN.
        self._bounds = [np.array([-np.inf, *f.edges, _MOST, np.inf]) for f in profile.features]
        self._means = np.array([[f.mean] for f in profile.features], np.float64)
        self._stds = np.array([[f.std] for f in profile.features], np.float64)
        self._spots = [_spots(f) for f in profile.features]

    def add_tensors(self, tensors: Mapping[str, Array], role: Literal["input", "output"]) -> None:
        """Count the rows of named *tensors*, the model's inputs or its outputs; rows are those of the inputs."""
        if role == "input" and tensors:
            self.rows += len(next(iter(tensors.values())))
        for index, feature in enumerate(self.profile.features):
            if feature.role == role and feature.tensor in tensors and not feature.skipped:
                tensor = tensors[feature.tensor]
                self.add_column(index, tensor if feature.column is None else tensor[:, feature.column])

    def add_column(self, index: int, values: Array) -> None:
        """Count one column of feature *index*: numbers of any dtype, or objects; missing ones are NaN, None or NaT."""
        if self.profile.features[index].kind == "category":
            self._add_levels(index, values)
        else:
            self.add_block([index], np.asarray(values, np.float64)[:, None])

    def add_block(self, indices: Sequence[int], block: Array) -> None:
        """Count a *block* of floats, shape (rows, len(indices)), each column being one numeric feature."""
        columns = np.array(block.T, order="C")
        columns.sort(axis=1)  # -inf first, then numbers, inf, NaN
        rows = columns.shape[1]
        complete = True
        for index, column in zip(indices, columns, strict=True):
            at = column.searchsorted(self._bounds[index], "right")
            present, infinite = at[-2] - at[0], at[-1] - at[-2] + at[0]
            cells = self.cells[self.profile.places[index]]
            cells[:-_TAIL] += at[1:-1] - at[:-2]
            cells[-_TAIL:] += (rows - present, infinite)
            complete = complete and present == rows
        self._add_moments(np.array(indices), columns, complete=complete)

    def _add_moments(self, indices: Array, columns: Array, *, complete: bool) -> None:
        z = columns.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            z -= self._means[indices]
            z /= self._stds[indices]
        np.clip(z, -FARTHEST, FARTHEST, out=z)
        if not complete:
            z[~np.isfinite(columns)] = 0
        self.sums[2 * indices] += z.sum(axis=1)
        self.sums[2 * indices + 1] += (z * z).sum(axis=1)

    def _add_levels(self, index: int, values: Array) -> None:
        cells, spots = self.cells[self.profile.places[index]], self._spots[index]
        unknown = len(cells) - _TAIL - (1 if self.profile.features[index].complete else 2)
        if values.dtype.kind in "OSU":
            for value in values.tolist():
                missing = value is None or value != value  # noqa: PLR0124  NaN and NaT alone differ from themselves
                cells[-_TAIL if missing else spots.get(level_of(value), unknown)] += 1
            return
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            cells[-_TAIL:] += (len(values) - int(finite.sum()), int(np.isinf(values).sum()))
            values = values[finite]
        found, times = np.unique(values, return_counts=True)
        for value, count in zip(found.tolist(), times.tolist(), strict=True):
            cells[spots.get(value, unknown)] += count

    def take(self, start: float, end: float) -> Snapshot:
        """Return what was counted since the last time, and begin anew."""
        taken = Snapshot(start=start, end=end, rows=self.rows, cells=self.cells, sums=self.sums)
        self.rows, self.cells, self.sums = 0, np.zeros_like(self.cells), np.zeros_like(self.sums)
        return taken


def level_of(value: object) -> Level:
    """Return a value as the level that profiles and their JSON know it by."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.generic):
        return level_of(value.item())
    return str(value)


def _spots(feature: Feature) -> dict[Level, int]:
    """Return the cell of each level that is known by name."""
    others = dict.fromkeys(feature.rare, len(feature.levels))
    return others | {level: i for i, level in enumerate(feature.levels)}
