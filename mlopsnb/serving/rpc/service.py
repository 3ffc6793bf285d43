"""The gRPC server: answers the protocol's calls on the event loop that serves HTTP too, with the same engine.

It has a port of its own. A call's deadline is the client's; whoever cancels is forgotten. Statuses are gRPC's, while
the log and the counters have HTTP's, so that one table tells of both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from mlopsnb.errors import MlopsnbError
from mlopsnb.serving import v2
from mlopsnb.serving.app import CLIENT_LEFT, begin, status_of
from mlopsnb.serving.errors import CannotListen, stack
from mlopsnb.serving.protocols.open_inference import server_metadata
from mlopsnb.serving.rpc import codec, security
from mlopsnb.serving.rpc.messages import METHODS, SERVICE, message

if TYPE_CHECKING:
    from mlopsnb.serving.app import App, Call
    from mlopsnb.serving.connections import ConnectionLimits
    from mlopsnb.serving.tls import Tls

_STATUSES = {
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""For the statuses that errors have over HTTP; all others are faults of the request."""

_log = logging.getLogger("mlopsnb.serving")


class GrpcServer:
    """Serves *app*'s model on a port of its own; 0 takes any that is free. *shared*: other workers have it too."""

    def __init__(
        self,
        app: App,
        *,
        host: str,
        port: int,
        limits: ConnectionLimits,
        tls: Tls | None = None,
        shared: bool = False,
    ) -> None:
        self._app = app
        self._limits = limits
        self._tls = tls
        self._shared = shared
        self._address = f"[{host}]" if ":" in host else host
        self._port = port
        self._server: Any = None

    @property
    def address(self) -> str:
        """Where it listens, as gRPC's clients take it."""
        return f"{self._address}:{self._port}"

    async def start(self) -> None:
        """Listen and serve. Raises `CannotListen` if the port is taken."""
        limit = self._app.max_body_bytes
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(self._shared)),  # else a port that is taken is an error
            *security.options(self._limits),
        ]
        tokens = self._app.tokens
        interceptors = [] if tokens is None else [security.Guard(self._app, tokens)]
        self._server = grpc.aio.server(options=options, interceptors=interceptors)
        service = _Service(self._app)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _readable(getattr(service, name)),
                request_deserializer=partial(_read, message(f"{name}Request")),
                response_serializer=message(f"{name}Response").SerializeToString,
            )
            for name in METHODS
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            if self._tls is None:
                self._port = self._server.add_insecure_port(self.address)
            else:
                self._port = self._server.add_secure_port(self.address, security.credentials(self._tls))
        except RuntimeError as exc:
            raise CannotListen(
                f"cannot listen on {self.address} for gRPC",
                hint="choose another port with --grpc-port, or 0 for any that is free",
            ) from exc
        await self._server.start()

    async def stop(self) -> None:
        """Take no more calls and answer those in work, which is done when the longest has had its time."""
        if self._server is not None:
            await self._server.stop(self._app.request_timeout)


def _read(kind: Any, data: bytes) -> Any:
    """Return *data* as a message, or None; gRPC's own answer to what is none is that of a fault of ours."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def _readable(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(request: Any, context: Any) -> Any:
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is not the one of this call")
        return await method(request, context)

    return answer


class _Service:
    """The protocol's calls, under its names."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._served = app.served
        metadata = v2.metadata(self._served.name, self._served.version, self._served.manifest)
        tensors = {
            side: [{k: v for k, v in t.items() if k != "parameters"} for t in metadata[side]]
            for side in ("inputs", "outputs")
        }
        self._metadata = message("ModelMetadataResponse")(**{**metadata, **tensors})

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._app.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return message("ServerMetadataResponse")(**{**server_metadata(), "extensions": []})

    async def ModelReady(self, request: Any, context: Any) -> Any:
        await self._check_name(request.name, request.version, context)
        return message("ModelReadyResponse")(ready=self._app.ready)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        await self._check_name(request.name, request.version, context)
        return self._metadata

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        await self._check_name(request.model_name, request.model_version, context)
        headers = _headers(context)
        call = begin("gRPC", f"/{SERVICE}/ModelInfer", dict(headers), headers)
        status = CLIENT_LEFT  # unless we come to an answer
        response = None
        self._app.started(call)
        if call.trace is not None and call.trace.parent_id:
            call.told = ((b"traceparent", call.trace.traceparent.encode()),)
            context.set_trailing_metadata((("traceparent", call.trace.traceparent),))
        try:
            response = await self._infer(call, request, context)
            status = 200
        except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
            status = status_of(exc)
            if status == 500:
                _log.error("request %s failed\n%s", call.request_id, stack(exc))
            code = _STATUSES.get(status, grpc.StatusCode.INVALID_ARGUMENT)
            await context.abort(code, _told(exc, call))
        finally:
            self._app.finished(call, status)
        return response

    async def _check_name(self, name: str, version: str, context: Any) -> None:
        served = self._served
        if name != served.name or version not in ("", served.version):
            what = f"no model {name[:80]!r}" if name != served.name else f"no version {version[:80]!r}"
            here = f"this server has {served.name!r}, version {served.version!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{what}; {here}")

    async def _infer(self, call: Call, request: Any, context: Any) -> Any:
        loop = asyncio.get_running_loop()
        remaining = context.time_remaining()
        allowed = self._app.request_timeout
        deadline = loop.time() + (allowed if remaining is None else min(remaining, allowed))
        self._app.admit()
        served = self._served
        wanted = codec.decode(request, served.signature)
        call.rows = wanted.rows
        payloads = self._app.payloads
        try:
            outputs = await self._app.infer(call, wanted.inputs, rows=wanted.rows, deadline=deadline)
        except Exception as exc:
            if payloads is not None:
                payloads.write(call, status_of(exc), wanted.inputs, exc)
            raise
        if payloads is not None:
            payloads.write(call, 200, wanted.inputs, outputs)
        if call.told:
            context.set_trailing_metadata(tuple((name.decode(), value) for name, value in call.told))
        return codec.encode(wanted, outputs, name=served.name, version=served.version)


def _headers(context: Any) -> list[tuple[bytes, bytes]]:
    """Return the metadata of a call as HTTP's headers are kept."""
    return [(k.encode(), v if isinstance(v, bytes) else v.encode()) for k, v in context.invocation_metadata()]


def _told(exc: Exception, call: Call) -> str:
    if isinstance(exc, MlopsnbError):
        return exc.message
    return f"internal error; the server's log has it under request id {call.request_id}"
