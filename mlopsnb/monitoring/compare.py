"""Decide which features drifted: read both sides, measure each feature, then judge all of them together.

A verdict needs an effect that matters and significance that holds over all features. The measures come from
`statistics`, the displays from `report`; nothing is shown or stored here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlopsnb.errors import UserError, nearest
from mlopsnb.monitoring import statistics as st
from mlopsnb.monitoring.columns import Column, Levels, Numbers, Unsupported, clean, pair_columns, read_table
from mlopsnb.monitoring.report import DriftReport, FeatureDrift, State
from mlopsnb.monitoring.shapes import label, level_shape, listed, number_shape

Array = np.ndarray[Any, Any]

MIN_ROWS = 30
"""With fewer rows than this, on either side after cleaning, a feature is `no-data`."""

FEW_DISTINCT = 5
"""Numbers with at most so many distinct values in the reference are compared as categories."""

MISSING_MOVE = 0.05
"""A missing share that moved by this much, significantly, is drift by itself."""

METHODS = ("auto",)


def drift(
    reference: object,
    current: object,
    *,
    method: str = "auto",
    threshold: float = 0.1,
    q: float = 0.05,
    outputs: tuple[object, object] | None = None,
) -> DriftReport:
    """Compare *current* data with *reference* data, feature by feature.

    Both are a pandas DataFrame, an array or tensor of rows by features (columns named `feature_0`, …) or of one
    axis, a dict of columns, or a list. *outputs* are the model's answers on both, (reference, current): classes
    or scores with one axis, or scores with two (`output_0`, …); they become the first rows of the report.

    Numbers with more than `FEW_DISTINCT` values: the effect is the Wasserstein distance in standard deviations of
    the reference, the test Kolmogorov-Smirnov's. All others: the effect is the debiased Jensen-Shannon distance,
    the test chi-squared. A feature is in the state `drift` if its effect is at least *threshold* and its
    Benjamini-Hochberg q-value at most *q*; `shift` if only the latter; otherwise `ok`. It is in `drift` as well if
    its share of missing values moved by `MISSING_MOVE` and significantly. `no-data` has fewer than `MIN_ROWS` rows;
    `skipped` cannot be compared, and its note says why.

    Raises `UserError` if the columns of the two sides differ, or for an unknown *method* or impossible number.
    """
    _check_settings(method, threshold, q)
    tables = read_table(reference, "the reference"), read_table(current, "the current data")
    pairs = pair_columns(*tables, "the columns")
    rows = [_measure(name, "", a, b, threshold) for name, a, b in pairs]
    if outputs is not None:
        rows = _outputs(outputs, threshold) + rows
    return DriftReport(
        rows=_judge(rows, q),
        reference_rows=tables[0].rows,
        current_rows=tables[1].rows,
        threshold=threshold,
        q=q,
    )


def _check_settings(method: str, threshold: float, q: float) -> None:
    if method not in METHODS:
        raise UserError(
            f"no drift method named {method!r}; there is {', '.join(METHODS)}",
            hint=nearest(str(method), METHODS),
        )
    if not (threshold > 0 and math.isfinite(threshold)):
        raise UserError(
            f"threshold is {threshold!r}; it must be a number above 0", hint="0.1 is the usual one"
        )
    if not 0 < q < 1:
        raise UserError(f"q is {q!r}; it must lie between 0 and 1", hint="0.05 is the usual one")


def _outputs(outputs: object, threshold: float) -> list[FeatureDrift]:
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        raise UserError(
            f"outputs is a {type(outputs).__name__}; it must be a pair",
            hint="give outputs=(reference_outputs, current_outputs)",
        )
    names = "the reference's outputs", "the current outputs"
    ref, cur = (
        read_table(v, where, prefix="output", single="output")
        for v, where in zip(outputs, names, strict=True)
    )
    pairs = pair_columns(ref, cur, "the outputs")
    return [_measure(name, "output", a, b, threshold) for name, a, b in pairs]


def _measure(name: str, kind: str, raw_reference: Any, raw_current: Any, threshold: float) -> FeatureDrift:
    """Return effect, p-values, shape and notes of one feature; states that need q-values are not set yet."""
    ref, cur = clean(raw_reference), clean(raw_current)
    few = isinstance(ref, Numbers) and _few(ref.values)
    numeric = isinstance(ref, Numbers) and isinstance(cur, Numbers) and not few
    row = FeatureDrift(
        feature=name,
        kind=kind or ("numeric" if numeric else "category"),
        threshold=threshold,
        missing_reference=ref.missing / ref.rows if ref.rows else 0.0,
        missing_current=cur.missing / cur.rows if cur.rows else 0.0,
        missing_p_value=_missing_p_value(ref, cur),
        note=_infinite_note(ref, cur),
    )
    if isinstance(ref, Unsupported) and isinstance(cur, Unsupported):
        return replace(row, kind=kind or "other", state="skipped", note=ref.reason)
    present = ref.rows - ref.missing, cur.rows - cur.missing
    if min(present) < MIN_ROWS:
        counted = f"{present[0]} reference and {present[1]} current values; {MIN_ROWS} of each are needed"
        return replace(row, state="no-data", note=_joined(row.note, counted))
    if isinstance(ref, Numbers) and isinstance(cur, Numbers) and not few:
        return _measure_numbers(row, ref, cur)
    if isinstance(ref, Unsupported) or isinstance(cur, Unsupported):
        return _type_changed(row, ref, cur)
    a, b = _counts(ref, cur), _counts(cur, ref)
    if any(isinstance(v, str) for v in a) != any(isinstance(v, str) for v in b):
        return _type_changed(row, ref, cur)
    return _measure_levels(row, a, b)


def _measure_numbers(row: FeatureDrift, ref: Numbers, cur: Numbers) -> FeatureDrift:
    x, y = _same_precision(ref, cur), _same_precision(cur, ref)
    constant = f"constant in the current data: {label(float(y[0]))}" if y[0] == y[-1] else ""
    return replace(
        row,
        statistic="wasserstein",
        effect=st.wasserstein_effect(x, y),
        p_value=st.ks_p_value(st.ks_statistic(x, y), len(x), len(y)),
        histogram=number_shape(x, y, whole=ref.whole and cur.whole),
        note=_joined(row.note, constant),
    )


def _measure_levels(row: FeatureDrift, a: Mapping[Hashable, int], b: Mapping[Hashable, int]) -> FeatureDrift:
    levels = [*a, *(level for level in b if level not in a)]
    new = levels[len(a) :]
    new_rows = sum(b[level] for level in new)
    merged = st.merge_rare(
        np.array([a.get(v, 0) for v in levels], float), np.array([b.get(v, 0) for v in levels], float)
    )
    row = replace(row, new_levels=len(new), histogram=level_shape(a, b))
    if new:
        plural = "s" if len(new) > 1 else ""
        share = f"{new_rows / sum(b.values()):.1%} of rows"
        shown = listed([label(v) for v in sorted(new, key=lambda v: -b[v])])
        row = replace(row, note=_joined(row.note, f"{len(new)} new level{plural} ({share}): {shown}"))
    if len(merged[0]) == 1 and len(levels) > 1:
        rare = f"no level of {len(levels)} is frequent enough to be compared"
        return replace(row, state="no-data", note=_joined(rare, row.note))
    if len(levels) == 1:
        row = replace(row, note=_joined(row.note, f"constant: {label(levels[0])}"))
    return replace(
        row, statistic="jensen-shannon", effect=st.js_distance(*merged), p_value=st.chi_squared(*merged)[1]
    )


def _type_changed(row: FeatureDrift, ref: Column, cur: Column) -> FeatureDrift:
    """Return the row of a feature whose values are of another type now: the type is the only level there is."""
    kinds = _type_name(ref), _type_name(cur)
    row = _measure_levels(row, {kinds[0]: ref.rows - ref.missing}, {kinds[1]: cur.rows - cur.missing})
    return replace(row, note=f"the type changed: {kinds[0]} in the reference, {kinds[1]} in the current data")


def _type_name(column: Column) -> str:
    match column:
        case Numbers():
            return "numbers"
        case Unsupported(reason=reason):
            return reason.partition(" is not compared")[0]
        case Levels(counts=counts):
            return "text" if any(isinstance(v, str) for v in counts) else "categories"


def _few(values: Array) -> bool:
    """Say whether sorted *values* hold 1 to `FEW_DISTINCT` distinct ones, without looking at them all."""
    start = 0
    for _ in range(FEW_DISTINCT):
        if start >= len(values):
            break
        start = int(np.searchsorted(values, values[start], "right"))
    return 0 < len(values) <= start


def _same_precision(column: Numbers, other: Numbers) -> Array:
    """Return the values as the narrower side holds them; 0.1 in float32 is another number than in float64."""
    if not other.narrow or column.narrow or column.whole:
        return column.values
    with np.errstate(over="ignore"):
        return np.clip(column.values.astype(np.float32), *_FLOAT32).astype(np.float64)


_FLOAT32 = (np.finfo(np.float32).min, np.finfo(np.float32).max)


def _counts(column: Column, other: Column) -> Mapping[Hashable, int]:
    match column:
        case Levels(counts=counts):
            return counts
        case Numbers():
            values = _same_precision(column, other) if isinstance(other, Numbers) else column.values
            levels, times = np.unique(values, return_counts=True)
            return dict(zip(levels.tolist(), times.tolist(), strict=True))
        case Unsupported():
            return {}


def _missing_p_value(ref: Column, cur: Column) -> float | None:
    if min(ref.rows, cur.rows) < MIN_ROWS:
        return None
    return st.two_proportions(ref.missing, ref.rows, cur.missing, cur.rows)


def _infinite_note(ref: Column, cur: Column) -> str:
    found = [c.infinite if isinstance(c, Numbers) else 0 for c in (ref, cur)]
    if not any(found):
        return ""
    return f"infinite values count as missing: {found[0]} in the reference, {found[1]} in the current data"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _judge(rows: Sequence[FeatureDrift], q: float) -> tuple[FeatureDrift, ...]:
    """Return the rows with q-values and states, ranked: outputs first, then by how far beyond the threshold."""
    by_values = _adjusted([row.p_value for row in rows])
    by_missing = _adjusted([row.missing_p_value for row in rows])
    judged = [
        _judged(row, q_value, missing, q)
        for row, q_value, missing in zip(rows, by_values, by_missing, strict=True)
    ]
    return tuple(sorted(judged, key=lambda row: (row.kind != "output", -row.severity)))


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    adjusted = iter(st.q_values(np.array([p for p in p_values if p is not None])).tolist())
    return [None if p is None else next(adjusted) for p in p_values]


def _judged(row: FeatureDrift, q_value: float | None, missing_q: float | None, q: float) -> FeatureDrift:
    row = replace(row, q_value=q_value, missing_q_value=missing_q)
    state: State = row.state
    if row.effect is not None and q_value is not None and q_value <= q:
        state = "drift" if row.effect >= row.threshold else "shift"
    move = abs(row.missing_current - row.missing_reference)
    if missing_q is not None and missing_q <= q and move >= MISSING_MOVE:
        moved = f"missing share went from {row.missing_reference:.1%} to {row.missing_current:.1%}"
        row = replace(row, missing_move=move / MISSING_MOVE, note=_joined(moved, row.note))
        state = "drift"
    return replace(row, state=state)
