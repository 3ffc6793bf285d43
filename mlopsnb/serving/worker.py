"""The server in a worker: as it is alone, but its connections come from the supervisor, and so does its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any

from mlopsnb.serving.errors import CannotListen
from mlopsnb.serving.server import Server
from mlopsnb.serving.workers import NO_GRPC, OPEN_GRPC, Connections

if TYPE_CHECKING:
    from mlopsnb.serving.workers import Seat

_log = logging.getLogger("mlopsnb.serving")


class WorkerServer(Server):
    """Serves the connections that come to *seat*. If its model breaks it drains, so that another takes its place."""

    def __init__(self, *args: Any, seat: Seat, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seat = seat
        self._excess = 0
        self._told = self._signalled = False
        self._coming: set[asyncio.Task[Any]] = set()
        self._turn: asyncio.Task[None] | None = None
        self.server_state.connections = Connections(seat.cells)  # type: ignore[assignment]

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._seat.serve(loop, take=self._take, end=self._told_to_end, grpc=self._told_of_grpc)

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        coming: Coroutine[Any, Any, object]
        if connection.family == socket.AF_UNIX:
            coming = loop.connect_accepted_socket(self._make_private, connection)
        elif self._tls is None:
            coming = loop.connect_accepted_socket(self._make_public, connection)
        elif self._door.enter():
            coming = self._tls.connect(self._make_protocol, connection, self._limits.head)
        else:  # it could not be told so without a handshake
            connection.close()
            return
        task = loop.create_task(coming)
        self._coming.add(task)
        task.add_done_callback(self._came)

    def _came(self, task: asyncio.Task[Any]) -> None:
        self._coming.discard(task)
        if task.cancelled() or not (exc := task.exception()):
            return
        if self._tls is not None and isinstance(
            exc, OSError
        ):  # no TLS, no certificate that we take, or too slow
            self._door.leave()
        else:
            _log.warning("a connection could not be taken: %s", exc)

    def _told_of_grpc(self, wanted: bool) -> None:
        before = self._turn
        self._turn = asyncio.get_running_loop().create_task(self._carry_out(before, wanted))

    async def _carry_out(self, before: asyncio.Task[None] | None, wanted: bool) -> None:
        """Open gRPC's port, and say so, or close it: what was told *before* comes first."""
        if before is not None:
            await before
        if not wanted:
            self._close_grpc()
            return
        try:
            await self._open_grpc()
        except CannotListen as exc:
            _log.warning("%s", exc.message)
            self._seat.say(NO_GRPC)
        else:
            self._seat.say(OPEN_GRPC)

    def _told_to_end(self, number: signal.Signals) -> None:
        self._told = True
        if not self.should_exit:  # else a signal to all of us was faster
            self._seat.leave()
            super().handle_exit(number, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or end, as `Server` does. What is sent to all of us comes by the supervisor as well."""
        self._seat.leave()
        if self._told and not self._signalled:
            self._signalled = True
        else:
            self._signalled = True
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Tell the others what only we can see, and let clients spread; called ten times a second."""
        self._app.engine.metrics.note()
        if counter % 10 == 0:
            self._spread()
        if not self._app.ready and not self.should_exit:
            _log.error("the model of this worker no longer works; the worker ends")
            self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    def _spread(self) -> None:
        """Send away, politely, as many clients as are too many here, if they were a second ago.

        The clients of a worker that died come to the others, and would stay there when its successor is ready.
        """
        before, self._excess = self._excess, self._seat.excess
        if not self._app.draining:
            self._app.away = max(0, min(before, self._excess))
