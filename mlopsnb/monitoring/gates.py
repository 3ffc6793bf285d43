"""A gate of a rollout: watch one revision's real traffic for a while, and let it pass or not.

It goes by what the revision counts from the moment the gate begins, beside the revision that served before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlopsnb import rollout
from mlopsnb.errors import DeployError, GateRejected, NotEnoughRequests
from mlopsnb.events import report_progress
from mlopsnb.monitoring import rules
from mlopsnb.monitoring.counting import FIGURES, Counts, Levels, Window, figure_text, joined
from mlopsnb.monitoring.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlopsnb.monitoring.rules import Rule, Verdict
    from mlopsnb.protocols import Target
    from mlopsnb.records import Release

_LOOKS = 20
_OFTEN, _SELDOM = 0.1, 1.0
"""A gate looks so many times, but not more often or more seldom than this, in seconds."""

_Sides = dict[int, Window]


def hold(
    target: Target,
    name: str,
    gate: rollout.Gate,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Wait for *gate*; return what the figures were, in words.

    Raises `GateRejected` if the rule is broken at the end, or so far before that it cannot be kept any more;
    `NotEnoughRequests` if too few came to say; `DeployError` if the revision ends meanwhile.
    """
    rule = rules.parse(gate.rule)
    new = gate.revision_id
    old = _beside(target.observe(name), new)
    sampler = Sampler(target, name, [new] if old is None else [old, new])
    sampler.tick()
    sides: _Sides = {}
    started = clock()
    while (passed := clock() - started) < gate.seconds:
        sleep(min(max(gate.seconds / _LOOKS, _OFTEN), _SELDOM, gate.seconds - passed))
        for revision, window in sampler.tick().items():
            known = [sides[revision]] if revision in sides else []
            sides[revision] = joined([*known, window]) or window
        _check_alive(target, name, new, sides)
        passed = clock() - started
        report_progress("gate", _so_far(rule, new, sides), min(passed / gate.seconds, 1.0))
        if verdict := rules.hopeless(rule, sides[new]):
            raise _rejected(verdict, new, sides, sampler, passed)
    seen = sides.get(new) or _nothing()
    verdict = rules.judge(rule, seen)
    if verdict.outcome == "broken":
        raise _rejected(verdict, new, sides, sampler, passed)
    if verdict.outcome == "not enough requests":
        raise _too_few(rule, new, seen, gate.seconds)
    return _so_far(rule, new, sides)


def _nothing() -> Window:
    return Window(at=0.0, seconds=0.0, counts=Counts(), levels=Levels())


def _beside(release: Release, new: int) -> int | None:
    """Return the revision to compare with: of the others that run, the one with most traffic, or the newest."""
    others = [r.id for r in rollout.running(release) if r.id != new]
    return max(others, key=lambda r: (release.weights.get(r, 0), r), default=None)


def _check_alive(target: Target, name: str, new: int, sides: _Sides) -> None:
    if sides[new].levels.replicas or new in {r.id for r in rollout.running(target.observe(name))}:
        return
    raise DeployError(
        f"revision {new} of {name!r} ended while its gate was watching",
        hint=f"its log says why: logs(revision={new})",
    )


def _so_far(rule: Rule, new: int, sides: _Sides) -> str:
    seen = sides.get(new) or _nothing()
    names = dict.fromkeys(c.figure for c in rule.comparisons if c.figure != "requests")
    figures = [f"{name} {figure_text(name, FIGURES[name].of(seen))}" for name in names]
    return f"revision {new}: {', '.join([*figures, _requests(seen)])}"


def _requests(window: Window) -> str:
    n = round(window.counts.requests)
    return f"{n:,} request{'' if n == 1 else 's'}"


def _rejected(verdict: Verdict, new: int, sides: _Sides, sampler: Sampler, seconds: float) -> GateRejected:
    seen = sides[new]
    found = "; ".join(rules.told(c, value) for c, value in verdict.broken)
    message = f"revision {new} did not pass its gate: {found}, in {_requests(seen)} over {seconds:.1f} s"
    for old in sides.keys() - {new}:
        window, when = sides[old], "in the same time"
        if not window.counts.requests:  # after a switch it has no traffic any more
            window, when = sampler.totals()[old], "in all its time"
        names = dict.fromkeys(c.figure for c, _ in verdict.broken)
        beside = ", ".join(f"{n} {figure_text(n, FIGURES[n].of(window))}" for n in names)
        message += f"; revision {old} {when}: {beside} in {_requests(window)}"
    return GateRejected(message, hint=f"its log may say why: logs(revision={new})")


def _too_few(rule: Rule, new: int, seen: Window, seconds: float) -> NotEnoughRequests:
    return NotEnoughRequests(
        f"only {_requests(seen)} came to revision {new} in {seconds:g} s; the gate needs {rule.minimum:g} to judge by",
        hint="wait longer with pause=, give it a larger share, or say in the gate how many are enough: requests>=10",
    )
