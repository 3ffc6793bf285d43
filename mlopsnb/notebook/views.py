"""Show a run while it goes on, in the way the front end can, and leave a plain record of it when it has ended.

Decides nothing about the run and never changes its outcome. Events may come from any thread; text is printed only in the
context of the cell, which a worker may have a copy of, because a print without it may land in another cell.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from mlopsnb.background import Detached, Rollout
from mlopsnb.errors import MlopsnbError, telling_line
from mlopsnb.events import Event, reporting_to
from mlopsnb.notebook.render import cancel_html, event_line, heading, to_html, to_text
from mlopsnb.notebook.status import Snapshot, advance, finish, tick, without_overwritten

_log = logging.getLogger(__name__)

Mode = Literal["widget", "display", "lines", "off"]

INTERVAL = 0.1
"""Seconds between two updates of a card; browsers, not kernels, are the limit."""

TICK = 1.0
"""Seconds after which a card is painted again though nothing happened, so that the time of its steps goes on."""

_MOST_TOLD = 1000
"""Events that wait to be looked at."""

COUNT_INTERVAL = 1.0
"""Seconds between two printed lines that only count bytes or repeat what a program prints."""

_cell: ContextVar[object] = ContextVar("mlopsnb_cell", default=None)
"""Stands for the cell whose run this is, here and in the threads that have its context."""


class View(Protocol):
    """Where a run is shown, made with what tells how it stands. The first `show` opens it; `close` comes last."""

    def show(self, event: Event) -> None:
        """Take note that *event* has happened; called for every one, in whatever thread."""
        ...

    def release(self, cancel: Callable[[], None]) -> None:
        """Show that the run goes on in the background, where *cancel* ends it; called in the cell's own thread."""
        ...

    def close(self, now: Snapshot) -> None:
        """Leave the last snapshot behind, as something that needs no kernel; called after a failure too."""
        ...


def choose(wanted: str, shell: Any) -> Mode:
    """Return how to show progress: the setting *wanted*, or for `auto` what the front end of *shell* can do.

    A kernel whose cell may not ask for input is run by a program (nbclient, papermill): there is no one to see a
    widget, and its view would be all that the saved notebook keeps.
    """
    if wanted in ("widget", "display", "lines", "off"):
        return wanted  # type: ignore[return-value]
    if getattr(shell, "kernel", None) is None:
        return "lines"
    # Voilà runs a notebook as a program does, but for people, and says so in the kernel's environment.
    if os.environ.get("SERVER_SOFTWARE", "").startswith("voila/") and find_spec("ipywidgets") is not None:
        return "widget"
    content = (shell.get_parent() or {}).get("content", {})
    # Colab drops what a thread sends to a widget.
    if (
        not content.get("allow_stdin", False)
        or "google.colab" in sys.modules
        or find_spec("ipywidgets") is None
    ):
        return "display"
    return "widget"


@contextmanager
def following(title: str, *, mode: Mode, notes: tuple[str, ...] = ()) -> Iterator[Card]:
    """Show the events of the enclosed block. A block that reports nothing shows nothing.

    What goes on in the background behind it is shown on: after a second interrupt, or where `Card.go_on` is called.
    """
    with followed(Snapshot(title=title, notes=notes, started=time.monotonic()), _VIEWS[mode]) as card:
        yield card


@contextmanager
def followed(start: Snapshot, view: Callable[[Callable[[], Snapshot]], View]) -> Iterator[Card]:
    """Let *view* show the events of the enclosed block, on from the snapshot *start*."""
    token = _cell.set(object())
    card = Card(start, view)
    try:
        with reporting_to(card):
            yield card
    except Detached as exc:
        card.go_on(exc.rollout)
        raise
    except KeyboardInterrupt:
        card.end("cancelled")
        raise
    except BaseException as exc:
        card.end("failed", exc)
        raise
    else:
        if not card.goes_on:
            card.end("succeeded")
    finally:
        _cell.reset(token)


