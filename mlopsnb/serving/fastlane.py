"""The fast lane: predictions answered on the connection itself, without an ASGI task. Everything else stays ASGI.

A subclass of uvicorn's protocol. It takes a request only if that is plain: a POST to a prediction's path, with a
length within the limit, alone on its connection, and a client that reads its answers. What is said is the app's, so
that both lanes say the same, byte for byte. Where uvicorn is not built as we know it, there is no fast lane.

Clients send the same head again and again. What the parser has made of a head is kept, so that a request with that
very head, which comes in one piece, need not be parsed once more; its body, however it comes, goes past the parser.
"""

from __future__ import annotations

import inspect
import logging
import re
from typing import TYPE_CHECKING, NamedTuple

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlopsnb.serving.app import CLIENT_LEFT
from mlopsnb.serving.calls import begin
from mlopsnb.serving.connections import BODY, HEAD, HEAD_BYTES, HEAD_FIELDS, IDLE, Connection, Door
from mlopsnb.serving.routes import Reply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from mlopsnb.serving.app import App
    from mlopsnb.serving.routes import Route

_CALLBACKS = (
    "_start_asgi_task",
    "connection_lost",
    "data_received",
    "on_message_begin",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
)
_STATE = (
    "connections",
    "cycle",
    "cycle.disconnected",
    "expect_100_continue",
    "flow.pause_reading",
    "flow.resume_reading",
    "flow.write_paused",
    "headers",
    "parser.feed_data",
    "parser.get_http_version",
    "parser.get_method",
    "parser.should_keep_alive",
    "pipeline",
    "server_state.default_headers",
    "server_state.total_requests",
    "transport.is_closing",
    "transport.write",
    "url",
)
_ATTRIBUTES = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_ASIDE = frozenset((b"transfer-encoding", b"upgrade"))
_EACH_ITS_OWN = frozenset((b"x-request-id", b"traceparent"))
_HEAD_BYTES = 2048
_HEADS = 256
_PART_BYTES = 4096
_log = logging.getLogger("mlopsnb.serving")


def surprises() -> list[str]:
    """Name what is not as we know it in uvicorn: what the fast lane leans on, and what uvicorn asks of a cycle."""
    try:
        source = inspect.getsource(httptools_impl)
    except OSError:
        return ["the source of uvicorn"]
    chains = [chain.split(".") for chain in set(_ATTRIBUTES.findall(source))]
    attributes = {".".join(names[:n]) for names in chains for n in range(2, len(names) + 1)}
    asked = {name.split(".")[2] for name in attributes if name.startswith("self.cycle.")}
    found = [f"HttpToolsProtocol.{name}" for name in _CALLBACKS if not hasattr(HttpToolsProtocol, name)]
    found += [f"self.{name}" for name in _STATE if not {f"self.{name}", name} & attributes]
    found += [f"self.cycle.{name}" for name in sorted(asked) if not hasattr(Exchange, name)]
    return found + ([] if hasattr(httptools_impl, "STATUS_LINE") else ["STATUS_LINE"])


def protocol(app: App, door: Door | None = None) -> type[HttpToolsProtocol]:
    """Return the protocol to serve *app* with: ours, or uvicorn's own if that is not built as we know it."""
    unknown = surprises()
    if unknown:
        _log.warning(
            "no fast lane and no limits of connections; not known of this uvicorn: %s", ", ".join(unknown)
        )
        return HttpToolsProtocol
    paths = {path.encode(): (path, route) for path, route in app.predictions.items()}
    base = FastLane if app.tokens is None else GuardedLane
    made = {"app_": app, "door": door or Door(1 << 20), "paths": paths, "heads": {}, "starts": _Starts(app)}
    return type("FastLane", (base,), made)


def forget_heads(made: type[HttpToolsProtocol]) -> None:
    """Look at each head anew from now on: whom it lets in has changed."""
    if issubclass(made, FastLane):
        made.heads.clear()


class _NobodyWaits:
    """In the place of the event that wakes an ASGI task."""

    def set(self) -> None:
        """Wake nobody."""


