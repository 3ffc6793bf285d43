"""A report as one static piece of HTML: a sentence and a table with small inline pictures.

No script, no outside file, and no colour of its own for text or ground, so that it reads in light and dark, in a
saved or converted notebook, and without any style. All names are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from mlopsnb.monitoring.report import MOST_ROWS, SYMBOLS, missing, number
from mlopsnb.monitoring.shapes import Histogram, printable

if TYPE_CHECKING:
    from mlopsnb.monitoring.report import DriftReport, FeatureDrift

REFERENCE, CURRENT = "#0072B2", "#D55E00"
"""Blue and vermilion of Okabe and Ito's palette, told apart by the colour-blind as well."""

_TEXT = "var(--jp-ui-font-color1, inherit)"
_LINE = "var(--jp-border-color2, rgba(128, 128, 128, 0.4))"
_PICTURE = (132, 30)
_BAR = (84, 12)
_BAR_ENDS = (3.0, 12.0)
"""The effect bars end at the largest effect of the report, but at so many thresholds at least and at most."""

_STYLE = f"""<style>
.mlopsnb-drift {{ color: {_TEXT}; font-size: 13px; overflow-x: auto; }}
.mlopsnb-drift table {{ border-collapse: collapse; margin: 6px 0; table-layout: auto; background: transparent; color: inherit; }}
.mlopsnb-drift caption {{ caption-side: top; text-align: left; padding: 2px 8px; color: inherit; }}
.mlopsnb-drift table tr > th, .mlopsnb-drift table tr > td {{ text-align: left; vertical-align: middle; padding: 3px 8px; border: 0;
  border-bottom: 1px solid {_LINE}; background: transparent; color: inherit; white-space: nowrap; }}
.mlopsnb-drift table tr > .number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.mlopsnb-drift table tr > .note {{ white-space: normal; min-width: 12em; max-width: 28em; }}
.mlopsnb-drift .strong {{ font-weight: 600; }}
.mlopsnb-drift svg {{ display: inline-block; vertical-align: middle; }}
</style>"""

_HEAD = ("feature", "kind", "state", "reference and current", "effect", "", "q", "missing", "new", "note")
_OPTIONAL = ("missing", "new", "note")
_CLASSES = {"effect": "number", "q": "number", "new": "number", "note": "note"}


def page(report: DriftReport) -> str:
    """Return the HTML of *report*, at most `MOST_ROWS` of its rows; columns that say nothing are left out."""
    shown = report.rows[:MOST_ROWS]
    ratios = [row.effect / row.threshold for row in shown if row.effect is not None]
    end = min(max([_BAR_ENDS[0], *ratios]), _BAR_ENDS[1])
    rows = [_cells(row, end) for row in shown]
    kept = [i for i, name in enumerate(_HEAD) if name not in _OPTIONAL or any(cells[i] for cells in rows)]
    head = "".join(f'<th scope="col"{_class(i)}>{_HEAD[i]}</th>' for i in kept)
    body = "\n".join(_row(row, cells, kept) for row, cells in zip(shown, rows, strict=True))
    hidden = len(report.rows) - MOST_ROWS
    more = f"<p>and {hidden} more; <code>to_frame()</code> has them all</p>" if hidden > 0 else ""
    legend = (
        f"{_swatch(REFERENCE, filled=True)} reference &nbsp; {_swatch(CURRENT, filled=False)} current"
        f" &nbsp; │ threshold of the effect, {report.threshold:g}"
    )
    return (
        f'<div class="mlopsnb-drift">{_STYLE}\n'
        f"<p><strong>{SYMBOLS[report.state]} {escape(report.verdict)}</strong></p>\n"
        f"<table><caption>{legend}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n"
        f"{more}</div>"
    )


def _class(column: int) -> str:
    """Return the attributes of a cell; text says itself that it starts at the left, for pages whose rules are stronger."""
    name = _CLASSES.get(_HEAD[column])
    align = "" if name == "number" else ' style="text-align:left"'
    return f' class="{name}"{align}' if name else align


def _cells(row: FeatureDrift, end: float) -> tuple[str, ...]:
    strong = ' class="strong"' if row.state == "drift" else ""
    return (
        escape(printable(row.feature)),
        escape(row.kind),
        f"<span{strong}>{SYMBOLS[row.state]} {row.state}</span>",
        _picture(row.histogram) if row.histogram else "",
        number(row.effect),
        _bar(row, end) if row.effect is not None else "",
        escape(number(row.q_value)),
        missing(row),
        str(row.new_levels or ""),
        escape(printable(row.note, 200)),
    )


def _row(row: FeatureDrift, cells: Sequence[str], kept: Sequence[int]) -> str:
    full = f' title="{escape(row.feature)}"' if printable(row.feature) != row.feature else ""
    tail = "".join(f"<td{_class(i)}>{cells[i]}</td>" for i in kept[1:])
    return f'<tr><th scope="row"{_class(0)}{full}>{cells[0]}</th>{tail}</tr>'


def _swatch(colour: str, *, filled: bool) -> str:
    fill = (
        f'fill="{colour}" fill-opacity="0.65"'
        if filled
        else f'fill="none" stroke="{colour}" stroke-width="2"'
    )
    return f'<svg width="14" height="10" aria-hidden="true"><rect x="1" y="1" width="12" height="8" {fill}/></svg>'


def _picture(histogram: Histogram) -> str:
    """Return both histograms over each other: the reference filled, the current one as an outline."""
    width, height = _PICTURE
    top = max(*histogram.reference, *histogram.current) or 1.0
    levels = bool(histogram.labels)
    paths = [_outline(shares, top, gaps=levels) for shares in (histogram.reference, histogram.current)]
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="'
        f'histograms of the reference and the current data">'
        f'<path d="{paths[0]}" fill="{REFERENCE}" fill-opacity="0.65" stroke="none"/>'
        f'<path d="{paths[1]}" fill="none" stroke="{CURRENT}" stroke-width="1.5"/></svg>'
    )


def _outline(shares: Sequence[float], top: float, *, gaps: bool) -> str:
    """Return a path over the bars; with *gaps* each bar stands alone, as categories do."""
    width, height = _PICTURE
    base, step = height - 1, (width - 2) / len(shares)
    steps = [f"M1,{base}"]
    for i, share in enumerate(shares):
        left, right, y = 1 + i * step, 1 + (i + 1) * step, base - share / top * (height - 3)
        if gaps:
            inset = step * 0.1
            steps.append(f"M{left + inset:.1f},{base}V{y:.1f}H{right - inset:.1f}V{base}")
        else:
            steps.append(f"V{y:.1f}H{right:.1f}")
    return "".join(steps) + f"V{base}"


def _bar(row: FeatureDrift, end: float) -> str:
    """Return the effect as a bar with a tick at the threshold; it ends at *end* thresholds."""
    width, height = _BAR
    ratio = (row.effect or 0.0) / row.threshold
    length = max(min(ratio / end, 1.0) * (width - 2), 0.5)
    tick = width / end
    shown = f"{row.statistic} {number(row.effect)}, threshold {row.threshold:g}"
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(shown)}"><title>{escape(shown)}</title>'
        f'<rect x="0" y="3" width="{length:.1f}" height="6" fill="currentColor" fill-opacity="0.55"/>'
        f'<path d="M{tick:.1f},0V{height}" stroke="currentColor" stroke-width="1.5"/></svg>'
    )
