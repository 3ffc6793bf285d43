"""HTTP to the engine and back: statuses, headers, the request log. A plain ASGI application.

Paths and messages are the protocols'; here is the one table from errors to statuses. Whatever comes in, the answer
is one of ours: an error in the form of the path's protocol, and a request id. Knows nothing of sockets and processes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec

from mlopsnb.errors import MlopsnbError
from mlopsnb.serving import pages, protocols
from mlopsnb.serving.calls import Call, begin, is_check
from mlopsnb.serving.counters import nothing
from mlopsnb.serving.errors import BadRequest, DeadlineExceeded, Kind, NotCached, Overloaded, stack
from mlopsnb.serving.requestlog import RequestLog, Sink
from mlopsnb.serving.routes import Headers, Reply, Route, ServedModel, json_reply, plain_error

if TYPE_CHECKING:
    from mlopsnb.serving.batcher import Outputs
    from mlopsnb.serving.capture import Capture
    from mlopsnb.serving.counters import Counters
    from mlopsnb.serving.engine import Engine
    from mlopsnb.serving.model import Package
    from mlopsnb.serving.payloads import PayloadLog
    from mlopsnb.serving.stages import Stage
    from mlopsnb.serving.tokens import Tokens
    from mlopsnb.serving.tracing import Tracing
    from mlopsnb.tensors import Array

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

STATUSES: dict[Kind, int] = {
    "malformed": 400,
    "mismatch": 400,
    "too large": 413,
    "unsupported": 415,
    "rejected": 422,
}
CLIENT_LEFT = 499
"""What the log says when the client went away before it had its answer; nobody receives it."""

REQUEST_TIMEOUT = 60.0
"""Seconds that a request may wait for the model, unless it says less."""

UNKNOWN_CLIENT = "a bearer token of this server is needed, in the header authorization"
_SECONDS = re.compile(rb"\d{1,6}(\.\d{1,6})?")
_log = logging.getLogger("mlopsnb.serving")


class _ClientLeft(Exception):
    """The client closed the connection before it had its answer."""


def status_of(exc: Exception) -> int:
    """Return the status that tells a client of *exc*."""
    match exc:
        case BadRequest():
            return STATUSES[exc.kind]
        case Overloaded():
            return 503
        case DeadlineExceeded() | NotCached():
            return 504
        case _:
            return 500


class App:
    """The ASGI application for one engine.

    With its next `away` answers it sends clients away, politely. *workers* tells how many processes like this serve.
    *counters* counts rows for whoever watches drift, or says why nobody does.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        version: str,
        max_body_bytes: int,
        log: Sink,
        request_timeout: float = REQUEST_TIMEOUT,
        stage: Stage | None = None,
        tracing: Tracing | None = None,
        payloads: PayloadLog | None = None,
        capture: Capture | None = None,
        counters: Counters | str = "nothing is counted",
        workers: Callable[[], int] = lambda: 1,
        tokens: Tokens | None = None,
    ) -> None:
        self.draining = False
        self.away = 0.0
        self.tokens = tokens
        self.log = RequestLog(log, model=name, version=version)
        self.payloads = payloads
        self._capture = capture
        self.counters = None if isinstance(counters, str) else counters
        self._uncounted = counters if isinstance(counters, str) else ""
        self._tracing = tracing
        self.max_body_bytes = max_body_bytes
        self.engine = engine
        self._stage: Stage = stage or engine
        self.admit, self.submit = self._stage.admit, self._stage.submit
        self.forget: Callable[[Any], None] = self._stage.cancel
        self._name, self._version = name, version
        self.request_timeout = request_timeout
        self._metrics = engine.metrics
        self._golden = engine.package.golden
        self._model_headers = [(b"x-model-name", name.encode()), (b"x-model-version", version.encode())]
        self.served = ServedModel(
            name=name,
            version=version,
            manifest=engine.manifest,
            parameters=lambda: {**self._stage.parameters, "workers": workers()},
        )
        engine.metrics.also.append(self._stage.families)
        if self.counters is not None:
            engine.metrics.summed.append(self.counters.families)
        if capture is not None:
            engine.metrics.also.append(capture.families)
        self._routes = self._operations() | protocols.routes(self.served)
        self._routes |= self._pages(engine.package)

    def _pages(self, package: Package) -> dict[str, Route]:
        """Return the pages. Where tokens are asked for, they show everybody the signature, but nobody the example."""
        if self.tokens is None:
            return pages.routes(self.served, package)
        protected = [path for path, route in self._routes.items() if not route.public]
        return pages.routes(self.served, package.blank(), protected=protected)

    def _operations(self) -> dict[str, Route]:
        """Return the paths for those who run the server."""

        def live(ready: bool) -> Reply:
            return json_reply({"live": True})

        def ready(ready: bool) -> Reply:
            return json_reply({"name": self._name, "ready": ready}, 200 if ready else 503)

        def expose(headers: Headers) -> Reply:
            text, content_type = self._metrics.expose(headers.get(b"accept", b"").decode("latin-1"))
            return Reply(200, text, content_type.encode())

        def profile(ready: bool) -> Reply:
            model = {"model": self._name, "version": self._version}
            counted = self.counters.document() if self.counters else nothing(self._uncounted)
            return json_reply({**model, **counted})

        def reference(ready: bool) -> Reply:
            return Reply(200, self.counters.reference if self.counters else b"null")

        return {
            "/healthz": Route(show=live, public=True),
            "/ready": Route(show=ready, public=True),
            "/metrics": Route(negotiate=expose),
            "/profile": Route(show=profile),
            "/profile/reference": Route(show=reference),
        }

    def drain(self) -> None:
        """Be ready for nobody new, and send away everybody who is answered."""
        self.draining = True
        self.part()

    def part(self) -> None:
        """Send away everybody who is answered, politely: another server has our place."""
        self.away = math.inf

    def stay(self) -> None:
        """Keep connections again."""
        if not self.draining:
            self.away = 0.0

    @property
    def ready(self) -> bool:
        """Whether new requests should come here."""
        return self._stage.ready and not self.draining

    @property
    def predictions(self) -> dict[str, Route]:
        """The routes that ask the model, by path."""
        return {path: route for path, route in self._routes.items() if route.decode}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; `scope` is always of type http."""
        fields = scope["headers"]
        call = begin(scope["method"], scope["path"], dict(fields), fields)
        try:
            reply = await self._respond(call, receive)
        except _ClientLeft:
            self._write_log(call, CLIENT_LEFT)
            return
        self._write_log(call, reply.status)
        headers = [*self.common_headers(reply), *self.own_headers(call, reply)]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _respond(self, call: Call, receive: Receive) -> Reply:
        route = self._routes.get(call.path)
        if self.tokens is not None and not (route and route.public) and not self.tokens.allow(call.headers):
            return self._unknown_client(call, route)
        if route is None:
            return Reply(404, plain_error(404, self._nothing_there(call.path)))
        if call.method not in route.methods:
            allowed = ", ".join(route.methods)
            message = f"{call.path} takes {allowed}, not {call.method}"
            return Reply(405, route.error(405, message), headers=((b"allow", allowed.encode()),))
        if route.decode:
            return await self._infer(call, route, receive)
        try:
            return self._shown(route, call)
        except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
            return self._failed(call, route, exc)

    def _unknown_client(self, call: Call, route: Route | None) -> Reply:
        """Ask for a token. The body is not read; what is small enough to be a request is dropped as it comes."""
        if route and route.decode:
            self._metrics.started()
            self._metrics.finished(401, call.seconds)
        form = route.error if route else plain_error
        headers = [(b"www-authenticate", b"Bearer")]
        told = int(call.headers.get(b"content-length", b"0"))
        if told > self.max_body_bytes or b"transfer-encoding" in call.headers:
            headers.append((b"connection", b"close"))
        return Reply(401, form(401, UNKNOWN_CLIENT), headers=tuple(headers))

    def unreadable(self, reply: Reply, *, log: bool) -> list[tuple[bytes, bytes]]:
        """Return the headers of *reply* to what is no whole request; note it in the log, if nobody else does."""
        call = begin("", "", {}, ())
        if log:
            self._write_log(call, reply.status)
        return [*self.common_headers(reply), *self.own_headers(call, reply)]

    def _failed(self, call: Call, route: Route, exc: Exception) -> Reply:
        status = status_of(exc)
        if status == 500:
            _log.error("request %s failed\n%s", call.request_id, stack(exc))
        return Reply(status, route.error(status, _told(exc, call)), headers=_advice(exc))

    def _shown(self, route: Route, call: Call) -> Reply:
        if route.negotiate is not None:
            return route.negotiate(call.headers)
        assert route.show is not None
        return route.show(self.ready)

    def _nothing_there(self, path: str) -> str:
        here = f"{path[:200]}; this server has {self._name!r}, version {self._version!r}"
        match path.partition(":")[0].split("/")[1:]:
            case ["v1" | "v2", "models", name, *_] if name != self._name:
                return f"no model at {here}"
            case ["v1" | "v2", "models", _, "versions", version, *_] if version != self._version:
                return f"no such version at {here}"
        predict = [path for path, route in self._routes.items() if route.decode and "/versions/" not in path]
        return f"nothing at {path[:200]}; predictions are made at {', '.join(predict)}"

    def common_headers(self, reply: Reply) -> list[tuple[bytes, bytes]]:
        """Return the headers that go with every answer like *reply*; those of `own_headers` follow them."""
        return [(b"content-type", reply.content_type), *self._model_headers]

    def own_headers(self, call: Call, reply: Reply) -> list[tuple[bytes, bytes]]:
        """Return the headers that *reply* to *call* has for itself."""
        headers = [
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", call.request_id.encode()),
            *reply.headers,
        ]
        if self.away:
            self.away -= 1
            headers.append((b"connection", b"close"))
        if call.trace is not None and call.trace.parent_id:  # who sent none has no use for ours
            headers.append((b"traceparent", call.trace.traceparent.encode()))
        return headers

    def _write_log(self, call: Call, status: int) -> None:
        self.log.write(
            call.request_id,
            call.method,
            call.path,
            status,
            call.seconds,
            call.rows,
            call.degraded,
            call.trace,
            check=call.check,
        )
        if call.span is not None:
            call.span.end(call, status)

    async def _infer(self, call: Call, route: Route, receive: Receive) -> Reply:
        self.started(call)
        status = CLIENT_LEFT
        try:
            reply = await self._predicted(call, route, receive)
            status = reply.status
        finally:
            self._count(call, status)
        return reply

    async def _predicted(self, call: Call, route: Route, receive: Receive) -> Reply:
        try:
            body = await self._body(call, receive)
        except BadRequest as exc:
            return self._failed(call, route, exc)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answer(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        job = self.predict(call, route, body, answer)
        if job is None or not self._stage.waits:
            return await future
        gone = asyncio.ensure_future(_until_gone(receive))
        await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            self.forget(job)
            raise _ClientLeft
        gone.cancel()
        return future.result()

    def predict(
        self, call: Call, route: Route, body: bytes, answer: Callable[[Reply], None], *, alone: bool = False
    ) -> object | None:
        """Let the model answer to *body*, then call *answer*, once. Needs no task; for the fast lane as well.

        With *alone* there is no other client, so that there is nothing to wait for.
        Returns what may be given to `forget` while the model was not called, or None if it was answered already.
        """

        def done(_: object, outcome: Outputs | Exception) -> None:
            try:
                if isinstance(outcome, Exception):
                    reply = self._failed(call, route, outcome)
                else:
                    reply = request.encode(outcome)
                    if call.told:
                        reply = msgspec.structs.replace(reply, headers=(*reply.headers, *call.told))
            except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
                reply = self._failed(call, route, exc)
            answer(reply)
            self.told(call, reply.status, request.inputs, outcome)

        try:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._allowed_seconds(call.headers)
            _refuse_unsupported(call.headers)
            self.admit()
            assert route.decode is not None
            request = route.decode(body, call.headers)
            call.rows = request.rows
            call.check = is_check(call.headers, request.inputs, self._golden)
            return self.submit(
                call, request.inputs, request.rows, done, deadline=deadline, loop=loop, at_once=alone
            )
        except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
            answer(self._failed(call, route, exc))
            return None

    def started(self, call: Call) -> None:
        """Count a prediction that comes, and trace it if that is on."""
        self._metrics.started()
        if self._tracing is not None:
            self._tracing.start(call)

    def finished(self, call: Call, status: int) -> None:
        """Count and log a prediction that came by the fast lane or by gRPC."""
        self._count(call, status)
        self._write_log(call, status)

    def _count(self, call: Call, status: int) -> None:
        if call.check:
            self._metrics.checked(status)
        else:
            self._metrics.finished(status, call.seconds)

    def told(
        self, call: Call, status: int, inputs: Mapping[str, Array], outcome: Mapping[str, Array] | Exception
    ) -> None:
        """Note what a prediction brought and what came of it, after its answer."""
        if call.rows and not call.check and not isinstance(outcome, Exception):
            if self.counters is not None:
                self.counters.note(call.rows, inputs, outcome)
            if self._capture is not None:
                self._capture.note(call, inputs, outcome)
        if self.payloads is not None:
            self.payloads.write(call, status, inputs, outcome)

    def answered(self, call: Call, status: int) -> None:
        """Log what is no prediction and no HTTP."""
        self._write_log(call, status)

    def tick(self) -> None:
        """Do what is due once a second: count what waits to be, write what waits long enough."""
        if self.counters is not None:
            self.counters.count()
        if self._capture is not None:
            self._capture.tick()

    def flush(self) -> None:
        """Write what has gathered, and count what waits to be."""
        self.tick()
        if self._capture is not None:
            self._capture.close()
        self.log.flush()
        if self.payloads is not None:
            self.payloads.flush()

    def _allowed_seconds(self, headers: Mapping[bytes, bytes]) -> float:
        """Return how long the request may wait: what it says itself, but no longer than we allow."""
        asked = headers.get(b"x-request-timeout")
        if asked is None:
            return self.request_timeout
        if not _SECONDS.fullmatch(asked) or not float(asked):
            shown = asked.decode("latin-1")[:40]
            raise BadRequest(
                f"the header x-request-timeout should be seconds above 0, found {shown!r}", kind="malformed"
            )
        return min(float(asked), self.request_timeout)

    async def _body(self, call: Call, receive: Receive) -> bytes:
        limit = self.max_body_bytes
        announced = int(call.headers.get(b"content-length", b"0"))
        if announced > limit:
            raise BadRequest(f"the body has {announced} bytes; the limit is {limit}", kind="too large")
        body = bytearray()  # no list: the parts may be tiny
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            body += message["body"]
            if len(body) > limit:
                raise BadRequest(f"the body has more than {limit} bytes, the limit", kind="too large")
            if not message["more_body"]:
                return bytes(body)


def _refuse_unsupported(headers: dict[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        raise BadRequest(
            f"content-encoding {encoding.decode('latin-1')[:40]!r} is not supported; send the body as it is",
            kind="unsupported",
        )


def _told(exc: Exception, call: Call) -> str:
    """Return what the client is told of *exc*; of what is not ours, where to look alone."""
    if isinstance(exc, MlopsnbError):
        return exc.message
    return f"internal error; the server's log has it under request id {call.request_id}"


def _advice(exc: Exception) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that tell a client how to go on after *exc*."""
    if isinstance(exc, Overloaded):
        return ((b"retry-after", b"%d" % exc.retry_after),)
    if isinstance(exc, BadRequest) and exc.kind == "too large":
        return ((b"connection", b"close"),)  # the rest of the body is not read
    return ()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
