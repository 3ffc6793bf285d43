"""One port before several servers: connections are passed on, so the port stays while the servers behind it change.

    python -m mlopsnb.serving.gateway --port 8080 --state /var/lib/mlopsnb

Works on connections and knows nothing of what goes over them, so HTTP, gRPC and TLS pass alike. Each connection goes to
one of the routes by smooth weighted round robin (as nginx has it), and to one of that route's servers in turn. A server
that does not take a connection is passed over, and tried again a second later. A connection that gets no byte of an
answer before its server is lost goes to another one, with what the client has sent so far: models answer, and change
nothing, so a request may be made twice. While no server takes connections, clients wait, for some seconds.

The routes are in the file `state.json` of the state directory, `{"routes": [{"weight": 90, "servers": ["a:8080"]}]}`; what
else it holds is kept for whoever wrote it. To change it, write `incoming.json` there and send SIGHUP: the gateway takes
the new routes, then the file becomes `state.json`, which says that it is done. A file that cannot be read becomes
`refused.json`. Connections that are open stay where they are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE, INCOMING, REFUSED = "state.json", "incoming.json", "refused.json"
HOLD_SECONDS = 15.0
"""How long a client waits while no server takes its connection."""

_CONNECT_SECONDS = 1.0
_PASSED_OVER_SECONDS = 1.0
_AGAIN_SECONDS = 0.05
_ADDRESS_SECONDS = 2.0
_MOST_KEPT = 1 << 20
"""Bytes of a client that are kept to be sent again; of longer requests nothing is."""

_MOST_MOVES = 2
"""To how many more servers a client may go: a request that ends a server shall not end them all."""

_HALF_OPEN_SECONDS = 30.0
_END_SECONDS = 10.0
_log = logging.getLogger("mlopsnb.gateway")


@dataclass(slots=True)
class Server:
    """A server, by the name or address and the port at which it listens."""

    host: str
    port: int
    lost: float = float("-inf")
    """When it last did not take a connection."""

    _found: str = ""
    _looked: float = float("-inf")

    @property
    def is_passed_over(self) -> bool:
        """Say whether it has just not taken a connection."""
        return time.monotonic() - self.lost < _PASSED_OVER_SECONDS

    async def address(self) -> str:
        """Return its address. Looked up every now and then: one that was started anew may have another."""
        if time.monotonic() - self._looked > _ADDRESS_SECONDS:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            self._found, self._looked = str(found[0][4][0]), time.monotonic()
        return self._found

    def note_lost(self) -> None:
        """Pass it over for a while, and look up its address again."""
        self.lost = time.monotonic()
        self._looked = float("-inf")


@dataclass(slots=True)
class Route:
    """Servers that share *weight* evenly."""

    weight: int
    servers: list[Server]
    current: int = 0
    turn: int = 0

    def next(self) -> Server:
        """Return the server whose turn it is; those that are passed over come when there is no other."""
        usable = [server for server in self.servers if not server.is_passed_over] or self.servers
        self.turn += 1
        return usable[self.turn % len(usable)]


@dataclass(slots=True)
class Routes:
    """Who gets the next connection."""

    routes: list[Route] = field(default_factory=list)

    @classmethod
    def read(cls, data: Any, known: Routes) -> Routes:
        """Return the routes that *data* describes; ValueError, TypeError or KeyError if it describes none.

        What is *known* of servers that stay is kept.
        """
        servers = {(s.host, s.port): s for route in known.routes for s in route.servers}
        routes = []
        for described in data["routes"]:
            weight = described["weight"]
            if type(weight) is not int or weight < 0:
                raise ValueError(f"{weight!r} is no weight")
            places = [_place(text) for text in described["servers"]]
            routes.append(Route(weight, [servers.get(place) or Server(*place) for place in places]))
        return cls([route for route in routes if route.weight and route.servers])

    def next(self) -> Server | None:
        """Return the server for the next connection; None if there is no route."""
        usable = [r for r in self.routes if not all(s.is_passed_over for s in r.servers)] or self.routes
        if not usable:
            return None
        for route in usable:
            route.current += route.weight
        chosen = max(usable, key=lambda route: route.current)
        chosen.current -= sum(route.weight for route in usable)
        return chosen.next()


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no HOST:PORT")
    return host, int(port)


class _Side(asyncio.Protocol):
    """One of the two connections that are one for the client; what comes goes to the *other*."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.other: _Side | None = None
        self.ended = False
        """Whether whoever is there has said that no more comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note who it is."""
        self.transport = transport

    def pause_writing(self) -> None:
        """Take no more of what it cannot pass on."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def send(self, data: bytes) -> None:
        """Pass *data* on to whoever is at the end of this connection."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def send_end(self) -> None:
        """Say that no more comes; answers may still."""
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()


