"""A status snapshot as text and as static HTML. Pure: the same snapshot gives the same characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.images.sizes import moved_text
from mlopsnb.notebook.tables import Badge, card, html_table, unbroken

if TYPE_CHECKING:
    from mlopsnb.events import Event
    from mlopsnb.notebook.status import Snapshot, StepView

_STATES = {
    "started": ("▸", "running"),
    "progress": ("▸", "running"),
    "running": ("▸", "running"),
    "succeeded": ("✓", "done"),
    "failed": ("✗", "failed"),
    "cancelled": ("⊘", "cancelled"),
}

_DOING = {
    "export": "export",
    "verify": "verify against the original",
    "log": "log to the registry",
    "fetch": "fetch",
    "resolve": "resolve the environment",
    "install": "install it",
    "prove": "prove that it runs the model",
    "pack": "pack the layers",
    "upload": "bring them there",
    "start": "start the server",
    "check": "check its answers",
    "gate": "watch how it does",
    "route": "route the traffic",
    "scale": "scale",
    "watch": "watch the traffic",
    "restore": "restore what served before",
    "delete": "delete",
}


def seconds(time: float) -> str:
    """Return a duration for people: `40 ms`, `3.2 s`, `2 min 05 s`."""
    if time < 0.9995:
        return f"{time * 1000:.0f} ms"
    if time < 59.95:
        return f"{time:.1f} s"
    return f"{int(time + 0.5) // 60} min {int(time + 0.5) % 60:02d} s"


def heading(now: Snapshot) -> str:
    """Return the first line: what runs, and how it stands or ended."""
    symbol, word = _STATES[now.outcome]
    took = f" after {seconds(now.ended - now.started)}" if now.ended is not None else ""
    if now.outcome == "succeeded":
        took = took.replace("after", "in")
    return f"{symbol} {now.title}: {word}{took}"


def to_text(now: Snapshot) -> str:
    """Return the snapshot as lines of text."""
    width = max((len(_DOING.get(s.step, s.step)) for s in now.steps), default=0)
    return "\n".join(
        [heading(now), *(f"  {note}" for note in now.notes), *(_text_line(s, width) for s in now.steps)]
    )


def _text_line(step: StepView, width: int) -> str:
    symbol, word = _STATES[step.state]
    parts = [f"  {symbol} {_DOING.get(step.step, step.step):<{width}}", f"{word:<9}", f"{_took(step):>10}"]
    return "  ".join([*parts, _details(step).replace("\n", "\n" + " " * 6)]).rstrip()


def to_html(now: Snapshot) -> str:
    """Return the snapshot as a card that reads well without style and without a kernel."""
    rows = [
        (unbroken(_DOING.get(s.step, s.step)), Badge(*_STATES[s.state]), unbroken(_took(s)), _details(s))
        for s in now.steps
    ]
    notes = [(name, value) for name, _, value in (note.partition(": ") for note in now.notes)]
    parts = [html_table(notes)] if notes else []
    if rows:
        parts.append(html_table(rows, ("step", "state", "time", "details"), label="steps"))
    if (shown := getattr(now.shown, "_repr_html_", None)) is not None:
        parts.append(shown())
    return card(heading(now), *parts, role="status")


def _took(step: StepView) -> str:
    if step.ended is not None:
        return seconds(step.ended - step.started)
    return f"{step.fraction:.0%}" if step.fraction is not None else "…"


def _details(step: StepView) -> str:
    if step.done is None:
        return step.message
    return ", ".join(filter(None, [step.message, unbroken(moved_text(step.done, step.total))]))


def event_line(event: Event, took: float | None) -> str:
    """Return one event as a line, for a terminal where lines are not taken back."""
    symbol, word = _STATES[event.state]
    share = f" {event.fraction:.0%}" if event.fraction is not None else ""
    time = f" in {seconds(took)}" if took is not None else ""
    bytes_moved = moved_text(event.done, event.total) if event.done is not None else ""
    details = ", ".join(filter(None, [event.message, bytes_moved]))
    told = f": {details}" if details else ""
    return f"{symbol} {_DOING.get(event.step, event.step)} {word}{share}{time}{told}"
