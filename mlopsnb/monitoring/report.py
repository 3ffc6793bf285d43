"""What a comparison found: frozen records, and the ways to read them.

The records decide nothing and hold no data but small summaries; the page and the figures are made elsewhere, and
pandas and matplotlib are loaded only by the methods that return their objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlopsnb.errors import GateRejected, UserError, nearest
from mlopsnb.extras import need
from mlopsnb.monitoring.shapes import Histogram, listed, printable

if TYPE_CHECKING:
    from mlopsnb.records import ModelVersion

State = Literal["ok", "shift", "drift", "no-data", "skipped"]
SYMBOLS: dict[State, str] = {"ok": "✓", "shift": "~", "drift": "▲", "no-data": "?", "skipped": "-"}

MOST_ROWS = 50
"""So many features are shown at most in text and on a page; `to_frame` has them all."""

_MOST_NAMES = 20
COLUMNS = (
    *("feature", "kind", "state", "effect", "q_value", "p_value", "statistic"),
    *("missing_reference", "missing_current", "new_levels", "note", "ks", "psi", "tails_current", "band"),
)
_TEXT_HEAD = ("", "feature", "kind", "state", "effect", "q", "missing", "new", "over time", "note")
_NUMBERS = ("effect", "q_value", "p_value", "ks", "psi", "tails_current", "band")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A share of the values, compared by itself: `missing`, `new levels`, or `tails`.

    Shares are 0 to 1. `drifted` says that it moved by `limit` or more, and significantly. Of new levels, what the
    reference "has" is what is to be expected; the tails are the outermost 0.2 % of the reference's values.
    """

    name: str
    reference: float
    current: float
    limit: float
    p_value: float
    q_value: float | None = None
    drifted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One feature in one window of time, from `start` to `end` (seconds since 1970), `rows` of them."""

    start: float
    end: float
    rows: int
    effect: float | None = None
    p_value: float | None = None
    q_value: float | None = None
    state: State = "no-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDrift:
    """One feature, or one output of the model, compared.

    `kind` is `numeric`, `category`, `output` or `other`; `statistic` names the effect: `wasserstein` (in standard
    deviations of the reference), `jensen-shannon` (0 to 0.83), or nothing. Beside it `ks` is the Kolmogorov-Smirnov
    distance, `psi` the population stability index. What was not measured is None. Missing shares are 0 to 1. `band` is
    how large the effect gets between parts of the reference itself; an effect below is `ok` whatever its p-value.
    """

    feature: str
    kind: str
    threshold: float
    state: State = "ok"
    effect: float | None = None
    statistic: str = ""
    p_value: float | None = None
    q_value: float | None = None
    ks: float | None = None
    psi: float | None = None
    band: float | None = None
    missing_reference: float = 0.0
    missing_current: float = 0.0
    checks: tuple[Check, ...] = ()
    new_levels: int = 0
    windows: tuple[Window, ...] = ()
    note: str = ""
    histogram: Histogram | None = None

    @property
    def severity(self) -> float:
        """How far beyond what counts as drift, 1 being just there; -1 if nothing was measured."""
        return max([_beyond(self), *(_move(check) for check in self.telling)])

    @property
    def telling(self) -> tuple[Check, ...]:
        """The checks that say more than the effect does: tails and new levels are part of a large one."""
        plain = _beyond(self) < 1
        return tuple(check for check in self.checks if check.drifted and (plain or check.name == "missing"))

    @property
    def tails_current(self) -> float | None:
        """The share of current values in the outermost 0.2 % of the reference's."""
        return next((check.current for check in self.checks if check.name == "tails"), None)


def _beyond(row: FeatureDrift) -> float:
    return -1.0 if row.effect is None else row.effect / row.threshold