class _ToServer(_Side):
    """The connection to a server."""

    def __init__(self, client: _Client) -> None:
        super().__init__()
        self.other: _Client = client

    def data_received(self, data: bytes) -> None:
        """Pass the answer on."""
        self.other.answered()
        self.other.send(data)

    def eof_received(self) -> bool:
        """Pass the end on, unless the client had no answer and another server may give one."""
        if self.other.may_go_elsewhere:
            return False
        self.ended = True
        self.other.send_end()
        if self.other.ended:
            self.other.transport.close()
            return False
        asyncio.get_running_loop().call_later(_HALF_OPEN_SECONDS, self.transport.close)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the client go, or find it another server."""
        self.other.server_lost(self, exc)


class _Client(_Side):
    """The connection of a client."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway
        self._kept: list[bytes] | None = []
        self._size = self._moves = 0
        self._gone = False
        self._search: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look for a server at once: of some protocols the server speaks first."""
        super().connection_made(transport)
        self._gateway.clients.add(self)
        self._find_server()

    def data_received(self, data: bytes) -> None:
        """Pass the request on, and keep it as long as it is not answered."""
        if self._kept is not None:
            self._kept.append(data)
            self._size += len(data)
            if self._size > _MOST_KEPT:
                if self.other is None:
                    self.transport.pause_reading()
                else:
                    self._kept = None
        if self.other is not None:
            self.other.send(data)

    def eof_received(self) -> bool:
        """Pass the end on."""
        self.ended = True
        if self.other is not None:
            self.other.send_end()
            if self.other.ended:
                self.other.transport.close()
                return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the server go."""
        self._gone = True
        self._gateway.clients.discard(self)
        if self._search is not None:
            self._search.cancel()
        if self.other is not None:
            (self.other.transport.abort if exc else self.other.transport.close)()

    @property
    def may_go_elsewhere(self) -> bool:
        """Say whether nothing was answered yet and all that was asked is known."""
        return self._kept is not None and self._moves < _MOST_MOVES and not self._gone

    def answered(self) -> None:
        """Note that it belongs to this server from now on."""
        self._kept = None

    def server_lost(self, server: _ToServer, exc: Exception | None) -> None:
        """Go to another server if that is possible; else end as the server did."""
        if self.other is not server or self._gone:
            return
        self.other = None
        if self.may_go_elsewhere:
            self._moves += 1
            self._find_server()
        else:
            (self.transport.abort if exc else self.transport.close)()

    def _find_server(self) -> None:
        self._search = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + HOLD_SECONDS
        while loop.time() < end:
            server = self._gateway.routes.next()
            if server is not None and await self._reach(server):
                return
            await asyncio.sleep(_AGAIN_SECONDS if self._gateway.has_nobody() else 0)
        _log.warning("a connection was closed: no server took it for %g s", HOLD_SECONDS)
        self.transport.close()

    async def _reach(self, server: Server) -> bool:
        """Connect to *server* and hand it what the client has said; False if it does not take the connection."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                address = await server.address()
                _, side = await loop.create_connection(lambda: _ToServer(self), address, server.port)
        except (OSError, TimeoutError):
            server.note_lost()
            return False
        if side.transport.is_closing():
            return False
        self.other = side
        for data in self._kept or ():
            side.send(data)
        if self.ended:
            side.send_end()
        if self._size > _MOST_KEPT:
            self._kept = None
        self.transport.resume_reading()
        return True


class Gateway:
    """Passes connections on by the routes in *state*, a directory."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.routes = Routes()
        self.clients: set[_Client] = set()
        self._ending = asyncio.Event()

    def has_nobody(self) -> bool:
        """Say whether all servers are passed over, or there are none."""
        return all(server.is_passed_over for route in self.routes.routes for server in route.servers)

    def take(self) -> None:
        """Take the routes that have come in."""
        incoming = self._state / INCOMING
        if incoming.exists():
            incoming.replace(self._state / (STATE if self._load(incoming) else REFUSED))

    def _load(self, path: Path) -> bool:
        """Go by the routes in *path* from now on; False if it cannot be read, and then nothing changes."""
        try:
            self.routes = Routes.read(json.loads(path.read_bytes()), self.routes)
        except (OSError, ValueError, TypeError, KeyError) as exc:
            _log.error("the routes in %s cannot be read: %r", path.name, exc)
            return False
        told = (
            f"{r.weight} to {', '.join(f'{s.host}:{s.port}' for s in r.servers)}" for r in self.routes.routes
        )
        _log.info("routes: %s", "; ".join(told) or "none")
        return True

    async def run(self, port: int) -> None:
        """Serve until SIGTERM or SIGINT, then until the connections have ended, for some seconds."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.take)
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        loop.add_signal_handler(signal.SIGINT, self._ending.set)
        if (kept := self._state / STATE).exists():
            self._load(kept)
        self.take()
        listener = await loop.create_server(lambda: _Client(self), None, port, backlog=1024)
        _log.info("listening on port %d", port)
        await self._ending.wait()
        listener.close()
        end = loop.time() + _END_SECONDS
        while self.clients and loop.time() < end:
            await asyncio.sleep(_AGAIN_SECONDS)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not there for every platform; asyncio's own loop does
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the gateway."""
    parser = argparse.ArgumentParser(
        prog="python -m mlopsnb.serving.gateway", description="Pass connections on."
    )
    parser.add_argument("--port", type=int, required=True, help="where clients connect")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where the routes are")
    asked = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_run(asked))


async def _run(asked: argparse.Namespace) -> None:
    await Gateway(asked.state).run(asked.port)


if __name__ == "__main__":
    main()
