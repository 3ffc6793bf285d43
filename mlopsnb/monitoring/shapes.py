"""What the displays need of two columns, and no more: shares on shared bins, and two short ECDFs.

Small on purpose: a report is kept, logged and shown long after the data is gone.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mlopsnb.masking import masked

if TYPE_CHECKING:
    from mlopsnb.monitoring.samples import Sample

Array = np.ndarray[Any, Any]

BINS = 24
"""Bins of a numeric histogram at most."""

LEVELS = 10
"""Levels that are shown one by one at most; the rest are added up."""

Box = tuple[float, float, float, float, float]
"""The 5 %, 25 %, 50 %, 75 % and 95 % quantiles."""

_LABEL = 40
_ECDF_POINTS = 65


@dataclass(frozen=True, slots=True, kw_only=True)
class Ecdf:
    """Both empirical CDFs at the same points `x`, which are quantiles of either side."""

    x: tuple[float, ...]
    reference: tuple[float, ...]
    current: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The share of rows in each bin, on bins that both sides have in common.

    Numbers have `edges` (one more than bins; the outermost bins hold all that lies beyond), an `ecdf` and
    `boxes`, the reference's first; categories have `labels`.
    """

    reference: tuple[float, ...]
    current: tuple[float, ...]
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    ecdf: Ecdf | None = None
    boxes: tuple[Box, Box] | None = None


def number_shape(reference: Sample, current: Sample, *, whole: bool) -> Histogram:
    """Return the histogram of two samples over where 99 % of each lies; *whole* numbers get whole bins."""
    ends = [side.quantiles(np.array([0.005, 0.995])) for side in (reference, current)]
    edges = _edges(float(min(e[0] for e in ends)), float(max(e[1] for e in ends)), whole=whole)
    points = np.linspace(0, 1, _ECDF_POINTS)
    x = np.unique(np.concatenate([reference.quantiles(points), current.quantiles(points)]))
    return Histogram(
        edges=tuple(edges.tolist()),
        reference=_shares(reference, edges),
        current=_shares(current, edges),
        ecdf=Ecdf(
            x=tuple(x.tolist()),
            reference=tuple(reference.at_most(x).tolist()),
            current=tuple(current.at_most(x).tolist()),
        ),
        boxes=(_box(reference), _box(current)),
    )


def _box(sample: Sample) -> Box:
    return cast("Box", tuple(sample.quantiles(np.array([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()))


def _edges(low: float, high: float, *, whole: bool) -> Array:
    if whole and high - low < 2**50:
        # Bins of one width hold equally many whole numbers; otherwise the histogram looks like a comb.
        width = max(1.0, float(np.ceil((high - low + 1) / BINS)))
        return np.arange(low - 0.5, high + width, width)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    t = np.linspace(0, 1, BINS + 1)
    return low * (1 - t) + high * t


def _shares(sample: Sample, edges: Array) -> tuple[float, ...]:
    return tuple(np.diff(sample.at_most(edges[1:-1]), prepend=0.0, append=1.0).tolist())


def level_shape(reference: Mapping[Hashable, int], current: Mapping[Hashable, int]) -> Histogram:
    """Return the shares of the most frequent levels; numbers come in their order, others by their frequency."""
    n, m = sum(reference.values()), sum(current.values())
    a = {level: count / n for level, count in reference.items()}
    b = {level: count / m for level, count in current.items()}
    ranked = sorted({**a, **b}, key=lambda level: -max(a.get(level, 0.0), b.get(level, 0.0)))
    shown, rest = ranked[:LEVELS], ranked[LEVELS:]
    if all(isinstance(level, (int, float)) for level in shown):
        shown.sort(key=lambda level: cast("float", level))
    labels = [label(level) for level in shown]
    reference_shares = [a.get(level, 0.0) for level in shown]
    current_shares = [b.get(level, 0.0) for level in shown]
    if rest:
        labels.append(f"{len(rest)} others")
        reference_shares.append(sum(a.get(level, 0.0) for level in rest))
        current_shares.append(sum(b.get(level, 0.0) for level in rest))
    return Histogram(labels=tuple(labels), reference=tuple(reference_shares), current=tuple(current_shares))


def label(level: object) -> str:
    """Return a level as short printable text."""
    if isinstance(level, float):
        text = f"{level:.15g}"
    elif isinstance(level, bytes):
        text = level.decode(errors="replace")
    else:
        text = str(level)
    return printable(text) or "(empty)"


def printable(text: str, width: int = _LABEL) -> str:
    """Return *text* on one line and cut to *width*: no control characters, nothing that breaks a table."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in masked(text))
    return clean if len(clean) <= width else clean[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def listed(items: Sequence[str], most: int = 3) -> str:
    """Return ``a, b, c and 4 more``."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
