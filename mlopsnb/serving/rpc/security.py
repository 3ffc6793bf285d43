"""For gRPC: bearer tokens, TLS that follows its files, and bounds on connections, with the means that gRPC has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc

from mlopsnb.serving.rpc.messages import HEALTH, SERVICE

if TYPE_CHECKING:
    from mlopsnb.serving.connections import ConnectionLimits
    from mlopsnb.serving.tls import Identity, Tls
    from mlopsnb.serving.tokens import Tokens

_PROBES = frozenset({f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady", f"/{HEALTH}/Check"})
_IDLE_MILLISECONDS = 300_000
"""A client whose channel is closed because it is idle connects again with its next call, without an error."""


def allowed(tokens: Tokens | None, path: str, metadata: Sequence[tuple[str, str | bytes]]) -> bool:
    """Say whether the call of *path* may go on: it is a probe, or has one of *tokens*, or nobody asks for one."""
    if tokens is None or path in _PROBES:
        return True
    given = [value for key, value in metadata if key == "authorization"]
    last = given[-1] if given else b""
    return tokens.allow({b"authorization": last if isinstance(last, bytes) else last.encode()})


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
