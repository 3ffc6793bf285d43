"""A numeric sample in one of two forms, which are measured and drawn alike: all its values, or counters between edges.

Counters are what profiles and servers keep, and what large samples are brought to here: one pass over the values
instead of a sort. Reads no frames and judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LARGE = 60_000
"""Samples that have more rows than this together are counted instead of sorted."""

GRID = 16_384
"""Bins that they are counted in. The effect is then exact to 0.001 at worst, and to 0.00001 usually."""

_HEAVY = 0.005
"""No bin may hold more than this share: the Kolmogorov-Smirnov distance is exact to what a bin holds."""

_LOOK = 4096
"""Values of either side that are looked at to place the grid."""

_CHUNK = 1 << 17  # values at a time: they and their counters stay in the processor's cache


@dataclass(frozen=True, slots=True, eq=False)
class Sorted:
    """All *values*, sorted and finite."""

    values: Array

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def quantiles(self, shares: Array) -> Array:
        """Return the value below which each of *shares* lies: one of those that are there."""
        return np.asarray(self.values[np.round(shares * (self.size - 1)).astype(np.int64)])

    def at_most(self, x: Array) -> Array:
        """Return the share of values up to each of *x*."""
        return np.asarray(self.values.searchsorted(x, "right") / self.size)


@dataclass(frozen=True, eq=False)
class Counted:
    """How many values lie in ``(-inf, e0], (e0, e1], …, (ek, inf)``: one count more than *edges*.

    `step`: the values are whole, and an edge comes at or after each of them before the next.
    """

    edges: Array
    counts: Array
    step: bool = False

    @cached_property
    def size(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    def quantiles(self, shares: Array) -> Array:
        """Return the value below which each of *shares* lies, on a straight line between edges."""
        at = self.at_edges
        if self.step:
            places = np.minimum(at.searchsorted(shares, "left"), len(self.edges) - 1)
            return np.asarray(np.floor(self.edges[places]))
        steps = np.flatnonzero(np.diff(at, prepend=-1.0))  # the first edge with each share
        return np.interp(shares, at[steps], self.edges[steps])

    def at_most(self, x: Array) -> Array:
        """Return the share of values up to each of *x*; beyond the outermost edges, as if there."""
        at = self.at_edges
        if self.step:
            after = np.concatenate([at, [1.0]])
            return np.asarray(after[self.edges.searchsorted(np.floor(x), "left")])
        return np.interp(x, self.edges, at)

    @cached_property
    def at_edges(self) -> Array:
        """The share of values up to each edge."""
        return np.asarray(np.cumsum(self.counts)[:-1] / max(self.size, 1))


Sample = Sorted | Counted


def counted(reference: Array, current: Array, *, whole: bool) -> tuple[Counted, Counted] | None:
    """Return two samples, unsorted and finite, on one grid of equal bins; None if no such grid tells their values apart.

    The grid spans all but the outermost 0.05 % of the values, or each of the *whole* numbers there are.
    """
    looked = np.sort(np.concatenate([_look(reference), _look(current)]))
    last = len(looked) - 1
    low, high = float(looked[round(0.0005 * last)]), float(looked[round(0.9995 * last)])
    if whole and high - low < GRID - 2:
        low, width, bins = np.floor(low) - 0.5, 1.0, int(high - low) + 2
    else:
        whole, bins = False, GRID
        width = (high - low) / bins
        if not 1e-100 < width < 1e100 or abs(low) > 1e6 * (high - low):
            return None
    if not whole and np.bincount(_places(looked, low, width, bins)).max() > _HEAVY * len(looked):
        return None
    edges = low + width * np.arange(bins + 1)
    a, b = (Counted(edges, _count(side, low, width, bins), whole) for side in (reference, current))
    return a, b


def _look(values: Array) -> Array:
    return values[:: max(1, len(values) // _LOOK)]


def _places(values: Array, low: float, width: float, bins: int) -> Array:
    with np.errstate(over="ignore"):
        scaled = (values - low) * (1.0 / width) + 1.0
    return np.clip(scaled, 0.0, bins + 1.0, out=scaled).astype(np.intp)


def _count(values: Array, low: float, width: float, bins: int) -> Array:
    total = np.zeros(bins + 2, np.int64)
    for start in range(0, len(values), _CHUNK):
        total += np.bincount(_places(values[start : start + _CHUNK], low, width, bins), minlength=bins + 2)
    return total
