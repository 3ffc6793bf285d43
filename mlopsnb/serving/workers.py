"""A worker's side of a server of several processes: its seat, and how many of them there should be.

The supervisor accepts connections and hands each to one worker, over a channel (a pair of sockets) that the worker
has from its birth. The channel carries commands of one byte; with the first of these comes a descriptor:

* `C` connection: answer this client
* `G` open gRPC's port, which the workers share; `R` close it
* `T` drain, as at SIGTERM; `I` drain, as at SIGINT

When it ends, the supervisor is dead, and the server with it. The other way goes one line of JSON, when the worker is
ready or has failed, and then a `C` for each connection that was taken, so that the supervisor closes its copy, and a
`G` when gRPC's port is open, or an `N` if it cannot be opened. All else that it needs stands on the board.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlopsnb.serving import cpu, memory
from mlopsnb.serving.board import Row

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from mlopsnb.serving.board import Board, Numbers
    from mlopsnb.serving.tuning import Options, Plan

CONNECTION, DRAIN, INTERRUPT = b"C", b"T", b"I"
OPEN_GRPC, CLOSE_GRPC, NO_GRPC = b"G", b"R", b"N"
PID, STATE, TAKEN, OPEN = range(4)
"""Cells of a worker's row: its process, its state, the connections it has taken so far, and those it has now."""

LOADING, SERVING, LEAVING = 1, 2, 3
"""States of a worker; 0 is none."""

_HEADER_CELLS = 8
MOST = 8
"""Workers that are started at most, unless the operator asks for more."""

_SHARE = 0.5
"""How much of the memory that is left more workers may take."""

_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))  # not everywhere


def possible() -> int:
    """Return how many workers there may be here, as far as can be told before the model is loaded."""
    return max(1, min(math.floor(cpu.limit()), MOST))


def choose(plan: Plan, options: Options, cpus: int, *, each: int | None, left: int | None) -> int:
    """Return how many workers serve a model best that is run as *plan* says, on *cpus* processors.

    A model that keeps several processors busy from one process needs no other: threads share its memory. Where the
    event loop is the limit, processes help. Another one takes *each* bytes; *left* are left, None if nobody knows.
    """
    if plan.instances * plan.threads > 1 or options.instances or each is None or left is None:
        return 1
    return max(1, min(cpus, MOST, 1 + int(left * _SHARE / max(each, 1))))


def header(board: Board, worker: int) -> Numbers:
    """Return the cells of *worker* that `PID` and the others number."""
    return board.part(worker, 0, _HEADER_CELLS).own


def clear(cells: Numbers) -> None:
    """Note that nobody sits there."""
    for cell in range(_HEADER_CELLS):
        cells[cell] = 0


def pids(board: Board) -> list[int]:
    """Return the processes of the workers that there are."""
    rows = (header(board, worker) for worker in range(board.workers))
    return [int(row[PID]) for row in rows if row[PID]]


class Connections(set[object]):
    """uvicorn's set of open connections, which keeps their number on the board."""

    def __init__(self, cells: Numbers) -> None:
        super().__init__()
        self._cells = cells

    def add(self, connection: object, /) -> None:
        """Add *connection*."""
        super().add(connection)
        self._cells[OPEN] = len(self)

    def discard(self, connection: object, /) -> None:
        """Remove *connection*, if it is there."""
        super().discard(connection)
        self._cells[OPEN] = len(self)


class Seat:
    """The place of one `worker`, numbered from 0: its row of the board and its end of the channel."""

    def __init__(self, board: Board, worker: int, channel: socket.socket) -> None:
        self.board = board
        self.channel = channel
        self.worker = worker
        self.cells = header(board, worker)
        clear(self.cells)
        self.cells[PID], self.cells[STATE] = os.getpid(), LOADING
        channel.setblocking(False)

    @property
    def counters(self) -> Row:
        """Where this worker counts."""
        return Row(self.board, self.worker, start=_HEADER_CELLS)

    @property
    def plan(self) -> Plan | None:
        """How the first worker found that the model is run best; None if this is the first."""
        from mlopsnb.serving.tuning import Plan

        note = self.board.note
        return Plan(**note["plan"]) if note else None

    def settle(self, plan: Plan, options: Options, wanted: int | None) -> int:
        """Return how many workers there are to be; if this is the first, tell the others, and how the model is run.

        Without *wanted* it is chosen now, as the model is loaded and measured.
        """
        if not self.board.note:
            if wanted is None:
                each, left = memory.private(), memory.available()
                wanted = choose(plan, options, possible(), each=each, left=left)
            self.board.leave_note({"workers": wanted, "plan": asdict(plan)})
        return int(self.board.note["workers"])

    @property
    def serving(self) -> int:
        """How many workers take requests now."""
        return len(self._serving())

    @property
    def excess(self) -> int:
        """How many more connections there are here than would be if all workers had as many."""
        everywhere = [row[OPEN] for row in self._serving()]
        return int(self.cells[OPEN]) - math.ceil(sum(everywhere) / max(1, len(everywhere)))

    def _serving(self) -> list[Numbers]:
        rows = (header(self.board, worker) for worker in range(self.board.workers))
        return [row for row in rows if row[STATE] == SERVING]

    def serve(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        take: Callable[[socket.socket], None],
        end: Callable[[signal.Signals], None],
        grpc: Callable[[bool], None],
    ) -> None:
        """Carry out the supervisor's commands on *loop*, from now on to the end of the process."""
        self._loop, self._take, self._end, self._grpc = loop, take, end, grpc
        self.cells[STATE] = SERVING
        loop.add_reader(self.channel, self.read)

    def leave(self) -> None:
        """Ask for no more connections; those that are on their way are taken."""
        self.cells[STATE] = LEAVING

    def say(self, word: bytes) -> None:
        """Tell the supervisor."""
        with contextlib.suppress(OSError):  # it has not read of so many others, or is dead
            self.channel.send(word)

    def read(self) -> None:
        """Carry out what has come."""
        while True:
            try:
                command, fds, _, _ = socket.recv_fds(self.channel, 1, 1, _CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                command, fds = b"", []
            if command == CONNECTION:
                self.cells[TAKEN] += 1
                self.say(CONNECTION)
                if fds:  # else no descriptor was left for it
                    self._take(socket.socket(fileno=fds[0]))
            elif command in (OPEN_GRPC, CLOSE_GRPC):
                self._grpc(command == OPEN_GRPC)
            elif command == DRAIN:
                self._end(signal.SIGTERM)
            elif command == INTERRUPT:
                self._end(signal.SIGINT)
            else:  # the supervisor is dead: nobody hands us connections any more
                self._loop.remove_reader(self.channel)
                self._end(signal.SIGINT)
                return
