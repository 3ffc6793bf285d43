"""A report as one static piece of HTML: a sentence, and a ranked table whose rows open.

No script, no outside file, and no colour of its own for text or ground, so that it reads in light and dark, in a
saved or converted notebook, and without any style. All names are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from mlopsnb.masking import masked
from mlopsnb.monitoring import pictures
from mlopsnb.monitoring.pictures import CURRENT, REFERENCE
from mlopsnb.monitoring.report import MOST_ROWS, SYMBOLS, missing, number, share_text
from mlopsnb.monitoring.shapes import printable

if TYPE_CHECKING:
    from mlopsnb.monitoring.report import DriftReport, FeatureDrift
    from mlopsnb.monitoring.shapes import Histogram

_TEXT = "var(--jp-ui-font-color1, inherit)"
_LINE = "var(--jp-border-color2, rgba(128, 128, 128, 0.4))"
_BAR_ENDS = (3.0, 12.0)
"""The effect bars end at the largest effect of the report, but at so many thresholds at least and at most."""

_STYLE = f"""<style>
.mlopsnb-drift {{ color: {_TEXT}; font-size: 13px; overflow-x: auto; }}
.mlopsnb-drift table {{ border-collapse: collapse; margin: 6px 0; table-layout: auto; background: transparent; color: inherit; }}
.mlopsnb-drift caption {{ caption-side: top; text-align: left; padding: 2px 8px; color: inherit; }}
.mlopsnb-drift table tr > th, .mlopsnb-drift table tr > td {{ text-align: left; vertical-align: middle; padding: 3px 8px; border: 0;
  background: transparent; color: inherit; white-space: nowrap; }}
.mlopsnb-drift tbody {{ border-bottom: 1px solid {_LINE}; }}
.mlopsnb-drift table tr > .number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.mlopsnb-drift table tr > .note {{ white-space: normal; min-width: 12em; max-width: 28em; }}
.mlopsnb-drift table tr.more > td {{ padding-top: 0; }}
.mlopsnb-drift summary {{ cursor: pointer; font-size: 11px; opacity: 0.75; }}
.mlopsnb-drift figure {{ display: inline-block; margin: 4px 16px 4px 0; vertical-align: top; }}
.mlopsnb-drift figcaption {{ font-size: 11px; }}
.mlopsnb-drift .strong {{ font-weight: 600; }}
.mlopsnb-drift svg {{ display: inline-block; vertical-align: middle; overflow: visible; }}
</style>"""

_HEAD = (
    *("feature", "kind", "state", "reference and current", "effect", "", "q", "missing", "new"),
    *("over time", "note"),
)
_OPTIONAL = ("missing", "new", "over time", "note")
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
    return (
        f'<div class="mlopsnb-drift">{_STYLE}\n'
        f"<p><strong>{SYMBOLS[report.state]} {escape(report.verdict)}</strong></p>\n"
        f"<table><caption>{_legend(report)}</caption>\n<thead><tr>{head}</tr></thead>\n{body}\n</table>\n"
        f"{more}</div>"
    )


def document(report: DriftReport) -> str:
    """Return *report* as a whole page, to be saved and sent."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.verdict)}</title></head>\n"
        f'<body style="font-family: system-ui, sans-serif">{page(report)}</body></html>\n'
    )


def _legend(report: DriftReport) -> str:
    parts = [
        f"{_swatch(REFERENCE, filled=True)} reference &nbsp; {_swatch(CURRENT, filled=False)} current",
        f"│ threshold of the effect, {report.threshold:g}",
    ]
    if report.span is not None:
        start, end = (pictures.clock(moment) for moment in report.span)
        parts.append(f"{start} to {end} UTC; ▬ below a window: drift")
    return " &nbsp; ".join(parts)


def _class(column: int) -> str:
    """Return the attributes of a cell; text says itself that it starts at the left, for pages whose rules are stronger."""
    name = _CLASSES.get(_HEAD[column])
    align = "" if name == "number" else ' style="text-align:left"'
    return f' class="{name}"{align}' if name else align


def _cells(row: FeatureDrift, end: float) -> tuple[str, ...]:
    strong = ' class="strong"' if row.state == "drift" else ""
    told = escape(f"{row.statistic} {number(row.effect)}, threshold {row.threshold:g}")
    return (
        escape(printable(row.feature)),
        escape(row.kind),
        f"<span{strong}>{SYMBOLS[row.state]} {row.state}</span>",
        pictures.overlay(row.histogram, 132, 30) if row.histogram else "",
        number(row.effect),
        "" if row.effect is None else pictures.bar(row.effect / row.threshold, end, 84, 12, told),
        escape(number(row.q_value)),
        missing(row),
        str(row.new_levels or ""),
        pictures.strip(row.windows, row.threshold) if row.windows else "",
        escape(printable(row.note, 200)),
    )


def _row(row: FeatureDrift, cells: Sequence[str], kept: Sequence[int]) -> str:
    full = f' title="{escape(masked(row.feature))}"' if printable(row.feature) != row.feature else ""
    tail = "".join(f"<td{_class(i)}>{cells[i]}</td>" for i in kept[1:])
    first = f'<tr><th scope="row"{_class(0)}{full}>{cells[0]}</th>{tail}</tr>'
    return f"<tbody>{first}{_more(row, len(kept))}</tbody>"


def _more(row: FeatureDrift, width: int) -> str:
    """Return the part of a row that opens."""
    if row.histogram is None:
        return ""
    figures = [("histogram", pictures.overlay(row.histogram, 280, 110) + _axis(row.histogram))]
    if row.histogram.ecdf is not None:
        low, high = row.histogram.edges[0], row.histogram.edges[-1]
        figures.append(
            ("current ECDF minus reference", pictures.ecdf_difference(row.histogram.ecdf, low, high))
        )
    if any(window.effect is not None for window in row.windows):
        figures.append(("effect over time (UTC)", pictures.over_time(row)))
    if row.histogram.boxes is not None:
        figures.append(("5, 25, 50, 75 and 95 %", pictures.boxes(row.histogram.boxes)))
    shown = "".join(f"<figure>{svg}<figcaption>{name}</figcaption></figure>" for name, svg in figures)
    return (
        f'<tr class="more"><td colspan="{width}"><details><summary>details</summary>'
        f"<p>{escape(measures(row))}</p>{shown}</details></td></tr>"
    )


def measures(row: FeatureDrift) -> str:
    """Return all that was measured of a feature in one line."""
    found = {
        row.statistic or "effect": row.effect,
        "p": row.p_value,
        "q": row.q_value,
        "Kolmogorov-Smirnov": row.ks,
        "PSI": row.psi,
        "natural band": row.band,
    }
    parts = [f"{name} {number(value)}" for name, value in found.items() if value is not None]
    parts += [
        f"{c.name} {share_text(c.reference)} → {share_text(c.current)}"
        for c in row.checks
        if c.reference or c.current
    ]
    return ", ".join(parts)


def _axis(histogram: Histogram) -> str:
    if histogram.labels:
        return f"<br/><small>{escape(', '.join(printable(label, 18) for label in histogram.labels))}</small>"
    return f"<br/><small>{histogram.edges[0]:.4g} to {histogram.edges[-1]:.4g}</small>"


def _swatch(colour: str, *, filled: bool) -> str:
    fill = (
        f'fill="{colour}" fill-opacity="0.65"'
        if filled
        else f'fill="none" stroke="{colour}" stroke-width="2"'
    )
    return f'<svg width="14" height="10" aria-hidden="true"><rect x="1" y="1" width="12" height="8" {fill}/></svg>'
