"""Alerts on figures of the traffic, on drift and on performance: what they say, when they fire and when they are over. Pure; nothing is sent here.

An alert fires when its rule holds for a while, as an alerting rule of Prometheus does
(https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast, get_args

from mlopsnb import durations
from mlopsnb.errors import UserError, nearest
from mlopsnb.monitoring import rules
from mlopsnb.monitoring.counting import DRIFTED, PERFORMANCE, WATCHED, Window, figure_text

if TYPE_CHECKING:
    from mlopsnb.monitoring.rules import Rule

Severity = Literal["info", "warning", "severe", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

REPEAT = 4 * 3600.0
"""Seconds after which an alert that still fires is told again (Alertmanager's default)."""

_TEXT = re.compile(
    r"\s*(?:(?P<severity>\w+)\s*:)?(?P<rule>.*?)(?:\s+for\s+(?P<span>[\d.]+\s*\w*))?\s*", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A rule that fires when all of its comparisons have held for so many seconds."""

    rule: Rule
    severity: Severity = "warning"
    seconds: float = 0.0

    def __str__(self) -> str:
        held = f" for {self.seconds:g}s" if self.seconds else ""
        return f"{self.severity}: {self.rule}{held}"

    @property
    def on_drift(self) -> bool:
        """Whether it names how many features have drifted, which is asked for separately."""
        return any(c.figure == DRIFTED for c in self.rule.comparisons)

    @property
    def on_performance(self) -> bool:
        """Whether it names a metric of the model, which is asked for separately."""
        return any(c.figure in PERFORMANCE for c in self.rule.comparisons)

    def fires(self, window: Window) -> bool:
        """Say whether all comparisons hold in *window*; what is not known (NaN) does not."""
        return all(c.holds(WATCHED[c.figure].of(window)) for c in self.rule.comparisons)


def parse(text: object) -> Alert:
    """Read `severe: error_rate>0.05 and qps>1 for 5m`; a warning at once if nothing is said of either."""
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if found is None or not found["rule"].strip():
        raise UserError(
            f"an alert is a text with a rule, found {text!r}",
            hint="for example 'severe: error_rate>0.05 for 5m'",
        )
    severity = found["severity"] or "warning"
    if severity not in SEVERITIES:
        raise UserError(
            f"alert {text!r}: no severity {severity!r}; there are {', '.join(SEVERITIES)}",
            hint=nearest(severity, SEVERITIES),
        )
    span = durations.seconds(found["span"], of="how long an alert holds") if found["span"] else 0.0
    return Alert(rule=rules.parse(found["rule"], WATCHED), severity=cast("Severity", severity), seconds=span)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What a sink is told: an alert of one revision of a deployment fires, or is over. Times are Unix seconds.

    `trouble` says what went wrong with what another sink had begun, if that is what it is about.
    """

    alert: Alert
    status: Literal["firing", "resolved"]
    deployment: str
    target: str
    revision: int
    figures: Mapping[str, float]
    since: float
    at: float
    trouble: str = ""

    @property
    def text(self) -> str:
        """Return it in one line."""
        found = ", ".join(f"{name} {figure_text(name, value)}" for name, value in self.figures.items())
        head = f"{self.alert.severity}: {self.deployment} on {self.target}, revision {self.revision}"
        told = f"{'resolved, ' if self.status == 'resolved' else ''}{head}: {found} (alert {self.alert.rule})"
        return f"{told}; what was begun about it failed: {self.trouble}" if self.trouble else told

    def plain(self) -> dict[str, object]:
        """Return it as JSON can hold it; what is not known is null."""
        return {
            "status": self.status,
            "severity": self.alert.severity,
            "alert": str(self.alert.rule),
            "deployment": self.deployment,
            "target": self.target,
            "revision": self.revision,
            "figures": {k: None if v != v else v for k, v in self.figures.items()},  # noqa: PLR0124  NaN
            "since": self.since,
            "at": self.at,
            "trouble": self.trouble,
            "text": self.text,
        }


@dataclass(slots=True)
class _State:
    since: float
    told: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class Board:
    """Which alerts of one deployment hold, and since when: tells each firing once, and its end once."""

    def __init__(
        self, deployment: str, target: str, alerts: Sequence[Alert], *, repeat: float = REPEAT
    ) -> None:
        self._names = deployment, target
        self._alerts = tuple(alerts)
        self._repeat = repeat
        self._states: dict[tuple[Alert, int], _State] = {}

    @property
    def firing(self) -> tuple[tuple[Alert, int], ...]:
        """The alerts that fire, each with its revision."""
        return tuple(key for key, state in self._states.items() if state.told is not None)

    def advance(self, windows: Mapping[int, Window], now: float) -> tuple[Notice, ...]:
        """Take the traffic of each revision up to *now*; return what has to be told. A revision that is gone is over."""
        notices = []
        for alert in self._alerts:
            for revision, window in windows.items():
                if alert.fires(window):
                    notices += self._holds(alert, revision, window, now)
        for alert, revision in list(self._states):
            window_now = windows.get(revision)
            if window_now is None or not alert.fires(window_now):
                notices += self._is_over(alert, revision, window_now, now)
        return tuple(notices)

    def _holds(self, alert: Alert, revision: int, window: Window, now: float) -> list[Notice]:
        state = self._states.setdefault((alert, revision), _State(now))
        state.figures = _figures(alert, window)
        held, told = now - state.since >= alert.seconds, state.told
        if not held or (told is not None and now - told < self._repeat):
            return []
        state.told = now
        return [self._notice("firing", alert, revision, state, now)]

    def _is_over(self, alert: Alert, revision: int, window: Window | None, now: float) -> list[Notice]:
        state = self._states.pop((alert, revision))
        if state.told is None:
            return []
        if window is not None:
            state.figures = _figures(alert, window)
        return [self._notice("resolved", alert, revision, state, now)]

    def _notice(
        self, status: Literal["firing", "resolved"], alert: Alert, revision: int, state: _State, now: float
    ) -> Notice:
        deployment, target = self._names
        return Notice(
            alert=alert,
            status=status,
            deployment=deployment,
            target=target,
            revision=revision,
            figures=state.figures,
            since=state.since,
            at=now,
        )


def _figures(alert: Alert, window: Window) -> dict[str, float]:
    return {c.figure: WATCHED[c.figure].of(window) for c in alert.rule.comparisons}
