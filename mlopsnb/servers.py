"""The options of a server, as people write them for `deploy`: checked before anything is done. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from mlopsnb.errors import UserError

MOST_WORKERS = 256
_MOST_PORT = 65535


def read(
    *,
    env: Mapping[Any, Any] | None,
    port: object,
    grpc_port: object,
    cache_bytes: object,
    capture: object,
    mask: object,
    workers: object,
) -> dict[str, Any]:
    """Return the fields of a `Revision` of these names; `UserError` says of which one what is wrong."""
    return {
        "env": _environment(env or {}),
        "port": _port(port),
        "grpc_port": _grpc_port(grpc_port, port),
        "cache_bytes": _cache_bytes(cache_bytes),
        "capture": _share(capture),
        "mask": _mask(mask, capture),
        "workers": _workers(workers),
    }


def _environment(env: Mapping[Any, Any]) -> dict[str, str]:
    wrong = [k for k, v in env.items() if not isinstance(v, str) or not str(k).isidentifier()]
    if wrong:
        raise UserError(
            f"env: {', '.join(map(str, wrong))} cannot be an environment variable",
            hint='names are letters, digits and underscores; values are text, such as {"THREADS": "2"}',
        )
    return dict(env)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _port(port: object) -> int | None:
    if port is None or (_is_whole(port) and 0 < port <= _MOST_PORT):
        return port
    raise UserError(
        f"port must be a number from 1 to {_MOST_PORT}, found {port!r}", hint="leave it out for a free one"
    )


def _grpc_port(port: object, http: object) -> int | None:
    if port is not None and not (_is_whole(port) and 0 <= port <= _MOST_PORT):
        raise UserError(
            f"grpc_port must be a number from 0 to {_MOST_PORT}, found {port!r}",
            hint="0 takes one that is free",
        )
    if port and port == http:
        raise UserError(f"HTTP and gRPC cannot share port {port}", hint="give another grpc_port")
    return port


def _cache_bytes(size: object) -> int | None:
    if size is None or (_is_whole(size) and size > 0):
        return size
    raise UserError(f"cache_bytes must be a number above 0, found {size!r}", hint="leave it out for no cache")


def _share(share: object) -> float | None:
    if share is None:
        return None
    if isinstance(share, (int, float)) and not isinstance(share, bool) and 0 < share <= 1:
        return float(share)
    raise UserError(
        f"capture must be a share of the requests, above 0 and at most 1, found {share!r}",
        hint="capture=0.1 writes the rows of one request in ten",
    )


def _mask(names: object, capture: object) -> tuple[str, ...]:
    given = names if isinstance(names, (list, tuple)) else [names]
    wrong = [name for name in given if not isinstance(name, str) or not name or "," in name]
    if wrong:
        raise UserError(
            f"mask takes names of inputs, outputs and features, found {wrong[0]!r}",
            hint='mask=["age", "income"]; a name with a comma in it cannot be masked',
        )
    if given and capture is None:
        raise UserError(
            "mask says what is left out of captured rows, and none are captured",
            hint="capture=0.1 goes with it",
        )
    return tuple(given)


def _workers(workers: object) -> int:
    if _is_whole(workers) and 0 < workers <= MOST_WORKERS:
        return workers
    raise UserError(
        f"workers must be a number from 1 to {MOST_WORKERS}, found {workers!r}",
        hint="one for each processor that the model server may use",
    )
