"""Compare the counters that servers keep with the reference profile that they count on, as one whole and over time.

Everything is read off counters: no rows are needed, and a report over a day of many replicas takes milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from mlopsnb.errors import UserError
from mlopsnb.monitoring import statistics as st
from mlopsnb.monitoring.columns import Column, Levels, Numbers, clean, read_table
from mlopsnb.monitoring.judge import judged
from mlopsnb.monitoring.measure import (
    MIN_ROWS,
    NEW_MOVE,
    counted_effects,
    joined,
    measure_counts,
    measure_numbers,
    missing_check,
    share_check,
    too_few_note,
)
from mlopsnb.monitoring.report import DriftReport, FeatureDrift, Window
from mlopsnb.monitoring.samples import Counted
from mlopsnb.monitoring.shapes import level_shape
from mlopsnb.profiles import DriftProfile, Feature, Snapshot, Tally, by_window, merge

Array = np.ndarray[Any, Any]

MOST_WINDOWS = 48
"""Windows that a report tells apart; with more, neighbours are put together."""

_OTHER, _NEW = "(other levels)", "(new levels)"


def compare_profile(
    profile: DriftProfile,
    snapshots: Sequence[Snapshot],
    *,
    threshold: float = 0.1,
    q: float = 0.05,
    uncounted: Mapping[tuple[str, str], str] | None = None,
) -> DriftReport:
    """Compare what was counted in *snapshots* with the *profile* that it was counted on.

    Snapshots of the same window, as several replicas have them, become one. A feature drifted if all windows together
    did, or the latest that has enough rows; q-values hold over all features in all windows. An effect within the
    profile's natural band counts as `ok` at most, or `shift` if it is above the threshold. See `monitoring.drift` for
    the statistics; what is special here is that bins are the profile's: the effect is exact to 0.005, a little less where a tail is very long.
    *uncounted* says of features that nobody counted, by role and name, why.
    """
    windows = _neighbours(by_window(snapshots))
    whole = merge(windows) if windows else Tally(profile).take(0.0, 0.0)
    rows = [
        _feature(
            feature,
            place,
            whole,
            windows,
            threshold,
            (uncounted or {}).get((feature.role, feature.name), feature.skipped),
        )
        for feature, place in zip(profile.features, profile.places, strict=True)
    ]
    return DriftReport(
        rows=judged(rows, q),
        reference_rows=profile.rows,
        current_rows=whole.rows,
        threshold=threshold,
        q=q,
        span=(whole.start, whole.end) if whole.end else None,
    )


def count_table(profile: DriftProfile, data: object) -> Snapshot:
    """Return the counters of *data*, a frame, an array or a dict of columns, on the *profile*'s bins.

    Columns are found by name, or by place where they have none. Raises `UserError` if one of them is not there.
    """
    table = read_table(data, "the current data")
    inputs = [(i, f) for i, f in enumerate(profile.features) if f.role == "input"]
    names = list(table.columns) if not table.named else [f.name for _, f in inputs]
    gone = [name for name in names if name not in table.columns]
    if gone or len(names) != len(inputs):
        found = f"no {gone[0]!r}" if gone else f"{len(names)} columns"
        raise UserError(
            f"the profile has {len(inputs)} features, the current data {found}", hint="give the same columns"
        )
    tally = Tally(profile)
    tally.rows = table.rows
    for (index, feature), name in zip(inputs, names, strict=True):
        if not feature.skipped:
            tally.add_column(index, _values(clean(table.columns[name]), feature))
    return tally.take(0.0, 0.0)


def _values(column: Column, feature: Feature) -> Array:
    """Return the values of a column as a tally takes them; those of another type than the reference's are new levels."""
    if isinstance(column, Numbers) and (feature.kind == "numeric" or not _has_text(feature)):
        gone = np.full(column.missing, np.nan)
        gone[: column.infinite] = np.inf
        return np.concatenate([column.finite, gone])
    if isinstance(column, Levels) and feature.kind == "category":
        return np.array([*Counter(column.counts).elements(), *[None] * column.missing], object)
    if feature.kind == "category":
        return np.array([type(column).__name__] * column.rows, object)
    raise UserError(
        f"{feature.name!r} holds numbers in the reference, and others now", hint="convert them first"
    )


def _has_text(feature: Feature) -> bool:
    return any(isinstance(level, str) for level in feature.levels)


def _neighbours(windows: Sequence[Snapshot]) -> list[Snapshot]:
    if len(windows) <= MOST_WINDOWS:
        return list(windows)
    ends = np.linspace(0, len(windows), MOST_WINDOWS + 1).astype(int).tolist()
    return [merge(windows[a:b]) for a, b in pairwise(ends)]


