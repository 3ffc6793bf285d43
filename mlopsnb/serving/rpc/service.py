"""The calls of the gRPC server: predictions by the same engine as HTTP's, and all that tells of server and model.

A call's deadline is the client's; whoever cancels is forgotten. Statuses are gRPC's, while the log and the counters
have HTTP's, so that one table tells of both. Beside the protocol it answers the standard health check, for probes.
Knows nothing of connections: a lane brings calls and takes their answers. All of it is for the event loop.
Sources: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_grpc.md);
https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from mlopsnb.errors import MlopsnbError, UserError
from mlopsnb.serving import v2
from mlopsnb.serving.app import CLIENT_LEFT, UNKNOWN_CLIENT, status_of
from mlopsnb.serving.calls import begin
from mlopsnb.serving.errors import BadRequest, Overloaded, stack
from mlopsnb.serving.protocols.open_inference import server_metadata
from mlopsnb.serving.rpc.codec import Codec
from mlopsnb.serving.rpc.messages import HEALTH, NOT_SERVING, SERVICE, SERVING, message

if TYPE_CHECKING:
    from mlopsnb.serving.app import App
    from mlopsnb.serving.batcher import Outputs
    from mlopsnb.serving.calls import Call
    from mlopsnb.serving.v2 import InferRequest

INFER = f"/{SERVICE}/ModelInfer"
Trailing = tuple[tuple[str, str], ...]

_CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.UNIMPLEMENTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""For the statuses that errors have over HTTP; all others are faults of the request."""

_EARLY_SECONDS = 0.01
"""A client ends its call at its deadline by its own clock, which may be a little before ours."""

_INFER_REQUEST = message("ModelInferRequest")
_log = logging.getLogger("mlopsnb.serving")
_Show = Callable[[Any], Any]


class _NotServed(UserError):
    """A call names a model, a version or a service that is not here."""


class Rpc(Protocol):
    """A call, as its lane made it. It is answered or refused once. `call` and `job` are the service's own notes.

    `call` is there from `Service.take` until the call is done with.
    """

    path: str
    metadata: Sequence[tuple[str, str | bytes]]
    call: Call | None
    job: object | None

    @property
    def remaining(self) -> float:
        """Seconds until the client's deadline; infinity if it has none."""

    def answer(self, message: bytes, trailing: Trailing) -> None:
        """Send *message*, and *trailing* metadata."""

    def refuse(self, code: grpc.StatusCode, told: str, trailing: Trailing) -> None:
        """Send what went wrong."""


class Service:
    """Answers the calls that lanes bring; `paths` are those that there are.

    Messages are read here, not by gRPC, so that one that is none is an error like others.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._served = app.served
        served = self._served
        self._codec = Codec(served.signature, name=served.name, version=served.version)
        self._in_work = 0
        self._tells = {
            f"/{SERVICE}/{method}": (message(f"{method}Request"), show)
            for method, show in self._shows().items()
        }
        self._tells[f"/{HEALTH}/Check"] = message("HealthCheckRequest"), self._health
        self.paths = frozenset((INFER, *self._tells))

    def take(self, rpc: Rpc, raw: bytes, *, alone: bool = True) -> None:
        """Answer *rpc*, whose message is *raw*: now, or when the model has. *alone*: no other comes with it."""
        headers = [(k.encode(), v if isinstance(v, bytes) else v.encode()) for k, v in rpc.metadata]
        call = rpc.call = begin("gRPC", rpc.path, dict(headers), headers)
        if rpc.path == INFER:
            self._infer(rpc, call, raw, alone=alone)
        else:
            self._tell(rpc, call, raw)

    def gone(self, rpc: Rpc) -> None:
        """Forget *rpc*, unless it is answered: its client left, or its deadline has passed."""
        if rpc.call is not None:
            if rpc.job is not None:
                self._app.forget(rpc.job)
            self._finish(rpc, rpc.call, 504 if rpc.remaining < _EARLY_SECONDS else CLIENT_LEFT)

    def turn_away(self, rpc: Rpc) -> None:
        """Refuse *rpc*, which has no token."""
        self.turned_away(rpc.path)
        rpc.refuse(grpc.StatusCode.UNAUTHENTICATED, UNKNOWN_CLIENT, ())

    def turned_away(self, path: str) -> None:
        """Note a call without a token."""
        if path == INFER:
            call = begin("gRPC", path, {}, ())
            self._app.started(call)
            self._app.finished(call, 401)

    def _tell(self, rpc: Rpc, call: Call, raw: bytes) -> None:
        request, show = self._tells[rpc.path]
        status = 200
        try:
            rpc.answer(show(_parsed(request, raw)).SerializeToString(), _trailing(call))
        except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
            status = _refuse(rpc, call, exc)
        rpc.call = None
        self._app.answered(call, status)

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

    def _infer(self, rpc: Rpc, call: Call, raw: bytes, *, alone: bool) -> None:
        app = self._app
        self._in_work += 1
        app.started(call)
        if call.trace is not None and call.trace.parent_id:
            call.told = ((b"traceparent", call.trace.traceparent.encode()),)
        try:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + min(rpc.remaining, app.request_timeout)
            app.admit()
            wanted = self._codec.recognize(raw) or self._read(raw)
            call.rows = wanted.rows
            done = partial(self._answer, rpc, call, wanted)
            job = app.submit(
                call,
                wanted.inputs,
                wanted.rows,
                done,
                deadline=deadline,
                loop=loop,
                at_once=alone and self._in_work == 1,
            )
            if rpc.call is not None:
                rpc.job = job
        except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
            self._finish(rpc, call, _refuse(rpc, call, exc))

    def _read(self, raw: bytes) -> InferRequest:
        request = _parsed(_INFER_REQUEST, raw)
        self._check_name(request.model_name, request.model_version)
        wanted = self._codec.decode(request)
        self._codec.remember(raw, request, wanted)
        return wanted

    def _answer(
        self, rpc: Rpc, call: Call, wanted: InferRequest, _: object, outcome: Outputs | Exception
    ) -> None:
        """Send what came of a prediction."""
        try:
            if isinstance(outcome, Exception):
                status = _refuse(rpc, call, outcome)
            else:
                rpc.answer(self._codec.encode(wanted, outcome), _trailing(call))
                status = 200
        except Exception as exc:  # noqa: BLE001  the last line before the wire; the log has the stack
            status = _refuse(rpc, call, exc)
        self._finish(rpc, call, status)
        self._app.told(call, status, wanted.inputs, outcome)

    def _finish(self, rpc: Rpc, call: Call, status: int) -> None:
        rpc.call = rpc.job = None
        self._in_work -= 1
        self._app.finished(call, status)

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


def _trailing(call: Call) -> Trailing:
    """Return what goes back with every answer: the request id, and whatever else is told of this one."""
    if not call.told:
        return (("x-request-id", call.request_id),)
    return (
        ("x-request-id", call.request_id),
        *((name.decode(), value.decode()) for name, value in call.told),
    )


def _refuse(rpc: Rpc, call: Call, exc: Exception) -> int:
    """Answer with what went wrong; return its status."""
    status = 404 if isinstance(exc, _NotServed) else status_of(exc)
    if status == 500:
        _log.error("request %s failed\n%s", call.request_id, stack(exc))
    told = f"internal error; the server's log has it under request id {call.request_id}"
    if isinstance(exc, MlopsnbError):
        told = exc.message
    trailing = _trailing(call)
    if isinstance(exc, Overloaded):
        trailing = (*trailing, ("grpc-retry-pushback-ms", str(exc.retry_after * 1000)))
    rpc.refuse(_CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT), told, trailing)
    return status
