"""Traffic as one static piece of HTML: a table, and one small picture over time for each figure, a line per revision.

No script, no outside file; readable in light and dark and without colours, as lines differ in their strokes too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from mlopsnb.masking import masked
from mlopsnb.monitoring.counting import FIGURES, figure_text
from mlopsnb.monitoring.pictures import CURRENT, REFERENCE, Frame
from mlopsnb.monitoring.traffic import span_text, table

if TYPE_CHECKING:
    from mlopsnb.monitoring.counting import Window
    from mlopsnb.monitoring.pictures import Line
    from mlopsnb.monitoring.traffic import Traffic

PANELS = ("qps", "error_rate", "p50_ms", "p99_ms", "batch_rows", "queue_p99_ms", "cpu_cores", "memory_mb")
_WIDTH, _HEIGHT = 200, 56
_STROKES = ((REFERENCE, ""), (CURRENT, "5 3"), ("#009E73", "2 2"))
"""Blue, vermilion and green of Okabe and Ito's palette: the stable revision whole, the others dashed and dotted."""

_TEXT = "color:var(--jp-ui-font-color1,inherit);font-size:13px;overflow-x:auto"
_CELL = "text-align:right;padding:2px 0 2px 16px;font-variant-numeric:tabular-nums;background:transparent;white-space:nowrap"
_NAME = "text-align:left;padding:2px 0;font-weight:normal;background:transparent;white-space:nowrap"


def page(traffic: Traffic) -> str:
    """Return the HTML of *traffic*."""
    title = masked(f"Traffic of {traffic.name} on {traffic.target}")
    return (
        f'<div class="mlopsnb-traffic" style="{_TEXT}"><p><strong>{escape(title)}</strong>, '
        f"from {escape(masked(traffic.source))}</p>{_pictures(traffic)}{_table(traffic)}</div>"
    )


def _table(traffic: Traffic) -> str:
    header, *rows = table(traffic)
    head = "".join(f'<th scope="col" style="{_CELL};font-weight:normal">{escape(h)}</th>' for h in header[1:])
    body = "".join(
        f'<tr style="background:transparent"><th scope="row" style="{_NAME}">{escape(row[0])}</th>'
        + "".join(f'<td style="{_CELL}">{escape(value)}</td>' for value in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<table aria-label="figures" style="border-collapse:collapse"><thead><tr style="background:transparent">'
        f'<th scope="col" style="{_NAME}"></th>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def _pictures(traffic: Traffic) -> str:
    if not any(len(r.points) > 1 for r in traffic.revisions):
        return ""
    pictures = "".join(_panel(traffic, name) for name in PANELS)
    legend = " &nbsp; ".join(
        f"{_swatch(i)} {escape(revision.title)}" for i, revision in enumerate(traffic.revisions)
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:10px 20px">{pictures}</div><p>{legend}</p>'


def _swatch(i: int) -> str:
    return f'<svg width="26" height="8" aria-hidden="true"><path d="M1,4H25" {_stroke(i)}/></svg>'


def _stroke(i: int) -> str:
    colour, dashes = _STROKES[i % len(_STROKES)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'fill="none" stroke="{colour}" stroke-width="1.5"{dashed}'


def _panel(traffic: Traffic, name: str) -> str:
    """Return one figure over time, from zero to its highest value."""
    lines = [_line(revision.points, name) for revision in traffic.revisions]
    known = [value for line in lines for _, value in line if not math.isnan(value)]
    times = [at for line in lines for at, _ in line]
    start, span = min(times), (max(times) - min(times)) or 1.0
    frame = Frame(start, span, max(known, default=0.0) or 1.0, _WIDTH, _HEIGHT)
    paths = "".join(
        f'<path d="{path}" {_stroke(i)}/>' for i, line in enumerate(lines) if (path := frame.trace(line))
    )
    highest = figure_text(name, max(known)) if known else "none"
    label = f"{FIGURES[name].label} over {span_text(span)}, at most {highest}"
    return (
        f'<figure style="margin:0"><figcaption>{escape(FIGURES[name].label)}, '
        f'<span style="opacity:0.7">at most {escape(highest)}</span></figcaption>'
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}"><path d="M0,{_HEIGHT - 1}H{_WIDTH}" stroke="currentColor" '
        f'stroke-opacity="0.35"/>{paths}</svg></figure>'
    )


def _line(points: Sequence[Window], name: str) -> Line:
    return [(window.at, FIGURES[name].of(window)) for window in points]
