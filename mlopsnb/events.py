"""Progress as data. The core reports; whoever watches decides how it looks."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

Step = Literal[
    "export",
    "verify",
    "profile",
    "log",
    "fetch",
    "resolve",
    "install",
    "prove",
    "pack",
    "upload",
    "scan",
    "attest",
    "start",
    "check",
    "gate",
    "route",
    "scale",
    "watch",
    "restore",
    "delete",
]
State = Literal["started", "progress", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One copy of a server that is starting: a pod, a container. `phase` says in a few words what it is about."""

    name: str
    phase: str
    ready: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened in one step.

    `message` is a short line for people; `fraction` is how much of the step is done (0 to 1), if known. A step that
    moves data says how many bytes are `done`, of how many in `total` if that is known; one that starts several copies
    of a server says in `replicas` how each is, None if it has nothing to say of them. `shown` is a record of what is
    known so far, with `_repr_html_`, for whoever can show it while the step goes on. `line` is a line of what a program
    that the step runs has printed.
    """

    step: Step
    state: State
    message: str = ""
    fraction: float | None = None
    done: int | None = None
    total: int | None = None
    replicas: tuple[Replica, ...] | None = None
    shown: object | None = None
    line: str = ""


class Reporter(Protocol):
    """Anything that can be called with an `Event`."""

    def __call__(self, event: Event, /) -> None:
        """Take note of *event*; must be quick and must not raise."""
        ...


def _silent(event: Event, /) -> None:
    """The default: a library stays quiet."""


_reporter: ContextVar[Reporter] = ContextVar("mlopsnb_reporter", default=_silent)


def report(event: Event) -> None:
    """Hand *event* to the reporter of the current context."""
    _reporter.get()(event)


def reporter() -> Reporter:
    """Return the reporter of the current context."""
    return _reporter.get()


def is_heard() -> bool:
    """Say whether somebody listens in the current context."""
    return _reporter.get() is not _silent


@contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Send the events of the enclosed block to *reporter*."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def told_as(step: Step) -> Iterator[None]:
    """Report progress inside the block as that of *step*, of which it is a part, whatever step it names."""
    outer = _reporter.get()
    with reporting_to(lambda event: outer(replace(event, step=step) if event.state == "progress" else event)):
        yield


def report_progress(step: Step, message: str, fraction: float | None = None) -> None:
    """Report how far a step that is under way has come."""
    report(Event(step=step, state="progress", message=message, fraction=fraction))


def report_bytes(step: Step, message: str, done: int, total: int | None = None) -> None:
    """Report how many bytes a step that is under way has moved."""
    fraction = min(1.0, done / total) if total else None
    report(Event(step=step, state="progress", message=message, fraction=fraction, done=done, total=total))


def report_line(step: Step, line: str) -> None:
    """Report a line that a program of a step has printed."""
    report(Event(step=step, state="progress", line=line))


class StepLog:
    """What `step` yields: say in `result` what the step found or made."""

    def __init__(self) -> None:
        self.result = ""


@contextmanager
def step(name: Step, message: str = "") -> Iterator[StepLog]:
    """Report that *name* started, and then that it succeeded (with `.result`), failed or was cancelled."""
    report(Event(step=name, state="started", message=message))
    log = StepLog()
    try:
        yield log
    except KeyboardInterrupt:
        report(Event(step=name, state="cancelled", message="interrupted"))
        raise
    except BaseException as exc:
        report(Event(step=name, state="failed", message=str(exc) or type(exc).__name__))
        raise
    report(Event(step=name, state="succeeded", message=log.result))
