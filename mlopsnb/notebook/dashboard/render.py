"""A dashboard's board as text and as static HTML. Pure: the same board gives the same characters.

The rows of a table are made once: what text says, HTML says too, with a small picture of it over time below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from mlopsnb import rollout
from mlopsnb.masking import masked
from mlopsnb.monitoring.counting import FIGURES, figure_text
from mlopsnb.monitoring.pictures import sparkline
from mlopsnb.monitoring.report import SYMBOLS
from mlopsnb.monitoring.traffic import span_text
from mlopsnb.notebook.dashboard.model import DRAWN, RECENT, recent
from mlopsnb.notebook.displays import state_badge
from mlopsnb.notebook.tables import (
    Badge,
    Code,
    Pair,
    Plot,
    card,
    html_table,
    preformatted,
    text_table,
    unbroken,
)
from mlopsnb.notebook.tables import Row as Cells

if TYPE_CHECKING:
    from mlopsnb.monitoring.counting import Window
    from mlopsnb.monitoring.pictures import Line
    from mlopsnb.monitoring.traffic import RevisionTraffic
    from mlopsnb.notebook.dashboard.model import Board, Drift, Row

_HEADS = ("requests/s", "errors", "P50, ms", "P90, ms", "P99, ms")
HEADER = ("deployment", "state", "model", "traffic", *_HEADS, "drift")

_NOTHING = "nothing is deployed"
_REPLICA_HEADER = ("revision", "replica", "requests", "errors", "rows waiting", "memory, MB", "CPU, s", "up")


def heading(board: Board) -> str:
    """Return the first line: how many there are, and when that was."""
    there = [row for row in board.rows if row.gone is None]
    if not there and board.waiting:
        return f"Dashboard: asking {', '.join(board.waiting)} …"
    if not there:
        return f"Dashboard: {_NOTHING}"
    ready = sum(row.state == "ready" for row in there)
    noun = "deployment" if len(there) == 1 else "deployments"
    at = datetime.fromtimestamp(board.at, UTC).strftime("%H:%M:%S")
    return f"Dashboard: {len(there)} {noun}, {ready} ready, at {at} UTC"


def to_text(board: Board) -> str:
    """Return the board as lines of text."""
    lines = [heading(board)]
    if board.rows:
        cells = [row for deployment in board.rows for row in _cells(deployment)]
        lines += [f"  {line}" for line in text_table(cells, HEADER).splitlines()]
        lines.append(f"  {_caption(board)}")
    return "\n".join([*lines, *(f"  {note}" for note in notes(board))])


def to_html(board: Board) -> str:
    """Return the board as a table that reads well without style and without a kernel."""
    parts = []
    if board.rows:
        cells = [row for deployment in board.rows for row in _cells(deployment)]
        parts = [html_table(cells, HEADER, label="deployments"), _quiet(_caption(board))]
    parts += [_quiet(note) for note in notes(board)]
    return card(heading(board), *parts, wide=True)


def _quiet(text: str) -> str:
    return f'<div style="opacity:0.8">{escape(text)}</div>'


def _caption(board: Board) -> str:
    """Say what time the numbers and the lines are of, and where they come from."""
    known = [row.traffic for row in board.rows if row.traffic is not None]
    spans = [r.points[-1].at - r.points[0].at for t in known for r in t.revisions if len(r.points) > 1]
    sources = ", ".join(sorted({t.source for t in known if t.source}))
    lines = f"; lines: the last {span_text(round(max(spans)))}" if spans else ""
    return f"numbers: the last {RECENT:g} s at most{lines}; from {sources or 'the targets'}"


def notes(board: Board) -> list[str]:
    """Return a line for each target and each deployment that could not be asked."""
    return [
        *(f"not asked: {kind}: {masked(why)}" for kind, why in sorted(board.away.items())),
        *(f"{row.key[1]} on {row.key[0]}: {row.trouble}" for row in board.rows if row.trouble),
    ]


def _cells(row: Row) -> list[Cells]:
    """Return the cells of one deployment: a row for each revision that runs, the one with most traffic first."""
    target, name = row.key
    first = (Pair(name, f"on {target}"), state_badge(row.state))
    revisions = [] if row.traffic is None or row.gone is not None else list(row.traffic.revisions)
    if not revisions:
        last = rollout.latest(row.release)
        model = Pair(masked(last.source), f"revision {last.id}") if last else ""
        return [(*first, model, "", *[""] * len(_HEADS), "")]
    revisions.sort(key=lambda r: -r.share)
    return [(*(("", "") if i else first), *_figures(row, one)) for i, one in enumerate(revisions)]


def _figures(row: Row, revision: RevisionTraffic) -> Cells:
    number = ", ".join(filter(None, [f"revision {revision.revision}", revision.role]))
    window, lines = recent(revision), row.lines.get(revision.revision, {})
    return (
        Pair(masked(revision.source), number),
        f"{revision.share}%",
        *(
            Plot("…") if window is None else _figure(name, window, lines[name], revision.revision)
            for name in DRAWN
        ),
        _drift(row.drift.get(revision.revision)),
    )


def _figure(name: str, window: Window, line: Line, revision: int) -> Plot:
    figure = FIGURES[name]
    known = [value for _, value in line if not math.isnan(value)]
    highest = figure_text(name, max(known)) if known else "none"
    label = escape(f"{figure.label} of revision {revision} over time, at most {highest}")
    return Plot(figure_text(name, figure.of(window)), sparkline(line, label))


def _drift(drift: Drift | None) -> Plot:
    if drift is None:
        return Plot("…")
    report = drift.report
    if report is None:
        return Plot(f"- {drift.short}")
    if report.state in ("no-data", "skipped"):
        return Plot(f"{SYMBOLS[report.state]} too little data")
    count = f"{len(report.drifted) or 'none'} of {len(report.rows)}"
    text = f"{SYMBOLS[report.state]} {count}"
    return Plot(
        text,
        sparkline(drift.points, f"the worst feature's drift over time; {count} drifted", limit=1.0),
    )


# ---- one deployment


def facts_html(row: Row) -> str:
    """Return what one deployment is: its state, its address, and who has which share of the traffic."""
    release = row.release
    facts: list[Cells] = [("url", Code(release.url))] if release.url else []
    for revision in row.traffic.revisions if row.traffic else ():
        facts.append((revision.title, Code(masked(revision.source))))
    if row.trouble:
        facts.append(("could not be asked", row.trouble))
    name = f"{row.key[1]} on {row.key[0]}: {state_badge(row.state)}"
    return card(name, html_table(facts, label=f"deployment {row.key[1]}"))


def replicas_html(row: Row) -> str:
    """Return a table of the servers that answered, with what each has counted since it started."""
    cells: list[Cells] = []
    for number, replicas in sorted(row.replicas.items()):
        for name, sample in sorted(replicas.items()):
            up = span_text(max(sample.at - sample.started, 0.0)) if sample.started else "none"
            counts = sample.counts
            cells.append(
                (
                    str(number),
                    Code(name),
                    f"{counts.requests:.0f}",
                    f"{counts.errors:.0f}",
                    f"{sample.levels.queue_rows:.0f}",
                    f"{sample.levels.memory / 1e6:.0f}",
                    f"{counts.cpu:.1f}",
                    unbroken(up),
                )
            )
    if not cells:
        return card("no replica answers")
    missing = _missing(row)
    return html_table(cells, _REPLICA_HEADER, label="replicas") + (_quiet(missing) if missing else "")


def _missing(row: Row) -> str:
    """Say of which revisions fewer replicas answered than there shall be."""
    told = []
    for revision in rollout.running(row.release):
        found, wanted = len(row.replicas.get(revision.id, ())), revision.workload.replicas
        if found < wanted and revision.workload.max_replicas is None:
            told.append(f"revision {revision.id}: {found} of {wanted} answered")
    return "; ".join(told)


def drift_html(row: Row) -> str:
    """Return what is known of the drift of each revision that runs."""
    parts = []
    for number, drift in sorted(row.drift.items()):
        if number not in {r.id for r in rollout.running(row.release)}:
            continue
        title = f"revision {number}"
        if drift.report is None:
            parts.append(card(f"{title}: {drift.why}"))
        else:
            parts.append(card(title, preformatted(str(drift.report), label=f"drift of {title}"), wide=True))
    return "".join(parts) or card("it is not known yet")


def question_html(words: str) -> str:
    """Return the *words* of a question, told at once by screen readers."""
    mark = Badge("?", "confirm")
    return (
        f'<div role="alert" style="padding:4px 0"><strong>{escape(str(mark))}</strong> {escape(words)}</div>'
    )


def impossible_html(why: Sequence[str]) -> str:
    """Return why buttons are off, one line for all."""
    return _quiet("; ".join(why)) if why else ""
