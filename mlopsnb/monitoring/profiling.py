"""Make a `DriftProfile` of data that need not fit in memory: one pass, in parts, and the parts add up.

A first look, or else the first part, lays fine bins, at the quantiles of each of its columns and on well beyond its
ends; every part is counted on these, exactly. At the end the few bins that are kept are put together from the fine ones. Builders with the same
fine bins merge by addition, whichever machine filled them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlopsnb.errors import UserError
from mlopsnb.events import step
from mlopsnb.monitoring import statistics as st
from mlopsnb.monitoring.columns import Column, Levels, Numbers, Unsupported, clean, read_table
from mlopsnb.monitoring.measure import FEW_DISTINCT, counted_distances
from mlopsnb.monitoring.samples import Counted
from mlopsnb.monitoring.sources import PART_ROWS, PARTS, look, parts
from mlopsnb.profiles import LEVELS, NAMED, DriftProfile, Feature, Level, level_of

Array = np.ndarray[Any, Any]

BINS = 64
"""Bins of equal share that a feature is counted in, besides those of its tails."""

_TAILS = (0.0001, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.011)
_FINE = 1024
_EVEN = 256
_BEYOND = 2.0 ** (np.arange(-40, 192) / 8)
"""Where the bins beyond what was seen first end, in units of its range: each 9 % farther away, 16 million at last."""
_MOST_LEVELS = 100_000
"""Levels that are told apart while counting; with more, the rarest are put together."""


def profile(data: object, *, outputs: object = None) -> DriftProfile:
    """Return the profile of *data*, and of the model's *outputs* on it if given, row by row.

    Args:
        data: a DataFrame, an array of rows by features, a dict of columns; Parquet files (a path, a list of paths, a
            directory, a `pyarrow.dataset.Dataset`) or an iterator of frames, of which a part at a time is in memory.
        outputs: what the model answers on *data* in memory: classes or scores with one axis, or scores with two.

    `log` and `deploy` make the profile themselves; this is for data that is elsewhere, and for `drift` without a
    server. For parts on several machines see `ProfileBuilder`.
    """
    builder = ProfileBuilder()
    with step("profile") as said:
        if (seen := look(data)) is not None:
            builder.lay(seen)
        if outputs is None:
            for part in parts(data):
                builder.add(part)
        else:
            for part, answers in parts((data, outputs)):
                builder.add(part, answers)
        made = builder.finish()
        said.result = f"{len(made.features)} features, {made.rows:,} rows"
    return made


class ProfileBuilder:
    """Counts parts of a data set, and puts a profile together.

    The first part that is added lays the bins. For other machines, `like()` gives an empty builder with the same
    bins; builders of the same bins add up with `+`::

        first = ProfileBuilder().add(partitions[0])
        others = [first.like().add(part) for part in partitions[1:]]  # anywhere; builders can be pickled
        profile = sum(others, first).finish()
    """

    def __init__(self) -> None:
        self._rows = 0
        self._columns: dict[tuple[str, str], _Column] = {}

    def add(self, data: object, outputs: object = None) -> ProfileBuilder:
        """Count *data*, and the model's *outputs* on its rows if given; return this builder."""
        tables = {"input": read_table(data, "the reference")}
        if outputs is not None:
            tables["output"] = read_table(outputs, "the outputs", prefix="output", single="output")
        for role, table in tables.items():
            for name, column in table.columns.items():
                self.add_column(name, column, role=role)
        self._rows += tables["input"].rows
        return self

    def lay(self, data: object) -> ProfileBuilder:
        """Lay the bins by *data*, without counting it; return this builder."""
        for name, column in read_table(data, "the reference").columns.items():
            self.add_column(name, column, count=False)
        return self

    def add_rows(self, rows: int) -> None:
        """Note that so many rows were counted column by column."""
        self._rows += rows

    def add_column(
        self,
        name: str,
        values: Any,
        *,
        role: str = "input",
        tensor: str = "",
        place: int | None = None,
        count: bool = True,
    ) -> None:
        """Count one column of a part: an array or a Series, which is part of *tensor* at *place* if that is given.

        The first one lays the bins, as all do that are not to be counted.
        """
        key = (role, name)
        if key not in self._columns:
            self._columns[key] = _Column(name=name, role=role, tensor=tensor, place=place)
        column = clean(values)
        if isinstance(column, Numbers) and len(column.finite) and self._columns[key].edges is None:
            self._columns[key].edges = _fine_edges(column.values)
        if count:
            self._columns[key].add(column)

    def skip(self, name: str, why: str, *, role: str = "input", tensor: str = "") -> None:
        """Note a column that is not counted, and why."""
        self._columns.setdefault(
            (role, name), _Column(name=name, role=role, tensor=tensor, place=None)
        ).skipped = why

    def like(self) -> ProfileBuilder:
        """Return an empty builder with the same bins."""
        other = ProfileBuilder()
        other._columns = {key: column.like() for key, column in self._columns.items()}
        return other

    def __add__(self, other: ProfileBuilder) -> ProfileBuilder:
        if list(self._columns) != list(other._columns):
            raise UserError(
                "these profiles are of different columns", hint="give the same columns in each part"
            )
        made = self.like()
        made._rows = self._rows + other._rows
        for key, column in made._columns.items():
            column.take(self._columns[key])
            column.take(other._columns[key])
        return made

    def finish(self) -> DriftProfile:
        """Return the profile of what was counted; the builder may go on counting."""
        if not self._rows:
            raise UserError("the reference has no rows", hint="give the data that the model was trained on")
        return DriftProfile(rows=self._rows, features=tuple(c.feature() for c in self._columns.values()))


