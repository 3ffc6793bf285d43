"""The gRPC server: answers the protocol's calls on the event loop that serves HTTP too, with the same engine.

It has a port of its own. A call's deadline is the client's; whoever cancels is forgotten. Statuses are gRPC's, while
the log and the counters have HTTP's, so that one table tells of both. Beside the protocol it answers the standard
health check, for probes.
Sources: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_grpc.md);
https://github.com/grpc/grpc/blob/master/doc/health-checking.md; for a server's options,
https://grpc.github.io/grpc/core/group__grpc__arg__keys.html.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from mlopsnb.errors import MlopsnbError, UserError
from mlopsnb.serving import v2
from mlopsnb.serving.app import CLIENT_LEFT, begin, status_of
from mlopsnb.serving.errors import BadRequest, CannotListen, Overloaded, stack
from mlopsnb.serving.protocols.open_inference import server_metadata
from mlopsnb.serving.rpc import security
from mlopsnb.serving.rpc.codec import Codec
from mlopsnb.serving.rpc.messages import HEALTH, NOT_SERVING, SERVICE, SERVING, message

if TYPE_CHECKING:
    from mlopsnb.serving.app import App, Call
    from mlopsnb.serving.batcher import Outputs
    from mlopsnb.serving.connections import ConnectionLimits
    from mlopsnb.serving.tls import Tls
    from mlopsnb.serving.v2 import InferRequest

_CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.UNIMPLEMENTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""For the statuses that errors have over HTTP; all others are faults of the request."""

_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1000),
    # Whoever pings more often than this, twice, is sent away. gRPC's own five minutes are longer than many a proxy
    # keeps a silent connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),  # so that a client whose machine has gone is noticed
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

_INFER_REQUEST = message("ModelInferRequest")
_log = logging.getLogger("mlopsnb.serving")
_Show = Callable[[Any], Any]


class _NotServed(UserError):
    """A call names a model, a version or a service that is not here."""


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
        options = [
            *_OPTIONS,
            *security.options(self._limits),
            ("grpc.max_receive_message_length", self._app.max_body_bytes),
            ("grpc.so_reuseport", int(self._shared)),  # else a port that is taken is an error
        ]
        tokens = self._app.tokens
        interceptors = [] if tokens is None else [security.Guard(self._app, tokens)]
        self._server = grpc.aio.server(options=options, interceptors=interceptors)
        self._server.add_generic_rpc_handlers(_Service(self._app).handlers())
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