def _feature(
    feature: Feature,
    place: slice,
    whole: Snapshot,
    windows: Sequence[Snapshot],
    threshold: float,
    skipped: str,
) -> FeatureDrift:
    cells = whole.cells[place]
    current, missing = cells[: feature.bins], int(cells[feature.bins])
    present = int(current.sum())
    row = FeatureDrift(
        feature=feature.name,
        kind="output" if feature.role == "output" else feature.kind,
        threshold=threshold,
        band=feature.band,
        missing_reference=_share(feature.missing, feature.present),
        missing_current=_share(missing, present),
        checks=missing_check(feature.missing, feature.missing + feature.present, missing, missing + present),
        note=f"{int(cells[-1])} infinite values count as missing" if cells[-1] else "",
    )
    if skipped:
        kind = row.kind if feature.role == "output" else "other"
        return replace(row, kind=kind, state="skipped", note=skipped, checks=())
    row = replace(row, windows=_windows(feature, place, windows if whole.end else ()))
    if too_few := too_few_note(feature.present, present):
        return replace(row, state="no-data", note=joined(row.note, too_few))
    reference = np.array(feature.counts)
    if feature.kind == "category":
        return _levels(row, feature, reference, current)
    edges = np.array(feature.edges)
    samples = Counted(edges, reference, feature.whole), Counted(edges, current, feature.whole)
    return measure_numbers(row, *samples, feature.whole, (feature.low, feature.high))


def _share(missing: int, present: int) -> float:
    return missing / (missing + present) if missing else 0.0


def _levels(row: FeatureDrift, feature: Feature, reference: Array, current: Array) -> FeatureDrift:
    names: list[Hashable] = [*feature.levels, _OTHER, _NEW]
    shown = [dict(zip(names, side.tolist(), strict=True)) for side in (reference, current)]
    shape = level_shape(*({name: n for name, n in side.items() if n} for side in shown))
    row = replace(row, histogram=shape)
    if feature.complete and current[-1]:
        check = share_check(
            "new levels", feature.singles, feature.present, int(current[-1]), int(current.sum()), NEW_MOVE
        )
        note = f"{check.current:.1%} of rows have levels that the reference had not"
        row = replace(row, checks=(*row.checks, check), note=joined(row.note, note))
    return measure_counts(row, *_folded(reference, reference, current))


def _folded(reference: Array, *counts: Array) -> list[Array]:
    """Return rows of a category's *counts* with the levels that the *reference* hardly had in one cell, those it had not too.

    Of many rare levels any sample meets others than the next: a level that is new is no sign of drift by itself, and weighs
    against those that were met by the same chance. How many are new is checked apart.
    """
    rare = reference < st.MIN_EXPECTED
    rare[-2:] = True  # all other levels, and all new ones
    return [np.append(row[~rare], row[rare].sum()).astype(float) for row in counts]


def _windows(feature: Feature, place: slice, windows: Sequence[Snapshot]) -> tuple[Window, ...]:
    """Return the feature in each window, without q-values."""
    if not windows:
        return ()
    counts = np.array([w.cells[place][: feature.bins] for w in windows])
    sizes = counts.sum(axis=1)
    enough = np.flatnonzero(sizes >= MIN_ROWS) if feature.present >= MIN_ROWS else np.array([], int)
    made = [Window(start=w.start, end=w.end, rows=w.rows) for w in windows]
    for at, effect, p_value in zip(enough.tolist(), *_effects(feature, counts[enough]), strict=True):
        made[at] = replace(made[at], effect=float(effect), p_value=float(p_value), state="ok")
    return tuple(made)


def _effects(feature: Feature, counts: Array) -> tuple[Sequence[float], Sequence[float]]:
    """Return effects and p-values of each row of *counts*."""
    reference = np.array(feature.counts)
    if not len(counts):
        return [], []
    if feature.kind == "category":
        known, *rows = _folded(reference, reference, *counts)
        return [st.js_distance(known, row) for row in rows], [st.chi_squared(known, row)[1] for row in rows]
    sample = Counted(np.array(feature.edges), reference, feature.whole)
    gaps = st.gap_of_counts(reference, counts).tolist()
    sizes = counts.sum(axis=1).tolist()
    p_values = [st.ks_p_value(gap, sample.size, m) for gap, m in zip(gaps, sizes, strict=True)]
    return counted_effects(sample, counts, (feature.low, feature.high)).tolist(), p_values
