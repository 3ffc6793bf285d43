"""Work on a deployment that goes on in a thread of this process after the call that began it has returned.

Nothing is shown here: whoever follows a `Rollout` hears the events that were reported before, too. The threads end with
the process; what served before then serves on, as after a crash.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlopsnb import events, interrupts
from mlopsnb.errors import DeployError, MlopsnbError, NotReady, telling_line
from mlopsnb.masking import masked
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from mlopsnb.events import Event
    from mlopsnb.protocols import Target

_log = logging.getLogger(__name__)

State = Literal["running", "succeeded", "failed", "cancelled"]
Key = tuple[str, ...]
Told = Callable[["Event", float], None]
"""Takes an event and when it came, in seconds of `time.monotonic`."""

_rollouts: dict[Key, Rollout] = {}
"""The last rollout in the background of each name, as long as it runs, or nothing has been done to the name since."""


def key(target: str, name: str) -> Key:
    """Return what tells the deployment *name* from others: its target, and where the settings say that this is."""
    now = settings()
    return (target, name, now.context, now.namespace, str(now.state_dir))


def find(key: Key) -> Rollout | None:
    """Return the rollout of that key that runs in this process, or that ended and was the last thing done to the name."""
    return _rollouts.get(key)


def known(target: str | None = None) -> tuple[Rollout, ...]:
    """Return the rollouts that run, and those that ended without success and were the last thing done to their name."""
    here = [r for k, r in list(_rollouts.items()) if key(k[0], k[1]) == k and target in (None, k[0])]
    return tuple(r for r in here if r.state != "succeeded")


class Detached(KeyboardInterrupt):
    """A second Ctrl-C: the call has returned, and what it still had to do goes on as `rollout`."""

    def __init__(self, rollout: Rollout) -> None:
        super().__init__(f"what served {rollout.name!r} before is still being restored")
        self.rollout = rollout


class Rollout:
    """A rollout, or the end of one, in a thread of its own.

    `error` is what it failed with; a `KeyboardInterrupt` if it was cancelled. One that only `restores` what was there
    before another one ended so is not cancelled itself.
    """

    def __init__(
        self, key: Key, work: Callable[[], None], *, cause: BaseException | None = None, held: ExitStack
    ) -> None:
        self.key = key
        self.target, self.name = key[:2]
        self.restores = cause is not None
        self.error: BaseException | None = None
        self._work, self._cause, self._held = work, cause, held
        self._told: list[tuple[Event, float]] = []
        self._followers: list[tuple[Told, Callable[[Rollout], None]]] = []
        self._lock = threading.RLock()
        self._over = self._ended = False
        self._done = threading.Event()
        self._cancelled = threading.Event()
        self._final = self.restores
        self._heard = events.is_heard()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,  # the context has the reporter, and the cell that the output is of
            args=[self._run],
            name=f"mlopsnb-rollout-{self.name}",
            daemon=True,
        )

    def __repr__(self) -> str:
        return f"<Rollout of {self.name!r} on {self.target}: {self.state}>"

    @property
    def state(self) -> State:
        """How it stands."""
        if not self._ended:
            return "running"
        if self.error is None:
            return "succeeded"
        return "cancelled" if isinstance(self.error, KeyboardInterrupt) else "failed"

    @property
    def reason(self) -> str:
        """What went wrong, as it may be shown; nothing if nothing did."""
        if self.error is None:
            return ""
        if self.state == "cancelled":
            return "cancelled"
        return masked(
            self.error.message if isinstance(self.error, MlopsnbError) else telling_line(self.error)
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it is over, however it ended; say whether it is."""
        return self._done.wait(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Return when it has succeeded; raise what it failed with, or `NotReady` after *timeout* seconds.

        An interrupt ends the waiting alone.
        """
        if not self.join(timeout):
            raise NotReady(
                f"the rollout of {self.name!r} still goes on after {timeout:g} s",
                hint="wait() waits on, cancel() ends it",
                reason="Timeout",
            )
        if self.state == "cancelled":
            notes = "; ".join(getattr(self.error, "__notes__", ()))
            raise DeployError(
                f"the rollout of {self.name!r} was cancelled{f'; {notes}' if notes else ''}",
                hint="deploy it again",
            )
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Ask it to end, and to restore what served before; it does so with the next thing it reports."""
        self._cancelled.set()

    def follow(self, told: Told, ended: Callable[[Rollout], None]) -> None:
        """Call *told* for each event, those of the past at once, and then *ended*; the rest comes from its thread."""
        with self._lock:
            for event, at in self._told:
                told(event, at)
            if not self._ended:
                self._followers.append((told, ended))
                return
        ended(self)

    def holds(self, held: ExitStack) -> None:
        """Keep what *held* holds until it is over."""
        with self._lock:
            if not self._over:
                self._held.callback(held.pop_all().close)
        held.close()

    def _run(self) -> None:
        outer = events.reporter()

        def report(event: Event) -> None:
            self._note(event)
            outer(event)
            self._obey()

        try:
            with self._held, events.reporting_to(report):
                self._work()
        except BaseException as exc:  # noqa: BLE001  `wait` raises it
            self._cause = exc
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._over = True
        self._held.close()
        with self._lock:
            self.error = self._cause
            self._ended = True
            followers, self._followers = self._followers, []
        if self.state == "failed" and not self._heard and not followers:
            _log.warning("the rollout of %r failed in the background: %s", self.name, self.reason)
        try:
            for _, ended in followers:
                ended(self)
        finally:
            self._done.set()  # a cell that has waited ends with the card of the other one as it stays

    def _note(self, event: Event) -> None:
        """Keep *event* for those who come later, and tell those who are here."""
        now = time.monotonic()
        with self._lock:
            if event.step == "restore" or event.state in ("failed", "cancelled"):
                self._final = True
            last = self._told[-1][0] if self._told else None
            if last and last.state == event.state == "progress" and last.step == event.step:
                self._told.pop()
            self._told.append((event, now))
            for told, _ in self._followers:
                told(event, now)

    def _obey(self) -> None:
        """Raise `KeyboardInterrupt` in the rollout's own thread if it was cancelled, once, and never while it clears up."""
        if self._cancelled.is_set() and not self._final and threading.current_thread() is self._thread:
            self._final = True
            raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Hold:
    """A name that is held while it is changed. What goes on in the background takes the hold along."""

    backend: Target
    key: Key
    kept: ExitStack

    @property
    def name(self) -> str:
        """The name that is held."""
        return self.key[1]

    def go_on(self, work: Callable[[], None]) -> None:
        """Do *work* in the background."""
        with interrupts.held():
            rollout = _rollouts[self.key] = Rollout(self.key, work, held=self.kept.pop_all())
            rollout.start()

    def finish(self, work: Callable[[], None], cause: BaseException) -> None:
        """Do *work*, which has to be done after *cause*, and return when it is done.

        An interrupt meanwhile, or one that had come when others cleared up after an earlier one, leaves it to the
        background and raises `Detached`.
        """
        if threading.current_thread() is not threading.main_thread():
            work()  # no interrupt comes here
            return
        rollout = Rollout(self.key, work, cause=cause, held=ExitStack())
        try:
            with interrupts.held():
                rollout.start()
            if not _is_second(cause):
                rollout.join()
                return
        except KeyboardInterrupt:
            pass
        with interrupts.held():
            _rollouts[self.key] = rollout
            rollout.holds(self.kept)
        raise Detached(rollout) from cause


def _is_second(exc: BaseException) -> bool:
    """Say whether *exc* is an interrupt that came while an earlier one was dealt with."""
    earlier = exc.__context__ if isinstance(exc, KeyboardInterrupt) else None
    while earlier is not None and not isinstance(earlier, KeyboardInterrupt):
        earlier = earlier.__context__
    return earlier is not None


@contextmanager
def hold(backend: Target, key: Key) -> Iterator[Hold]:
    """Hold the name of *key* against other changes; `DeployError` at once if one is under way, here or elsewhere."""
    name = key[1]
    if (other := find(key)) is not None and other.state == "running":
        raise DeployError(
            f"another rollout of {name!r} goes on in the background of this kernel",
            hint=f"get({name!r}).wait() waits for it, .cancel() ends it, and %attach {name} shows it",
        )
    with ExitStack() as kept:
        kept.enter_context(backend.claim(name))
        _rollouts.pop(key, None)
        yield Hold(backend, key, kept)
