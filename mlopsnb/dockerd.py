"""docker-py's client of the engine that `docker` would use, and what it means if that cannot be had.

The steps that use the engine say what they wanted of it, and raise errors of their own.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlopsnb.errors import telling_line
from mlopsnb.extras import need

_USUAL = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why the engine did not answer: `where` it should be, what was `found`, and whether we may not use its socket."""

    where: str
    found: str
    forbidden: bool


class Unavailable(Exception):
    """No engine answers."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.found)
        self.trouble = trouble


def connect(*, seconds: float) -> Any:
    """Return a client of an engine that has answered; `Unavailable` if none does, `MissingExtra` without docker-py.

    It is the one of DOCKER_HOST, else of the current docker context, else the local socket; it gets so many *seconds*
    for an answer.
    """
    docker = need("docker", extra="docker")
    client = None
    try:
        _knock()
        client = docker.from_env(
            timeout=seconds, use_ssh_client=os.environ.get("DOCKER_HOST", "").startswith("ssh://")
        )
        client.ping()
    except transport_errors() as exc:
        if client is not None:
            client.close()
        raise Unavailable(trouble(exc, connected=client is not None)) from exc
    return client


def _knock() -> None:
    """Raise OSError if nobody listens on the engine's socket here: docker-py would leave its own open then."""
    host = os.environ.get("DOCKER_HOST") or _USUAL
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(host.removeprefix("unix://"))


def transport_errors() -> tuple[type[Exception], ...]:
    """Return what docker-py raises if the engine cannot be reached; what it refuses is `docker.errors.APIError`."""
    docker = need("docker", extra="docker")
    requests = need("requests.exceptions", extra="docker")
    return (docker.errors.DockerException, requests.RequestException, OSError)


def trouble(exc: Exception, *, connected: bool) -> Trouble:
    """Say what *exc*, one of `transport_errors`, means; *connected*: whether there was a client."""
    docker = need("docker", extra="docker")
    where = os.environ.get("DOCKER_HOST") or "the local socket"
    if not connected and not os.environ.get("DOCKER_HOST"):
        with suppress(docker.errors.DockerException, AttributeError):
            where = docker.ContextAPI.get_current_context().Host
    forbidden = "PermissionError" in repr(exc) or "Permission denied" in str(exc)
    return Trouble(where=where, found=telling_line(exc), forbidden=forbidden)
