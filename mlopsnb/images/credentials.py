"""Credentials of a registry, from where docker and podman keep them. Never shown, never stored.

Sources: https://docs.docker.com/reference/cli/docker/login/ (`auths`, `credsStore`, `credHelpers`),
https://github.com/docker/docker-credential-helpers, and containers-auth.json(5).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user with a password, or a token: `identity_token` is exchanged for access, `registry_token` is access."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


def find(host: str, repository: str = "") -> Credentials | None:
    """Return what is kept for *host*; None if nothing is."""
    raise NotImplementedError
