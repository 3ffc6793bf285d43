"""Rules on figures, such as `error_rate<0.01 and p99_ms<200`: read, written and judged. Pure; nothing is evaluated as code.

rule = comparison { "and" comparison };  comparison = figure ("<" | "<=" | ">" | ">=") number ["%"]
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlopsnb.errors import UserError, nearest
from mlopsnb.monitoring.counting import FIGURES, figure_text

if TYPE_CHECKING:
    from mlopsnb.monitoring.counting import Window

MINIMUM = 50
"""Requests that it takes to judge rates and quantiles, unless the rule itself says `requests>=N`."""

_TOKEN = re.compile(
    r"\s*(?:(?P<operator><=|>=|<|>)|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"(?P<percent>\s*%)?|(?P<word>\w+)|(?P<other>\S))"
)
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}
_OF_REQUESTS = {*_QUANTILES, "error_rate", "server_error_rate", "batch_rows", "queue_p99_ms"}
_CHANCE = 1e-5
"""How likely it may be that a rule is ended early though the revision keeps it in the long run: at each of some 100 looks."""

_EXAMPLE = "error_rate<0.01 and p99_ms<200"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure and its limit."""

    figure: str
    operator: str
    limit: float

    def __str__(self) -> str:
        return f"{self.figure} {self.operator} {self.limit!r}"

    def holds(self, value: float) -> bool:
        """Say whether *value* keeps it; NaN, no value, does not."""
        return _OPERATORS[self.operator](value, self.limit)


@dataclass(frozen=True, slots=True)
class Rule:
    """Comparisons that all have to hold."""

    comparisons: tuple[Comparison, ...] = ()

    def __str__(self) -> str:
        return " and ".join(map(str, self.comparisons))

    @property
    def minimum(self) -> float:
        """The requests that it takes to judge by this rule."""
        said = [c.limit for c in self.comparisons if c.figure == "requests" and c.operator in (">", ">=")]
        if said:
            return max(said)
        return MINIMUM if any(c.figure in _OF_REQUESTS for c in self.comparisons) else 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of a window. `broken` are the comparisons that do not hold, each with the value found."""

    outcome: Literal["kept", "broken", "not enough requests"]
    broken: tuple[tuple[Comparison, float], ...] = ()


def parse(text: str, figures: Collection[str] = FIGURES) -> Rule:
    """Read a rule on *figures*; an empty one is kept always.

    `UserError` says what is wrong, and the nearest figure on a typo.
    """
    if not isinstance(text, str):
        raise UserError(f"a rule is a text, found {type(text).__name__}", hint=f"for example {_EXAMPLE!r}")
    tokens = list(_TOKEN.finditer(text.strip()))
    comparisons = []
    while tokens:
        comparisons.append(_comparison(text, tokens, figures))
        if tokens and tokens.pop(0)["word"] != "and":
            raise _wrong(text, "comparisons are joined by 'and'")
        if not tokens and text.rstrip().endswith("and"):
            raise _wrong(text, "it ends with 'and'")
    return Rule(tuple(comparisons))


def _comparison(text: str, tokens: list[re.Match[str]], figures: Collection[str]) -> Comparison:
    figure, sign, number = (tokens.pop(0) if tokens else None for _ in range(3))
    name = figure["word"] if figure else None
    if name is None:
        raise _wrong(text, "a comparison begins with a figure")
    if name not in figures:
        raise UserError(
            f"rule {text!r}: no figure named {name!r}; there are {', '.join(figures)}",
            hint=nearest(name, figures),
        )
    if sign is None or sign["operator"] is None:
        raise _wrong(text, f"{name} is compared by <, <=, > or >=")
    if number is None or number["number"] is None:
        raise _wrong(text, f"{name} {sign['operator']} wants a number")
    limit = float(number["number"]) / (100 if number["percent"] else 1)
    if not math.isfinite(limit):
        raise _wrong(text, f"{number['number']} is too large")
    return Comparison(name, sign["operator"], limit)


def _wrong(text: str, what: str) -> UserError:
    return UserError(f"rule {text!r} cannot be read: {what}", hint=f"for example {_EXAMPLE!r}")


def judge(rule: Rule, window: Window) -> Verdict:
    """Say whether the traffic in *window* keeps *rule*, or is too little to say."""
    if window.counts.requests < rule.minimum:
        return Verdict("not enough requests")
    values = [(c, FIGURES[c.figure].of(window)) for c in rule.comparisons]
    broken = tuple((c, value) for c, value in values if not c.holds(value))
    return Verdict("broken", broken) if broken else Verdict("kept")


def hopeless(rule: Rule, window: Window) -> Verdict | None:
    """Return the verdict if the rule is broken so far that more traffic of the kind will not mend it, else None.

    Rates of errors and quantiles of the time are shares of the requests. Such a share is surely too large if so many hits
    would be a chance of 1 in 100,000 at the limit: the exact binomial test, which few requests pass only if nearly all of
    them are hits (C. J. Clopper and E. S. Pearson, Biometrika 26, 1934).
    """
    lost = [c for c in rule.comparisons if c.operator in ("<", "<=") and _surely_above(c, window)]
    return Verdict("broken", tuple((c, FIGURES[c.figure].of(window)) for c in lost)) if lost else None


def _surely_above(comparison: Comparison, window: Window) -> bool:
    counts, limit = window.counts, comparison.limit
    if comparison.figure == "error_rate":
        return tail(counts.errors, counts.requests, limit) < _CHANCE
    if comparison.figure == "server_error_rate":
        return tail(counts.server_errors, counts.requests, limit) < _CHANCE
    if (q := _QUANTILES.get(comparison.figure)) is not None:
        return tail(counts.duration.above(limit / 1000), counts.duration.count, 1 - q) < _CHANCE
    return False


def tail(hits: float, n: float, share: float) -> float:
    """Return how likely *hits* or more of *n* are, if each is one with the probability *share*."""
    k, n = round(hits), round(n)
    if k <= n * share or share >= 1:
        return 1.0  # no more than are to be expected: all that matters here
    if share <= 0:
        return 0.0
    odds = share / (1 - share)
    choices = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term = math.exp(choices + k * math.log(share) + (n - k) * math.log1p(-share))
    total = 0.0
    for i in range(k, n + 1):  # beyond the mean the terms fall, faster and faster
        total += term
        term *= (n - i) / (i + 1) * odds
        if term < total * 1e-12:
            break
    return min(total, 1.0)


def told(comparison: Comparison, value: float) -> str:
    """Return `error_rate is 4.30%, the limit is < 1.00%`."""
    name = comparison.figure
    limit = f"{comparison.operator} {figure_text(name, comparison.limit)}"
    return f"{name} is {figure_text(name, value)}, the limit is {limit}"
