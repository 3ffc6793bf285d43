"""HTTP to the engine and back: routes, statuses, headers, the request log. A plain ASGI application.

Holds the one table from kinds of errors to statuses. Whatever comes in, the answer is one of ours: JSON with
`error` in it, as the protocol says, and a request id. Knows nothing of sockets and processes.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

import orjson

from mlopsnb.errors import MlopsnbError
from mlopsnb.serving import metrics, v2
from mlopsnb.serving.errors import BadRequest, Kind

if TYPE_CHECKING:
    from mlopsnb.serving.engine import Engine

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
"""What the log says when the client went away before its request was whole; nobody receives it."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_log = logging.getLogger("mlopsnb.serving")


class _ClientLeft(Exception):
    """The client closed the connection in the middle of its request."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer before it is sent."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class Call:
    """One request on its way. `rows` is known once the body was decoded."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    receive: Receive
    request_id: str
    started: float = field(default_factory=time.perf_counter)
    rows: int | None = None

    @property
    def seconds(self) -> float:
        """How long it has been on its way."""
        return time.perf_counter() - self.started


Handler = Callable[[Call], Awaitable[Response]]


def _json(content: object, status: int = 200) -> Response:
    return Response(status, orjson.dumps(content))


def _error(status: int, message: str, *headers: tuple[bytes, bytes]) -> Response:
    return Response(status, orjson.dumps({"error": message}), headers=headers)


