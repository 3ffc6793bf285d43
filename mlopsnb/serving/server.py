"""The life of the serving process, on uvicorn: listen, say that it is ready, serve, drain, end.

uvicorn parses HTTP and keeps connections; which sockets there are and how the process ends is decided here.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlopsnb.serving import connections, fastlane
from mlopsnb.serving.connections import Connection, ConnectionLimits, Door, TurnedAway, Watch
from mlopsnb.serving.errors import CannotListen
from mlopsnb.serving.handover import Accepting, ControlSocket, PublicListener
from mlopsnb.serving.listen import BACKLOG, Sockets
from mlopsnb.serving.tls import Acceptor, Tls

if TYPE_CHECKING:
    from mlopsnb.serving.app import App
    from mlopsnb.serving.rpc.server import GrpcServer

_TICK = 0.02
_FLUSH_SECONDS = 5.0


class Server(uvicorn.Server):
    """Serves *app* until SIGTERM or SIGINT, then drains; a second signal ends the process at once.

    Draining: not ready; no new connections; every answer says `connection: close`; connections that are open
    may send one more request within *drain_seconds*; requests that have arrived whole are answered. SIGINT
    says that nobody takes over, so there is nobody to wait for: connections without a request close at once.

    gRPC's port is closed when the public socket is released; if *grpc_waits* it is opened when that is taken.
    """

    def __init__(
        self,
        app: App,
        sockets: Sockets,
        *,
        drain_seconds: float,
        on_ready: Callable[[], None],
        grpc: GrpcServer | None = None,
        grpc_waits: bool = False,
        limits: ConnectionLimits | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._limits = limits or ConnectionLimits()
        config = uvicorn.Config(
            app,
            interface="asgi3",
            http=HttpToolsProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(self._limits.idle),
        )
        super().__init__(config)
        self._app = app
        self._sockets = sockets
        self._drain_seconds = drain_seconds
        self._on_ready = on_ready
        self._grpc = grpc
        self._grpc_waits = grpc_waits
        self._grpc_is_open = False
        self._grpc_end: asyncio.Task[None] | None = None
        self._tls = tls
        self._door = Door(self._limits.connections)
        self._watch = Watch(self._limits)
        self._watched = 0.0
        self._protocol = fastlane.protocol(app, self._door)
        self._listener = PublicListener(self._accept)
        self._control: ControlSocket | None = None
        self._private: asyncio.Server | None = None

    def _make_protocol(self) -> asyncio.Protocol:
        return self._protocol(config=self.config, server_state=self.server_state, app_state={})

    def _make_private(self) -> asyncio.Protocol:
        self._door.inside += 1  # whoever owns the server is never turned away
        return self._make_protocol()

    def _make_public(self) -> asyncio.Protocol:
        return self._make_protocol() if self._door.enter() else TurnedAway(self._door, self._full())

    async def _accept(self, sock: socket.socket) -> Accepting:
        await self._open_grpc()
        self._app.stay()
        return _Together(await self._accept_http(sock), self._leave)

    def _leave(self) -> None:
        """The public socket is another's now: who has a connection to us is sent there with the next answer."""
        self._close_grpc()
        self._app.part()

    async def _accept_http(self, sock: socket.socket) -> Accepting:
        if self._tls is not None:
            return Acceptor(sock, self._tls, self._make_protocol, door=self._door, seconds=self._limits.head)
        loop = asyncio.get_running_loop()
        return await loop.create_server(self._make_public, sock=sock, backlog=BACKLOG)

    async def _open_grpc(self) -> None:
        """Let gRPC's clients in, if they are not. Raises `CannotListen` if its port is taken."""
        if self._grpc is not None and not self._grpc_is_open:
            self._grpc_is_open = True
            try:
                await self._grpc.start()
            except CannotListen:
                self._grpc_is_open = False
                raise

    def _close_grpc(self) -> None:
        """Take no more calls of gRPC; those in work are answered."""
        if self._grpc is not None and self._grpc_is_open:
            self._grpc_is_open = False
            self._grpc_end = asyncio.get_running_loop().create_task(self._grpc.stop())

    def _full(self) -> bytes:
        message = f"the server has {self._door.most} connections, its limit; try again in a second"
        retry = ((b"retry-after", b"1"),)
        return connections.unasked(self._app, self.server_state, 503, message, log=False, headers=retry)

    async def on_tick(self, counter: int) -> bool:
        """Look after connections and files while serving; uvicorn calls this ten times a second."""
        now = asyncio.get_running_loop().time()
        if now - self._watched >= self._limits.interval:
            self._watched = now
            await self._watch.look(self.server_state.connections, now)
        if not counter % 10:
            self._refresh()
        return await super().on_tick(counter)

    def _refresh(self) -> None:
        """Let the app do what is due, and follow the files of tokens and TLS."""
        self._app.tick()
        if self._app.tokens is not None and self._app.tokens.refresh():
            fastlane.forget_heads(self._protocol)
        if self._tls is not None:
            self._tls.refresh()

    def run_until_stopped(self) -> None:
        """Serve on the fastest event loop there is. Raises `CannotListen` if an address was taken meanwhile."""
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self.serve())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and report that we do."""
        if not self._grpc_waits:  # first, as nothing is open yet if its port is taken
            await self._open_grpc()
        try:
            await self._listen()
        except OSError as exc:
            raise CannotListen(f"cannot listen on {self._sockets.url}: {exc.strerror or exc}") from exc
        self.started = True
        self._on_ready()

    async def _listen(self) -> None:
        if self._sockets.private is not None:
            self._private = await asyncio.get_running_loop().create_unix_server(
                self._make_private, sock=self._sockets.private.sock, backlog=BACKLOG
            )
        if self._sockets.public is not None:
            await self._listener.open(self._sockets.public)
        if self._sockets.control is not None:
            self._control = ControlSocket(self._sockets.control, self._listener)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal; at the second, end here and now."""
        if self.should_exit:
            os._exit(128 + sig)
        if sig == signal.SIGINT:
            self._drain_seconds = 0.0
        self._app.drain()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain and close, as the class says."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(_TICK)  # whoever waits in the queues is let in
        self._listener.close()
        if self._control is not None:
            self._control.close()
        if self._private is not None:
            self._private.close()
        deadline = loop.time() + self._drain_seconds
        self._close_grpc()
        if self._grpc_end is not None:
            await self._grpc_end
        while self._is_awaited() and loop.time() < deadline:
            await asyncio.sleep(_TICK)
        while self.server_state.connections or self.server_state.tasks:
            self._close_idle(abort=loop.time() > deadline + _FLUSH_SECONDS)
            await asyncio.sleep(_TICK)
        self._app.flush()

    def _is_awaited(self) -> bool:
        """Say whether there is a client that had no last answer yet."""
        connections = self.server_state.connections
        return any(not (isinstance(c, Connection) and c.parting) for c in connections)

    def _close_idle(self, *, abort: bool) -> None:
        """Close the connections that owe no answer: none was asked for, or the request is not whole yet.

        With *abort*, give up those that are closed already and whose client does not read the rest.
        """
        for connection in list(self.server_state.connections):
            assert isinstance(connection, HttpToolsProtocol)
            cycle = connection.cycle
            if cycle is None or cycle.response_complete or cycle.more_body:
                (connection.transport.abort if abort else connection.transport.close)()


class _Together:
    """Accepts as *accepting* does; with its end comes what *also* does."""

    def __init__(self, accepting: Accepting, also: Callable[[], None]) -> None:
        self._accepting = accepting
        self._also = also

    def close(self) -> None:
        """Accept no more."""
        self._accepting.close()
        self._also()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:  # not there for every platform; asyncio's own loop does
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
