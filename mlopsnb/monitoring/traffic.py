"""What is sent to a deployment and how it answers, per revision and over time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlopsnb import rollout
from mlopsnb.errors import DeployError
from mlopsnb.events import Event, report, step
from mlopsnb.masking import masked
from mlopsnb.monitoring.counting import FIGURES, Window, figure_text, joined
from mlopsnb.monitoring.sampling import Sampler

if TYPE_CHECKING:
    from mlopsnb.protocols import Target
    from mlopsnb.records import Release

POINTS = 120
"""Points of a line at most."""

_OFTEN = 1.0
_TOLD_FROM = 3.0
"""Seconds from which on a watch is long enough to be followed live."""

PAGES = "the replicas' own /metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionTraffic:
    """The traffic of one revision. `share` is its percent of the traffic; `total` is since its replicas started.

    `points` follow each other in time and add up to `window`, which is None if nothing was watched.
    """

    revision: int
    source: str
    role: str
    share: int
    total: Window
    points: tuple[Window, ...] = ()

    @property
    def window(self) -> Window | None:
        """All points as one."""
        return joined(self.points)

    @property
    def title(self) -> str:
        """Return `revision 2, canary, 10 %`."""
        return ", ".join(filter(None, [f"revision {self.revision}", self.role, f"{self.share} %"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What `metrics` returns: text, HTML with a picture for each figure, and all numbers by `figures`."""

    name: str
    target: str
    source: str
    revisions: tuple[RevisionTraffic, ...]

    def figures(self, revision: int | None = None) -> dict[str, float]:
        """Return the figures of the time watched by name, such as `p99_ms`; NaN for what is not known.

        Of *revision*, or without of the one with the most traffic. If nothing was watched they are of all its time.
        """
        chosen = [r for r in self.revisions if revision is None or r.revision == revision]
        if not chosen:
            known = ", ".join(str(r.revision) for r in self.revisions)
            raise DeployError(f"nothing is known of revision {revision}; there are: {known}")
        found = max(chosen, key=lambda r: r.share)
        window = found.window or found.total
        return {name: figure.of(window) for name, figure in FIGURES.items()}

    def __str__(self) -> str:
        header, *rows = table(self)
        lines = [masked(f"Traffic of {self.name} on {self.target}, from {self.source}")]
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        for row in (header, *rows):
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append(f"  {'  '.join(cells)}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from mlopsnb.monitoring.traffic_page import page

        return page(self)

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        printer.text(str(self))  # type: ignore[attr-defined]


def table(traffic: Traffic) -> list[tuple[str, ...]]:
    """Return the figures as rows of text, the header first: for each revision the time watched, and all of it."""
    header, windows = ["figure"], []
    for revision in traffic.revisions:
        for window, when in ((revision.window, "last "), (revision.total, "all its ")):
            if window is not None:
                header.append(f"{revision.title}: {when}{span_text(window.seconds)}")
                windows.append(window)
    rows = [
        (figure.label, *(figure_text(name, figure.of(w)) for w in windows))
        for name, figure in FIGURES.items()
    ]
    kinds = dict.fromkeys(kind for w in windows for kind, n in w.counts.kinds.items() if n)
    failed = [(f"  {kind}", *(_codes(w, kind) for w in windows)) for kind in kinds]
    return [tuple(header), *rows[:4], *failed, *rows[4:]]


def _codes(window: Window, kind: str) -> str:
    from mlopsnb.monitoring.counting import KINDS

    found = {code: n for code, n in window.counts.codes.items() if n and KINDS[kind](code)}
    return ", ".join(f"{code}: {n:.0f}" for code, n in sorted(found.items())) or "0"


def span_text(seconds: float) -> str:
    """Return a span of time for people: `40 s`, `5 min`, `3.2 h`, `4 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def watch(target: Target, release: Release, *, seconds: float, prometheus: str = "") -> Traffic:
    """Watch *release* for so many *seconds*, or ask *prometheus*, a server's address, for those that have passed."""
    if prometheus:
        from mlopsnb.monitoring import prometheus as server

        totals, points = server.windows(prometheus, release, seconds)
        return told(release, totals, points, prometheus)
    sampler = Sampler(target, release.name, [r.id for r in rollout.running(release)])
    sampler.tick()
    if not any(total.levels.replicas for total in sampler.totals().values()):
        raise DeployError(f"no replica of {release.name!r} answers /metrics", hint="see .status and .logs()")
    if seconds < _TOLD_FROM:
        return _watched(release, sampler, seconds, live=False)
    with step("watch", f"{release.name}, for {span_text(seconds)}") as log:
        found = _watched(release, sampler, seconds, live=True)
        log.result = _line(found)
    return found


def _watched(release: Release, sampler: Sampler, seconds: float, *, live: bool) -> Traffic:
    points: dict[int, tuple[Window, ...]] = {}
    every = max(_OFTEN, seconds / POINTS)
    started = time.monotonic()
    while (left := seconds - (time.monotonic() - started)) > 0:
        time.sleep(min(every, left))
        for revision, window in sampler.tick().items():
            points[revision] = (*points.get(revision, ()), window)
        if live:
            so_far = told(release, sampler.totals(), points, PAGES)
            done = min((time.monotonic() - started) / seconds, 1.0)
            report(Event(step="watch", state="progress", message=_line(so_far), fraction=done, shown=so_far))
    return told(release, sampler.totals(), points, PAGES)


def told(
    release: Release, totals: Mapping[int, Window], points: Mapping[int, tuple[Window, ...]], source: str
) -> Traffic:
    """Return the traffic of the revisions of *release* that run and are in *totals*; *points* are theirs over time."""
    pair = rollout.trial(release)
    roles = {pair[0].id: "stable", pair[1].id: "canary"} if pair else {}
    return Traffic(
        name=release.name,
        target=release.target,
        source=source,
        revisions=tuple(
            RevisionTraffic(
                revision=r.id,
                source=r.source,
                role=roles.get(r.id, ""),
                share=release.weights.get(r.id, 0),
                total=totals[r.id],
                points=points.get(r.id, ()),
            )
            for r in rollout.running(release)
            if r.id in totals
        ),
    )


def _line(traffic: Traffic) -> str:
    """Return the last moment of each revision in one line."""
    told = []
    for revision in traffic.revisions:
        window = revision.points[-1] if revision.points else revision.total
        names = ("qps", "error_rate", "p99_ms")
        figures = ", ".join(f"{n} {figure_text(n, FIGURES[n].of(window))}" for n in names)
        told.append(f"revision {revision.revision}: {figures}")
    return "; ".join(told)