class Card:
    """The reporter: notes events, and folds them into the snapshot when somebody looks at it."""

    def __init__(self, start: Snapshot, view: Callable[[Callable[[], Snapshot]], View]) -> None:
        self.goes_on = False
        self._now = start
        self._told: list[tuple[Event, float]] = []
        self._lock = threading.RLock()
        self._view = view(self.now)

    def __call__(self, event: Event, /) -> None:
        """Take note of *event*."""
        self._note(event, time.monotonic())

    def _note(self, event: Event, at: float) -> None:
        with self._lock:
            self._told.append((event, at))
            if len(self._told) >= _MOST_TOLD:
                self.now()
        self._view.show(event)

    def go_on(self, rollout: Rollout, *, anew: bool = False) -> None:
        """Follow *rollout* until it ends; with *anew* from its beginning, of which nothing was shown here yet."""
        self.goes_on = True
        with self._lock:
            self._now = replace(self.now(), background=rollout.name, restoring=rollout.restores)
        if rollout.state == "running":
            self._view.release(rollout.cancel)
        rollout.follow(self._note if anew else lambda event, at: None, self._ended)

    def _ended(self, rollout: Rollout) -> None:
        if rollout.state != "running":
            self.end(rollout.state, rollout.error)

    def now(self) -> Snapshot:
        """Return how the run stands."""
        with self._lock:
            told, self._told = self._told, []
            for event, at in without_overwritten(told):
                self._now = advance(self._now, event, at)
            return self._now

    def end(
        self, outcome: Literal["succeeded", "failed", "cancelled"], exc: BaseException | None = None
    ) -> None:
        """Leave the last snapshot behind; *exc* is what it failed with."""
        verdict, hint = _reason(exc) if outcome == "failed" and exc is not None else ("", "")
        with self._lock:
            self._now = last = finish(self.now(), outcome, time.monotonic(), verdict=verdict, hint=hint)
        if last.steps or last.lines or self.goes_on:
            self._view.close(last)


def _reason(exc: BaseException) -> tuple[str, str]:
    """Return what happened and what to do about it, as far as *exc* says."""
    if not isinstance(exc, MlopsnbError):
        return telling_line(exc), ""
    notes = getattr(exc, "__notes__", ())
    return "\n".join([exc.message, *notes]), exc.hint


