"""The small pictures of a report as inline SVG: no script, no outside file, readable in light and dark.

Blue and vermilion of Okabe and Ito's palette are told apart by the colour-blind as well, and nothing is said by colour
alone: the reference is filled and the current data outlined, drift has a mark. All text in them is escaped by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlopsnb.monitoring.report import FeatureDrift, Window
    from mlopsnb.monitoring.shapes import Box, Ecdf, Histogram

REFERENCE, CURRENT = "#0072B2", "#D55E00"

_HEAT_END = 3.0
"""Effects of so many thresholds, and more, have the full colour in a heat strip."""

_LARGE = (280, 110)
_SPARK = (66, 18)
_GREY = 'stroke="currentColor" stroke-opacity="0.6"'


def svg(width: float, height: float, label: str, body: str) -> str:
    """Return an SVG element; *label*, escaped already, is what a screen reader says."""
    return (
        f'<svg width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{label}">{body}</svg>'
    )


Line = Sequence[tuple[float, float]]
"""Points in time order: Unix seconds and a value, NaN where there is none."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where values over time lie in a picture: from `start` for `span` seconds, from zero at its foot to `top`."""

    start: float
    span: float
    top: float
    width: int
    height: int

    def y(self, value: float) -> float:
        """Return how far below the upper edge *value* lies."""
        return self.height - 2 - value / self.top * (self.height - 6)

    def trace(self, line: Line) -> str:
        """Return the path of *line*; where there is no value it is broken, and a lone point becomes a short stroke."""
        parts, drawing = [], False
        for at, value in line:
            if math.isnan(value):
                drawing = False
                continue
            x, y = (at - self.start) / self.span * (self.width - 2) + 1, self.y(value)
            parts.append(f"L{x:.1f},{y:.1f}" if drawing else f"M{x - 1:.1f},{y:.1f}L{x:.1f},{y:.1f}")
            drawing = True
        return "".join(parts)


def sparkline(line: Line, label: str, *, limit: float | None = None) -> str:
    """Return values over time as a line of text's height, from zero up; *limit* is dashed across.

    *label*, escaped already, is what a screen reader says.
    """
    width, height = _SPARK
    start, end = line[0][0], line[-1][0]
    known = [value for _, value in line if not math.isnan(value)]
    frame = Frame(start, (end - start) or 1.0, max([limit or 0.0, *known]) or 1.0, width, height)
    across = (
        "" if limit is None else f'<path d="M0,{frame.y(limit):.1f}H{width}" {_GREY} stroke-dasharray="3 3"/>'
    )
    path = frame.trace(line)
    drawn = f'<path d="{path}" fill="none" stroke="{REFERENCE}" stroke-width="1.4"/>' if path else ""
    foot = f'<path d="M0,{height - 1}H{width}" stroke="currentColor" stroke-opacity="0.25"/>'
    return svg(width, height, label, f"{foot}{across}{drawn}")


def overlay(histogram: Histogram, width: int, height: int) -> str:
    """Return both histograms over each other: the reference filled, the current one as an outline."""
    top = max(*histogram.reference, *histogram.current) or 1.0
    gaps = bool(histogram.labels)
    reference, current = (
        _outline(shares, top, width, height, gaps=gaps) for shares in (histogram.reference, histogram.current)
    )
    return svg(
        width,
        height,
        "histograms of the reference and the current data",
        f'<path d="{reference}" fill="{REFERENCE}" fill-opacity="0.65"/>'
        f'<path d="{current}" fill="none" stroke="{CURRENT}" stroke-width="1.5"/>',
    )


def _outline(shares: Sequence[float], top: float, width: int, height: int, *, gaps: bool) -> str:
    """Return a path over the bars; with *gaps* each bar stands alone, as categories do."""
    base, scale = height - 1, (height - 3) / top
    return _bars(len(shares), width, base, gaps=gaps) % tuple([base - share * scale for share in shares])


@lru_cache
def _bars(count: int, width: int, base: int, *, gaps: bool) -> str:
    """Return the path over *count* bars but for where they end: a page has the same for all features."""
    step = (width - 2) / count
    lefts = [1 + i * step for i in range(count)]
    if gaps:
        steps = [f"M{left + step * 0.1:.1f},{base}V%.1fh{step * 0.8:.1f}V{base}" for left in lefts]
    else:
        steps = [f"V%.1fH{left + step:.1f}" for left in lefts]
    return f"M1,{base}{''.join(steps)}V{base}"


def bar(ratio: float, end: float, width: int, height: int, label: str) -> str:
    """Return an effect of *ratio* thresholds as a bar with a tick at the threshold; it ends at *end* thresholds."""
    length = max(min(ratio / end, 1.0) * (width - 2), 0.5)
    return svg(
        width,
        height,
        label,
        f"<title>{label}</title>"
        f'<rect y="3" width="{length:.1f}" height="{height - 6}" fill="currentColor" fill-opacity="0.55"/>'
        f'<path d="M{width / end:.1f},0V{height}" stroke="currentColor" stroke-width="1.5"/>',
    )


