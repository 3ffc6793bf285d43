"""The scores and verdicts of Evidently's DataDriftPreset, for those who have to compare with it.

Its rules as of version 0.7 (`evidently.legacy.calculations.stattests.registry`), not ours: a p-value for up to 1,000
reference rows and a distance for more, each feature by itself, without regard to how many are looked at; missing values
are left out, and columns of many types are not looked at. Evidently itself is neither imported nor needed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mlopsnb.extras import need
from mlopsnb.monitoring import statistics as st
from mlopsnb.monitoring.columns import Levels, Numbers, clean
from mlopsnb.monitoring.report import FeatureDrift, State
from mlopsnb.monitoring.samples import Sorted
from mlopsnb.monitoring.shapes import level_shape, number_shape

Array = np.ndarray[Any, Any]

SMALL = 1000
"""Up to so many reference rows it tests; beyond, it measures a distance."""

_P_VALUE, _DISTANCE = 0.05, 0.1
_FEW = 5
_WHOLE_LEVELS = 10
"""A column of whole numbers with at most so many distinct ones is one of categories."""


def evidently_row(name: str, kind: str, reference: Any, current: Any) -> FeatureDrift:
    """Return one feature as Evidently judges it; `effect` is its distance, or `p_value` its p-value."""
    ref, cur = clean(reference), clean(current)
    column_type, why_not = _column_type(current, cur)
    row = FeatureDrift(
        feature=name,
        kind=kind or {"num": "numeric", "cat": "category", "": "other"}[column_type],
        threshold=_DISTANCE,
        missing_reference=ref.missing / ref.rows if ref.rows else 0.0,
        missing_current=cur.missing / cur.rows if cur.rows else 0.0,
    )
    if why_not or type(ref) is not type(cur):
        return replace(row, state="skipped", note=why_not or "the type changed, and Evidently stops there")
    if not (ref.rows - ref.missing and cur.rows - cur.missing):
        return replace(row, state="no-data", note="Evidently stops at empty columns")
    if column_type == "num" and isinstance(ref, Numbers) and isinstance(cur, Numbers) and not _few(ref, cur):
        return _numbers(row, ref, cur)
    return _categories(row, _levels(ref), _levels(cur))


def _few(ref: Numbers, cur: Numbers) -> bool:
    if len(np.unique(ref.finite[:SMALL])) > _FEW:
        return False
    return len({**_levels(ref), **_levels(cur)}) <= _FEW


def _column_type(raw: Any, column: object) -> tuple[str, str]:
    """Return `num`, `cat`, or nothing and why Evidently does not look at such a column (`infer_column_type`)."""
    name = "str" if raw.dtype.kind == "U" else raw.dtype.name
    if name.startswith("float"):
        return "num", ""
    if isinstance(column, Numbers) and name.startswith("int"):
        return "cat" if len(_levels(column)) <= _WHOLE_LEVELS else "num", ""
    if isinstance(column, Levels):
        if name in ("bool", "category"):
            return "cat", ""
        if name in ("string", "str", "object") and all(isinstance(v, str) for v in column.counts):
            if len(column.counts) <= 0.5 * (column.rows - column.missing):
                return "cat", ""
            return "", "Evidently trains a text classifier on such columns"
    return "", f"Evidently does not look at columns of type {name}"


def _levels(column: object) -> dict[Hashable, int]:
    if isinstance(column, Numbers):
        found, times = np.unique(column.finite, return_counts=True)
        return dict(zip(found.tolist(), times.tolist(), strict=True))
    assert isinstance(column, Levels)
    return dict(column.counts)


def _numbers(row: FeatureDrift, ref: Numbers, cur: Numbers) -> FeatureDrift:
    x, y = ref.values, cur.values
    shape = number_shape(Sorted(x), Sorted(y), whole=ref.whole and cur.whole)
    if len(x) <= SMALL:
        p_value = float(need("scipy.stats", extra="monitoring").ks_2samp(x, y).pvalue)
        return _tested(replace(row, histogram=shape), "ks", p_value, drifted=p_value <= _P_VALUE)
    score = st.wasserstein(x, y) / max(float(np.std(x)), 0.001)
    return _measured(replace(row, histogram=shape), "wasserstein", score)


def _categories(row: FeatureDrift, ref: Mapping[Hashable, int], cur: Mapping[Hashable, int]) -> FeatureDrift:
    row = replace(row, histogram=level_shape(ref, cur), new_levels=len(set(cur) - set(ref)))
    levels = list({**ref, **cur})
    a, b = (np.array([side.get(v, 0) for v in levels], np.float64) for side in (ref, cur))
    if a.sum() > SMALL:
        return _measured(row, "jensen-shannon", _js(a / a.sum(), b / b.sum()))
    if len(levels) > 2:
        p_value = _chi_squared(a, b)
        return _tested(row, "chi-squared", p_value, drifted=p_value < _P_VALUE)
    at = min(range(len(levels)), key=lambda i: (str(type(levels[i])), levels[i]))
    p_value = _z_test(a.sum() - a[at], a.sum(), b.sum() - b[at], b.sum())
    return _tested(row, "z", p_value, drifted=p_value < _P_VALUE)


def _js(p: Array, q: Array) -> float:
    middle = (p + q) / 2
    return math.sqrt(max(0.0, (st.relative_entropy(p, middle) + st.relative_entropy(q, middle)) / 2))


def _chi_squared(a: Array, b: Array) -> float:
    """Return the p-value of the one-sample test: the reference counts as exact, so a new level is impossible."""
    expected = a * (b.sum() / a.sum())
    if (expected == 0).any():
        return 0.0
    statistic = float(((b - expected) ** 2 / expected).sum())
    return float(need("scipy.special", extra="monitoring").chdtrc(len(a) - 1, statistic))


def _z_test(hits: float, n: float, other_hits: float, m: float) -> float:
    pooled = (hits + other_hits) / (n + m)
    if not 0 < pooled < 1:
        return 1.0
    return math.erfc(abs(hits / n - other_hits / m) / math.sqrt(2 * pooled * (1 - pooled) * (1 / n + 1 / m)))


def _tested(row: FeatureDrift, statistic: str, p_value: float, *, drifted: bool) -> FeatureDrift:
    state: State = "drift" if drifted else "ok"
    return replace(row, threshold=_P_VALUE, statistic=statistic, p_value=p_value, state=state)


def _measured(row: FeatureDrift, statistic: str, score: float) -> FeatureDrift:
    state: State = "drift" if score >= _DISTANCE else "ok"
    return replace(row, threshold=_DISTANCE, statistic=statistic, effect=score, state=state)
