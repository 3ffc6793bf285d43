"""The dashboard: all deployments over all targets, live, and what can be done to them.

`model` holds what is known, `actions` what buttons may do, `gathering` asks the targets, `render` makes text and HTML,
`panel` the widgets; `Dashboard` here ties them together. Only `panel` knows ipywidgets.
"""

from __future__ import annotations

import atexit
import sys
import threading
from typing import Any, Self

from mlopsnb import plugins
from mlopsnb.notebook.dashboard import render
from mlopsnb.notebook.dashboard.gathering import EVERY, PATIENCE, Watch
from mlopsnb.notebook.views import Output, choose
from mlopsnb.settings import settings

ONCE_EVERY = 1.0
"""Seconds between the two looks of a dashboard that only tells how things are."""

FIRST = 2.0
"""Seconds that the first look may take before a live dashboard is shown all the same."""


class Dashboard:
    """All deployments with their figures: live in a notebook until `close()`, text elsewhere. Made by `dashboard`.

    Nothing is asked before it is shown or printed. One is live at a time: showing another one closes it.
    """

    _live: Dashboard | None = None
    _switching = threading.RLock()

    def __init__(self, targets: tuple[str, ...]) -> None:
        self._targets = targets
        self._panel: Any = None

    def __repr__(self) -> str:
        state = "live" if self._panel is not None else "not shown"
        return f"<Dashboard of {', '.join(self._targets)}: {state}; print() it, or show it in a notebook>"

    def __str__(self) -> str:
        panel = self._panel
        return render.to_text(self._once() if panel is None else panel.board())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _once(self) -> Any:
        """Look twice, so that there are rates, and return the board."""
        watch = Watch(self._targets, lambda: None, every=ONCE_EVERY)
        watch.start()
        try:
            watch.wait(2, PATIENCE, drift=True)
            return watch.board()
        finally:
            watch.stop()

    def _ipython_display_(self) -> None:
        from IPython import get_ipython

        match choose(settings().status, get_ipython()):
            case "widget":
                self._open()
            case "display":
                board = self._once()
                Output().put({"text/html": render.to_html(board), "text/plain": render.to_text(board)})
            case _:
                sys.stdout.write(f"{self}\n")

    def _open(self) -> None:
        from mlopsnb.notebook.dashboard.panel import Panel

        with Dashboard._switching:
            if Dashboard._live is not None:
                Dashboard._live.close()
            Dashboard._live = self
            # A kernel that is shut down leaves what needs none; registered late, this runs before its channels close.
            atexit.register(self.close)
            self._panel = Panel(self._targets, every=EVERY, closed=self.close)
            try:
                self._panel.open(patience=FIRST)
            except BaseException:  # Ctrl-C while the targets are asked for the first time
                self.close()
                raise

    def close(self) -> None:
        """End it: the widgets go, and what they showed last stays as plain HTML and text. Showing it again begins anew."""
        with Dashboard._switching:
            panel, self._panel = self._panel, None
            if Dashboard._live is self:
                Dashboard._live = None
        atexit.unregister(self.close)
        if panel is not None:
            panel.close()


def dashboard(*, target: str | None = None) -> Dashboard:
    """Return a dashboard of all deployments on *target*, or on every installed target.

    In a notebook it is live: states, versions, shares of traffic, requests, errors, quantiles and drift, with buttons that
    ask before they do anything. `print()` of it gives the same numbers as text anywhere.
    Raises `UnknownBackend` if there is no such target.
    """
    if target is not None:
        plugins.find("target", target)
    return Dashboard((target,) if target is not None else tuple(plugins.available("target")))