class Throttle:
    """Calls *paint* at most once in `INTERVAL`; the last request is never lost, and time that passes is shown too.

    One thread does it for the whole run. It never paints for longer than the run: `stop` is always called.
    """

    def __init__(self, paint: Callable[[], None]) -> None:
        self._paint = paint
        self._lock = threading.RLock()
        self._free_at = 0.0
        self._wanted = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def request(self) -> None:
        """Paint now, or as soon as the interval is over."""
        if self._wanted:
            return
        with self._lock:
            if self._stopped.is_set():
                return
            if time.monotonic() >= self._free_at:
                self._run()
            else:
                self._wanted = True
            if self._thread is None:
                # The context carries the cell that the output belongs to.
                run = contextvars.copy_context().run
                self._thread = threading.Thread(
                    target=run, args=[self._keep_up], name="mlopsnb-status", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Drop what is still to be painted; nothing is painted after this."""
        self._stopped.set()
        with self._lock:  # whatever is being painted now is done
            self._wanted = False

    def _keep_up(self) -> None:
        while not self._stopped.wait(INTERVAL):
            with self._lock:
                late = time.monotonic() - self._free_at
                if not self._stopped.is_set() and (late >= TICK or (self._wanted and late >= 0)):
                    self._run()

    def _run(self) -> None:
        self._wanted = False
        self._free_at = time.monotonic() + INTERVAL
        self._paint()


class Output:
    """One output of the cell, which can be put anew from any thread."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._open = self._released = False

    def put(self, bundle: dict[str, Any]) -> None:
        """Show *bundle*, MIME types and their data, in the place of what was shown before."""
        from IPython.display import display, update_display

        if self._released:
            # Programs that run notebooks hear only what is told to be of the cell that runs; the id says where it goes.
            contextvars.Context().run(update_display, bundle, raw=True, display_id=self._id)
        elif self._open:
            update_display(bundle, raw=True, display_id=self._id)
        else:
            self._open = True
            display(bundle, raw=True, display_id=self._id)

    def release(self) -> None:
        """Let what is put from now on be of whatever cell runs then, though it goes where it went before."""
        self._released = self._open


class DisplayView:
    """An output that is updated in place through its display id.

    What goes wrong while showing never reaches the run: then nothing more is shown but, at the end, the plain text.
    """

    def __init__(self, now: Callable[[], Snapshot]) -> None:
        self._now = now
        self._output = Output()
        self._publish = self._output.put
        self._throttle = Throttle(self._try_to_paint)
        self._broken = False

    def show(self, event: Event) -> None:
        """Open the output, or update it when the interval is over."""
        self._throttle.request()

    def release(self, cancel: Callable[[], None]) -> None:
        """Show it; an output has no button."""
        self._throttle.request()  # which opens it, if nothing has
        self._output.release()
        self._throttle.request()

    def close(self, now: Snapshot) -> None:
        """Put the last snapshot in, without waiting."""
        self._throttle.stop()
        try:
            if not self._broken:
                self._publish(self._bundle(now))
                return
        except Exception:  # noqa: BLE001  the text is left
            _log.debug("the card cannot be shown", exc_info=True)
        with suppress(OSError, ValueError):  # a closed stdout
            sys.stdout.write(to_text(now) + "\n")

    def _try_to_paint(self) -> None:
        if self._broken:
            return
        try:
            self._paint(tick(self._now(), time.monotonic()))
        except Exception:  # noqa: BLE001  a front end that fails must not end a deployment
            _log.debug("the card cannot be shown", exc_info=True)
            self._broken = True

    def _paint(self, now: Snapshot) -> None:
        self._publish(self._bundle(now))

    @staticmethod
    def _bundle(now: Snapshot) -> dict[str, Any]:
        return {"text/html": to_html(now), "text/plain": to_text(now)}


class WidgetView(DisplayView):
    """A widget while the run goes on; at the end the same output becomes plain HTML and the widgets are closed.

    A closed widget would show "model not found" in a notebook that is opened again, so none is left behind. The button is
    a widget of its own: one that is drawn again while the mouse is down would not be clicked. While the cell runs it is
    the front end's own interrupt, since the kernel hears of no click; in the background it is one that the kernel hears.
    """

    def __init__(self, now: Callable[[], Snapshot]) -> None:
        super().__init__(now)
        self._card: Any = None
        self._box: Any = None
        self._buttons: list[Any] = []
        self._cancel: Callable[[], None] | None = None
        self._plain = False

    def release(self, cancel: Callable[[], None]) -> None:
        """Change the button for one that ends the rollout, and interrupts no cell."""
        self._cancel = cancel
        super().release(cancel)

    def close(self, now: Snapshot) -> None:
        """Replace the widget by its last state."""
        super().close(now)
        with suppress(Exception):
            for widget in (self._card, self._box, *self._buttons):
                widget.close()

    def _paint(self, now: Snapshot) -> None:
        if self._plain or self._box is None:
            self._open_as_widget(now)
            return
        self._card.value = to_html(now)
        shown = self._button(now)
        if self._box.children[1:] != shown:
            self._box.children = (self._card, *shown)

    def _button(self, now: Snapshot) -> tuple[Any, ...]:
        """Return the button that ends the run as it stands, if anything does."""
        if not now.cancellable:
            return ()
        if len(self._buttons) == (1 if self._cancel is None else 2):
            return (self._buttons[-1],)
        from ipywidgets import HTML, Button

        button = HTML(cancel_html()) if self._cancel is None else Button(description="⊘ Cancel")
        if (cancel := self._cancel) is not None:
            button.tooltip = "end the rollout, and put back what was there"
            button.on_click(lambda _: cancel())  # in whatever thread
        self._buttons.append(button)
        return (button,)

    def _open_as_widget(self, now: Snapshot) -> None:
        live: dict[str, Any] = {}
        if not self._plain:
            try:
                from ipywidgets import HTML, VBox

                self._card = HTML(to_html(now))
                self._box = VBox([self._card, *self._button(now)])
                live = self._box._repr_mimebundle_()
            except Exception:  # noqa: BLE001  whatever is wrong with widgets here, display updates are left
                _log.debug("widgets do not work here", exc_info=True)
                self._plain = True
        self._publish({**live, **self._bundle(now)})


class LinesView:
    """One printed line for each event; of bytes that go over, one line a second."""

    def __init__(self, now: Callable[[], Snapshot]) -> None:
        self._now = now
        self._cell = _cell.get()
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._titled = False
        self._last = ""
        self._counted_at = float("-inf")

    def show(self, event: Event) -> None:
        """Print the event once; those of threads without the cell's context wait for the next one that has it."""
        now = self._now()
        if not self._titled:
            self._titled = True
            self._waiting += [now.title, *(f"  {note}" for note in now.notes)]
        if event.done is not None or event.line:
            if time.monotonic() - self._counted_at < COUNT_INTERVAL:
                return
            self._counted_at = time.monotonic()
        line = f"    {now.lines[-1]}" if event.line and now.lines else self._told(now, event)
        if line != self._last:
            self._last = line
            self._waiting.append(line)
        self._flush()

    @staticmethod
    def _told(now: Snapshot, event: Event) -> str:
        step = next((s for s in reversed(now.steps) if s.step == event.step), None)
        took = step.ended - step.started if step is not None and step.ended is not None else None
        return f"  {event_line(event, took)}"

    def release(self, cancel: Callable[[], None]) -> None:
        """Say so."""
        self._waiting.append(to_text(replace(self._now(), steps=(), lines=())))
        self._flush()

    def close(self, now: Snapshot) -> None:
        """Print what is left, and how it ended."""
        self._waiting += [f"    {line}" for line in now.lines]
        self._waiting.append(heading(now))
        self._flush()

    def _flush(self) -> None:
        if _cell.get() is not self._cell:
            return
        with self._lock:
            lines, self._waiting = self._waiting, []
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()


class OffView:
    """Shows nothing."""

    def __init__(self, now: Callable[[], Snapshot]) -> None:
        pass

    def show(self, event: Event) -> None:
        """Ignore it."""

    def release(self, cancel: Callable[[], None]) -> None:
        """Ignore it."""

    def close(self, now: Snapshot) -> None:
        """Ignore it."""


_VIEWS: dict[Mode, Callable[[Callable[[], Snapshot]], View]] = {
    "widget": WidgetView,
    "display": DisplayView,
    "lines": LinesView,
    "off": OffView,
}
