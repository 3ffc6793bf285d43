"""Ask the targets, again and again, each in threads of its own, so that one that does not answer stops no other one.

Keeps what was found as the board that everybody looks at. Shows nothing and knows no Jupyter. A call that hangs is waited
for by its own thread alone, which ends with the process; what it was to tell is told to be late meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlopsnb import plugins, rollout
from mlopsnb.errors import MlopsnbError, UserError, telling_line
from mlopsnb.masking import masked
from mlopsnb.monitoring import prometheus
from mlopsnb.monitoring.replicas import live_drift
from mlopsnb.monitoring.sampling import Sampler
from mlopsnb.monitoring.traffic import PAGES
from mlopsnb.notebook.dashboard import model
from mlopsnb.notebook.dashboard.actions import REPLICAS
from mlopsnb.notebook.dashboard.model import Board, Drift, Key, Look, Row
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from mlopsnb.protocols import Target
    from mlopsnb.records import Revision

EVERY = 2.0
"""Seconds between two looks at a target. One that takes longer to answer has as much rest as it took."""

DRIFT_EVERY = 10.0
PROMETHEUS_EVERY = 10.0
PROMETHEUS_SPAN = 900.0
"""Seconds of traffic that a Prometheus server is asked for."""

LOG_EVERY = 4.0
LOG_LINES = 20

PATIENCE = 8.0
"""Seconds after which a target that has not answered is told to be late."""

_TOLD_EVERY = 1.0
"""Seconds after which a look that is still under way shows what it has found so far."""

READY = "/v2/health/ready"


def said(exc: Exception) -> str:
    """Return in one line why something could not be asked."""
    text = exc.message if isinstance(exc, MlopsnbError) else telling_line(exc)
    return masked(" ".join(text.split()))[:300]


class Repeating:
    """Calls *work* again and again in a thread of its own, which nobody waits for."""

    def __init__(self, work: Callable[[], None], every: float, what: str) -> None:
        self._work = work
        self._every = every
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name=f"mlopsnb-dashboard-{what}", daemon=True).start()

    @property
    def stopped(self) -> bool:
        """Say whether it shall end; long work asks now and then."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Let it end after what it does now."""
        self._stopped.set()

    def _run(self) -> None:
        while not self.stopped:
            started = time.monotonic()
            self._work()
            self._stopped.wait(max(self._every, time.monotonic() - started))


