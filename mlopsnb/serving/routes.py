"""What a protocol hands to the HTTP application: its paths, and for each how to read and how to answer.

Plain data and pure functions, so that a protocol is tested without a server. Knows no protocol and no sockets.
What is made for every request is a msgspec struct, which costs a fifth of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

if TYPE_CHECKING:
    from mlopsnb.manifest import Manifest
    from mlopsnb.records import Signature
    from mlopsnb.tensors import Array

Headers = Mapping[bytes, bytes]
"""A request's headers, their names in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The model that is served, as protocols describe it. `parameters` tells how it is run now."""

    name: str
    version: str
    manifest: Manifest
    parameters: Callable[[], Mapping[str, Any]] = dict

    @property
    def signature(self) -> Signature:
        """What goes in and what comes out."""
        return self.manifest.signature


class Reply(msgspec.Struct, frozen=True):
    """An answer before it is sent."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Prediction(msgspec.Struct, frozen=True):
    """A request that fits the signature. `encode` writes the answer to it; it may raise `BadRequest`."""

    inputs: Mapping[str, Array]
    rows: int
    encode: Callable[[Mapping[str, Array]], Reply]


Show = Callable[[bool], Reply]
"""Answers a GET; is told whether the model is ready."""

Negotiate = Callable[[Headers], Reply]
"""Answers a GET in the form that its headers ask for."""

Decode = Callable[[bytes, Headers], Prediction]
"""Reads a POST's body; raises nothing but `BadRequest`."""

ErrorForm = Callable[[int, str], bytes]
"""Writes an error, from its status and message, as the protocol's clients expect it, in JSON."""


def plain_error(status: int, message: str) -> bytes:
    """Return `{"error": message}`, the form of most protocols."""
    return orjson.dumps({"error": message})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path: what it shows, be it in the form that the headers ask for, or how it predicts.

    What is *public* needs no token: whether the server lives and is ready, and pages that show nothing of the data.
    """

    show: Show | None = None
    negotiate: Negotiate | None = None
    decode: Decode | None = None
    error: ErrorForm = plain_error
    public: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that it takes."""
        return ("POST",) if self.decode is not None else ("GET", "HEAD")


def json_reply(content: object, status: int = 200) -> Reply:
    """Return *content*, numpy arrays included, as JSON. NaN and infinity go as null."""
    return Reply(status, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


def always(content: object) -> Show:
    """Return what shows *content* whether or not the model is ready; it is written once."""
    reply = json_reply(content)
    return lambda ready: reply
