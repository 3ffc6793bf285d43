"""What one connection may cost: how many there are, how long each may take for its part, how much it may send.

One look over all of them a second takes the place of a timer for every request. What they owe is told by the state
of uvicorn's protocol, of which `Connection` is a subclass; what is said to clients is the app's.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlopsnb.serving.errors import stack
from mlopsnb.serving.routes import Reply, plain_error

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from mlopsnb.serving.app import App

HEAD_BYTES = 64 << 10
HEAD_FIELDS = 100
BYTES_PER_SECOND = 500
"""What a client has to send or take to be given more time, as in Apache's mod_reqtimeout."""

RESERVED_FILES = 128
"""Descriptors that are no connections: libraries, the model's files, clients that are being turned away."""

_MOST_CONNECTIONS = 16_384
_MOST_TURNED_AWAY = 64
_TURNED_AWAY_SECONDS = 1.0
_SLICE = 512
IDLE, HEAD, BODY = range(3)
"""Where the parser is: between two messages, in the head of one, or in its body."""

State = Literal["busy", "new", "idle", "head", "body", "write", "closing"]
_log = logging.getLogger("mlopsnb.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections there may be, and the seconds that a client may take for its part.

    `head` is for the head of a request, from its first byte or from the connection on; `body` for its body, and a
    second more for each `BYTES_PER_SECOND` that come; `write` for taking an answer, counted the same way; `idle`
    between two requests.
    """

    connections: int = 1024
    head: float = 10.0
    body: float = 20.0
    write: float = 30.0
    idle: float = 75.0

    @property
    def interval(self) -> float:
        """How often to look at the connections, so that none has much more time than it should."""
        return min(1.0, self.head / 4, self.body / 4, self.write / 4, self.idle / 4)


def most_connections(shares: int = 1) -> int:
    """Return how many connections the process can hold, by its limit of open files, if *shares* listeners share it."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else (files - RESERVED_FILES) // shares
    return max(1, min(free, _MOST_CONNECTIONS))


def unasked(
    app: App,
    server: ServerState,
    status: int,
    message: str,
    *,
    log: bool,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """Return, as it goes over the wire, the answer to what is no whole request. The connection ends with it."""
    reply = Reply(status, plain_error(status, message), headers=((b"connection", b"close"), *headers))
    parts = [STATUS_LINE[status]]
    for name, value in (*server.default_headers, *app.unreadable(reply, log=log)):
        parts += (name, b": ", value, b"\r\n")
    return b"".join((*parts, b"\r\n", reply.body))


class Refusal(Exception):
    """What has come so far is refused; raised through the parser."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Door:
    """Counts the connections and lets in no more than *most*."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0
        self.turned_away: set[TurnedAway] = set()
        self._told = False

    def enter(self) -> bool:
        """Count one more, or say that there is no room."""
        if self.inside >= self.most:
            if not self._told:
                self._told = True
                _log.warning("there are %d connections, the limit; more are turned away", self.most)
            return False
        self.inside += 1
        return True

    def leave(self) -> None:
        """Count one less."""
        self.inside -= 1
        self._told = self._told and self.inside * 2 > self.most


class _NoTrailers(list[tuple[bytes, bytes]]):
    """In the place of the headers once the head is whole: what comes behind the body is not kept."""

    def append(self, item: object) -> None:
        """Keep nothing."""


_NO_TRAILERS = _NoTrailers()


class _CycleTransport:
    """The transport as an ASGI cycle has it: to close it is to part from the client."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.part


class _Parting(asyncio.Protocol):
    """In the place of *connection*, which has given its last answer: drops what the client still sends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def pause_writing(self) -> None:
        """Tell the connection."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Tell the connection."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection."""
        self._connection.connection_lost(exc)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds. Made for one app; `seen` is what `Watch` saw last."""

    app_: App
    door: Door
    phase = IDLE
    received = 0
    chunk = 0
    mark = 0
    seen: Seen | None = None
    parting = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Count one less."""
        super().connection_lost(exc)
        self.door.leave()

    def data_received(self, data: bytes) -> None:
        """Parse *data*, as uvicorn does, but without its timer for each request, and with bounds.

        The parser keeps a header until it is whole and uvicorn keeps all of them, however large; only what the
        body brings is taken out. So what comes without bringing any is counted.
        """
        self.chunk = len(data)
        self.received += self.chunk
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as exc:  # we go on in the protocol that we speak
                data = data[exc.args[0] :]
            except httptools.HttpParserError as exc:
                self._refuse_because(exc)
                return
        if self.received - self.mark > HEAD_BYTES and self.phase != IDLE:
            self.refuse(431, f"the head of the request is larger than {HEAD_BYTES} bytes")

    def _refuse_because(self, exc: httptools.HttpParserError) -> None:
        cause = exc.__context__
        if isinstance(cause, Refusal):
            self.refuse(cause.status, cause.message)
            return
        known = cause is None or isinstance(cause, httptools.HttpParserError | UnicodeError)
        if not known:
            _log.error("a request could not be taken in\n%s", stack(cause))
        self.refuse(400 if known else 500, "the request is not HTTP/1.1" if known else "internal error")

    def on_message_begin(self) -> None:
        """Begin to count the head."""
        self.phase = HEAD
        self.mark = self.received
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the head before anything is done for it."""
        self.check_head()
        super().on_headers_complete()
        self.cycle.transport = _CycleTransport(self)  # type: ignore[assignment]
        self.phase = BODY
        self.mark = self.received
        self.headers = _NO_TRAILERS

    def check_head(self) -> None:
        """Raise `Refusal` if the head is too large or asks for what its body would be lost by."""
        fields = self.headers
        if len(fields) > HEAD_FIELDS:
            raise Refusal(431, f"the request has {len(fields)} headers; at most {HEAD_FIELDS} are taken")
        if self.chunk > HEAD_BYTES or self.received > self.mark:  # else it cannot be
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in fields)
            if size > HEAD_BYTES:
                raise Refusal(431, f"the head of the request is larger than {HEAD_BYTES} bytes")
        if self.parser.get_method() == b"CONNECT":
            raise Refusal(400, "this server is no proxy")
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in fields
        ):  # the parser takes the body for the other protocol's
            raise Refusal(400, "this server speaks HTTP/1.1 alone; send the request without upgrade")

    def on_body(self, body: bytes) -> None:
        """Note that the body goes on."""
        self.mark = self.received
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the message is whole."""
        self.phase = IDLE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with what waits behind the request. `Watch` ends a connection that stays idle, no timer."""
        self.server_state.total_requests += 1
        if self.parting or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def refuse(self, status: int, message: str) -> None:
        """Answer what cannot be read any further, unless earlier requests wait for their answers, and close."""
        cycle: Any = self.cycle
        pending = cycle is not None and not cycle.response_complete
        if self.pipeline or (pending and self.phase != BODY):
            cycle.keep_alive = False  # the answers that are owed go, then the connection ends
            self.flow.pause_reading()
            return
        answered = self.phase == BODY and (not pending or cycle.response_started)
        if not answered and not self.transport.is_closing():
            self.transport.write(unasked(self.app_, self.server_state, status, message, log=not pending))
        self.part()

    def part(self) -> None:
        """Close, now that the last answer was given; while a request still comes in, our side alone.

        Bytes that are unread at a close reset the connection, which takes the answer from a client that sends its
        whole body before it looks (RFC 9112, section 9.6). If the client does not close in its turn, `Watch` does.
        """
        if self.phase == IDLE or self.parting or self.transport.is_closing():
            self.transport.close()
            return
        self.parting = True
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:  # whoever waits for the rest of the request
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.set_protocol(_Parting(self))
        if self.transport.can_write_eof():  # not with TLS
            self.transport.write_eof()
        self.flow.resume_reading()

    @property
    def state(self) -> State:
        """What the connection waits for: us (busy), or its client."""
        cycle: Any = self.cycle  # None before the first request
        pending = cycle is not None and not cycle.response_complete
        if self.transport.get_write_buffer_size():
            return "write"
        if self.parting or self.transport.is_closing():
            return "closing"
        if self.pipeline or (pending and self.phase != BODY):
            return "busy"
        if self.phase != IDLE:
            return "head" if self.phase == HEAD else "body"
        return "idle" if cycle is not None else "new"


@dataclass(slots=True)
class Seen:
    """A state in which a connection was seen, since when, and how many bytes had gone or come then."""

    state: State
    cycle: object
    since: float
    amount: int


class Watch:
    """Looks at the connections and ends those whose client takes too long for its part."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits

    async def look(self, connections: Iterable[Any], now: float) -> None:
        """Look at each of *connections* at the time *now*; requests have their turn in between."""
        for number, connection in enumerate(list(connections), start=1):
            if isinstance(connection, Connection):
                self._check(connection, now)
            if not number % _SLICE:
                await asyncio.sleep(0)

    def _check(self, connection: Connection, now: float) -> None:
        state = connection.state
        sending = state == "write"
        amount = connection.transport.get_write_buffer_size() if sending else connection.received
        seen = connection.seen
        if seen is None or seen.state != state or seen.cycle is not connection.cycle:
            connection.seen = Seen(state, connection.cycle, now, amount)
            return
        moved = max(0, seen.amount - amount if sending else amount - seen.amount)
        if now - seen.since >= self._allowed(state, moved):
            self._end(connection, state)

    def _allowed(self, state: State, moved: int) -> float:
        """Return the seconds that a client may be in *state*, of which it has moved so many bytes."""
        limits = self._limits
        match state:
            case "busy":
                return float("inf")
            case "idle":
                return limits.idle
            case "new" | "head" | "closing":
                return limits.head
            case "body":
                return limits.body + moved / BYTES_PER_SECOND
            case "write":
                return limits.write + moved / BYTES_PER_SECOND

    def _end(self, connection: Connection, state: State) -> None:
        match state:
            case "head" | "body":
                message = (
                    f"the head of the request was not whole after {self._limits.head:g} s"
                    if state == "head"
                    else f"the body of the request came too slowly, {self._limits.body:g} s and more"
                )
                connection.refuse(408, message)
                connection.transport.close()  # it had its time
            case "write" | "closing":
                connection.transport.abort()
            case _:
                connection.transport.close()


class TurnedAway(asyncio.Protocol):
    """A connection for which there is no room. Is told so, if there are not too many such."""

    def __init__(self, door: Door, answer: bytes) -> None:
        self._now = door.turned_away
        self._answer = answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Answer before anything was asked, and wait a moment until that is read."""
        if len(self._now) >= _MOST_TURNED_AWAY:
            transport.abort()
            return
        self._now.add(self)
        transport.write(self._answer)
        transport.write_eof()  # with close, what the client sends meanwhile would reset the connection
        self._timer = asyncio.get_running_loop().call_later(_TURNED_AWAY_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for the next."""
        if self in self._now:
            self._now.discard(self)
            self._timer.cancel()
