"""A report as matplotlib figures, made without pyplot: no global state, no window, nothing shown by itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import UserError
from mlopsnb.extras import need
from mlopsnb.monitoring.pictures import CURRENT, REFERENCE
from mlopsnb.monitoring.report import SYMBOLS, number
from mlopsnb.monitoring.shapes import Histogram, printable

if TYPE_CHECKING:
    from mlopsnb.monitoring.performance import PerformanceReport
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
    """Return a Figure of one feature: its histogram; of numbers the ECDFs and box plots; the effect over time if known.

    Raises `UserError` if the feature has no values to plot.
    """
    if row.histogram is None:
        raise UserError(f"{row.feature!r} has no values to plot: {row.note}")
    panels: list[Callable[[Any], None]] = [partial(_draw_large, row=row)]
    if row.histogram.ecdf is not None:
        panels += [
            partial(_draw_ecdf, histogram=row.histogram),
            partial(_draw_boxes, histogram=row.histogram),
        ]
    if any(window.effect is not None for window in row.windows):
        panels.append(partial(_draw_over_time, row=row))
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    figure = _figure(4.5 * across if across > 1 else 7.0, 3.4 * down + 0.4)
    for place, draw in enumerate(panels, 1):
        draw(figure.add_subplot(down, across, place))
    figure.suptitle(_title(row, 60, one_line=True), parse_math=False)
    return figure


def _draw_large(axes: Any, *, row: FeatureDrift) -> None:
    _draw(axes, row, legend=True, small=False)
    axes.set_ylabel("share of rows")


def _draw_ecdf(axes: Any, *, histogram: Histogram) -> None:
    ecdf = histogram.ecdf
    assert ecdf is not None
    axes.step(ecdf.x, ecdf.reference, where="post", color=REFERENCE, label="reference")
    axes.step(ecdf.x, ecdf.current, where="post", color=CURRENT, label="current", linestyle="--")
    gaps = [b - a for a, b in zip(ecdf.reference, ecdf.current, strict=True)]
    axes.plot(ecdf.x, gaps, color="0.5", linewidth=1, label="difference")
    axes.set_xlim(histogram.edges[0], histogram.edges[-1])
    axes.set_ylabel("share of rows at most")
    axes.legend(frameon=False)


def _draw_boxes(axes: Any, *, histogram: Histogram) -> None:
    assert histogram.boxes is not None
    keys = ("whislo", "q1", "med", "q3", "whishi")
    stats: list[dict[str, Any]] = [
        dict(zip(keys, box, strict=True)) | {"fliers": []} for box in histogram.boxes
    ]
    drawn = axes.bxp(stats, orientation="horizontal", showfliers=False, patch_artist=True, widths=0.5)
    for patch, colour in zip(drawn["boxes"], (REFERENCE, CURRENT), strict=True):
        patch.set(facecolor=colour, alpha=0.45)
    axes.set_yticks([1, 2], ["reference", "current"])
    axes.invert_yaxis()
    axes.set_xlabel("5, 25, 50, 75 and 95 % quantiles")


def _draw_over_time(axes: Any, *, row: FeatureDrift) -> None:
    known = [w for w in row.windows if w.effect is not None]
    times = [datetime.fromtimestamp((w.start + w.end) / 2, UTC) for w in known]
    if row.band:
        axes.axhspan(0, row.band, color=REFERENCE, alpha=0.15, label="natural band")
    axes.axhline(row.threshold, color="0.4", linestyle="--", label="threshold")
    axes.plot(times, [w.effect for w in known], color=REFERENCE, marker=".", label="effect")
    hits = [(t, w.effect) for t, w in zip(times, known, strict=True) if w.state == "drift"]
    if hits:
        axes.plot(*zip(*hits, strict=True), "D", color=CURRENT, label="drift")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("effect")
    axes.tick_params(axis="x", rotation=30)
    axes.legend(frameon=False, fontsize=8)


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


def performance(report: PerformanceReport, metric: str) -> Any:
    """Return a Figure of one *metric* over time: estimated and realised values, the baseline, the limit.

    Raises `UserError` if the report has no such metric.
    """
    if metric not in report.limits:
        raise UserError(f"there is no metric {metric!r}; there are {', '.join(report.limits)}")
    figure = _figure(8.0, 3.6)
    axes = figure.add_subplot()
    names = [span.name for span in report.spans]
    for kind, colour, mark in (("estimated", REFERENCE, "o"), ("realised", CURRENT, "D")):
        values = [getattr(span, kind).get(metric, float("nan")) for span in report.spans]
        axes.plot(
            names,
            values,
            color=colour,
            marker=mark,
            linestyle="--" if kind == "estimated" else "-",
            label=kind,
        )
    axes.axhline(report.baseline[metric], color="0.4", linewidth=1, label="baseline")
    axes.axhline(report.limits[metric], color="0.4", linestyle=":", label="limit")
    axes.set_ylabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


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
