"""The fast lane: predictions answered on the connection itself, without an ASGI task. Everything else stays ASGI.

A subclass of uvicorn's protocol. It takes a request only if that is plain: a POST to a prediction's path, with a
length within the limit, alone on its connection, and a client that reads its answers. What is said is the app's, so
that both lanes say the same, byte for byte. Where uvicorn is not built as we know it, there is no fast lane.
"""

from __future__ import annotations

import ast
import inspect
import logging
from typing import TYPE_CHECKING

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlopsnb.serving.app import CLIENT_LEFT, begin

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from mlopsnb.serving.app import App, Call
    from mlopsnb.serving.batcher import Job
    from mlopsnb.serving.routes import Reply, Route

_CALLBACKS = (
    "connection_lost",
    "on_message_begin",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
)
_STATE = (
    "connections",
    "cycle",
    "expect_100_continue",
    "flow.write_paused",
    "headers",
    "parser.get_http_version",
    "parser.get_method",
    "parser.should_keep_alive",
    "pipeline",
    "server_state.default_headers",
    "transport.is_closing",
    "transport.write",
    "url",
)
_ASIDE = frozenset((b"transfer-encoding", b"upgrade"))
_log = logging.getLogger("mlopsnb.serving")


def surprises() -> list[str]:
    """Name what is not as we know it in uvicorn: what the fast lane leans on, and what uvicorn asks of a cycle."""
    try:
        tree = ast.parse(inspect.getsource(httptools_impl))
    except OSError:
        return ["the source of uvicorn"]
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    asked = {name.split(".")[2] for name in attributes if name.startswith("self.cycle.")}
    found = [f"HttpToolsProtocol.{name}" for name in _CALLBACKS if not hasattr(HttpToolsProtocol, name)]
    found += [f"self.{name}" for name in _STATE if not {f"self.{name}", name} & attributes]
    found += [f"self.cycle.{name}" for name in sorted(asked) if not hasattr(Exchange, name)]
    return found + ([] if hasattr(httptools_impl, "STATUS_LINE") else ["STATUS_LINE"])


def protocol(app: App) -> type[HttpToolsProtocol]:
    """Return the protocol to serve *app* with: ours, or uvicorn's own if that is not built as we know it."""
    unknown = surprises()
    if unknown:
        _log.warning("no fast lane; not known of this uvicorn: %s", ", ".join(unknown))
        return HttpToolsProtocol
    paths = {path.encode(): (path, route) for path, route in app.predictions.items()}
    return type("FastLane", (FastLane,), {"app_": app, "paths": paths})


class _NobodyWaits:
    """In the place of the event that wakes an ASGI task."""

    def set(self) -> None:
        """Wake nobody."""


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
        "route",
    )
    message_event = _NobodyWaits()

    def __init__(self, call: Call, route: Route, keep_alive: bool) -> None:
        self.call = call
        self.route = route
        self.keep_alive = keep_alive
        self.body: list[bytes] = []
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self.job: Job | None = None


class FastLane(HttpToolsProtocol):
    """One connection. Made for one app by `protocol`."""

    app_: App
    paths: dict[bytes, tuple[str, Route]]
    _exchange: Exchange | None = None

    def on_message_begin(self) -> None:
        """Note that a request begins; the rest of what uvicorn does here waits until we know its lane."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Choose the lane."""
        found = self.paths.get(self.url)
        if found is not None and self.parser.get_method() == b"POST" and self._is_alone():
            headers = dict(self.headers)
            if self._is_plain(headers):
                path, route = found
                keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
                exchange = Exchange(begin("POST", path, headers), route, keep_alive)
                self._exchange = self.cycle = exchange  # type: ignore[assignment]
                self.app_.started()
                return
        url, headers_so_far, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers_so_far)
        super().on_headers_complete()

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
        else:
            exchange.body.append(body)

    def on_message_complete(self) -> None:
        """Ask the model, now that the request is whole."""
        exchange = self._exchange
        if exchange is None or not self._is_last(exchange):
            super().on_message_complete()
            return
        exchange.more_body = False
        parts = exchange.body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        exchange.body = []
        alone = len(self.connections) == 1
        exchange.job = self.app_.predict(exchange.call, exchange.route, body, self._answer, alone=alone)

    def _answer(self, reply: Reply) -> None:
        """Send *reply* to the request that is in the fast lane, and let uvicorn go on."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        self.app_.finished(exchange.call, reply.status)
        content = [httptools_impl.STATUS_LINE[reply.status]]
        closes = False
        for name, value in (*self.server_state.default_headers, *self.app_.headers(exchange.call, reply)):
            closes = closes or name == b"connection"
            content += (name, b": ", value, b"\r\n")
        if not exchange.keep_alive and not closes:
            content.append(b"connection: close\r\n")
        content += (b"\r\n", reply.body)
        if not self.transport.is_closing():
            self.transport.write(b"".join(content))
        exchange.response_complete = True
        if closes or not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the request whose client has gone."""
        super().connection_lost(exc)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if exchange.job is not None:
                self.app_.forget(exchange.job)
            self.app_.finished(exchange.call, CLIENT_LEFT)
