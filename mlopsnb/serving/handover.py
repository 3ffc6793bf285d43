"""Passes the public listening socket from process to process, so that no connection is refused or lost.

The old and the new process share one kernel socket. Connections wait in its queue, which lives as long as any
process holds it; so each process only ever closes its own copies, and never shuts the socket down.
What is said for it is in `control`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from mlopsnb.serving import control
from mlopsnb.serving.errors import CannotListen

if TYPE_CHECKING:
    from mlopsnb.serving.listen import UnixSocket

_log = logging.getLogger("mlopsnb.serving")


class Accepting(Protocol):
    """What accepts connections on a socket that it owns."""

    def close(self) -> None:
        """Accept no more, and close the socket; open connections live on."""


class PublicListener:
    """The public socket, if this process has it now; *listen* begins to accept connections on a copy of it."""

    def __init__(self, listen: Callable[[socket.socket], Awaitable[Accepting]]) -> None:
        self._listen = listen
        self._closed = False
        self._sock: socket.socket | None = None
        self._server: Accepting | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def public(self) -> socket.socket | None:
        """The socket, to be shared with another process; it stays ours."""
        return self._sock

    def take(self, sock: socket.socket, done: Callable[[bool], None]) -> None:
        """Accept connections on *sock*, see `open`; then tell *done*."""
        task = asyncio.get_running_loop().create_task(self._take(sock, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, sock: socket.socket, done: Callable[[bool], None]) -> None:
        taken = False
        try:
            taken = await self.open(sock)
        except (OSError, CannotListen) as exc:
            _log.warning("control socket: %s", exc)
        finally:
            done(taken)

    async def open(self, sock: socket.socket) -> bool:
        """Accept connections on *sock*, which is ours from now on. False, and closed, if there is one already."""
        if self._sock is not None or self._closed:
            sock.close()
            return False
        self._sock = sock
        copy = sock.dup()  # the event loop closes what it is given
        try:
            server = await self._listen(copy)
        except (OSError, CannotListen):
            copy.close()
            self.release()
            raise
        if self._sock is not sock:  # released while we waited
            server.close()
            return False
        self._server = server
        return True

    def release(self) -> None:
        """Stop accepting, by closing our copies alone. Open connections and the queue are not touched."""
        if self._server is not None:
            self._server.close()
        if self._sock is not None:
            self._sock.close()
        self._server = self._sock = None

    def close(self) -> None:
        """Release, and take nothing any more."""
        self._closed = True
        self.release()


class ControlSocket:
    """Serves the commands. Runs on the event loop and never waits for its peer."""

    def __init__(self, unix: UnixSocket, listener: PublicListener) -> None:
        self._unix = unix
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._unread: set[socket.socket] = set()
        unix.sock.setblocking(False)
        unix.sock.listen(control.BACKLOG)
        self._loop.add_reader(unix.sock, self._accept)

    def _accept(self) -> None:
        if peer := control.meet(self._unix.sock):
            self._unread.add(peer)
            self._loop.add_reader(peer, self._read, peer)

    def _read(self, peer: socket.socket) -> None:
        self._loop.remove_reader(peer)
        self._unread.discard(peer)
        control.converse(peer, self._listener)

    def close(self) -> None:
        """Take no more commands and remove the socket's file."""
        self._loop.remove_reader(self._unix.sock)
        for peer in self._unread:
            self._loop.remove_reader(peer)
            peer.close()
        self._unix.close()
