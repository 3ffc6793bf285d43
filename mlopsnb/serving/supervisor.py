"""The supervisor of a server of several processes: starts workers, starts anew those that died, ends them.

It loads no model and nothing heavy and has one thread, so that workers can be forked from it at any time: that takes a
millisecond and shares the interpreter's memory. Each connection goes to the worker that has the fewest. One socket
that all accept from would be emptied by whoever wakes first; sockets that share a port (SO_REUSEPORT) get what a
hash gives them, and take the clients in their queue along when they die.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from mlopsnb.serving import workers
from mlopsnb.serving.dispatch import Dispatcher
from mlopsnb.serving.errors import ModelFailure
from mlopsnb.serving.workers import (
    CLOSE_GRPC,
    CONNECTION,
    DRAIN,
    INTERRUPT,
    NO_GRPC,
    OPEN,
    OPEN_GRPC,
    SERVING,
    STATE,
    TAKEN,
    Seat,
)

if TYPE_CHECKING:
    from mlopsnb.serving.board import Board
    from mlopsnb.serving.listen import Sockets

YOUNG_SECONDS = 10.0
"""A worker that dies sooner after it was ready counts as one that cannot live here."""

MOST_DEATHS = 5
"""After so many deaths of young workers in a row, and with none that serves, the server gives up."""

_FIRST_DELAY, _LONGEST_DELAY = 0.25, 30.0
_TICK = 0.02
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_log = logging.getLogger("mlopsnb.serving")


class _Worker:
    """One place for a worker, and the process that has it now."""

    def __init__(self, board: Board, number: int) -> None:
        self.number = number
        self.cells = workers.header(board, number)
        self.due = 0.0
        self.pid = 0
        self.ready_since: float | None = None
        self.channel: socket.socket | None = None
        self.silent = False
        self.grpc = b""
        self._said = b""
        self._sent = 0
        self._untaken: deque[socket.socket] = deque()

    def __str__(self) -> str:
        return f"worker {self.number + 1} (process {self.pid})"

    @property
    def serves(self) -> bool:
        """Whether it takes connections."""
        return self.ready_since is not None and self.cells[STATE] == SERVING

    @property
    def load(self) -> tuple[float, float]:
        """What speaks against giving it the next connection, see `dispatch`."""
        return len(self._untaken), self.cells[OPEN]

    def born(self, pid: int, channel: socket.socket) -> None:
        """Note that process *pid* is at the other end of *channel*."""
        channel.setblocking(False)
        self.pid, self.channel, self._sent = pid, channel, 0
        self.ready_since, self.silent, self.grpc, self._said = None, False, b"", b""

    def died(self) -> list[socket.socket]:
        """Note that nobody is there; return the connections that it did not come to take."""
        self._forget_taken()
        left = list(self._untaken)
        self._untaken.clear()
        self.close()
        workers.clear(self.cells)
        self.pid, self.ready_since = 0, None
        return left

    def _forget_taken(self) -> None:
        """Close our copies of the connections that it has taken; while we have them, it cannot close them."""
        while len(self._untaken) > self._sent - self.cells[TAKEN]:
            self._untaken.popleft().close()

    def close(self) -> None:
        """Close our end of the channel, and our copies of its connections."""
        while self._untaken:
            self._untaken.popleft().close()
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def hand(self, connection: socket.socket) -> bool:
        """Give it *connection*, of which we keep a copy until it has taken it; False if it cannot take one now."""
        assert self.channel is not None
        try:
            socket.send_fds(self.channel, [CONNECTION], [connection.fileno()])
        except OSError:  # full, or dead, of which we hear in a moment
            return False
        self._sent += 1
        self._untaken.append(connection)
        return True

    def tell(self, command: bytes) -> None:
        """Send it *command*."""
        if self.channel is not None:
            with contextlib.suppress(OSError):  # it is dead, of which we hear in a moment
                self.channel.send(command)

    def listen(self) -> dict[str, Any] | None:
        """Return what it says first, once that is complete: that it is ready, or why it is not.

        Later a byte comes with each connection that it has taken, and one that goes to `grpc` if that is opened.
        """
        assert self.channel is not None
        try:
            while more := self.channel.recv(65536):
                if self.ready_since is None:
                    self._said += more
                else:
                    self.grpc = next((word for word in (OPEN_GRPC, NO_GRPC) if word in more), self.grpc)
            self.silent = True
        except BlockingIOError:
            pass
        except OSError:
            self.silent = True
        self._forget_taken()
        if not self._said.endswith(b"\n"):
            return None
        message: dict[str, Any] = json.loads(self._said)
        return message


class _GrpcPorts:
    """gRPC's port, if *there* is one: every worker opens it for itself; it comes and goes with the public socket."""

    def __init__(self, workers: Callable[[], list[_Worker]], *, there: bool) -> None:
        self._workers = workers
        self._there = there
        self._told = b""
        self._done: Callable[[bool], None] | None = None

    def begin(self, done: Callable[[bool], None]) -> None:
        """Have it opened, and call *done* when the first worker has done so, or cannot."""
        if not self._there:
            done(True)
            return
        self._done = done
        self._tell(OPEN_GRPC)

    def end(self) -> None:
        """Have it closed."""
        self._done = None
        if self._there:
            self._tell(CLOSE_GRPC)

    def _tell(self, command: bytes) -> None:
        self._told = command
        for worker in self._workers():
            worker.grpc = b""
            worker.tell(command)

    def join(self, worker: _Worker) -> None:
        """Have *worker*, which is ready, do as the others do."""
        worker.tell(self._told)

    def heard(self, worker: _Worker) -> None:
        """Look whether *worker* has said what we wait for."""
        if worker.grpc and self._done is not None:
            done, self._done = self._done, None
            done(worker.grpc == OPEN_GRPC)


