"""Who we are to a registry: basic authentication and the tokens that its authorization service gives out.

Sources: https://distribution.github.io/distribution/spec/auth/token/ (scopes, GET) and `…/auth/oauth/` (POST with an
identity token). A token is kept until shortly before it expires, one for each set of scopes.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mlopsnb.images.errors import RegistryError

if TYPE_CHECKING:
    from mlopsnb.images.credentials import Credentials

Scopes = tuple[str, ...]
"""What a request needs, such as `repository:team/fraud:pull,push`; a mount needs two."""

_CLIENT = "mlopsnb"
_SHORTEST = 60.0
"""Seconds that a token holds if the service does not say (token specification, `expires_in`)."""

_CHALLENGE = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


def pull(repository: str) -> Scopes:
    """Return the scope to read a repository."""
    return (f"repository:{repository}:pull",)


def push(repository: str) -> Scopes:
    """Return the scope to write a repository."""
    return (f"repository:{repository}:pull,push",)


class Fetch(Protocol):
    """Sends one request to the authorization service and returns its JSON; errors are translated already."""

    def __call__(
        self, method: str, url: str, *, params: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """Raise `RegistryError` if there is no token."""
        ...


@dataclass(frozen=True, slots=True)
class _Challenge:
    kind: str
    realm: str = ""
    service: str = ""
    scope: str = ""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    until: float


class Authorizer:
    """Gives the `Authorization` header of each request; learns from the registry's 401 answers what it wants."""

    def __init__(
        self, host: str, credentials: Callable[[str], Credentials | None], fetch: Fetch, *, plain: bool
    ) -> None:
        self._host, self._find, self._fetch, self._plain = host, credentials, fetch, plain
        self._challenge: _Challenge | None = None
        self._tokens: dict[Scopes, _Token] = {}
        self._found: dict[str, Credentials | None] = {}
        self._lock = threading.Lock()

    def header(self, scopes: Scopes) -> str:
        """Return the header's value for a request that needs *scopes*; empty before the registry asked for one."""
        if (challenge := self._challenge) is None:
            return ""
        with self._lock:
            credentials = self._credentials(scopes)
            if challenge.kind == "basic":
                return _basic(credentials) if credentials else ""
            if credentials and credentials.registry_token:
                return f"Bearer {credentials.registry_token}"
            kept = self._tokens.get(scopes)
            if kept is None or kept.until < time.monotonic():
                kept = self._tokens[scopes] = self._new(challenge, scopes, credentials)
            return f"Bearer {kept.text}"

    def challenged(self, challenges: list[str], scopes: Scopes, sent: str) -> bool:
        """Take note of a 401 answer to a request with the header *sent*; say whether another one may do better."""
        challenge = _read(challenges)
        if challenge is None:
            return False
        with self._lock:
            self._challenge = challenge
            kept = self._tokens.get(scopes)
            if kept is not None and sent == f"Bearer {kept.text}":
                del self._tokens[scopes]  # expired or revoked before its time
        return not sent.startswith("Basic ")

    def user(self, scopes: Scopes) -> str:
        """Return who we are to the registry, for messages; empty if nobody."""
        credentials = self._found.get(_repository(scopes))
        if credentials is None:
            return ""
        return credentials.user or "the holder of a token"

    def _credentials(self, scopes: Scopes) -> Credentials | None:
        repository = _repository(scopes)
        if repository not in self._found:
            self._found[repository] = self._find(repository)
        return self._found[repository]

    def _new(self, challenge: _Challenge, scopes: Scopes, credentials: Credentials | None) -> _Token:
        if not challenge.realm.startswith(("https://", "http://") if self._plain else "https://"):
            raise RegistryError(
                f"the registry {self._host} wants credentials sent to {challenge.realm.partition('?')[0][:200]!r}, "
                "which is not HTTPS",
                hint="nothing was sent; ask its owner to correct the realm of its token service",
            )
        asked = [scope for scope in scopes or (challenge.scope,) if scope]
        began = time.monotonic()
        answer = self._ask(challenge, asked, credentials)
        text = answer.get("token") or answer.get("access_token")
        if not isinstance(text, str):
            raise RegistryError(f"the token service of the registry {self._host} gave no token")
        lives = answer.get("expires_in")
        seconds = float(lives) if isinstance(lives, int | float) else _SHORTEST
        return _Token(text, began + 0.9 * seconds)

    def _ask(
        self, challenge: _Challenge, scopes: list[str], credentials: Credentials | None
    ) -> Mapping[str, Any]:
        params: dict[str, Any] = {"service": challenge.service} if challenge.service else {}
        if credentials and credentials.identity_token:
            params |= {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
            params |= {"client_id": _CLIENT, "scope": " ".join(scopes)}
            return self._fetch("POST", challenge.realm, params=params, headers={})
        params |= {"scope": scopes, "client_id": _CLIENT}
        headers = {}
        if credentials:
            params["account"] = credentials.user
            headers["Authorization"] = _basic(credentials)
        return self._fetch("GET", challenge.realm, params=params, headers=headers)


def _repository(scopes: Scopes) -> str:
    return scopes[0].split(":")[1] if scopes else ""


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()


def _read(challenges: list[str]) -> _Challenge | None:
    """Return what the `WWW-Authenticate` headers ask for; a token rather than a password."""
    best = None
    for text in challenges:
        for part in re.split(r"(?i)(?:^|,)\s*(?=(?:bearer|basic)\b)", text):
            kind, _, rest = part.strip().partition(" ")
            if kind.lower() == "bearer":
                found = {key.lower(): quoted or bare for key, quoted, bare in _CHALLENGE.findall(rest)}
                if realm := found.get("realm"):
                    return _Challenge("bearer", realm, found.get("service", ""), found.get("scope", ""))
            elif kind.lower() == "basic":
                best = _Challenge("basic")
    return best
