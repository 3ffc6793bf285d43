"""For gRPC: bearer tokens, TLS that follows its files, and bounds on connections, with the means that gRPC has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from mlopsnb.serving.app import UNKNOWN_CLIENT, begin
from mlopsnb.serving.rpc.messages import HEALTH, SERVICE

if TYPE_CHECKING:
    from mlopsnb.serving.app import App
    from mlopsnb.serving.connections import ConnectionLimits
    from mlopsnb.serving.tls import Identity, Tls
    from mlopsnb.serving.tokens import Tokens

_PROBES = frozenset({f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady", f"/{HEALTH}/Check"})
_INFER = f"/{SERVICE}/ModelInfer"
_IDLE_MILLISECONDS = 300_000
"""A client whose channel is closed because it is idle connects again with its next call, without an error."""


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is untyped
    """Answers calls without a token of *tokens*, before their message is read."""

    def __init__(self, app: App, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Let the call go on, or have it refused."""
        if details.method not in _PROBES and not self._tokens.allow(_authorization(details)):
            if details.method == _INFER:
                call = begin("gRPC", _INFER, {}, ())
                self._app.started(call)
                self._app.finished(call, 401)
            # As if its messages were a stream: those are received when they are asked for, which they are not.
            return grpc.stream_unary_rpc_method_handler(_refuse)
        return await continuation(details)


async def _refuse(messages: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, UNKNOWN_CLIENT)


def _authorization(details: Any) -> dict[bytes, bytes]:
    found = [v for k, v in details.invocation_metadata if k == "authorization"]
    return {b"authorization": found[-1].encode()} if found else {}


def options(limits: ConnectionLimits) -> list[tuple[str, int]]:
    """Return the channel arguments that bound what connections may cost."""
    return [
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(limits.head * 1000)),
        ("grpc.max_connection_idle_ms", _IDLE_MILLISECONDS),
    ]


def credentials(tls: Tls) -> Any:
    """Return credentials that present the identity which *tls* has when a client comes."""
    shown: list[Identity] = [tls.identity]

    def fetch() -> Any:
        if shown[0] is tls.identity:
            return None
        shown[0] = tls.identity
        return _configuration(shown[0])

    return grpc.dynamic_ssl_server_credentials(
        _configuration(tls.identity), fetch, require_client_authentication=tls.identity.client_ca is not None
    )


def _configuration(identity: Identity) -> Any:
    pair = (identity.key, identity.certificate)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=identity.client_ca)
