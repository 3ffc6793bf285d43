"""Compare two data sets: read both sides, measure each feature, judge all of them together.

The measures are in `measure`, the verdicts in `judge`, the displays in `report`; nothing is shown or stored here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlopsnb.errors import UserError, nearest
from mlopsnb.monitoring.columns import clean, pair_columns, read_table
from mlopsnb.monitoring.evidently import evidently_row
from mlopsnb.monitoring.judge import judged
from mlopsnb.monitoring.live import compare_profile, count_table
from mlopsnb.monitoring.measure import measure
from mlopsnb.monitoring.report import DriftReport, FeatureDrift
from mlopsnb.profiles import DriftProfile, Snapshot

METHODS = ("auto", "evidently")

_PARALLEL = 1_000_000
"""Values, on both sides together, from which on features are measured in several threads: numpy lets them run."""

_MOST_THREADS = 4
"""So many columns at most are held in working copies at a time."""


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
    axis, a dict of columns, or a list. *reference* may also be a `DriftProfile`, and *current* then a list of a
    server's snapshots (`profiles.Snapshot`). *outputs* are the model's answers on both, (reference, current): classes
    or scores with one axis, or scores with two (`output_0`, …); they become the first rows of the report.

    Numbers with more than `FEW_DISTINCT` values: the effect is the Wasserstein distance in standard deviations of
    the reference, the test Kolmogorov-Smirnov's. All others: the effect is the debiased Jensen-Shannon distance,
    the test chi-squared. A feature is in the state `drift` if its effect is at least *threshold* and its
    Benjamini-Hochberg q-value at most *q*; `shift` if only the latter; otherwise `ok`. It is in `drift` as well if
    its share of missing values, of new levels or of values in the reference's tails moved far (`measure.MISSING_MOVE`,
    `NEW_MOVE`, `TAIL_MOVE`) and significantly. `no-data` has fewer than `measure.MIN_ROWS` rows; `skipped` cannot be
    compared, and its note says why. *method* `evidently` gives the scores and verdicts of Evidently's DataDriftPreset
    instead, with its own thresholds.

    Raises `UserError` if the columns of the two sides differ, or for an unknown *method* or impossible number.
    """
    _check_settings(method, threshold, q)
    if isinstance(reference, DriftProfile):
        return _on_profile(reference, current, method, threshold, q)
    tables = read_table(reference, "the reference"), read_table(current, "the current data")
    pairs = [("", *pair) for pair in pair_columns(*tables, "the columns")]
    if outputs is not None:
        pairs = [("output", *pair) for pair in _outputs(outputs)] + pairs
    if method == "evidently":
        rows = tuple(evidently_row(name, kind, a, b) for kind, name, a, b in pairs)
        rows = tuple(
            sorted(rows, key=lambda row: (row.kind != "output", row.state != "drift", -row.severity))
        )
    else:
        rows = judged(_measured(pairs, threshold, parallel=tables[0].rows + tables[1].rows), q)
    return DriftReport(
        rows=rows,
        reference_rows=tables[0].rows,
        current_rows=tables[1].rows,
        threshold=threshold,
        q=q,
    )


def _measured(
    pairs: Sequence[tuple[str, str, Any, Any]], threshold: float, *, parallel: int
) -> list[FeatureDrift]:
    def one(pair: tuple[str, str, Any, Any]) -> FeatureDrift:
        kind, name, a, b = pair
        return measure(name, kind, clean(a), clean(b), threshold)

    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    if threads == 1 or parallel * len(pairs) < _PARALLEL:
        return [one(pair) for pair in pairs]
    with ThreadPoolExecutor(threads, "mlopsnb-drift") as pool:
        return list(pool.map(one, pairs))


def _on_profile(profile: DriftProfile, current: Any, method: str, threshold: float, q: float) -> DriftReport:
    if method != "auto":
        raise UserError(f"method {method!r} needs the rows of the reference, not its profile")
    listed = list(current) if isinstance(current, (list, tuple)) else []
    counted = bool(listed) and all(isinstance(one, Snapshot) for one in listed)
    snapshots = listed if counted else [count_table(profile, current)]
    return compare_profile(profile, snapshots, threshold=threshold, q=q)


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


def _outputs(outputs: object) -> list[tuple[str, Any, Any]]:
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
    return pair_columns(ref, cur, "the outputs")
