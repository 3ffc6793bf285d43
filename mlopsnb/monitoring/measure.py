"""Measure one feature: how far the current values lie from the reference's, and how likely chance makes that.

What comes out has no verdict yet: that needs the p-values of all features, see `judge`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mlopsnb.monitoring import statistics as st
from mlopsnb.monitoring.columns import Column, Levels, Numbers, Unsupported
from mlopsnb.monitoring.report import Check, FeatureDrift
from mlopsnb.monitoring.samples import LARGE, Counted, Sample, Sorted, counted
from mlopsnb.monitoring.shapes import label, level_shape, listed, number_shape

Array = np.ndarray[Any, Any]

MIN_ROWS = 30
"""With fewer rows than this, on either side after cleaning, a feature is `no-data`."""

FEW_DISTINCT = 5
"""Numbers with at most so many distinct values in the reference are compared as categories."""

MISSING_MOVE, NEW_MOVE, TAIL_MOVE = 0.05, 0.01, 0.01
"""A share of missing values, of new levels, of values in the reference's outermost 0.2 %, that moved by so much,
significantly, is drift by itself."""

_PSI_BINS = 20


def measure(name: str, kind: str, ref: Column, cur: Column, threshold: float) -> FeatureDrift:
    """Return effect, p-values, shape and notes of one feature; states that need q-values are not set yet."""
    few = isinstance(ref, Numbers) and _few(ref)
    numeric = isinstance(ref, Numbers) and isinstance(cur, Numbers) and not few
    row = FeatureDrift(
        feature=name,
        kind=kind or ("numeric" if numeric else "category"),
        threshold=threshold,
        missing_reference=ref.missing / ref.rows if ref.rows else 0.0,
        missing_current=cur.missing / cur.rows if cur.rows else 0.0,
        checks=missing_check(ref.missing, ref.rows, cur.missing, cur.rows),
        note=_infinite_note(ref, cur),
    )
    if isinstance(ref, Unsupported) and isinstance(cur, Unsupported):
        return replace(row, kind=kind or "other", state="skipped", note=ref.reason)
    if too_few := too_few_note(ref.rows - ref.missing, cur.rows - cur.missing):
        return replace(row, state="no-data", note=joined(row.note, too_few))
    if isinstance(ref, Numbers) and isinstance(cur, Numbers) and not few:
        return measure_numbers(row, *_samples(ref, cur))
    if isinstance(ref, Unsupported) or isinstance(cur, Unsupported):
        return _type_changed(row, ref, cur)
    a, b = _counts(ref, cur), _counts(cur, ref)
    if any(isinstance(v, str) for v in a) != any(isinstance(v, str) for v in b):
        return _type_changed(row, ref, cur)
    return measure_levels(row, a, b)


def too_few_note(reference: int, current: int) -> str:
    """Say so if either side has fewer values than are needed."""
    if min(reference, current) >= MIN_ROWS:
        return ""
    return f"{reference} reference and {current} current values; {MIN_ROWS} of each are needed"


def missing_check(missing: int, rows: int, other_missing: int, other_rows: int) -> tuple[Check, ...]:
    """Return the check of the missing share, or nothing where there are too few rows."""
    if min(rows, other_rows) < MIN_ROWS:
        return ()
    return (share_check("missing", missing, rows, other_missing, other_rows, MISSING_MOVE),)


def share_check(name: str, hits: int, n: int, other_hits: int, m: int, limit: float) -> Check:
    """Return the check of a share, *hits* of *n* in the reference, *other_hits* of *m* now."""
    p_value = st.two_proportions(hits, n, other_hits, m)
    return Check(name=name, reference=hits / n, current=other_hits / m, limit=limit, p_value=p_value)


def _samples(ref: Numbers, cur: Numbers) -> tuple[Sample, Sample, bool]:
    """Return both sides, large ones counted, and whether they are whole numbers."""
    whole = ref.whole and cur.whole
    if len(ref.finite) + len(cur.finite) > LARGE:
        pair = counted(
            _same_precision(ref.finite, ref, cur), _same_precision(cur.finite, cur, ref), whole=whole
        )
        if pair is not None:
            return *pair, whole
    x, y = _same_precision(ref.values, ref, cur), _same_precision(cur.values, cur, ref)
    return Sorted(x), Sorted(y), whole


def measure_numbers(
    row: FeatureDrift, ref: Sample, cur: Sample, whole: bool, tails: tuple[float, float] | None = None
) -> FeatureDrift:
    """Return *row* with what two numeric samples say; *tails* are where counted ones are winsorised, if that is known."""
    effect, gap, outside = _distances(ref, cur, tails)
    inner = np.unique(ref.quantiles(np.linspace(0, 1, _PSI_BINS + 1)[1:-1]))
    shares = [np.diff(side.at_most(inner), prepend=0.0, append=1.0) for side in (ref, cur)]
    low, high = cur.quantiles(np.array([0.0, 1.0])).tolist()
    constant = f"constant in the current data: {label(low)}" if low == high else ""
    return replace(
        row,
        statistic="wasserstein",
        effect=effect,
        p_value=st.ks_p_value(gap, ref.size, cur.size),
        ks=gap,
        psi=st.stability_index(*shares),
        checks=(*row.checks, tail_check(outside, ref.size, cur.size)),
        histogram=number_shape(ref, cur, whole=whole),
        note=joined(row.note, constant),
    )


def tail_check(outside: tuple[int, int], rows: int, other_rows: int) -> Check:
    """Return the check of the values beyond where the reference's tails begin.

    Where they begin was read off the reference's own values: one more on either side is to be expected (Wilks 1941).
    """
    return share_check("tails", min(outside[0] + 2, rows), rows, outside[1], other_rows, TAIL_MOVE)


def _distances(
    ref: Sample, cur: Sample, tails: tuple[float, float] | None
) -> tuple[float, float, tuple[int, int]]:
    """Return the effect, the Kolmogorov-Smirnov distance and how many of each side lie in the reference's tails."""
    if isinstance(ref, Counted) and isinstance(cur, Counted):
        return counted_distances(ref, cur, tails)
    assert isinstance(ref, Sorted)
    assert isinstance(cur, Sorted)
    x, y = ref.values, cur.values
    low, high = st.tails(x)
    outside = [int(s.searchsorted(low, "left")) + len(s) - int(s.searchsorted(high, "right")) for s in (x, y)]
    return st.wasserstein_effect(x, y), st.ks_statistic(x, y), (outside[0], outside[1])


