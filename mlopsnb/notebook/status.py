"""What a status card knows: a frozen snapshot and the pure functions that make the next one. Shows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mlopsnb.masking import masked

if TYPE_CHECKING:
    from mlopsnb.events import Event, Replica, State

Outcome = Literal["running", "succeeded", "failed", "cancelled"]

LINES = 8
"""Last lines of what programs print that a card keeps."""

_LONGEST = 300
"""Characters that are kept of such a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step so far. Times are seconds of a clock that only runs forward; `ended` is None while it runs."""

    step: str
    state: State
    started: float
    ended: float | None = None
    message: str = ""
    fraction: float | None = None
    done: int | None = None
    """Bytes that the step has moved, and of how many; None where it moves none, or their number is not known."""
    total: int | None = None
    replicas: tuple[Replica, ...] = ()
    """The copies of a server that the step starts; none are left when they are all ready."""

    @property
    def over(self) -> bool:
        """Say whether the step has come to its end."""
        return self.ended is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A whole run at the time `at`: its title, notes of the front end, and its steps in the order they began.

    `lines` are the last that programs have printed; `verdict` and `hint` say why it failed, and what to do.
    """

    title: str
    started: float
    at: float | None = None
    ended: float | None = None
    outcome: Outcome = "running"
    notes: tuple[str, ...] = ()
    steps: tuple[StepView, ...] = ()
    lines: tuple[str, ...] = ()
    verdict: str = ""
    hint: str = ""
    shown: object | None = None
    """What a step that still runs has to show."""
    background: str = ""
    """The name of the deployment, once the run goes on after its call has returned."""
    restoring: bool = False
    """Whether all that goes on is to put back what was there."""

    @property
    def cancelling(self) -> bool:
        """Say whether the run was interrupted and is putting back what was there."""
        stopped = self.restoring or any(s.state == "cancelled" for s in self.steps)
        return self.outcome == "running" and stopped

    @property
    def cancellable(self) -> bool:
        """Say whether an interrupt would end work, and not the clearing up after work that has ended badly."""
        runs = self.outcome == "running" and not self.restoring
        return runs and all(
            s.state not in ("failed", "cancelled") and s.step != "restore" for s in self.steps
        )


def advance(now: Snapshot, event: Event, time: float) -> Snapshot:
    """Return the snapshot after *event*. A step that starts again after its end is a new line."""
    lines = now.lines
    if event.line:
        # A program that goes back to the start of its line means the last thing it wrote there.
        line = masked(event.line.rstrip().rpartition("\r")[2][:_LONGEST])
        lines = (*lines[1 - LINES :], line) if line else lines
        if not event.message and event.fraction is None and event.done is None and event.replicas is None:
            return replace(now, at=time, lines=lines)
    over = event.state in ("succeeded", "failed", "cancelled")
    if over or event.shown is not None:
        now = replace(now, shown=None if over else event.shown)
    at = _running(now, event)
    if at is None:
        new = StepView(
            step=event.step,
            state=event.state,
            started=time,
            ended=time if over else None,
            message=masked(event.message),
            fraction=event.fraction,
            done=event.done,
            total=event.total,
            replicas=_replicas(event),
        )
        return replace(now, at=time, lines=lines, steps=(*now.steps, new))
    old = now.steps[at - 1]
    new = replace(
        old,
        state=event.state,
        ended=time if over else None,
        # A success without words takes the place of what was going on; other events keep it.
        message=masked(event.message) or ("" if event.state == "succeeded" else old.message),
        fraction=None if over else event.fraction if event.fraction is not None else old.fraction,
        done=None if over else event.done if event.done is not None else old.done,
        total=None if over else event.total if event.done is not None else old.total,
        replicas=old.replicas if event.replicas is None and event.state != "succeeded" else _replicas(event),
    )
    return replace(now, at=time, lines=lines, steps=(*now.steps[: at - 1], new, *now.steps[at:]))


def _replicas(event: Event) -> tuple[Replica, ...]:
    return tuple(replace(r, name=masked(r.name), phase=masked(r.phase)) for r in event.replicas or ())


def without_overwritten(events: Sequence[tuple[Event, float]]) -> list[tuple[Event, float]]:
    """Return *events* without those that leave no trace after the later ones: `advance` comes to the same snapshot."""
    kept: list[tuple[Event, float]] = []
    later: dict[str, Event] = {}
    lines = 0
    begin = _beginnings(events)
    for place in range(len(events) - 1, -1, -1):
        event = events[place][0]
        if event.state != "progress":
            later.pop(event.step, None)
        elif event.line:
            lines += 1
            if lines > LINES and not _says_more(event, None):
                continue
        elif place not in begin:
            if (next_ := later.get(event.step)) is not None and not _says_more(event, next_):
                continue
            later[event.step] = event
        kept.append(events[place])
    return kept[::-1]


def _beginnings(events: Sequence[tuple[Event, float]]) -> set[int]:
    """Return the places of progress that may begin a step: the first of each step, and the first after its end."""
    found: set[int] = set()
    begun: set[str] = set()
    for place, (event, _) in enumerate(events):
        if event.state != "progress":
            begun.discard(event.step)
        elif event.step not in begun and (not event.line or _says_more(event, None)):
            begun.add(event.step)
            found.add(place)
    return found


def _says_more(event: Event, later: Event | None) -> bool:
    """Say whether *event* tells something, its line apart, that *later* does not tell anew."""
    if later is None:
        others = (event.fraction, event.done, event.replicas)
        return bool(event.message or event.shown) or any(other is not None for other in others)
    return (
        bool(event.message and not later.message)
        or (event.fraction is not None and later.fraction is None)
        or (event.done is not None and later.done is None)
        or (event.shown is not None and later.shown is None)
        or (event.replicas is not None and later.replicas is None)
    )


def _running(now: Snapshot, event: Event) -> int | None:
    """Return the place, counted from 1, of the step of *event* that still runs."""
    for place in range(len(now.steps), 0, -1):
        step = now.steps[place - 1]
        if step.step == event.step and not step.over:
            return place
    return None


def tick(now: Snapshot, time: float) -> Snapshot:
    """Return the same snapshot at a later time."""
    return replace(now, at=time)


def finish(
    now: Snapshot,
    outcome: Literal["succeeded", "failed", "cancelled"],
    time: float,
    *,
    verdict: str = "",
    hint: str = "",
) -> Snapshot:
    """Return the last snapshot: steps that still run share the *outcome*; *verdict* and *hint* say why it failed.

    A failed step does not repeat the verdict, and what programs printed is only kept where it may tell something.
    """
    verdict, hint = masked(verdict), masked(hint)
    steps = []
    for s in now.steps:
        if not s.over:
            s = replace(s, state=outcome, ended=time, fraction=None, done=None)  # noqa: PLW2901
        repeats = bool(verdict) and s.state == "failed" and s.message.startswith(verdict)
        steps.append(replace(s, message="") if repeats else s)
    return replace(
        now,
        outcome=outcome,
        at=time,
        ended=time,
        steps=tuple(steps),
        lines=() if outcome == "succeeded" else now.lines,
        verdict=verdict,
        hint=hint,
        shown=None,
    )