def _move(check: Check) -> float:
    """Return how far a share moved, in units of what counts as drift."""
    return abs(check.current - check.reference) / check.limit


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DriftReport:
    """The features of two samples compared, the model's outputs first, then the most drifted first.

    `span` is the time that the current rows came in (seconds since 1970), where that is known.
    """

    rows: tuple[FeatureDrift, ...]
    reference_rows: int
    current_rows: int
    threshold: float
    q: float
    span: tuple[float, float] | None = None

    @property
    def drifted(self) -> tuple[str, ...]:
        """The names of the features and outputs that drifted, the worst first within each."""
        return tuple(row.feature for row in self.rows if row.state == "drift")

    @property
    def state(self) -> State:
        """The worst state there is; `no-data` only if nothing at all could be compared."""
        found = {row.state for row in self.rows}
        return next(state for state in ("drift", "shift", "ok", "no-data", "skipped") if state in found)

    @property
    def verdict(self) -> str:
        """The whole report in one sentence."""
        sizes = f"{self.reference_rows} against {self.current_rows} rows"
        if self.state in ("no-data", "skipped"):
            return f"{self.state}: nothing could be compared, {sizes}"
        groups = [[r for r in self.rows if (r.kind == "output") == outputs] for outputs in (True, False)]
        hits = [(sum(row.state == "drift" for row in group), _plural(group)) for group in groups if group]
        drifted = [f"{n} of {what}" for n, what in hits if n] or [
            "none of " + " and ".join(w for _, w in hits)
        ]
        parts = [f"{' and '.join(drifted)} drifted"]
        worst = max(self.rows, key=lambda row: (row.state == "drift", row.severity))
        if worst.state == "drift":
            parts[0] += f" (worst: {printable(worst.feature)}, {_why(worst)})"
        counts = {state: sum(row.state == state for row in self.rows) for state in SYMBOLS}
        told: dict[State, str] = {
            "shift": "shifted slightly",
            "no-data": "without data",
            "skipped": "skipped",
        }
        parts += [f"{counts[state]} {words}" for state, words in told.items() if counts[state]]
        return f"{self.state}: {', '.join([*parts, sizes])}"

    def to_frame(self) -> Any:
        """Return all rows as a pandas DataFrame; what was not measured is NaN."""
        pandas = need("pandas", extra="monitoring")
        frame = pandas.DataFrame([[getattr(row, c) for c in COLUMNS] for row in self.rows], columns=COLUMNS)
        return frame.astype(dict.fromkeys(_NUMBERS, "float64"))

    def assert_ok(self) -> None:
        """Raise `GateRejected`, which names what drifted, if anything did."""
        if self.drifted:
            names = listed([printable(name) for name in self.drifted], _MOST_NAMES)
            raise GateRejected(
                f"drifted: {names}; {self.verdict}",
                hint="report.to_frame() has every feature, report.figure(name) shows one",
            )

    def find(self, feature: str) -> FeatureDrift:
        """Return the row of *feature*; an output comes before a feature of the same name.

        Raises `UserError`, with the nearest name, if there is none.
        """
        for row in self.rows:
            if row.feature == feature:
                return row
        names = [row.feature for row in self.rows]
        raise UserError(
            f"no feature named {feature!r}; there are {listed(names, _MOST_NAMES)}",
            hint=nearest(feature, names),
        )

    def plot(self, top: int = 8) -> Any:
        """Return a matplotlib Figure with the histograms of the *top* ranked features, both sides overlaid."""
        from mlopsnb.monitoring.plots import overview

        return overview(self, top)

    def figure(self, feature: str) -> Any:
        """Return a matplotlib Figure of one *feature*: histogram and ECDF, or the shares of its levels."""
        from mlopsnb.monitoring.plots import single

        return single(self.find(feature))

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [_TEXT_HEAD, *(_cells(row) for row in self.rows[:MOST_ROWS])]
        if not any(row.windows for row in self.rows):
            table = [(*line[:8], line[9]) for line in table]
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
        hidden = len(self.rows) - MOST_ROWS
        more = [f"and {hidden} more; to_frame() has them all"] if hidden > 0 else []
        return "\n".join([self.verdict, "", *lines, *more])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from mlopsnb.monitoring.page import page

        return page(self)

    def to_html(self, path: str | Path | None = None) -> str:
        """Return the report as a whole page without scripts, and write it to *path* if that is given."""
        from mlopsnb.monitoring.page import document

        text = document(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def log_to(self, version: ModelVersion) -> None:
        """Log the report's page, table and effects to MLflow, with the run of *version*.

        Raises `TrackingError` if MLflow does not answer or refuses.
        """
        from mlopsnb.monitoring.mlflow_log import log_report

        log_report(self, version)


def _plural(group: Sequence[FeatureDrift]) -> str:
    noun = "output" if group[0].kind == "output" else "feature"
    return f"{len(group)} {noun}{'' if len(group) == 1 else 's'}"


def _why(row: FeatureDrift) -> str:
    worst = max(row.telling, key=_move, default=None)
    if worst is not None and _move(worst) > _beyond(row):
        return f"{worst.name} {share_text(worst.reference)} to {share_text(worst.current)}"
    latest = [w for w in row.windows if w.effect is not None][-1:]
    if latest and (latest[0].effect or 0.0) > (row.effect or 0.0):
        return f"effect {number(latest[0].effect)} in the latest window"
    return f"effect {row.effect:.2f}"


def share_text(share: float) -> str:
    """Return a share as people read it, ``12.5%``; one that rounds to nothing but is something, as ``<0.1%``."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _cells(row: FeatureDrift) -> tuple[str, ...]:
    return (
        SYMBOLS[row.state],
        printable(row.feature),
        row.kind,
        row.state,
        number(row.effect),
        number(row.q_value),
        missing(row),
        str(row.new_levels or ""),
        "".join(_spark(window, row.threshold) for window in row.windows),
        printable(row.note, 100),
    )


def _spark(window: Window, threshold: float) -> str:
    """Return the effect in one window as a block, full at two thresholds; a dot where there is too little data."""
    if window.effect is None:
        return "·"
    return "▁▂▃▄▅▆▇█"[min(int(window.effect / threshold * 4), 7)]


def number(value: float | None) -> str:
    """Return a measure as people read it: three digits, tiny ones as ``<0.001``, nothing if it was not measured."""
    if value is None:
        return ""
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def missing(row: FeatureDrift) -> str:
    """Return the missing shares of both sides, or nothing if nothing is missing."""
    if row.missing_reference == row.missing_current == 0:
        return ""
    return f"{row.missing_reference:.1%} → {row.missing_current:.1%}"
