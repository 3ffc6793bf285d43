"""The public lane: calls as `grpc.aio` brings them. For a grpcio in which the direct lane finds not what it needs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc

from mlopsnb.serving.app import UNKNOWN_CLIENT
from mlopsnb.serving.rpc import security

if TYPE_CHECKING:
    from mlopsnb.serving.calls import Call
    from mlopsnb.serving.rpc.service import Service, Trailing
    from mlopsnb.serving.tokens import Tokens


class _Refused(Exception):
    """A call is to be ended with a status, a message and trailing metadata."""


class _Awaited:
    """A call whose answer a task awaits."""

    def __init__(self, path: str, context: Any) -> None:
        self.path = path
        self._context = context
        self.metadata: Sequence[tuple[str, str | bytes]] = context.invocation_metadata()
        self.call: Call | None = None
        self.job: object | None = None
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def remaining(self) -> float:
        """Seconds until the client's deadline; infinity if it has none."""
        left: float | None = self._context.time_remaining()
        return math.inf if left is None else left

    def answer(self, message: bytes, trailing: Trailing) -> None:
        """Send *message*, and *trailing* metadata."""
        self._context.set_trailing_metadata(trailing)
        if not self.answered.done():
            self.answered.set_result(message)

    def refuse(self, code: grpc.StatusCode, told: str, trailing: Trailing) -> None:
        """Send what went wrong."""
        if not self.answered.done():
            self.answered.set_exception(_Refused(code, told, trailing))


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is untyped
    """Answers calls without a token of *tokens*, before their message is read."""

    def __init__(self, service: Service, tokens: Tokens) -> None:
        self._service = service
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Let the call go on, or have it refused."""
        if not security.allowed(self._tokens, details.method, details.invocation_metadata):
            self._service.turned_away(details.method)
            # As if its messages were a stream: those are received when they are asked for, which they are not.
            return grpc.stream_unary_rpc_method_handler(_turn_away)
        return await continuation(details)


async def _turn_away(messages: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, UNKNOWN_CLIENT)


class AioLane:
    """Brings the calls of one port to *service*, on the event loop that starts it."""

    def __init__(self, service: Service, options: Sequence[tuple[str, int]], tokens: Tokens | None) -> None:
        self._service = service
        interceptors = [] if tokens is None else [_Guard(service, tokens)]
        self._server = grpc.aio.server(options=options, interceptors=interceptors)
        for path in service.paths:
            _, name, method = path.split("/")
            handler = grpc.unary_unary_rpc_method_handler(self._handler(path))
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, {method: handler}),)
            )

    def _handler(self, path: str) -> Any:
        async def handle(raw: bytes, context: Any) -> bytes:
            rpc = _Awaited(path, context)
            self._service.take(rpc, raw)
            try:
                return await rpc.answered
            except _Refused as exc:
                await context.abort(*exc.args)
                raise AssertionError("gRPC goes on after an abort") from None
            except asyncio.CancelledError:
                self._service.gone(rpc)
                raise

        return handle

    def listen(self, address: str, credentials: Any) -> int:
        """Take *address*, with TLS if there are *credentials*; return the port, 0 if it is taken."""
        try:
            if credentials is None:
                port: int = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            return 0
        return port

    async def start(self) -> None:
        """Let clients in."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no more calls, and answer those in work; cancel what is left after *grace* seconds."""
        await self._server.stop(grace)
