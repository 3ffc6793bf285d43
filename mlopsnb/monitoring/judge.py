"""Judge all features of a report together: an effect that matters, and significance that holds over all of them.

Knows neither data nor displays. The p-values of all features, in all windows of time if there are any, and of all checks
are one family: neither looking more often nor at more shares raises more false alarms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mlopsnb.monitoring import statistics as st
from mlopsnb.monitoring.report import Check, FeatureDrift, State, Window, share_text


def judged(rows: Sequence[FeatureDrift], q: float) -> tuple[FeatureDrift, ...]:
    """Return the rows with q-values and states, ranked: outputs first, then by how far beyond the threshold."""
    values = _adjusted([p_value for row in rows for p_value in _p_values(row)])
    done = [_judged(row, values, q) for row in rows]
    return tuple(sorted(done, key=lambda row: (row.kind != "output", -row.severity)))


def _p_values(row: FeatureDrift) -> Iterator[float | None]:
    """Yield the p-values of a row: its own, its windows', its checks'; in the order in which they are judged."""
    yield row.p_value
    yield from (window.p_value for window in row.windows)
    yield from (check.p_value for check in row.checks)


def _adjusted(p_values: Sequence[float | None]) -> Iterator[float | None]:
    adjusted = iter(st.q_values(np.array([p for p in p_values if p is not None])).tolist())
    return iter([None if p is None else next(adjusted) for p in p_values])


def _judged(row: FeatureDrift, values: Iterator[float | None], q: float) -> FeatureDrift:
    q_value = next(values)
    windows = tuple(_judged_window(w, next(values), row, q) for w in row.windows)
    tested = tuple(_judged_check(check, next(values), q) for check in row.checks)
    row = replace(row, q_value=q_value, windows=windows, checks=tested)
    state = _state(row.effect, q_value, row, q) or row.state
    if any(check.drifted for check in tested):
        state = "drift"
        told = [_told(check) for check in row.telling if check.name != "new levels"]  # their note says more
        row = replace(row, note="; ".join(filter(None, [*told, row.note])))
    latest = next((w for w in reversed(windows) if w.effect is not None), None)
    if latest is not None and latest.state == "drift":
        state = "drift"  # what the model sees now counts, though all windows together may hide it
    return replace(row, state=state)


def _judged_window(window: Window, q_value: float | None, row: FeatureDrift, q: float) -> Window:
    state = _state(window.effect, q_value, row, q) or window.state
    return replace(window, q_value=q_value, state=state)


def _judged_check(check: Check, q_value: float | None, q: float) -> Check:
    moved = abs(check.current - check.reference) >= check.limit
    return replace(check, q_value=q_value, drifted=moved and _significant(q_value, q))


def _state(effect: float | None, q_value: float | None, row: FeatureDrift, q: float) -> State | None:
    """Return `drift` or `shift`, or None if chance, or how the reference varies itself, explains the effect."""
    if effect is None or not _significant(q_value, q):
        return None
    usual = effect < (row.band or 0.0)
    if effect >= row.threshold:
        return "shift" if usual else "drift"
    return None if usual else "shift"


def _significant(q_value: float | None, q: float) -> bool:
    return q_value is not None and q_value <= q


def _told(check: Check) -> str:
    named = {"missing": "missing share", "tails": "share in the reference's outermost 0.2%"}
    return f"{named[check.name]} went from {share_text(check.reference)} to {share_text(check.current)}"