def strip(windows: Sequence[Window], threshold: float) -> str:
    """Return a heat strip, a cell for each window: the stronger the larger the effect, a mark below where it drifted."""
    step, height = max(3, 192 // len(windows)), 18
    shades: dict[float, list[str]] = {}  # one path for all cells of a shade keeps a page small
    empty, marks = [], []
    hottest = threshold * _HEAT_END / 10
    for window, (cell, mark) in zip(windows, _places(len(windows), step), strict=True):
        if window.effect is None:
            empty.append(cell)
        else:
            heat = round(min(window.effect / hottest, 10.0)) / 10  # an effect may be infinite
            shades.setdefault(heat, []).append(cell)
        if window.state == "drift":
            marks.append(mark)
    cells = [
        f'<path d="{"".join(places)}" stroke="{CURRENT}" stroke-width="14" stroke-opacity="{0.06 + 0.94 * heat:.2f}"/>'
        for heat, places in shades.items()
    ]
    cells.append(
        f'<path d="{"".join(empty)}" {_GREY}/><path d="{"".join(marks)}" stroke="currentColor" stroke-width="3"/>'
    )
    label = f"effect over {len(windows)} windows of time, {len(marks)} of them drifted"
    return svg(step * len(windows), height, label, f"<title>{label}</title>" + "".join(cells))


@lru_cache
def _places(count: int, step: int) -> tuple[tuple[str, str], ...]:
    """Return the path of each cell of a strip, and of the mark below it."""
    return tuple((f"M{i * step},7h{step - 0.5:g}", f"M{i * step},16.5h{step - 0.5:g}") for i in range(count))


def over_time(row: FeatureDrift) -> str:
    """Return the effect in each window as a line with dots, the natural band shaded, the threshold dashed."""
    width, height = _LARGE
    known = [w for w in row.windows if w.effect is not None]
    top = 1.15 * max([row.threshold * 1.3, row.band or 0.0, *(w.effect or 0.0 for w in known)])
    first, last = row.windows[0].start, row.windows[-1].end

    wide, high = (width - 8) / max(last - first, 1e-9), (height - 16) / top

    def y(value: float) -> float:
        return height - 14 - high * value

    places = [
        (
            f"{4 + wide * ((w.start + w.end) / 2 - first):.1f},{height - 14 - high * (w.effect or 0.0):.1f}",
            w.state == "drift",
        )
        for w in known
    ]
    line = "M" + "L".join(place for place, _ in places)
    dots = "".join(
        f'<path d="{"".join(f"M{place}h0" for place, hit in places if hit == drifted)}" stroke="{colour}" '
        f'stroke-width="{size}" stroke-linecap="round"/>'
        for drifted, colour, size in ((False, REFERENCE, 3.5), (True, CURRENT, 7))
    )
    band = row.band or 0.0
    shade = f'<rect x="0" y="{y(band):.1f}" width="{width}" height="{height - 14 - y(band):.1f}" fill="{REFERENCE}" fill-opacity="0.15"/>'
    body = (
        (shade if band else "")
        + f'<path d="M0,{y(row.threshold):.1f}H{width}" {_GREY} stroke-dasharray="4 3"/>'
        + f'<path d="{line}" fill="none" stroke="{REFERENCE}" stroke-width="1.2"/>{dots}'
        + _text(0, height - 2, clock(first))
        + _text(width, height - 2, clock(last), end=True)
    )
    return svg(width, height, "effect over time, with threshold and natural band", body)


def clock(seconds: float) -> str:
    """Return a time as day and minute (UTC)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%m-%d %H:%M")


def ecdf_difference(ecdf: Ecdf, low: float, high: float) -> str:
    """Return by how much more of the current data lies up to each value, above or below a line at nothing."""
    width, height = _LARGE
    gaps = [b - a for a, b in zip(ecdf.reference, ecdf.current, strict=True)]
    top = max(map(abs, gaps)) or 1.0
    middle, span = (height - 14) / 2, (high - low) or 1.0
    wide, high_up = width / span, (middle - 3) / top
    places = [0.0] * len(ecdf.x[::2]) * 2  # every second point is as good to the eye
    places[::2] = [min(max((value - low) * wide, 0.0), width) for value in ecdf.x[::2]]
    places[1::2] = [middle - gap * high_up for gap in gaps[::2]]
    line = ("L%.1f,%.1f" * (len(places) // 2))[1:] % tuple(places)
    body = (
        f'<path d="M0,{middle}H{width}" {_GREY}/>'
        f'<path d="M{line}" fill="none" stroke="{CURRENT}" stroke-width="1.5"/>'
        + _text(0, height - 2, f"{low:.4g}")
        + _text(width, height - 2, f"{high:.4g}", end=True)
        + _text(width, 9, f"at most {top:.3f}", end=True)
    )
    return svg(width, height, f"difference of the ECDFs, at most {top:.3f}", body)


def boxes(pair: tuple[Box, Box]) -> str:
    """Return two box plots over each other: quartiles, and whiskers from 5 % to 95 %; the reference above."""
    width, height = _LARGE[0], 56
    low, high = min(b[0] for b in pair), max(b[4] for b in pair)
    span = (high - low) or 1.0
    parts = []
    for i, (box, colour) in enumerate(zip(pair, (REFERENCE, CURRENT), strict=True)):
        at = [4 + (width - 8) * (value - low) / span for value in box]
        y, fill = 4 + i * 20, f'fill="{colour}" fill-opacity="0.65"' if i == 0 else 'fill="none"'
        parts.append(
            f'<path d="M{at[0]:.1f},{y + 7}H{at[1]:.1f}M{at[3]:.1f},{y + 7}H{at[4]:.1f}" stroke="{colour}"/>'
            f'<rect x="{at[1]:.1f}" y="{y}" width="{max(at[3] - at[1], 0.5):.1f}" height="14" {fill} stroke="{colour}"/>'
            f'<path d="M{at[2]:.1f},{y}v14" stroke="currentColor" stroke-width="2"/>'
        )
    body = (
        "".join(parts)
        + _text(0, height - 2, f"{low:.4g}")
        + _text(width, height - 2, f"{high:.4g}", end=True)
    )
    return svg(width, height, "box plots of the reference and the current data", body)


def _text(x: float, y: float, text: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="10" fill="currentColor"{anchor}>{text}</text>'
