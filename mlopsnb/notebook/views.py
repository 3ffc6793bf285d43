"""Show a run while it goes on, in the way the front end can, and leave a plain record of it when it has ended.

Decides nothing about the run and never changes its outcome. Events may come from any thread; text is printed from the
cell's own thread alone, because a worker's print may land in another cell.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from mlopsnb.events import Event, reporting_to
from mlopsnb.notebook.render import event_line, heading, to_html, to_text
from mlopsnb.notebook.status import Snapshot, advance, finish

Mode = Literal["widget", "display", "lines", "off"]

INTERVAL = 0.1
"""Seconds between two updates of a card; browsers, not kernels, are the limit."""


COUNT_INTERVAL = 1.0
"""Seconds between two printed lines that only count bytes."""


class View(Protocol):
    """Where a run is shown. The first `show` opens it; `close` comes last, also after a failure."""

    def show(self, now: Snapshot, event: Event) -> None:
        """Show the snapshot that *event* led to."""
        ...

    def close(self, now: Snapshot) -> None:
        """Leave the last snapshot behind, as something that needs no kernel."""
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
def following(title: str, *, mode: Mode, notes: tuple[str, ...] = ()) -> Iterator[None]:
    """Show the events of the enclosed block. A block that reports nothing shows nothing."""
    run = _Run(Snapshot(title=title, notes=notes, started=time.monotonic()), _VIEWS[mode]())
    with reporting_to(run):
        try:
            yield
        except KeyboardInterrupt:
            run.end("cancelled")
            raise
        except BaseException:
            run.end("failed")
            raise
        run.end("succeeded")


class _Run:
    """The reporter: folds events into the snapshot and hands it to the view."""

    def __init__(self, start: Snapshot, view: View) -> None:
        self._now = start
        self._view = view
        self._lock = threading.RLock()

    def __call__(self, event: Event, /) -> None:
        with self._lock:
            self._now = advance(self._now, event, time.monotonic())
            self._view.show(self._now, event)

    def end(self, outcome: Literal["succeeded", "failed", "cancelled"]) -> None:
        with self._lock:
            self._now = finish(self._now, outcome, time.monotonic())
            if self._now.steps:
                self._view.close(self._now)


class Throttle:
    """Calls *paint* at most once in `INTERVAL`; the last request is never lost, a timer makes up for it."""

    def __init__(self, paint: Callable[[], None]) -> None:
        self._paint = paint
        self._lock = threading.RLock()
        self._free_at = 0.0
        self._timer: threading.Timer | None = None

    def request(self) -> None:
        """Paint now, or as soon as the interval is over."""
        with self._lock:
            if self._timer is not None:
                return
            wait = self._free_at - time.monotonic()
            if wait <= 0:
                self._run()
                return
            # The context carries the cell that the output belongs to.
            self._timer = threading.Timer(wait, contextvars.copy_context().run, [self._late])
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Drop what is still to be painted; nothing is painted after this."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            self._paint = _nothing

    def _late(self) -> None:
        with self._lock:
            self._timer = None
            self._run()

    def _run(self) -> None:
        self._paint()
        self._free_at = time.monotonic() + INTERVAL


def _nothing() -> None:
    """What a stopped throttle paints."""


class DisplayView:
    """An output that is updated in place through its display id."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._throttle = Throttle(self._paint)
        self._open = False
        self._now: Snapshot | None = None

    def show(self, now: Snapshot, event: Event) -> None:
        """Open the output, or update it when the interval is over."""
        self._now = now
        self._throttle.request()

    def close(self, now: Snapshot) -> None:
        """Put the last snapshot in, without waiting."""
        self._throttle.stop()
        self._now = now
        self._paint()

    def _paint(self) -> None:
        assert self._now is not None
        self._publish(self._bundle(self._now))

    def _publish(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display, update_display

        if self._open:
            update_display(bundle, raw=True, display_id=self._id)
        else:
            self._open = True
            display(bundle, raw=True, display_id=self._id)

    @staticmethod
    def _bundle(now: Snapshot) -> dict[str, Any]:
        return {"text/html": to_html(now), "text/plain": to_text(now)}


class WidgetView(DisplayView):
    """A widget while the run goes on; at the end the same output becomes plain HTML and the widget is closed.

    A closed widget would show "model not found" in a notebook that is opened again, so none is left behind.
    """

    def __init__(self) -> None:
        super().__init__()
        self._widget: Any = None

    def close(self, now: Snapshot) -> None:
        """Replace the widget by its last state."""
        self._throttle.stop()
        self._publish(self._bundle(now))
        if self._widget is not None:
            self._widget.close()

    def _paint(self) -> None:
        assert self._now is not None
        if self._widget is None:
            from ipywidgets import HTML

            self._widget = HTML(to_html(self._now))
            self._publish({**self._widget._repr_mimebundle_(), **self._bundle(self._now)})
        else:
            self._widget.value = to_html(self._now)


class LinesView:
    """One printed line for each event; of bytes that go over, one line a second."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self._waiting: list[str] = []
        self._titled = False
        self._last = ""
        self._counted_at = float("-inf")

    def show(self, now: Snapshot, event: Event) -> None:
        """Print the event once; those of other threads wait for the next one of the cell's own thread."""
        if not self._titled:
            self._titled = True
            self._waiting += [now.title, *(f"  {note}" for note in now.notes)]
        if event.done is not None:
            if time.monotonic() - self._counted_at < COUNT_INTERVAL:
                return
            self._counted_at = time.monotonic()
        step = next(s for s in reversed(now.steps) if s.step == event.step)
        took = step.ended - step.started if step.ended is not None else None
        line = f"  {event_line(event, took)}"
        if line != self._last:
            self._last = line
            self._waiting.append(line)
        self._flush()

    def close(self, now: Snapshot) -> None:
        """Print what is left, and how it ended."""
        self._waiting.append(heading(now))
        self._flush()

    def _flush(self) -> None:
        if threading.get_ident() != self._owner:
            return
        lines, self._waiting = self._waiting, []
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()


class OffView:
    """Shows nothing."""

    def show(self, now: Snapshot, event: Event) -> None:
        """Ignore it."""

    def close(self, now: Snapshot) -> None:
        """Ignore it."""


_VIEWS: dict[Mode, Callable[[], View]] = {
    "widget": WidgetView,
    "display": DisplayView,
    "lines": LinesView,
    "off": OffView,
}