class Supervisor:
    """Runs the workers of one server, which speak gRPC too if *grpc*; *tell* gets what the first says of itself.

    `run` returns in several processes: in each worker its `Seat`, and here the exit code.
    """

    def __init__(
        self, sockets: Sockets, board: Board, tell: Callable[[dict[str, Any]], None], *, grpc: bool
    ) -> None:
        self._board = board
        self._tell = tell
        self._workers = [_Worker(board, 0)]
        self._selector = selectors.DefaultSelector()
        self._grpc = _GrpcPorts(lambda: [w for w in self._workers if w.serves], there=grpc)
        self._dispatcher = Dispatcher(
            sockets, self._selector, lambda: (w for w in self._workers if w.serves), self._grpc
        )
        self._stops: list[int] = []
        self._deaths = 0
        self._was_ready = False
        self._ending = False
        self._code: int | None = None

    def run(self) -> Seat | int:
        """Serve until stopped. Raises `ModelFailure` when no worker can live any more."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        self._selector.register(wake, selectors.EVENT_READ, lambda: wake.recv(4096))
        with wake, woken, _handling(self._stops.append, woken.fileno()):
            while self._code is None:
                for worker in self._due():
                    if seat := self._start(worker):
                        return seat
                self._wait()
        return self._code

    def _due(self) -> list[_Worker]:
        now = time.monotonic()
        return [w for w in self._workers if not w.pid and not self._ending and w.due <= now]

    # ------------------------------------------------------------------------------------------ a worker's life
    def _start(self, worker: _Worker) -> Seat | None:
        """Fork *worker*; return its seat in the new process, None in this one."""
        ours, theirs = socket.socketpair()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # no handler of ours runs in the child
        try:
            pid = os.fork()
            if pid:
                theirs.close()
                worker.born(pid, ours)
                self._selector.register(ours, selectors.EVENT_READ, partial(self._heard, worker))
                return None
            ours.close()
            self._forget()
            return Seat(self._board, worker.number, theirs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _forget(self) -> None:
        """Let go of all that is the supervisor's, in a worker that was just forked."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._selector.close()
        self._dispatcher.forget()
        for worker in self._workers:
            worker.close()

    def _heard(self, worker: _Worker) -> None:
        message = worker.listen()
        if worker.silent:  # of its end we hear by a signal
            self._mute(worker)
        elif message is not None and message["ready"] and worker.ready_since is None:
            self._ready(worker, message)
        self._grpc.heard(worker)

    def _mute(self, worker: _Worker) -> None:
        """Listen to *worker* no more."""
        if worker.channel is not None and worker.channel in self._selector.get_map():
            self._selector.unregister(worker.channel)

    def _ready(self, worker: _Worker, message: dict[str, Any]) -> None:
        worker.ready_since = time.monotonic()
        self._grpc.join(worker)
        if self._ending:
            worker.tell(DRAIN)
        elif self._was_ready:
            self._dispatcher.resume()
        else:
            self._was_ready = True
            self._workers += [_Worker(self._board, n) for n in range(1, int(self._board.note["workers"]))]
            self._dispatcher.open()
            self._tell(message)

    def _died(self, worker: _Worker, code: int) -> None:
        """Decide what comes after the end of *worker*, with *code*."""
        name, message = str(worker), worker.listen()
        age = time.monotonic() - worker.ready_since if worker.ready_since is not None else 0.0
        self._mute(worker)
        untaken = worker.died()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if self._ending:
            if not any(w.pid for w in self._workers):
                self._code = 0 if self._was_ready else 128 + self._stops[0]
        elif self._was_ready:
            self._deaths = 0 if age >= YOUNG_SECONDS else self._deaths + 1
            self._replace(worker, f"{name} {how}")
            self._dispatcher.again(untaken)
        elif message is not None:  # it has printed why
            self._tell(message)
            self._code = code
        else:
            raise ModelFailure(f"the process {how} while it loaded the model")

    def _replace(self, worker: _Worker, what: str) -> None:
        """Have *worker* started again; *what* came before."""
        if not any(w.serves for w in self._workers):
            self._dispatcher.pause()  # whoever comes waits for the next worker
            if self._deaths >= MOST_DEATHS:
                raise ModelFailure(
                    f"the workers die again and again, {self._deaths} times in a row: {what}",
                    hint="the lines above may say why",
                )
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (self._deaths - 1)) if self._deaths else 0.0
        worker.due = time.monotonic() + delay
        _log.warning("%s; another takes its place%s", what, f" in {delay:g} s" if delay else "")

    # ------------------------------------------------------------------------------------------ the loop
    def _wait(self) -> None:
        """Wait until something is to be done, and do what came from outside."""
        now = time.monotonic()
        dues = [w.due - now for w in self._workers if not w.pid and not self._ending]
        if self._dispatcher.waits:
            dues.append(_TICK)
        for key, _ in self._selector.select(max(0.0, min(dues)) if dues else None):
            key.data()
        try:
            for worker in self._workers:
                if worker.pid and (code := _ended(worker.pid)) is not None:
                    self._died(worker, code)
        except ModelFailure:
            self._kill()
            raise
        if len(self._stops) > 1:  # now means now
            self._kill()
            os._exit(128 + self._stops[1])
        if self._stops and not self._ending:
            self._end(self._stops[0])
        if self._dispatcher.waits:
            self._dispatcher.resume()

    def _end(self, number: int) -> None:
        """Accept nobody any more, and let the workers drain."""
        self._ending = True
        self._dispatcher.drain()
        for worker in self._workers:
            if worker.ready_since is not None:
                worker.tell(INTERRUPT if number == signal.SIGINT else DRAIN)
            elif worker.pid:  # it has no client yet
                os.kill(worker.pid, signal.SIGTERM)
        if not any(w.pid for w in self._workers):
            self._code = 0

    def _kill(self) -> None:
        """End all workers now."""
        left = [worker for worker in self._workers if worker.pid]
        for worker in left:
            os.kill(worker.pid, signal.SIGKILL)
        for worker in left:
            os.waitpid(worker.pid, 0)
            worker.close()
        self._selector.close()


def _ended(pid: int) -> int | None:
    """Return the exit code of child *pid*, less than 0 for a signal; None while it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


@contextlib.contextmanager
def _handling(stop: Callable[[int], None], wake: int) -> Iterator[None]:
    """Call *stop* with SIGTERM and SIGINT, and write to the descriptor *wake* at these and at a child's end."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop(number))
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