class _Service:
    """The calls: predictions, and all that tells of the server and its model.

    Messages are read here, not by gRPC, so that one that is none is an error like others.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._served = app.served
        served = self._served
        self._codec = Codec(served.signature, name=served.name, version=served.version)
        self._in_work = 0

    def handlers(self) -> tuple[Any, ...]:
        """Return what gRPC calls for each service."""
        infer = grpc.unary_unary_rpc_method_handler(self._infer)
        shown = {method: self._handler(SERVICE, method, show) for method, show in self._shows().items()}
        check = self._handler(HEALTH, "Check", self._health)
        return (
            grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": infer, **shown}),
            grpc.method_handlers_generic_handler(HEALTH, {"Check": check}),
        )

    def _handler(self, service: str, method: str, show: _Show) -> Any:
        path = f"/{service}/{method}"
        request = message("HealthCheckRequest" if service == HEALTH else f"{method}Request")

        async def handle(raw: bytes, context: Any) -> bytes:
            call = self._begin(path, context)
            status = 200
            try:
                answer: bytes = show(_parsed(request, raw)).SerializeToString()
            except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
                status = _status_of(exc)
                await _refuse(call, exc, context)
            finally:
                self._app.answered(call, status)
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)

    def _shows(self) -> dict[str, _Show]:
        """Return, by method, what the protocol asks of a server and its model: a message for a message."""
        metadata = v2.metadata(self._served.name, self._served.version, self._served.manifest)
        tensors = {
            side: [{k: v for k, v in t.items() if k != "parameters"} for t in metadata[side]]
            for side in ("inputs", "outputs")
        }
        live = message("ServerLiveResponse")(live=True)
        server = message("ServerMetadataResponse")(**{**server_metadata(), "extensions": []})
        model = message("ModelMetadataResponse")(**{**metadata, **tensors})

        def of_model(answer: Callable[[], Any]) -> _Show:
            def show(request: Any) -> Any:
                self._check_name(request.name, request.version)
                return answer()

            return show

        return {
            "ServerLive": lambda request: live,
            "ServerReady": lambda request: message("ServerReadyResponse")(ready=self._app.ready),
            "ServerMetadata": lambda request: server,
            "ModelReady": of_model(lambda: message("ModelReadyResponse")(ready=self._app.ready)),
            "ModelMetadata": of_model(lambda: model),
        }

    def _health(self, request: Any) -> Any:
        """Tell a probe whether calls should come here; of the whole server if it names no service."""
        if request.service not in ("", SERVICE, HEALTH):
            raise _NotServed(f"no service {request.service[:80]!r}; this server has {SERVICE!r}")
        return message("HealthCheckResponse")(status=SERVING if self._app.ready else NOT_SERVING)

    def _begin(self, path: str, context: Any) -> Call:
        """Return a call that has just come; its request id goes back with whatever is answered."""
        headers = _headers(context)
        call = begin("gRPC", path, dict(headers), headers)
        context.set_trailing_metadata(_trailing(call))
        return call

    async def _infer(self, raw: bytes, context: Any) -> bytes:
        call = self._begin(f"/{SERVICE}/ModelInfer", context)
        status = CLIENT_LEFT  # unless we come to an answer
        self._in_work += 1
        self._app.started(call)
        if call.trace is not None and call.trace.parent_id:
            call.told = ((b"traceparent", call.trace.traceparent.encode()),)
        try:
            answer = await self._predicted(call, raw, context)
            status = 200
        except asyncio.CancelledError:
            if context.time_remaining() == 0:
                status = 504
            raise
        except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
            status = _status_of(exc)
            await _refuse(call, exc, context)
        finally:
            self._in_work -= 1
            self._app.finished(call, status)
        return answer

    async def _predicted(self, call: Call, raw: bytes, context: Any) -> bytes:
        remaining = context.time_remaining()
        allowed = self._app.request_timeout
        deadline = asyncio.get_running_loop().time() + (
            allowed if remaining is None else min(remaining, allowed)
        )
        self._app.admit()
        request = _parsed(_INFER_REQUEST, raw)
        self._check_name(request.model_name, request.model_version)
        wanted = self._codec.decode(request)
        call.rows = wanted.rows
        outputs = await self._asked(call, wanted, deadline)
        if call.told:
            context.set_trailing_metadata(_trailing(call))
        return self._codec.encode(wanted, outputs)

    async def _asked(self, call: Call, wanted: InferRequest, deadline: float) -> Outputs:
        payloads = self._app.payloads
        try:
            outputs = await self._app.infer(
                call, wanted.inputs, rows=wanted.rows, deadline=deadline, at_once=self._in_work == 1
            )
        except Exception as exc:
            if payloads is not None:
                payloads.write(call, status_of(exc), wanted.inputs, exc)
            raise
        if payloads is not None:
            payloads.write(call, 200, wanted.inputs, outputs)
        return outputs

    def _check_name(self, name: str, version: str) -> None:
        served = self._served
        if name != served.name or version not in ("", served.version):
            what = f"no model {name[:80]!r}" if name != served.name else f"no version {version[:80]!r}"
            raise _NotServed(f"{what}; this server has {served.name!r}, version {served.version!r}")


def _parsed(request: Any, raw: bytes) -> Any:
    try:
        return request.FromString(raw)
    except DecodeError as exc:
        raise BadRequest(f"the message is no {request.DESCRIPTOR.name}", kind="malformed") from exc


def _headers(context: Any) -> list[tuple[bytes, bytes]]:
    """Return the metadata of a call as HTTP's headers are kept."""
    return [(k.encode(), v if isinstance(v, bytes) else v.encode()) for k, v in context.invocation_metadata()]


def _trailing(call: Call) -> tuple[tuple[str, str], ...]:
    """Return what goes back with every answer: the request id, and whatever else is told of this one."""
    also = [(name.decode(), value.decode()) for name, value in call.told] if call.told else ()
    return (("x-request-id", call.request_id), *also)


def _status_of(exc: Exception) -> int:
    return 404 if isinstance(exc, _NotServed) else status_of(exc)


async def _refuse(call: Call, exc: Exception, context: Any) -> NoReturn:
    """Answer *call* with what went wrong; gRPC wants it raised."""
    status = _status_of(exc)
    if status == 500:
        _log.error("request %s failed\n%s", call.request_id, stack(exc))
    told = f"internal error; the server's log has it under request id {call.request_id}"
    if isinstance(exc, MlopsnbError):
        told = exc.message
    trailing = _trailing(call)
    if isinstance(exc, Overloaded):
        trailing = (*trailing, ("grpc-retry-pushback-ms", str(exc.retry_after * 1000)))
    await context.abort(_CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT), told, trailing)
    raise AssertionError("gRPC goes on after an abort")