class App:
    """The ASGI application for one engine. Set `draining` and it sends clients away politely, answer by answer."""

    def __init__(
        self, engine: Engine, *, name: str, version: str, max_body_bytes: int, log: BinaryIO
    ) -> None:
        self.draining = False
        self._engine = engine
        self._name, self._version = name, version
        self._max_body_bytes = max_body_bytes
        self._log: BinaryIO | None = log
        self._metrics = metrics.Metrics(name, version)
        self._model_headers = [(b"x-model-name", name.encode()), (b"x-model-version", version.encode())]
        self._server_metadata = {
            "name": "mlopsnb",
            "version": distribution_version("mlopsnb"),
            "extensions": [],
        }
        self._metadata = orjson.dumps(v2.metadata(name, version, engine.manifest))
        self._routes = self._make_routes()

    def _make_routes(self) -> dict[str, dict[str, Handler]]:
        def get(handler: Handler) -> dict[str, Handler]:
            return {"GET": handler, "HEAD": handler}

        routes = {
            "/healthz": get(self._live),
            "/ready": get(self._ready),
            "/metrics": get(self._expose),
            "/v2": get(self._server),
            "/v2/health/live": get(self._live),
            "/v2/health/ready": get(self._ready),
        }
        for model in (f"/v2/models/{self._name}", f"/v2/models/{self._name}/versions/{self._version}"):
            routes[model] = get(self._model)
            routes[f"{model}/ready"] = get(self._ready)
            routes[f"{model}/infer"] = {"POST": self._infer}
        return routes

    @property
    def ready(self) -> bool:
        """Whether new requests should come here."""
        return self._engine.ready and not self.draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; `scope` is always of type http."""
        headers = dict(scope["headers"])
        call = Call(scope["method"], scope["path"], headers, receive, _request_id(headers))
        try:
            response = await self._respond(call)
        except _ClientLeft:
            self._write_log(call, CLIENT_LEFT)
            return
        self._write_log(call, response.status)
        await self._send(call, response, send)

    async def _respond(self, call: Call) -> Response:
        methods = self._routes.get(call.path)
        if methods is None:
            return _error(404, self._nothing_there(call.path))
        handler = methods.get(call.method)
        if handler is None:
            allowed = ", ".join(methods)
            return _error(
                405, f"{call.path} takes {allowed}, not {call.method}", (b"allow", allowed.encode())
            )
        try:
            return await handler(call)
        except BadRequest as exc:
            status = STATUSES[exc.kind]
            unread = ((b"connection", b"close"),) if exc.kind == "too large" else ()
            return _error(status, exc.message, *unread)
        except MlopsnbError as exc:
            _log.error("request %s: %s", call.request_id, exc, exc_info=exc)
            return _error(500, exc.message)
        except _ClientLeft:
            raise
        except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
            _log.error("request %s failed", call.request_id, exc_info=exc)
            return _error(500, f"internal error; the server's log has it under request id {call.request_id}")

    def _nothing_there(self, path: str) -> str:
        here = f"{path[:200]}; this server has {self._name!r}, version {self._version!r}"
        match path.split("/")[1:]:
            case ["v2", "models", name, *_] if name != self._name:
                return f"no model at {here}"
            case ["v2", "models", _, "versions", version, *_] if version != self._version:
                return f"no such version at {here}"
        return f"nothing at {path[:200]}; there is {', '.join(self._routes)}"

    async def _send(self, call: Call, response: Response, send: Send) -> None:
        headers = [
            (b"content-type", response.content_type),
            (b"content-length", b"%d" % len(response.body)),
            (b"x-request-id", call.request_id.encode()),
            *self._model_headers,
            *response.headers,
        ]
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    def _write_log(self, call: Call, status: int) -> None:
        """Write one line on the request, without its query and its body; stop for good if nobody can take it."""
        if self._log is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": call.request_id,
            "method": call.method,
            "path": call.path[:200],
            "status": status,
            "duration_ms": round(call.seconds * 1000, 3),
            "rows": call.rows,
        }
        try:
            self._log.write(orjson.dumps(line) + b"\n")
            self._log.flush()
        except OSError as exc:
            self._log = None
            _log.warning("the request log is closed: %s", exc)

    async def _live(self, call: Call) -> Response:
        return _json({"live": True})

    async def _ready(self, call: Call) -> Response:
        return _json({"name": self._name, "ready": self.ready}, 200 if self.ready else 503)

    async def _server(self, call: Call) -> Response:
        return _json(self._server_metadata)

    async def _model(self, call: Call) -> Response:
        return Response(200, self._metadata)

    async def _expose(self, call: Call) -> Response:
        return Response(200, self._metrics.expose(), metrics.CONTENT_TYPE.encode())

    async def _infer(self, call: Call) -> Response:
        self._metrics.started()
        status = CLIENT_LEFT
        try:
            response = await self._predict(call)
            status = response.status
        except BadRequest as exc:
            status = STATUSES[exc.kind]
            raise
        except _ClientLeft:
            raise
        except Exception:
            status = 500
            raise
        finally:
            self._metrics.finished(status, call.seconds)
        return response

    async def _predict(self, call: Call) -> Response:
        _refuse_unsupported(call.headers)
        request = v2.decode_request(await self._body(call), self._engine.manifest.signature)
        call.rows = request.rows
        answer = await self._engine.infer(request.inputs)
        self._metrics.ran(request.rows, answer.seconds)
        outputs = {name: answer.outputs[name] for name in request.outputs or answer.outputs}
        body = v2.encode_response(outputs, model_name=self._name, model_version=self._version, id=request.id)
        return Response(200, body)

    async def _body(self, call: Call) -> bytes:
        limit = self._max_body_bytes
        announced = int(call.headers.get(b"content-length", b"0"))
        if announced > limit:
            raise BadRequest(f"the body has {announced} bytes; the limit is {limit}", kind="too large")
        parts: list[bytes] = []
        size = 0
        while True:
            message = await call.receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            parts.append(message["body"])
            size += len(message["body"])
            if size > limit:
                raise BadRequest(f"the body has more than {limit} bytes, the limit", kind="too large")
            if not message["more_body"]:
                return b"".join(parts)


def _refuse_unsupported(headers: dict[bytes, bytes]) -> None:
    if b"inference-header-content-length" in headers:
        raise BadRequest(
            "the binary tensor extension is not supported yet; send data as JSON", kind="unsupported"
        )
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        raise BadRequest(
            f"content-encoding {encoding.decode('latin-1')[:40]!r} is not supported; send plain JSON",
            kind="unsupported",
        )


def _request_id(headers: dict[bytes, bytes]) -> str:
    """Return the client's id of the request if it may go into headers and logs, else a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _SANE_ID.fullmatch(given) else uuid4().hex