class Watch:
    """Looks at all deployments of the targets *kinds* from `start` to `stop`; *changed* is called from its threads."""

    def __init__(self, kinds: Sequence[str], changed: Callable[[], None], *, every: float = EVERY) -> None:
        self._kinds = tuple(kinds)
        self._changed = changed
        self._every = every
        self._known = threading.Condition()
        self._rows: dict[Key, Row] = {}
        self._board: Board | None = None
        self._away: dict[str, str] = {}
        self._looks = dict.fromkeys(kinds, 0)
        self._since = dict.fromkeys(kinds, 0.0)
        self._compared: set[str] = set()
        self._threads: list[Repeating] = []
        self._log: Repeating | None = None
        self._lines: tuple[Key, tuple[str, ...]] | None = None

    def start(self) -> None:
        """Begin to look."""
        for kind in self._kinds:
            one = _OfTarget(kind, self)
            self._threads.append(Repeating(one.look, self._every, kind))
            self._threads.append(Repeating(one.look_for_drift, DRIFT_EVERY, f"{kind}-drift"))

    def stop(self) -> None:
        """Look no more; what is known stays."""
        for thread in self._threads:
            thread.stop()
        self.follow(None)
        with self._known:
            self._threads = []
            self._known.notify_all()

    @property
    def running(self) -> bool:
        """Say whether it looks."""
        return bool(self._threads)

    def wait(self, looks: int, seconds: float, *, drift: bool = False) -> None:
        """Return when every target has been looked at so often, or has told why not, or the *seconds* are over.

        With *drift* its deployments have been asked about that, too.
        """

        def known(kind: str) -> bool:
            return kind in self._away or (
                self._looks[kind] >= looks and (not drift or kind in self._compared)
            )

        with self._known:
            self._known.wait_for(lambda: all(map(known, self._kinds)), seconds)

    def board(self) -> Board:
        """Return all that is known now: the very same board as long as nothing is new."""
        with self._known:
            now = time.monotonic()
            late = {
                kind: f"has not answered for {PATIENCE:g} s or more"
                for kind, since in self._since.items()
                if since and now - since > PATIENCE
            }
            waiting = (k for k, n in self._looks.items() if not n and k not in self._away and k not in late)
            away, waits = self._away | late, tuple(waiting)
            if self._board is None or (self._board.away, self._board.waiting) != (away, waits):
                rows = sorted(self._rows.values(), key=lambda row: row.key[::-1])
                at = max((row.at for row in rows), default=0.0)
                self._board = Board(at=at, rows=tuple(rows), away=away, waiting=waits)
            return self._board

    def follow(self, key: Key | None) -> None:
        """Read the log of the deployment *key*, and of no other one, from now on."""
        if self._log is not None:
            self._log.stop()
            self._log = None
        if key is not None:
            self._log = Repeating(_LogOf(key, self).read, LOG_EVERY, "log")

    def log(self, key: Key) -> tuple[str, ...] | None:
        """Return the last lines of that log, or None if they are not known yet."""
        return self._lines[1] if self._lines is not None and self._lines[0] == key else None

    def logged(self, key: Key, lines: tuple[str, ...]) -> None:
        """Take note of the last lines of a log."""
        if self._lines != (key, lines):
            self._lines = key, lines
            self._changed()

    # ------------------------------------------------------------------ what the targets' threads tell
    def rows_of(self, kind: str) -> list[Row]:
        """Return the rows of one target."""
        with self._known:
            return [row for key, row in self._rows.items() if key[0] == kind]

    def began(self, kind: str) -> None:
        """Note that a target is being asked."""
        self._since[kind] = time.monotonic()

    def found(self, key: Key, make: Callable[[Row | None], Row | None]) -> None:
        """Put what *make* returns, given the row as it is, in the place of the row *key*."""
        with self._known:
            row = make(self._rows.get(key))
            if row is not None:
                self._rows[key] = row
                self._board = None

    def ended(self, kind: str, names: Sequence[str] | None, why: str = "") -> None:
        """Note that a target has told its *names*, or *why* it could not be asked."""
        with self._known:
            self._board = None
            self._since[kind] = 0.0
            if names is None:
                self._away[kind] = why
            else:
                self._away.pop(kind, None)
                self._looks[kind] += 1
                kept = model.without(self._rows.values(), kind, names, time.time())
                self._rows = {row.key: row for row in kept}
            self._known.notify_all()
        self._changed()

    def compared(self, kind: str) -> None:
        """Note that the deployments of a target have been asked about their drift."""
        with self._known:
            self._compared.add(kind)
            self._known.notify_all()
        self._changed()

    def partly(self) -> None:
        """Show what was found so far."""
        self._changed()