class _Starts:
    """The first lines of answers. They stay the same until uvicorn writes another date, once a second."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._default: list[tuple[bytes, bytes]] = []
        self._known: dict[tuple[int, bytes], bytes] = {}

    def of(self, reply: Reply, default: list[tuple[bytes, bytes]]) -> bytes:
        """Return the status line, the *default* headers, and those that go with every answer like *reply*."""
        if default is not self._default:
            self._default = default
            self._known.clear()
        kind = reply.status, reply.content_type
        start = self._known.get(kind)
        if start is None:
            lines = [b"%b: %b\r\n" % header for header in (*default, *self._app.common_headers(reply))]
            start = self._known[kind] = httptools_impl.STATUS_LINE[reply.status] + b"".join(lines)
        return start


class Head(NamedTuple):
    """What the parser made of the head of a plain request."""

    path: str
    route: Route
    headers: dict[bytes, bytes]
    length: int
    keep_alive: bool


class Exchange:
    """A request in the fast lane, and its answer. For uvicorn it is the connection's cycle, as an ASGI one is."""

    __slots__ = (
        "body",
        "call",
        "disconnected",
        "job",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "route",
    )
    message_event = _NobodyWaits()

    def __init__(self, head: Head, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.call = begin("POST", head.path, head.headers, fields)
        self.route = head.route
        self.keep_alive = head.keep_alive
        self.body: list[bytes | memoryview] = []
        self.more_body = True
        self.response_complete = self.response_started = False
        self.disconnected = False
        self.job: object | None = None

    def gather(self, part: bytes | memoryview) -> None:
        """Add *part* to the body. Tiny parts are joined, as an object for each would take far more than they do."""
        body = self.body
        if body and len(body[-1]) < _PART_BYTES:
            body[-1] = b"".join((body[-1], part))
        else:
            body.append(part)

    def whole(self) -> bytes:
        """Return the body, and let go of its parts."""
        parts, self.body = self.body, []
        return b"".join(parts)


class FastLane(Connection):
    """One connection. Made for one app by `protocol`."""

    paths: dict[bytes, tuple[str, Route]]
    heads: dict[bytes, Head]
    starts: _Starts
    _exchange: Exchange | None = None
    _unread: bytes | None = None
    _missing = 0

    def data_received(self, data: bytes) -> None:
        """Take a request whose head is known, or let the parser see *data*."""
        if self._missing:
            self._go_on(data)
            return
        if self.phase == IDLE:
            size = data.find(b"\r\n\r\n") + 4
            head = self.heads.get(data[:size])
            missing = -1 if head is None else size + head.length - len(data)
            if head is not None and missing >= 0 and self._is_alone():
                exchange = self._begin(head)
                if missing:
                    self._missing, self.phase = missing, BODY
                    exchange.gather(memoryview(data)[size:])
                else:
                    self._ask(exchange, data[size:])
                return
            self._unread = data
        super().data_received(data)

    def _go_on(self, data: bytes) -> None:
        """Take more of a body whose head is known. What follows it is for the parser, which has not seen either."""
        exchange = self._exchange
        if exchange is None:  # it was refused; the connection ends
            return
        size, missing = len(data), self._missing
        self.received += min(size, missing)
        self._missing = max(0, missing - size)
        exchange.gather(data if size <= missing else data[:missing])
        if not self._missing:
            self.phase = IDLE
            self._ask(exchange, exchange.whole())
            if size > missing and not self.transport.is_closing():
                self.data_received(data[missing:])

    def on_message_begin(self) -> None:
        """Note that a request begins; the rest of what uvicorn does here waits until we know its lane."""
        self.phase = HEAD
        self.mark = self.received
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Choose the lane."""
        data, self._unread = self._unread, None
        if self.received > self.mark or self.chunk > HEAD_BYTES or len(self.headers) > HEAD_FIELDS:
            self.check_head()
        found = self.paths.get(self.url)
        if found is not None and self.parser.get_method() == b"POST" and self._is_alone():
            headers = dict(self.headers)
            if self._is_plain(headers):
                keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
                head = Head(*found, headers, int(headers[b"content-length"]), keep_alive)
                if data is not None:
                    self._keep(data, head)
                self._begin(head)
                self.phase = BODY
                self.mark = self.received
                return
        url, headers_so_far, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers_so_far)
        super().on_headers_complete()

    def _keep(self, data: bytes, head: Head) -> None:
        """Keep *head*, with which *data* begins, unless it will not come again, or ends where only we would think."""
        size = data.find(b"\r\n\r\n") + 4
        text = data[:size]
        if (
            4 < size <= _HEAD_BYTES
            and text.startswith(b"POST ")
            and text.count(b"\n") == text.count(b"\r\n")
            and _EACH_ITS_OWN.isdisjoint(head.headers)
        ):
            if len(self.heads) >= _HEADS:
                self.heads.clear()
            self.heads[text] = head

    def _begin(self, head: Head) -> Exchange:
        exchange = Exchange(head, self.headers)  # of a head that was kept, nobody asks for the fields
        self._exchange = self.cycle = exchange  # type: ignore[assignment]
        self.app_.started(exchange.call)
        return exchange

    def _is_alone(self) -> bool:
        """Say whether nothing else of this connection is on its way, and its client takes what it is sent."""
        cycle: RequestResponseCycle | None = self.cycle
        return (
            (cycle is None or cycle.response_complete)
            and not self.pipeline
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _is_plain(self, headers: dict[bytes, bytes]) -> bool:
        length = headers.get(b"content-length", b"")
        return (
            not self.expect_100_continue
            and length.isdigit()
            and int(length) <= self.app_.max_body_bytes
            and _ASIDE.isdisjoint(headers)
        )

    def _is_last(self, exchange: Exchange) -> bool:
        """Say whether the parser is at *exchange*, not at a request that came behind it."""
        cycle: object = self.cycle
        return cycle is exchange

    def on_body(self, body: bytes) -> None:
        """Gather the body."""
        exchange = self._exchange
        if exchange is None or not self._is_last(exchange):
            super().on_body(body)
            return
        self.mark = self.received
        exchange.gather(body)

    def on_message_complete(self) -> None:
        """Ask the model, now that the request is whole."""
        exchange = self._exchange
        if exchange is None or not self._is_last(exchange):
            super().on_message_complete()
            return
        self.phase = IDLE
        self._ask(exchange, exchange.whole())

    def _ask(self, exchange: Exchange, body: bytes) -> None:
        exchange.more_body = False
        alone = len(self.connections) == 1
        exchange.job = self.app_.predict(exchange.call, exchange.route, body, self._answer, alone=alone)

    def _answer(self, reply: Reply) -> None:
        """Send *reply* to the request that is in the fast lane, and let uvicorn go on."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        app, call, transport = self.app_, exchange.call, self.transport
        app.finished(call, reply.status)
        start = self.starts.of(reply, self.server_state.default_headers)
        keeps = exchange.keep_alive
        if keeps and not reply.headers and not app.away and call.trace is None:
            own = b"content-length: %d\r\nx-request-id: %b\r\n" % (len(reply.body), call.request_id.encode())
        else:
            headers = app.own_headers(call, reply)
            keeps = keeps and all(name != b"connection" for name, _ in headers)
            if not keeps and not any(name == b"connection" for name, _ in headers):
                headers.append((b"connection", b"close"))
            own = b"".join([b"%b: %b\r\n" % header for header in headers])
        if not transport.is_closing():
            transport.write(b"%b%b\r\n%b" % (start, own, reply.body))
        exchange.response_complete = True
        if not keeps:
            self.part()
        self.on_response_complete()

    def refuse(self, status: int, message: str) -> None:
        """Answer as `Connection` does, but in the form of the route if the request is in the fast lane."""
        exchange = self._exchange
        if exchange is None or self.phase != BODY or not self._is_last(exchange):
            super().refuse(status, message)
        else:
            body = exchange.route.error(status, message)
            self._answer(Reply(status, body, headers=((b"connection", b"close"),)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the request whose client has gone."""
        super().connection_lost(exc)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if exchange.job is not None:
                self.app_.forget(exchange.job)
            self.app_.finished(exchange.call, CLIENT_LEFT)


class GuardedLane(FastLane):
    """A fast lane for clients with a token; all others are answered in the other one.

    A head that is kept holds a token that was good, so that it is not looked at again until the tokens change.
    """

    def _is_plain(self, headers: dict[bytes, bytes]) -> bool:
        tokens = self.app_.tokens
        return tokens is not None and tokens.allow(headers) and super()._is_plain(headers)