def counted_distances(
    ref: Counted, cur: Counted, tails: tuple[float, float] | None = None
) -> tuple[float, float, tuple[int, int]]:
    """Return the same of two samples counted on the same edges; *tails*, if given, begin at two of the edges."""
    if tails is None:
        first = max(int(ref.at_edges.searchsorted(0.001, "right")) - 1, 0)
        last = min(int(ref.at_edges.searchsorted(0.999, "left")), len(ref.edges) - 1)
        tails = float(ref.edges[first]), float(ref.edges[last])
    first, last = (int(ref.edges.searchsorted(end, "left")) for end in tails)
    outside = [int(c[:first].sum() + c[last + 1 :].sum()) for c in (ref.counts, cur.counts)]
    effect = counted_effects(ref, cur.counts, tails)
    return float(effect), float(st.gap_of_counts(ref.counts, cur.counts)), (outside[0], outside[1])


def counted_effects(ref: Counted, counts: Array, tails: tuple[float, float]) -> Array:
    """Return the effect of each row of *counts*, on the reference's edges; all winsorised at *tails*, two of the edges.

    As in `statistics.wasserstein_effect`.
    """
    first, last = (int(ref.edges.searchsorted(end, "left")) for end in tails)
    inner, clipped = ref.edges[first : last + 1], _clipped(ref.counts, first, last)
    spread = st.spread_of_counts(inner, clipped)
    distance = st.wasserstein_of_counts(inner, clipped, _clipped(counts, first, last), step=ref.step)
    return distance / spread if spread > 0 else np.zeros_like(distance)


def _clipped(counts: Array, first: int, last: int) -> Array:
    below, above = (
        side.sum(axis=-1, keepdims=True) for side in (counts[..., : first + 1], counts[..., last + 1 :])
    )
    return np.concatenate([below, counts[..., first + 1 : last + 1], above], axis=-1)


