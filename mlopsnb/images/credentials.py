"""Credentials of a registry, from where docker and podman keep them. Never shown, never stored.

Sources: https://docs.docker.com/reference/cli/docker/login/ (`auths`, `credsStore`, `credHelpers`),
https://github.com/docker/docker-credential-helpers, and containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlopsnb.images.errors import CredentialsUnreadable
from mlopsnb.images.references import DOCKER_HUB

_HUB_KEY = "https://index.docker.io/v1/"
"""The name under which docker keeps the credentials of docker.io."""

_HUB_HOSTS = {"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
_HELPER_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user with a password, or a token: `identity_token` is exchanged for access, `registry_token` is access."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


def find(host: str, repository: str = "") -> Credentials | None:
    """Return what is kept for *host*, or for the namespace of it that *repository* is in; None if nothing is.

    Looked for in REGISTRY_AUTH_FILE, DOCKER_AUTH_CONFIG (the JSON itself), docker's configuration, and podman's. A
    helper that is not installed is passed over (see `missing_helper`); `CredentialsUnreadable` if one fails.
    """
    for where, config in _configurations():
        for key in _keys(host, repository):
            if found := _find_in(config, key, where):
                return found
    return None


def missing_helper(host: str) -> str:
    """Name the credential helper that is configured for *host* but not installed, if there is one."""
    for where, config in _configurations():
        name = _helper(config, host)
        if name and not shutil.which(name):
            return f"{where} names {name}, which is not on the PATH"
    return ""


def _configurations() -> Iterator[tuple[str, Mapping[str, Any]]]:
    home = Path.home()
    runtime, config = os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("XDG_CONFIG_HOME")
    if explicit := os.environ.get("REGISTRY_AUTH_FILE"):
        yield from _load(Path(explicit))
    if text := os.environ.get("DOCKER_AUTH_CONFIG"):
        yield "DOCKER_AUTH_CONFIG", _parse("DOCKER_AUTH_CONFIG", text)
    yield from _load(Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
    if runtime:
        yield from _load(Path(runtime) / "containers/auth.json")
    yield from _load(Path(config or home / ".config") / "containers/auth.json")


def _load(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as exc:
        raise CredentialsUnreadable(str(path), type(exc).__name__) from exc
    yield str(path), _parse(str(path), text)


def _parse(where: str, text: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as exc:  # its message would show where it stopped, not what is there
        raise CredentialsUnreadable(where, f"it is not JSON ({exc})") from None
    if not isinstance(config, dict):
        raise CredentialsUnreadable(where, "it is not a JSON object")
    return config


def _keys(host: str, repository: str) -> Iterator[str]:
    """Yield the most special name first: podman keeps credentials of namespaces, docker of hosts."""
    parts = [host, *repository.split("/")] if repository else [host]
    for end in range(len(parts), 0, -1):
        yield "/".join(parts[:end])


def _find_in(config: Mapping[str, Any], key: str, where: str) -> Credentials | None:
    name = _helper(config, key)
    if name and (program := shutil.which(name)) and (found := _ask(program, key)):
        return found
    entries = config.get("auths")
    for kept, entry in entries.items() if isinstance(entries, dict) else ():
        if _normal(kept) == key and isinstance(entry, dict) and (found := _entry(entry, where)):
            return found
    return None


def _helper(config: Mapping[str, Any], key: str) -> str:
    helpers = config.get("credHelpers")
    chosen = ""
    for kept, name in helpers.items() if isinstance(helpers, dict) else ():
        if _normal(kept) == key:
            chosen = name
    chosen = chosen or (config.get("credsStore") or "" if "/" not in key else "")
    return f"docker-credential-{chosen}" if chosen else ""


def _normal(key: str) -> str:
    """Bring a key to the form `host` or `host/namespace`; docker also keeps URLs."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    host = DOCKER_HUB if host in _HUB_HOSTS else host
    path = path.strip("/")
    return f"{host}/{path}" if path and path not in ("v1", "v2") and "://" not in key else host


def _ask(program: str, key: str) -> Credentials | None:
    """Ask a helper by its protocol: the server's name on its input, JSON on its output."""
    server = _HUB_KEY if key == DOCKER_HUB else key
    name = Path(program).name
    try:
        done = subprocess.run(  # noqa: S603  a program that the user has configured
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise CredentialsUnreadable(name, f"no answer within {_HELPER_SECONDS:.0f} s") from None
    except OSError as exc:
        raise CredentialsUnreadable(name, exc.strerror or type(exc).__name__) from exc
    if done.returncode:
        said = (done.stdout or done.stderr).decode(errors="replace").strip()
        if "not found" in said.lower():
            return None
        raise CredentialsUnreadable(name, f"it ended with {done.returncode}: {said[-200:]}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):  # the output may be half a secret: it is not quoted
        raise CredentialsUnreadable(name, "its answer is not the JSON of a credential helper") from None
    if not secret:
        return None
    if user == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(user=user, password=secret)


def _entry(entry: Mapping[str, Any], where: str) -> Credentials | None:
    if token := entry.get("registrytoken"):
        return Credentials(registry_token=str(token))
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if packed := entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(packed), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise CredentialsUnreadable(where, "an `auth` in it is not base64 of user:password") from None
    if token := entry.get("identitytoken"):
        return Credentials(user=user, identity_token=str(token))
    password = password.strip("\x00")
    return Credentials(user=user, password=password) if user or password else None