class _OfTarget:
    """One target: how it is asked, and the counters of each deployment on it."""

    def __init__(self, kind: str, watch: Watch) -> None:
        self._kind = kind
        self._watch = watch
        self._samplers: dict[str, Sampler] = {}
        self._past: dict[str, tuple[float, Look]] = {}
        self._hopeless: dict[str, Drift] = {}
        self._looked = threading.Event()
        self._target: Target | None = None
        self._prometheus = ""

    def look(self) -> None:
        """Ask how all deployments are, one after the other."""
        self._watch.began(self._kind)
        try:
            if self._target is None:
                self._target = plugins.create("target", self._kind)
            names = tuple(self._target.names())
            self._prometheus = settings().prometheus
        except Exception as exc:  # noqa: BLE001  one target must not stop the others, whatever is wrong with it
            self._watch.ended(self._kind, None, said(exc))
            return
        shown = time.monotonic()
        for name in names:
            self._look_at(self._target, name)
            if time.monotonic() - shown > _TOLD_EVERY:
                shown = time.monotonic()
                self._watch.partly()
        for name in self._samplers.keys() - set(names):
            del self._samplers[name]
        self._watch.ended(self._kind, names)
        self._looked.set()

    def _look_at(self, target: Target, name: str) -> None:
        self._watch.began(self._kind)
        key, at = (self._kind, name), time.time()
        try:
            look = self._seen(target, name)
            self._watch.found(key, lambda row: model.after(row, look))
        except Exception as exc:  # noqa: BLE001  one deployment must not stop the others
            why = said(exc)
            self._watch.found(key, lambda row: model.failed(row, key, why, at))

    def _seen(self, target: Target, name: str) -> Look:
        release = target.observe(name)
        running = rollout.running(release)
        sampler = self._samplers.setdefault(name, Sampler(target, name, ()))
        sampler.follow([r.id for r in running])
        windows = sampler.tick()
        serving = rollout.serving(release)
        look = Look(
            release=release,
            at=time.time(),
            ready=serving is not None and bool(target.ask(name, serving.id, READY)),
            scales=REPLICAS in target.takes(),
            source=PAGES,
            windows=windows,
            totals=sampler.totals(),
            replicas=sampler.replicas(),
        )
        return self._from_prometheus(look) if self._prometheus and running else look

    def _from_prometheus(self, look: Look) -> Look:
        """Return *look* with the lines that a Prometheus server keeps, which is asked now and then."""
        address, name = self._prometheus, look.release.name
        at, before = self._past.get(name, (float("-inf"), look))
        if time.monotonic() - at < PROMETHEUS_EVERY:
            return replace(look, past=before.past, trouble=before.trouble, source=before.source)
        try:
            _, points = prometheus.windows(address, look.release, PROMETHEUS_SPAN)
        except MlopsnbError as exc:
            look = replace(look, trouble=said(exc))
        else:
            look = replace(look, past=points, source=address)
        self._past[name] = time.monotonic(), look
        return look

    def look_for_drift(self) -> None:
        """Ask how the traffic of each revision compares with its reference."""
        self._looked.wait(DRIFT_EVERY)
        for row in self._watch.rows_of(self._kind):
            for revision in rollout.running(row.release):
                if row.gone is None and row.release.weights.get(revision.id) and self._target is not None:
                    self._compare(self._target, row.key, revision)
        if self._looked.is_set():
            self._watch.compared(self._kind)

    def _compare(self, target: Target, key: Key, revision: Revision) -> None:
        if known := self._hopeless.get(revision.digest):
            self._watch.found(key, lambda row: _with_drift(row, revision.id, lambda _: known))
            return
        try:
            report = live_drift(target, key[1], revision.id, seconds=None, threshold=0.1, q=0.05)
            self._watch.found(
                key, lambda row: _with_drift(row, revision.id, lambda old: old.after(report, time.time()))
            )
        except Exception as exc:  # noqa: BLE001  drift that cannot be told must not stop the rest
            unknown = Drift(why=said(exc))
            if isinstance(exc, UserError):  # the package has no reference, and never will
                unknown = self._hopeless[revision.digest] = replace(unknown, short="no reference")
            self._watch.found(key, lambda row: _with_drift(row, revision.id, lambda _: unknown))


class _LogOf:
    """The log of one deployment: of the revision that serves, or served last."""

    def __init__(self, key: Key, watch: Watch) -> None:
        self._key = key
        self._watch = watch
        self._target: Target | None = None

    def read(self) -> None:
        """Read its last lines."""
        row = self._watch.board().row(self._key)
        revision = rollout.latest(row.release) if row is not None else None
        if revision is None:
            return
        try:
            if self._target is None:
                self._target = plugins.create("target", self._key[0])
            found = self._target.logs(self._key[1], revision.id)
            lines = tuple(masked(line) for line in deque(found, LOG_LINES))
        except Exception as exc:  # noqa: BLE001  whatever a target raises is a line in the place of its log
            lines = (f"the log cannot be read: {said(exc)}",)
        self._watch.logged(self._key, lines)


def _with_drift(row: Row | None, revision: int, make: Callable[[Drift], Drift]) -> Row | None:
    if row is None:
        return None
    return replace(row, drift={**row.drift, revision: make(row.drift.get(revision, Drift()))})