def measure_levels(row: FeatureDrift, a: Mapping[Hashable, int], b: Mapping[Hashable, int]) -> FeatureDrift:
    """Return *row* with what the counts of levels on both sides say."""
    levels = [*a, *(level for level in b if level not in a)]
    new = levels[len(a) :]
    counts = np.array([a.get(v, 0) for v in levels], float), np.array([b.get(v, 0) for v in levels], float)
    row = replace(row, new_levels=len(new), histogram=level_shape(a, b))
    if new:
        # A level that the reference has once might as well have been new: that many are to be expected (Good 1953).
        once = sum(n == 1 for n in a.values())
        found = sum(b[level] for level in new)
        check = share_check("new levels", once, int(counts[0].sum()), found, int(counts[1].sum()), NEW_MOVE)
        plural = "s" if len(new) > 1 else ""
        shown = listed([label(v) for v in sorted(new, key=lambda v: -b[v])])
        note = f"{len(new)} new level{plural} ({check.current:.1%} of rows): {shown}"
        row = replace(row, checks=(*row.checks, check), note=joined(row.note, note))
    return measure_counts(row, *counts, constant=label(levels[0]) if len(levels) == 1 else "")


def measure_counts(row: FeatureDrift, a: Array, b: Array, *, constant: str = "") -> FeatureDrift:
    """Return *row* with what two rows of counts of the same levels say."""
    merged = st.merge_rare(a, b)
    frequent = (a + b).max() * min(a.sum(), b.sum()) / (a.sum() + b.sum()) >= st.MIN_EXPECTED
    if len(a) > 1 and not frequent:
        rare = f"no level of {len(a)} is frequent enough to be compared"
        return replace(row, state="no-data", note=joined(rare, row.note))
    return replace(
        row,
        statistic="jensen-shannon",
        effect=st.js_distance(a, b),
        p_value=st.chi_squared(*merged)[1],
        psi=st.stability_index(*merged),
        note=joined(row.note, f"constant: {constant}" if constant else ""),
    )


def _type_changed(row: FeatureDrift, ref: Column, cur: Column) -> FeatureDrift:
    """Return the row of a feature whose values are of another type now: the type is the only level there is."""
    kinds = _type_name(ref), _type_name(cur)
    row = measure_levels(row, {kinds[0]: ref.rows - ref.missing}, {kinds[1]: cur.rows - cur.missing})
    return replace(row, note=f"the type changed: {kinds[0]} in the reference, {kinds[1]} in the current data")


def _type_name(column: Column) -> str:
    match column:
        case Numbers():
            return "numbers"
        case Unsupported(reason=reason):
            return reason.partition(" is not compared")[0]
        case Levels(counts=counts):
            return "text" if any(isinstance(v, str) for v in counts) else "categories"


def _few(column: Numbers) -> bool:
    """Say whether a column holds 1 to `FEW_DISTINCT` distinct values, without looking at all of them."""
    if len(np.unique(column.finite[:1000])) > FEW_DISTINCT:
        return False
    values, start = column.values, 0
    for _ in range(FEW_DISTINCT):
        if start >= len(values):
            break
        start = int(np.searchsorted(values, values[start], "right"))
    return 0 < len(values) <= start


def _same_precision(values: Array, column: Numbers, other: Numbers) -> Array:
    """Return the *values* as the narrower side holds them; 0.1 in float32 is another number than in float64."""
    if not other.narrow or column.narrow or column.whole:
        return values
    with np.errstate(over="ignore"):
        return np.clip(values.astype(np.float32), *_FLOAT32).astype(np.float64)


_FLOAT32 = (np.finfo(np.float32).min, np.finfo(np.float32).max)


def _counts(column: Column, other: Column) -> Mapping[Hashable, int]:
    match column:
        case Levels(counts=counts):
            return counts
        case Numbers():
            values = column.finite
            values = _same_precision(values, column, other) if isinstance(other, Numbers) else values
            levels, times = np.unique(values, return_counts=True)
            return dict(zip(levels.tolist(), times.tolist(), strict=True))
        case Unsupported():
            return {}


def _infinite_note(ref: Column, cur: Column) -> str:
    found = [c.infinite if isinstance(c, Numbers) else 0 for c in (ref, cur)]
    if not any(found):
        return ""
    return f"infinite values count as missing: {found[0]} in the reference, {found[1]} in the current data"


def joined(*notes: str) -> str:
    """Return the notes that say something as one."""
    return "; ".join(note for note in notes if note)
