"""What a status card knows: a frozen snapshot and the pure functions that make the next one. Shows nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlopsnb.events import Event, State

Outcome = Literal["running", "succeeded", "failed", "cancelled"]


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

    @property
    def over(self) -> bool:
        """Say whether the step has come to its end."""
        return self.ended is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A whole run: its title, notes of the front end, and its steps in the order they began."""

    title: str
    started: float
    ended: float | None = None
    outcome: Outcome = "running"
    notes: tuple[str, ...] = ()
    steps: tuple[StepView, ...] = ()
    shown: object | None = None
    """What a step that still runs has to show."""


def advance(now: Snapshot, event: Event, time: float) -> Snapshot:
    """Return the snapshot after *event*. A step that starts again after its end is a new line."""
    over = event.state in ("succeeded", "failed", "cancelled")
    if over or event.shown is not None:
        now = replace(now, shown=None if over else event.shown)
    at = next(
        (i for i, s in reversed(list(enumerate(now.steps))) if s.step == event.step and not s.over), None
    )
    if at is None:
        new = StepView(
            step=event.step,
            state=event.state,
            started=time,
            ended=time if over else None,
            message=event.message,
            fraction=event.fraction,
            done=event.done,
            total=event.total,
        )
        return replace(now, steps=(*now.steps, new))
    old = now.steps[at]
    new = replace(
        old,
        state=event.state,
        ended=time if over else None,
        # A success without words takes the place of what was going on; other events keep it.
        message=event.message or ("" if event.state == "succeeded" else old.message),
        fraction=None if over else event.fraction if event.fraction is not None else old.fraction,
        done=None if over else event.done if event.done is not None else old.done,
        total=None if over else event.total if event.done is not None else old.total,
    )
    return replace(now, steps=(*now.steps[:at], new, *now.steps[at + 1 :]))


def finish(now: Snapshot, outcome: Literal["succeeded", "failed", "cancelled"], time: float) -> Snapshot:
    """Return the last snapshot: steps that still run share the *outcome*."""
    steps = tuple(
        s if s.over else replace(s, state=outcome, ended=time, fraction=None, done=None) for s in now.steps
    )
    return replace(now, outcome=outcome, ended=time, steps=steps, shown=None)
