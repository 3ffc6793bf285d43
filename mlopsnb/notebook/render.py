"""A status snapshot as text and as static HTML. Pure: the same snapshot gives the same characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.images.sizes import moved_text
from mlopsnb.masking import masked
from mlopsnb.notebook.tables import Badge, card, html_table, preformatted, unbroken

if TYPE_CHECKING:
    from mlopsnb.events import Event
    from mlopsnb.notebook.status import Snapshot, StepView

STATES = {
    "started": ("▸", "running"),
    "progress": ("▸", "running"),
    "running": ("▸", "running"),
    "succeeded": ("✓", "done"),
    "failed": ("✗", "failed"),
    "cancelled": ("⊘", "cancelled"),
}
"""The symbol and the word for how a step, or a run, stands."""

_DOING = {
    "export": "export",
    "verify": "verify against the original",
    "profile": "profile the reference",
    "log": "log to the registry",
    "fetch": "fetch",
    "resolve": "resolve the environment",
    "install": "install it",
    "prove": "prove that it runs the model",
    "pack": "pack the layers",
    "upload": "bring them there",
    "scan": "look for vulnerabilities",
    "attest": "sign and attest",
    "start": "start the server",
    "check": "check its answers",
    "gate": "watch how it does",
    "route": "route the traffic",
    "scale": "scale",
    "watch": "watch the traffic",
    "restore": "restore what served before",
    "delete": "delete",
}


_MOST = 12
"""Copies of a server that have a row of their own."""


def seconds(time: float) -> str:
    """Return a duration for people: `40 ms`, `3.2 s`, `2 min 05 s`."""
    if time < 0.9995:
        return f"{time * 1000:.0f} ms"
    if time < 59.95:
        return f"{time:.1f} s"
    return f"{int(time + 0.5) // 60} min {int(time + 0.5) % 60:02d} s"


def heading(now: Snapshot) -> str:
    """Return the first line: what runs, and how it stands or ended."""
    symbol, word = ("⊘", "cancelling") if now.cancelling else STATES[now.outcome]
    title = masked(now.title)
    if now.ended is None:
        return f"{symbol} {title}: {word}{' in the background' if now.background else ''}"
    return (
        f"{symbol} {title}: {word} {'in' if word == 'done' else 'after'} {seconds(now.ended - now.started)}"
    )


def to_text(now: Snapshot) -> str:
    """Return the snapshot as lines of text."""
    width = max((len(_DOING.get(s.step, s.step)) for s in now.steps), default=0)
    told = [(name, text.replace("\n", "\n" + " " * 6)) for name, text in _verdict(now)]
    return "\n".join(
        [
            heading(now),
            *(f"  {masked(note)}" for note in _notes(now)),
            *(_text_line(now, s, width) for s in now.steps),
            *(f"  {name}: {text}" for name, text in told),
            *(["  last lines:"] if now.lines else []),
            *(f"    {line}" for line in now.lines),
        ]
    )


def _notes(now: Snapshot) -> tuple[str, ...]:
    """Return the notes, and what can be done while it goes on in the background."""
    if not now.background or now.ended is not None:
        return now.notes
    look = f"%attach {now.background} shows it"
    ways = f"{look}; its wait() waits for it, cancel() ends it" if now.cancellable else look
    return (*now.notes, f"in the background: {ways}")


def _text_line(now: Snapshot, step: StepView, width: int) -> str:
    symbol, word = STATES[step.state]
    parts = [
        f"  {symbol} {_DOING.get(step.step, step.step):<{width}}",
        f"{word:<9}",
        f"{_took(now, step):>10}",
    ]
    return "  ".join([*parts, _details(step).replace("\n", "\n" + " " * 6)]).rstrip()


def to_html(now: Snapshot) -> str:
    """Return the snapshot as a card that reads well without style and without a kernel."""
    rows = [
        (unbroken(_DOING.get(s.step, s.step)), Badge(*STATES[s.state]), unbroken(_took(now, s)), _details(s))
        for s in now.steps
    ]
    notes = [(name, value) for name, _, value in (masked(note).partition(": ") for note in _notes(now))]
    parts = [html_table(notes, label="notes")] if notes else []
    if rows:
        parts.append(html_table(rows, ("step", "state", "time", "details"), label="steps"))
    if (shown := getattr(now.shown, "_repr_html_", None)) is not None:
        parts.append(shown())
    if told := _verdict(now):
        parts.append(html_table(told, label="verdict"))
    if now.lines:
        parts.append(preformatted("\n".join(now.lines), label="last lines"))
    return card(heading(now), *parts, role="status")


def cancel_html() -> str:
    """Return a button that interrupts the kernel, for front ends that let HTML name one of their commands.

    JupyterLab and Notebook 7 do; there the front end itself sends the interrupt, which ends a cell that keeps the kernel
    from reading anything else. Elsewhere it is not shown: a button that does nothing would be a lie.
    """
    style = (
        "cursor:pointer;padding:2px 10px;margin:0 0 4px 0;background:transparent;color:inherit;"
        "border:1px solid var(--jp-border-color1,#bdbdbd);border-radius:2px"
    )
    return (
        "<style>.mlopsnb-cancel{display:none}[data-jp-theme-name] .mlopsnb-cancel{display:inline-block}</style>"
        '<button type="button" class="mlopsnb-cancel" data-commandlinker-command="notebook:interrupt-kernel" '
        f'data-commandlinker-args="{{}}" style="{style}" title="interrupt it, and put back what was there">'
        "<span>⊘ Cancel</span></button>"
    )


def _verdict(now: Snapshot) -> list[tuple[str, str]]:
    told = (("what happened", now.verdict), ("what to do", now.hint))
    return [(name, text) for name, text in told if text]


def _took(now: Snapshot, step: StepView) -> str:
    if step.ended is not None:
        return seconds(step.ended - step.started)
    waited = int((now.at if now.at is not None else step.started) - step.started)
    return "…" if waited < 1 else f"{waited} s" if waited < 60 else seconds(waited)


def _details(step: StepView) -> str:
    share = unbroken(f"{step.fraction:.0%}") if step.fraction is not None else ""
    moved = unbroken(moved_text(step.done, step.total)) if step.done is not None else ""
    told = ", ".join(filter(None, [share, step.message, moved]))
    # The message says enough of a single one.
    rows = [f"{'✓' if r.ready else '▸'} {r.name}: {r.phase}" for r in step.replicas[:_MOST]]
    if len(step.replicas) > _MOST:
        rows.append(f"and {len(step.replicas) - _MOST} more")
    return "\n".join([told, *rows]) if len(step.replicas) > 1 else told


def event_line(event: Event, took: float | None) -> str:
    """Return one event as a line, for a terminal where lines are not taken back."""
    symbol, word = STATES[event.state]
    share = f" {event.fraction:.0%}" if event.fraction is not None else ""
    time = f" in {seconds(took)}" if took is not None else ""
    bytes_moved = moved_text(event.done, event.total) if event.done is not None else ""
    details = ", ".join(filter(None, [masked(event.message), bytes_moved]))
    told = f": {details}" if details else ""
    return f"{symbol} {_DOING.get(event.step, event.step)} {word}{share}{time}{told}"
