"""A report as matplotlib figures, made without pyplot: no global state, no window, nothing shown by itself."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import UserError
from mlopsnb.extras import need
from mlopsnb.monitoring.page import CURRENT, REFERENCE
from mlopsnb.monitoring.report import SYMBOLS, number
from mlopsnb.monitoring.shapes import Histogram, printable

if TYPE_CHECKING:
    from mlopsnb.monitoring.report import DriftReport, FeatureDrift

_ACROSS = 4


def overview(report: DriftReport, top: int) -> Any:
    """Return a Figure with one small histogram for each of the *top* ranked features that have one.

    Raises `UserError` if *top* is less than 1, or if no feature could be compared.
    """
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1", hint="8 is the usual one")
    rows = [row for row in report.rows if row.histogram is not None][:top]
    if not rows:
        raise UserError("no feature has values to plot", hint="str(report) says why of each")
    across = min(_ACROSS, len(rows))
    down = -(-len(rows) // across)
    figure = _figure(max(2.7 * across, 3.6), 2.1 * down + 0.6)
    for place, row in enumerate(rows, 1):
        axes = figure.add_subplot(down, across, place)
        _draw(axes, row, legend=False, small=True)
        axes.set_title(_title(row, 26), fontsize=9, parse_math=False)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def single(row: FeatureDrift) -> Any:
    """Return a Figure of one feature: histogram and ECDF for numbers, the shares of the levels for others.

    Raises `UserError` if the feature has no values to plot.
    """
    if row.histogram is None:
        raise UserError(f"{row.feature!r} has no values to plot: {row.note}")
    numeric = row.histogram.ecdf is not None
    figure = _figure(9.0 if numeric else 7.0, 3.8)
    axes = figure.add_subplot(1, 2 if numeric else 1, 1)
    _draw(axes, row, legend=True, small=False)
    axes.set_ylabel("share of rows")
    if row.histogram.ecdf is not None:
        ecdf = row.histogram.ecdf
        axes = figure.add_subplot(1, 2, 2)
        axes.step(ecdf.x, ecdf.reference, where="post", color=REFERENCE, label="reference")
        axes.step(ecdf.x, ecdf.current, where="post", color=CURRENT, label="current", linestyle="--")
        axes.set_xlim(row.histogram.edges[0], row.histogram.edges[-1])
        axes.set_ylabel("share of rows at most")
        axes.legend(frameon=False)
    figure.suptitle(_title(row, 60, one_line=True), parse_math=False)
    return figure


def _draw(axes: Any, row: FeatureDrift, *, legend: bool, small: bool) -> None:
    histogram = row.histogram
    assert histogram is not None
    if histogram.labels:
        _draw_levels(axes, histogram, small=small)
    else:
        style = {"edges": histogram.edges}
        axes.stairs(histogram.reference, fill=True, color=REFERENCE, alpha=0.45, label="reference", **style)
        axes.stairs(histogram.current, color=CURRENT, linewidth=1.6, label="current", **style)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False)


def _draw_levels(axes: Any, histogram: Histogram, *, small: bool) -> None:
    places = range(len(histogram.labels))
    axes.bar(places, histogram.reference, width=0.8, color=REFERENCE, alpha=0.45, label="reference")
    axes.bar(
        places, histogram.current, width=0.8, fill=False, edgecolor=CURRENT, linewidth=1.6, label="current"
    )
    # `parse_math=False`: a level such as "$5 to $10" is text, not a formula.
    labels = [printable(text, 9 if small else 24) for text in histogram.labels]
    crowded = sum(map(len, labels)) > (24 if small else 60)
    axes.set_xticks(
        list(places),
        labels,
        rotation=40 if crowded else 0,
        ha="right" if crowded else "center",
        parse_math=False,
    )


def _title(row: FeatureDrift, width: int, *, one_line: bool = False) -> str:
    name = printable(row.feature, width)
    effect = "" if row.effect is None else f", effect {number(row.effect)}"
    return f"{name}{'  ' if one_line else chr(10)}{SYMBOLS[row.state]} {row.state}{effect}"


def _figure(width: float, height: float) -> Any:
    need("matplotlib", extra="monitoring")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # A notebook knows how to show a figure only once pyplot is loaded; this one shows itself.
    vars(figure)["_repr_png_"] = partial(_png, figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
