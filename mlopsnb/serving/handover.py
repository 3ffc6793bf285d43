"""Passes the public listening socket from process to process, so that no connection is refused or lost.

The old and the new process share one kernel socket. Connections wait in its queue, which lives as long as any
process holds it; so each process only ever closes its own copies, and never shuts the socket down.

The control socket takes one command a connection, one byte, and answers `ok` or `no`:

* `G` give: the answer carries the public socket's descriptor (`no` if there is none)
* `T` take: comes with a descriptor; from now on connections are accepted on it
* `R` release: no more connections are accepted; those that are open live on
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from mlopsnb.serving.errors import CannotListen
from mlopsnb.serving.listen import UnixSocket, inherit_tcp

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

    @property
    def sock(self) -> socket.socket | None:
        """The socket, to be shared with another process; it stays ours."""
        return self._sock

    async def take(self, sock: socket.socket) -> bool:
        """Accept connections on *sock*, which is ours from now on. False, and closed, if there is one already."""
        if self._sock is not None or self._closed:
            sock.close()
            return False
        self._sock = sock
        copy = sock.dup()  # the event loop closes what it is given
        try:
            server = await self._listen(copy)
        except OSError:
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
        self._open: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        unix.sock.setblocking(False)
        unix.sock.listen(16)
        self._loop.add_reader(unix.sock, self._accept)

    def _accept(self) -> None:
        try:
            peer, _ = self._unix.sock.accept()
        except OSError as exc:  # gone again, or out of descriptors
            _log.warning("control socket: %s", exc)
            return
        peer.setblocking(False)
        self._open.add(peer)
        self._loop.add_reader(peer, self._read, peer)

    def _read(self, peer: socket.socket) -> None:
        self._loop.remove_reader(peer)
        try:
            command, fds, _, _ = socket.recv_fds(peer, 1, 4)
        except OSError as exc:
            _log.warning("control socket: %s", exc)
            command, fds = b"", []
        task = self._loop.create_task(self._answer(peer, command, fds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, peer: socket.socket, command: bytes, fds: list[int]) -> None:
        try:
            if command == b"T" and len(fds) == 1:
                taken = await self._take(fds.pop())
                peer.send(b"ok" if taken else b"no")
            elif command == b"G" and self._listener.sock is not None:
                socket.send_fds(peer, [b"ok"], [self._listener.sock.fileno()])
            elif command == b"R":
                self._listener.release()
                peer.send(b"ok")
            elif command:
                peer.send(b"no")
        except OSError as exc:
            _log.warning("control socket: %s", exc)
        finally:
            for fd in fds:
                os.close(fd)
            self._open.discard(peer)
            peer.close()

    async def _take(self, fd: int) -> bool:
        try:
            sock = inherit_tcp(fd)
        except CannotListen as exc:
            os.close(fd)
            _log.warning("control socket: %s", exc)
            return False
        try:
            return await self._listener.take(sock)
        except OSError as exc:
            _log.warning("control socket: %s", exc)
            return False

    def close(self) -> None:
        """Take no more commands and remove the socket's file."""
        self._loop.remove_reader(self._unix.sock)
        for peer in self._open:
            self._loop.remove_reader(peer)
            peer.close()
        self._unix.close()
