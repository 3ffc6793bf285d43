"""Accepts connections and hands each to one worker; takes the public socket over and passes it on.

Used by the supervisor alone, on its selector: every descriptor registered there has the function that is called when
it can be read. The control socket speaks the same protocol as that of a process without workers, see `handover`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from mlopsnb.serving.errors import CannotListen
from mlopsnb.serving.listen import BACKLOG, inherit_tcp

if TYPE_CHECKING:
    from mlopsnb.serving.listen import Sockets

_AT_ONCE = 64
_log = logging.getLogger("mlopsnb.serving")


class Taker(Protocol):
    """A worker that takes connections."""

    @property
    def load(self) -> tuple[float, float]:
        """What speaks against giving it the next one: those that it has not taken up yet, then those it has open."""

    def hand(self, connection: socket.socket) -> bool:
        """Give it *connection*, which is its own from now on. False if it cannot take one now."""


class Dispatcher:
    """The sockets of one server. Connections that no worker can take now wait, and no others are accepted."""

    def __init__(
        self,
        sockets: Sockets,
        selector: selectors.BaseSelector,
        takers: Callable[[], Iterable[Taker]],
    ) -> None:
        self._sockets = sockets
        self._selector = selector
        self._takers = takers
        self._public = sockets.public
        self._opened = False
        self._accepting: set[socket.socket] = set()
        self._waiting: deque[socket.socket] = deque()
        self._failed = False
        self._told = False

    @property
    def waits(self) -> bool:
        """Whether a client waits that no worker could take, or that could not be accepted: call `resume` soon."""
        return self._failed or bool(self._waiting)

    def open(self) -> None:
        """Listen on all that there is. Raises `CannotListen` if an address was taken meanwhile."""
        self._opened = True
        for sock in self._listeners():
            try:
                sock.listen(BACKLOG)
            except OSError as exc:
                raise CannotListen(f"cannot listen on {self._sockets.url}: {exc.strerror or exc}") from exc
            sock.setblocking(False)
        if self._sockets.control is not None:
            control = self._sockets.control.sock
            control.listen(16)
            control.setblocking(False)
            self._selector.register(control, selectors.EVENT_READ, partial(self._meet, control))
        self.resume()

    def _listeners(self) -> list[socket.socket]:
        private = self._sockets.private
        return [s for s in (self._public, private.sock if private else None) if s is not None]

    def resume(self) -> None:
        """Hand out who waits; accept again if nobody waits any more."""
        self._failed = False
        while self._waiting:
            if not self._hand(self._waiting[0]):
                return
            self._waiting.popleft()
        if self._opened and any(True for _ in self._takers()):
            for sock in self._listeners():
                if sock not in self._accepting:
                    self._accepting.add(sock)
                    self._selector.register(sock, selectors.EVENT_READ, partial(self._accept, sock))

    def pause(self) -> None:
        """Accept nobody for now; the kernel's queue keeps them."""
        for sock in self._accepting:
            self._selector.unregister(sock)
        self._accepting.clear()

    def _accept(self, listener: socket.socket, most: int = _AT_ONCE) -> bool:
        """Accept and hand out up to *most* connections; say whether there may be more."""
        for _ in range(most):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return False
            except OSError as exc:
                if exc.errno not in (errno.ECONNABORTED, errno.EPROTO, errno.EINTR):
                    if not self._told:  # once until it goes on
                        _log.warning("no connection can be accepted now: %s", exc)
                    self._failed = self._told = True
                    self.pause()
                    return False
                continue
            self._told = False
            if not self._hand(connection):
                self._waiting.append(connection)
                self.pause()
                return False
        return True

    def again(self, connections: Iterable[socket.socket]) -> None:
        """Hand out *connections* that a worker was given but did not take before it ended."""
        self._waiting.extend(connections)
        self.resume()

    def _hand(self, connection: socket.socket) -> bool:
        takers = sorted(self._takers(), key=lambda taker: taker.load)
        return any(taker.hand(connection) for taker in takers)

    def drain(self) -> None:
        """Hand out who waits in the queues, and close the sockets: from now on nobody comes."""
        for sock in self._listeners() if self._accepting else []:
            while self._accept(sock):
                pass
        self.resume()
        self.pause()
        self._opened = False
        for connection in self._waiting:
            connection.close()
        self.release()
        if self._sockets.control is not None:
            with contextlib.suppress(KeyError):  # never opened
                self._selector.unregister(self._sockets.control.sock)
        self._sockets.close()

    def release(self) -> None:
        """Stop accepting from the public socket, by closing our copy alone."""
        if self._public is None:
            return
        if self._public in self._accepting:
            self._accepting.remove(self._public)
            self._selector.unregister(self._public)
        self._public.close()
        self._public = None

    def take(self, sock: socket.socket) -> bool:
        """Accept from *sock*, which is ours from now on. False, and closed, if there is a public one already."""
        if self._public is not None or not self._opened:
            sock.close()
            return False
        sock.listen(BACKLOG)
        sock.setblocking(False)
        self._public = sock
        self.resume()
        return True

    def forget(self) -> None:
        """Close our copies of all sockets, in a worker that was just forked; the supervisor has its own."""
        for sock in (*self._listeners(), *self._waiting):
            sock.close()
        if self._sockets.control is not None:
            self._sockets.control.sock.close()

    def _meet(self, control: socket.socket) -> None:
        try:
            peer, _ = control.accept()
        except OSError as exc:  # gone again, or out of descriptors
            _log.warning("control socket: %s", exc)
            return
        peer.setblocking(False)
        self._selector.register(peer, selectors.EVENT_READ, partial(self._answer, peer))

    def _answer(self, peer: socket.socket) -> None:
        """Carry out the one command that *peer* has, see `handover`."""
        self._selector.unregister(peer)
        fds: list[int] = []
        try:
            command, fds, _, _ = socket.recv_fds(peer, 1, 4)
            if command == b"T" and len(fds) == 1:
                peer.send(b"ok" if self._take(fds.pop()) else b"no")
            elif command == b"G" and self._public is not None:
                socket.send_fds(peer, [b"ok"], [self._public.fileno()])
            elif command == b"R":
                self.release()
                peer.send(b"ok")
            elif command:
                peer.send(b"no")
        except OSError as exc:
            _log.warning("control socket: %s", exc)
        finally:
            for fd in fds:
                os.close(fd)
            peer.close()

    def _take(self, fd: int) -> bool:
        try:
            sock = inherit_tcp(fd)
        except CannotListen as exc:
            os.close(fd)
            _log.warning("control socket: %s", exc)
            return False
        return self.take(sock)
