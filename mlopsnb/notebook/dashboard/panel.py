"""The dashboard as core ipywidgets: shows the board, and hands button presses on. Asks no target itself.

A button callback may run in the kernel's main thread or in another one, at once or after the cell: it changes what is
chosen or asked, asks for a painting, and returns. What a button does is done in a thread of its own, after its question
was answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlopsnb.notebook import render as cards
from mlopsnb.notebook.dashboard import render
from mlopsnb.notebook.dashboard.actions import ACTS, Act, Question, carry_out, question
from mlopsnb.notebook.dashboard.gathering import Watch
from mlopsnb.notebook.displays import History
from mlopsnb.notebook.status import Snapshot, tick
from mlopsnb.notebook.tables import card, preformatted
from mlopsnb.notebook.views import Output, Throttle, followed

if TYPE_CHECKING:
    from mlopsnb.notebook.dashboard.model import Board, Key, Row

_log = logging.getLogger(__name__)

_NONE: Key = ("", "")
"""Stands for no deployment in the list to choose from."""

_TABS = ("traffic", "replicas", "log", "history", "drift")


class Panel:
    """One live dashboard in the output of a cell. *closed* is called when its button asks to end it."""

    def __init__(self, targets: Sequence[str], *, every: float, closed: Callable[[], None]) -> None:
        self._watch = Watch(targets, self._changed, every=every)
        self._output = Output()
        self._throttle = Throttle(self._try_to_paint)
        self._closed = closed
        self._lock = threading.RLock()
        self._painting = False
        self._painted: Board | None = None
        self._chosen = _NONE
        self._asked: Question | None = None
        self._acting: Callable[[], Snapshot] | None = None
        self._widgets: _Widgets | None = None

    def board(self) -> Board:
        """Return all that is known now."""
        return self._watch.board()

    def open(self, *, patience: float) -> None:
        """Show it, once the targets have answered for the first time, or after so many seconds."""
        self._watch.start()
        self._watch.wait(1, patience)
        widgets = _Widgets()
        self._connect(widgets)
        self._widgets = widgets
        self._paint()
        board = self.board()
        self._output.put(
            {
                **widgets.root._repr_mimebundle_(),
                "text/html": render.to_html(board),
                "text/plain": render.to_text(board),
            }
        )
        self._throttle.request()

    def close(self) -> None:
        """Look no more, and leave the last board as plain HTML and text."""
        self._throttle.stop()
        self._watch.stop()
        board = self.board()
        if self._widgets is None:
            return
        with suppress(Exception):  # a front end that is gone must not keep it open
            self._output.put({"text/html": render.to_html(board), "text/plain": render.to_text(board)})
        with suppress(Exception):
            self._widgets.close()

    def _changed(self) -> None:
        if self._widgets is not None:
            self._throttle.request()

    # ------------------------------------------------------------------ what people press
    def _connect(self, widgets: _Widgets) -> None:
        widgets.pick.observe(lambda change: self._choose(change["new"]), names="value")
        widgets.end.on_click(lambda _: self._end())
        widgets.yes.on_click(lambda _: self._answer(yes=True))
        widgets.no.on_click(lambda _: self._answer(yes=False))
        widgets.tabs.observe(lambda _: self._throttle.request(), names="selected_index")
        for act, button in widgets.acts.items():
            button.on_click(lambda _, act=act: self._ask(act))

    def _choose(self, key: Key) -> None:
        with self._lock:
            if self._painting or key == self._chosen:
                return
            self._chosen, self._asked = key, None
            if not self._busy():
                self._acting = None
            self._watch.follow(None if key == _NONE else key)
        self._throttle.request()

    def _end(self) -> None:
        # The widgets that this was pressed in are closed by it.
        threading.Thread(target=self._closed, name="mlopsnb-dashboard-close", daemon=True).start()

    def _ask(self, act: Act) -> None:
        """Put the question of *act*; nothing is done by this."""
        with self._lock:
            row = self.board().row(self._chosen)
            if row is None or self._busy() or self._widgets is None:
                return
            found = question(act, row.release, scales=row.scales, replicas=int(self._widgets.replicas.value))
            self._asked = None if isinstance(found, str) else found
            self._acting = None
        self._throttle.request()

    def _answer(self, *, yes: bool) -> None:
        with self._lock:
            asked, self._asked = self._asked, None
            if asked is not None and yes and not self._busy():
                start = Snapshot(title=asked.title, started=time.monotonic())
                self._acting = lambda: start
                threading.Thread(
                    target=self._act, args=[asked, start], name="mlopsnb-dashboard-act", daemon=True
                ).start()
        self._throttle.request()

    def _busy(self) -> bool:
        return self._acting is not None and self._acting().outcome == "running"

    def _act(self, asked: Question, start: Snapshot) -> None:
        """Do what was confirmed, and keep what is told of it."""

        def view(now: Callable[[], Snapshot]) -> _Told:
            self._acting = now
            return _Told(self._throttle.request)

        with suppress(Exception), followed(start, view):  # the card tells what went wrong
            carry_out(asked)

    # ------------------------------------------------------------------ what is shown
    def _try_to_paint(self) -> None:
        try:
            self._paint()
        except Exception:  # noqa: BLE001  one painting that fails must not be the last
            _log.debug("the dashboard cannot be painted", exc_info=True)

    def _paint(self) -> None:
        widgets = self._widgets
        if widgets is None:
            return
        with self._lock:
            self._painting = True
            try:
                board = self.board()
                if board is not self._painted:
                    _set(widgets.table, render.to_html(board))
                    self._painted = board
                self._paint_choice(widgets, board)
                self._paint_detail(widgets, board.row(self._chosen))
            finally:
                self._painting = False

    def _paint_choice(self, widgets: _Widgets, board: Board) -> None:
        options = [
            ("choose one …", _NONE),
            *((f"{row.key[1]} on {row.key[0]}", row.key) for row in board.rows),
        ]
        if self._chosen != _NONE and board.row(self._chosen) is None:
            self._chosen, self._asked = _NONE, None
            self._watch.follow(None)
        if list(widgets.pick.options) != options:
            widgets.pick.options = options
        if widgets.pick.value != self._chosen:
            widgets.pick.value = self._chosen

    def _paint_detail(self, widgets: _Widgets, row: Row | None) -> None:
        _show(widgets.detail, shown=row is not None)
        if row is None:
            return
        _set(widgets.facts, render.facts_html(row))
        self._paint_acts(widgets, row)
        if self._asked is not None:
            _set(widgets.words, render.question_html(self._asked.words))
            widgets.yes.description = self._asked.yes
        if _show(widgets.question, shown=self._asked is not None):
            widgets.no.focus()  # the button that was pressed is off now
        acting = self._acting
        _set(widgets.told, cards.to_html(tick(acting(), time.monotonic())) if acting is not None else "")
        at = widgets.tabs.selected_index or 0
        _set(widgets.tabs.children[at], self._section(_TABS[at], row))

    def _paint_acts(self, widgets: _Widgets, row: Row) -> None:
        busy, impossible = self._busy(), []
        for act, button in widgets.acts.items():
            found = question(act, row.release, scales=row.scales, replicas=1)
            off = isinstance(found, str)
            if isinstance(found, str):
                impossible.append(f"{ACTS[act]}: {found}")
            button.disabled = off or busy or self._asked is not None
        _show(widgets.replicas, shown=row.scales)
        _set(widgets.impossible, render.impossible_html(impossible))

    def _section(self, name: str, row: Row) -> str:
        if name == "traffic":
            known = row.traffic is not None and row.traffic.revisions
            return row.traffic._repr_html_() if row.traffic is not None and known else card("nothing runs")
        if name == "replicas":
            return render.replicas_html(row)
        if name == "log":
            lines = self._watch.log(row.key)
            text = "\n".join(lines) if lines else "the log is empty" if lines is not None else "reading …"
            return preformatted(text, label=f"last lines of the log of {row.key[1]}")
        if name == "history":
            return History(row.release.revisions)._repr_html_()
        return render.drift_html(row)


class _Told:
    """Has the panel painted whenever an act tells something."""

    def __init__(self, paint: Callable[[], None]) -> None:
        self._paint = paint

    def show(self, event: object) -> None:
        self._paint()

    def release(self, cancel: Callable[[], None]) -> None:
        """Show nothing of it: an act here is in a thread already, which no second interrupt detaches."""

    def close(self, now: Snapshot) -> None:
        self._paint()


class _Widgets:
    """The widgets, made once; later only their traits change."""

    def __init__(self) -> None:
        import ipywidgets as w

        wide = w.Layout(width="auto")
        self.table = w.HTML(layout=w.Layout(width="auto", overflow="auto"))
        self.pick = w.Dropdown(description="Deployment:", style={"description_width": "initial"})
        self.end = w.Button(description="Close the dashboard", layout=wide)
        self.facts, self.words, self.told, self.impossible = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.acts = {act: w.Button(description=word, layout=wide) for act, word in ACTS.items()}
        self.acts["delete"].button_style = "danger"
        self.replicas = w.BoundedIntText(
            value=1, min=1, max=1000, description="replicas", layout=w.Layout(width="150px")
        )
        self.yes = w.Button(layout=wide, button_style="warning")
        self.no = w.Button(description="No, leave it", layout=wide)
        self.question = w.VBox([self.words, w.HBox([self.yes, self.no])])
        self.tabs = w.Tab(
            [w.HTML(layout=w.Layout(overflow="auto")) for _ in _TABS], titles=list(_TABS), selected_index=0
        )
        buttons = w.HBox(
            [
                self.acts["rollback"],
                self.acts["promote"],
                self.acts["scale"],
                self.replicas,
                self.acts["delete"],
            ],
            layout=w.Layout(flex_flow="row wrap"),
        )
        self.detail = w.VBox([self.facts, buttons, self.impossible, self.question, self.told, self.tabs])
        self.root = w.VBox([self.table, w.HBox([self.pick, self.end]), self.detail])

    def close(self) -> None:
        """Close them all, in the kernel and in the front end."""
        waiting = [self.root]
        while waiting:
            widget = waiting.pop()
            waiting += getattr(widget, "children", ())
            widget.close()


def _set(widget: Any, html: str) -> None:
    """Give an HTML widget what it shows, if that is news: each time it is drawn anew."""
    if widget.value != html:
        widget.value = html


def _show(widget: Any, *, shown: bool) -> bool:
    """Show or hide a widget; say whether it was hidden before and is not any longer."""
    wanted = "" if shown else "none"
    appears = shown and widget.layout.display == "none"
    if widget.layout.display != wanted:
        widget.layout.display = wanted
    return appears
