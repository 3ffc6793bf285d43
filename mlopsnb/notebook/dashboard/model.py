"""What a dashboard knows: frozen rows, and the pure functions that make the next ones. Asks nobody, shows nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlopsnb import rollout
from mlopsnb.monitoring.counting import FIGURES, joined
from mlopsnb.monitoring.traffic import Traffic, told
from mlopsnb.records import Release

if TYPE_CHECKING:
    from mlopsnb.monitoring.counting import Sample, Window
    from mlopsnb.monitoring.pictures import Line
    from mlopsnb.monitoring.report import DriftReport
    from mlopsnb.monitoring.traffic import RevisionTraffic

POINTS = 60
"""Points of a line at most."""

RECENT = 10.0
"""Seconds that the numbers beside the lines are of: the last ones."""

GONE = 30.0
"""Seconds for which a deployment that was deleted is still named."""

DRAWN = ("qps", "error_rate", "p50_ms", "p90_ms", "p99_ms")
"""The figures of traffic that are drawn over time."""

Key = tuple[str, str]
"""A target and a name on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What is known of one revision's drift. `points` are Unix seconds and the worst feature's severity, 1 being drift.

    Without a report `why` says why there is none, and `short` so in a word or two.
    """

    report: DriftReport | None = None
    points: tuple[tuple[float, float], ...] = ()
    why: str = ""
    short: str = "not known"

    def after(self, report: DriftReport, at: float) -> Drift:
        """Return what is known once *report* was made *at* that time."""
        worst = max((row.severity for row in report.rows), default=-1.0)
        point = (at, worst if worst >= 0 else math.nan)
        return Drift(report=report, points=(*self.points, point)[-POINTS:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was found of one deployment at one time.

    `windows` are what its revisions did since the look before, `totals` since they started, `replicas` what each copy
    of their servers said. `past` are whole lines of the traffic, for who keeps them elsewhere. `scales` says whether the
    target runs several copies, `ready` whether what serves said that it is ready.
    """

    release: Release
    at: float
    ready: bool = False
    scales: bool = False
    source: str = ""
    windows: Mapping[int, Window] = field(default_factory=dict)
    totals: Mapping[int, Window] = field(default_factory=dict)
    replicas: Mapping[int, Mapping[str, Sample]] = field(default_factory=dict)
    past: Mapping[int, tuple[Window, ...]] | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One deployment as it was seen last, `at` Unix seconds. `gone` is when it was found to be deleted, or None.

    `lines` are the figures over time, by revision and name: made once for each point, and not for each painting.
    """

    release: Release
    at: float
    state: str = "unknown"
    traffic: Traffic | None = None
    lines: Mapping[int, Mapping[str, Line]] = field(default_factory=dict)
    replicas: Mapping[int, Mapping[str, Sample]] = field(default_factory=dict)
    drift: Mapping[int, Drift] = field(default_factory=dict)
    scales: bool = False
    trouble: str = ""
    gone: float | None = None

    @property
    def key(self) -> Key:
        """Its target and its name."""
        return self.release.target, self.release.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """All deployments at one moment, by name; what could not be asked is in `away`: a target, and why in one line.

    `waiting` are the targets that have not answered yet for the first time.
    """

    at: float
    rows: tuple[Row, ...] = ()
    away: Mapping[str, str] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()

    def row(self, key: Key) -> Row | None:
        """Return the deployment *key*, or None."""
        return next((row for row in self.rows if row.key == key), None)


def after(before: Row | None, look: Look) -> Row:
    """Return how a deployment stands after *look*. Lines go on where the same revision still runs."""
    if before is not None and before.gone is not None:  # another one of the same name
        before = None
    points = dict(look.past) if look.past is not None else _on(before, look.windows)
    known = before.lines if before is not None and look.past is None else {}
    return Row(
        release=look.release,
        at=look.at,
        state=_state(look),
        traffic=told(look.release, look.totals, points, look.source),
        lines={number: _lines(known.get(number, {}), windows) for number, windows in points.items()},
        replicas=look.replicas,
        drift=before.drift if before else {},
        scales=look.scales,
        trouble=look.trouble,
    )


def _on(before: Row | None, windows: Mapping[int, Window]) -> dict[int, tuple[Window, ...]]:
    known = before.traffic.revisions if before and before.traffic else ()
    lines = {r.revision: r.points for r in known}
    return {number: (*lines.get(number, ()), window)[-POINTS:] for number, window in windows.items()}


def _lines(known: Mapping[str, Line], windows: Sequence[Window]) -> dict[str, Line]:
    """Return the figures of *windows*; those that are *known* already, from before the last one, are not made again."""
    lines: dict[str, Line] = {}
    for name in DRAWN:
        before = known.get(name, ())
        new = windows[-1:] if before else windows
        lines[name] = (*before, *((w.at, FIGURES[name].of(w)) for w in new))[-POINTS:]
    return lines


def _state(look: Look) -> str:
    """Return the same word as `Deployment.status`, from what was asked already."""
    if not look.release.revisions:
        return "deleted"
    if rollout.serving(look.release) is not None:
        return "ready" if look.ready else "not ready"
    starting = any(r.state == "starting" for r in look.release.revisions)
    return "starting" if starting else "stopped"


def failed(before: Row | None, key: Key, why: str, at: float) -> Row:
    """Return a deployment that could not be asked: what was known stays, with the reason."""
    if before is None:
        return Row(release=Release(name=key[1], target=key[0]), at=at, trouble=why)
    return replace(before, trouble=why)


def without(rows: Iterable[Row], target: str, names: Collection[str], at: float) -> list[Row]:
    """Return *rows* after *target* has told its *names*: others of it are deleted, and leave after a while."""
    kept = []
    for row in rows:
        if row.key[0] != target or row.key[1] in names:
            kept.append(row)
        elif row.gone is None:
            kept.append(replace(row, state="deleted", gone=at, at=at, trouble=""))
        elif at - row.gone < GONE:
            kept.append(row)
    return kept


def recent(revision: RevisionTraffic) -> Window | None:
    """Return the traffic of the last seconds, or None if none was watched."""
    if not revision.points:
        return None
    end = revision.points[-1].at
    return joined(point for point in revision.points if end - point.at < RECENT)