@dataclass(kw_only=True)
class _Column:
    """One column, counted part by part: numbers on fine `edges`, others by level.

    `seen` are the values that occurred and how often, of numbers only while they are few.
    """

    name: str
    role: str
    tensor: str
    place: int | None
    rows: int = 0
    missing: int = 0
    infinite: int = 0
    skipped: str = ""
    numeric: bool | None = None
    whole: bool = True
    edges: Array | None = None
    chunks: list[Array] = field(default_factory=list)
    seen: list[Counter[Level]] = field(default_factory=list)
    many: bool = False
    complete: bool = True

    def like(self) -> _Column:
        return _Column(
            name=self.name,
            role=self.role,
            tensor=self.tensor,
            place=self.place,
            skipped=self.skipped,
            numeric=self.numeric,
            edges=self.edges,
        )

    def add(self, column: Column) -> None:
        self.rows += column.rows
        self.missing += column.missing
        if isinstance(column, Unsupported):
            self.skipped = column.reason
        if self.skipped or column.rows == column.missing:
            return
        numeric = isinstance(column, Numbers)
        if self.numeric is not None and numeric != self.numeric:
            self.skipped = "its type changes from part to part: numbers and other values"
            return
        self.numeric = numeric
        if isinstance(column, Numbers):
            self._add_numbers(column)
        elif isinstance(column, Levels):
            self._keep(None, Counter({level_of(v): n for v, n in column.counts.items()}))

    def _add_numbers(self, column: Numbers) -> None:
        self.infinite += column.infinite
        self.whole &= column.whole or bool((column.finite == np.round(column.finite)).all())
        values = column.values
        assert self.edges is not None
        counts = np.diff(values.searchsorted(self.edges, "right"), prepend=0, append=len(values))
        found: Counter[Level] = Counter()
        if not self.many:
            distinct, times = np.unique(values, return_counts=True)
            self.many = len(distinct) > BINS
            found.update(dict(zip(distinct.tolist(), times.tolist(), strict=True)) if not self.many else {})
        self._keep(counts, found)

    def take(self, other: _Column) -> None:
        """Add what *other* has counted on the same bins."""
        if self.numeric is None:
            self.numeric, self.edges = other.numeric, other.edges
        elif other.numeric is not None and other.numeric != self.numeric:
            self.skipped = "its type changes from part to part: numbers and other values"
        elif self.numeric and other.chunks and not np.array_equal(self.edges, other.edges):  # type: ignore[arg-type]
            raise UserError(
                f"{self.name!r} was counted on different bins",
                hint="make the other builders with first.like()",
            )
        self.rows += other.rows
        self.missing += other.missing
        self.infinite += other.infinite
        self.skipped = self.skipped or other.skipped
        self.whole &= other.whole
        self.many |= other.many
        self.complete &= other.complete
        for i, seen in enumerate(other.seen):
            self._keep(other.chunks[i] if other.chunks else None, Counter(seen))

    def _keep(self, counts: Array | None, seen: Counter[Level]) -> None:
        """Keep one part's counts; small parts are put together, and neighbours where there are many."""
        if self.seen and self._size(-1) < PART_ROWS:
            self.seen[-1].update(seen)
            if counts is not None:
                self.chunks[-1] = self.chunks[-1] + counts
        else:
            self.seen.append(seen)
            if counts is not None:
                self.chunks.append(counts)
        if len(self.seen) > 2 * PARTS:
            self.seen = [a + b for a, b in zip(self.seen[::2], [*self.seen[1::2], Counter()], strict=False)]
            last = [np.zeros_like(c) for c in self.chunks[-1:]]
            self.chunks = [a + b for a, b in zip(self.chunks[::2], [*self.chunks[1::2], *last], strict=False)]
        if self.many and self.numeric:
            self.seen = [Counter() for _ in self.seen]
        elif sum(map(len, self.seen)) > _MOST_LEVELS:
            self._forget_rare()

    def _size(self, index: int) -> int:
        return int(self.chunks[index].sum()) if self.chunks else sum(self.seen[index].values())

    def _forget_rare(self) -> None:
        total: Counter[Level] = sum(self.seen, Counter())
        kept = {level for level, _ in total.most_common(_MOST_LEVELS // (2 * len(self.seen)))}
        self.complete = False
        self.seen = [_renamed(one, kept | {_OTHERS}) for one in self.seen]

    def feature(self) -> Feature:
        """Return what is kept of the column."""
        common: dict[str, Any] = {
            "name": self.name,
            "role": self.role,
            "tensor": self.tensor,
            "column": self.place,
            "missing": self.missing,
            "infinite": self.infinite,
        }
        if self.skipped or self.numeric is None:
            return Feature(**common, skipped=self.skipped or "all values are missing")
        total: Counter[Level] = sum(self.seen, Counter())
        if not self.numeric or (not self.many and len(total) <= FEW_DISTINCT):
            return Feature(**common, **self._levels(total))
        return Feature(**common, **self._bins(total))

    def _levels(self, total: Counter[Level]) -> dict[str, Any]:
        total.pop(_OTHERS, None)
        ranked = sorted(total, key=lambda level: (-total[level], str(level)))
        levels, rest = ranked[:LEVELS], ranked[LEVELS:]
        known = self.complete and len(rest) <= NAMED

        def cells(counts: Mapping[Level, int]) -> Array:
            shown = [counts.get(level, 0) for level in levels]
            return np.array([*shown, sum(counts.values()) - sum(shown), 0])

        parts_of_it = [cells(one) for one in self.seen]
        band = _band(parts_of_it, st.js_distance)
        return {
            "kind": "category",
            "levels": tuple(levels),
            "rare": tuple(rest) if known else (),
            "complete": known,
            "singles": sum(n == 1 for n in total.values()),
            "counts": tuple(np.sum(parts_of_it, axis=0).tolist()),
            "band": band,
        }

    def _bins(self, total: Counter[Level]) -> dict[str, Any]:
        assert self.edges is not None
        chunks, edges = self.chunks, self.edges
        whole = self.whole and not self.many and len(total) <= BINS
        kept = np.flatnonzero(np.isin(edges, np.array(list(total), np.float64)))
        whole = whole and len(kept) == len(total)
        if not whole:
            kept = _chosen(np.sum(chunks, axis=0))
        chunks = [np.add.reduceat(c, np.r_[0, kept + 1]) for c in chunks]
        edges, counts = edges[kept], np.sum(chunks, axis=0)
        at = np.cumsum(counts)[:-1] / counts.sum()
        low = int(min(at.searchsorted(0.001, "left"), len(edges) - 1))
        high = int(min(at.searchsorted(0.999, "left"), len(edges) - 1))
        ends = float(edges[low]), float(edges[high])

        def effect(a: Array, b: Array) -> float:
            return counted_distances(Counted(edges, a, whole), Counted(edges, b, whole), ends)[0]

        inner = np.r_[counts[: low + 1].sum(), counts[low + 1 : high + 1], counts[high + 1 :].sum()]
        middles = np.r_[edges[low], (edges[low:high] + edges[low + 1 : high + 1]) / 2, edges[high]]
        return {
            "edges": tuple(edges.tolist()),
            "counts": tuple(counts.tolist()),
            "low": ends[0],
            "high": ends[1],
            "mean": float((middles * inner).sum() / counts.sum()),
            "std": st.spread_of_counts(edges[low : high + 1], inner) or 1.0,
            "whole": whole,
            "band": _band(chunks, effect),
        }


_OTHERS = "\N{REPLACEMENT CHARACTER} others"
"""Under this name levels are added up that are too many to be told apart."""


def _renamed(counts: Counter[Level], kept: set[Level]) -> Counter[Level]:
    made: Counter[Level] = Counter()
    for level, n in counts.items():
        made[level if level in kept else _OTHERS] += n
    return made


def _fine_edges(values: Array) -> Array:
    """Return the ends of fine bins: values at the quantiles of sorted *values*, even steps, and on beyond both ends."""
    last = len(values) - 1
    shares = np.r_[np.linspace(0, 1, _FINE + 1), _TAILS, 1 - np.array(_TAILS)]
    low, high = values[0], values[-1]
    with np.errstate(over="ignore"):
        reach = max(high - low, abs(high) * 1e-6, 1e-12) * _BEYOND
        beyond = np.r_[low - reach, high + reach, np.linspace(0, 1, _EVEN) * (high - low) + low]
    distinct = np.unique(values)
    quantiles = distinct if len(distinct) <= 2 * _FINE else values[np.round(shares * last).astype(np.int64)]
    edges = np.unique(np.r_[quantiles, beyond])
    return np.asarray(edges[np.isfinite(edges)])


def _chosen(fine: Array) -> Array:
    """Return which edges to keep of the fine ones with these counts: quantiles, tails, ends; heavy bins stand alone."""
    at = np.cumsum(fine)[:-1] / fine.sum()
    tails = np.array(_TAILS)
    shares = np.r_[tails, np.linspace(0, 1, BINS + 1)[1:-1], 1 - tails, 1.0]
    kept = np.minimum(at.searchsorted(shares - 1e-12, "left"), len(at) - 1)
    first = np.flatnonzero(fine[:-1])[:1]
    heavy = np.flatnonzero(fine[:-1] > fine.sum() / BINS)
    before = heavy[heavy > 0] - 1
    return np.unique(np.r_[first, kept, heavy, before])


def _band(chunks: Sequence[Array], effect: Any) -> float | None:
    """Return how large the effect of one part of the reference against all others gets; None if there are too few.

    Mean and three standard deviations over the parts, each left out in turn. Source: the thresholds of NannyML, with
    the part taken out of what it is compared with.
    """
    full = [chunk for chunk in chunks if chunk.sum() >= PART_ROWS]
    if len(full) < 3:
        return None
    total = np.sum(chunks, axis=0)
    effects = np.array([effect(total - chunk, chunk) for chunk in full])
    return float(effects.mean() + 3 * effects.std())
