"""Accepts connections and hands each to one worker; takes the public socket over and passes it on.

Used by the supervisor alone, on its selector: every descriptor registered there has the function that is called when
it can be read.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from mlopsnb.serving import control
from mlopsnb.serving.errors import CannotListen
from mlopsnb.serving.listen import BACKLOG

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


class Beside(Protocol):
    """What listens for itself, on a port of its own, while there is a public socket."""

    def begin(self, done: Callable[[bool], None]) -> None:
        """Listen; then call *done*, with False if that cannot be."""

    def end(self) -> None:
        """Listen no more."""


class Dispatcher:
    """The sockets of one server. Connections that no worker can take now wait, and no others are accepted."""

    def __init__(
        self,
        sockets: Sockets,
        selector: selectors.BaseSelector,
        takers: Callable[[], Iterable[Taker]],
        beside: Beside,
    ) -> None:
        self._sockets = sockets
        self._selector = selector
        self._takers = takers
        self._beside = beside
        self._public = sockets.public
        self._taking: socket.socket | None = None
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
            sock = self._sockets.control.sock
            sock.listen(control.BACKLOG)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, partial(self._meet, sock))
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
            if listener.fileno() < 0:  # given up by what was done just before, in the same round
                return False
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

    @property
    def public(self) -> socket.socket | None:
        """The public socket, to be shared with another process; it stays ours."""
        return self._public

    def release(self) -> None:
        """Stop accepting from the public socket, by closing our copy alone."""
        if self._taking is not None:
            self._taking.close()
            self._taking = None
        if self._public is not None:
            if self._public in self._accepting:
                self._accepting.remove(self._public)
                self._selector.unregister(self._public)
            self._public.close()
            self._public = None
        self._beside.end()

    def take(self, sock: socket.socket, done: Callable[[bool], None]) -> None:
        """Accept from *sock*, which is ours from now on, once what is beside it listens; see `control`."""
        if self._public is not None or self._taking is not None or not self._opened:
            sock.close()
            done(False)
            return
        self._taking = sock

        def begun(well: bool) -> None:
            if self._taking is not sock:  # released while we waited
                done(False)
                return
            if not well:
                self.release()
                done(False)
                return
            self._taking = None
            sock.listen(BACKLOG)
            sock.setblocking(False)
            self._public = sock
            self.resume()
            done(True)

        self._beside.begin(begun)

    def forget(self) -> None:
        """Close our copies of all sockets, in a worker that was just forked; the supervisor has its own."""
        taking = [self._taking] if self._taking is not None else []
        for sock in (*self._listeners(), *self._waiting, *taking):
            sock.close()
        if self._sockets.control is not None:
            self._sockets.control.sock.close()

    def _meet(self, sock: socket.socket) -> None:
        if peer := control.meet(sock):
            self._selector.register(peer, selectors.EVENT_READ, partial(self._converse, peer))

    def _converse(self, peer: socket.socket) -> None:
        self._selector.unregister(peer)
        control.converse(peer, self)
