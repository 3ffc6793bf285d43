"""Names of images: `[HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST]`. Pure.

Source: https://github.com/distribution/reference (`reference.go` for the grammar, `normalize.go` for docker.io).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlopsnb.images.errors import InvalidReference

DOCKER_HUB = "docker.io"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An image's name, made whole: `python` is `library/python` of `docker.io`.

    `tag` and `digest` (`sha256:…`) are empty where they were not given.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def target(self) -> str:
        """What to ask a registry for: the digest if there is one, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    @property
    def name(self) -> str:
        """The name without tag and digest."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """Read a reference as docker does; `InvalidReference` says what is wrong with it."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise InvalidReference(text, f"{digest!r} is no digest")
    host, rest = _split_host(rest)
    name, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidReference(text, f"{tag!r} is no tag (at most 128 letters, digits, '_', '.' and '-')")
    _check_host(host, text)
    if host == DOCKER_HUB and "/" not in name:
        name = f"library/{name}"
    _check_name(name, text)
    return Reference(registry=host, repository=name, tag=tag, digest=digest)


def parse_registry(text: str) -> tuple[str, str]:
    """Read a registry with its namespace if it has one: `ghcr.io/team` is `("ghcr.io", "team")`.

    Without a dot, a colon or `localhost` in front it is a namespace of docker.io: `team` is `("docker.io", "team")`.
    """
    if not text:
        raise InvalidReference(text, "it is empty")
    host, namespace = _split_host(text.rstrip("/") + "/")
    namespace = namespace.rstrip("/")
    _check_host(host, text)
    if namespace:
        _check_name(namespace, text)
    return host, namespace


def _split_host(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        return ("docker.io" if first == "index.docker.io" else first), rest
    return DOCKER_HUB, text


def _check_host(host: str, text: str) -> None:
    if not _HOST.fullmatch(host):
        raise InvalidReference(text, f"{host!r} is no host")


def _check_name(name: str, text: str) -> None:
    if not _NAME.fullmatch(name):
        why = "its name has capital letters" if _NAME.fullmatch(name.lower()) else f"{name!r} is no name"
        raise InvalidReference(text, why)
    if len(name) > 255:
        raise InvalidReference(text, "its name is over 255 characters long")
