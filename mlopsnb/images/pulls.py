"""Reading one blob of a registry, piece by piece: going on where a connection broke off, and at the next source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mlopsnb.images.errors import DigestMismatch, NotInRegistry, RegistryError
from mlopsnb.images.tokens import pull
from mlopsnb.images.wire import Retries, Transient

if TYPE_CHECKING:
    import httpx

    from mlopsnb.images.plan import Descriptor
    from mlopsnb.images.wire import Wire

Source = tuple["Wire", str]
"""A registry and the name of the repository in it."""


def pieces(
    sources: Sequence[Source], blob: Descriptor, *, on_bytes: Callable[[int], None] | None = None
) -> Iterator[bytes]:
    """Yield the blob from the first source that can give it, or the rest of it that can give the rest."""
    found, at = hashlib.new(blob.digest.partition(":")[0]), 0
    for wire, repository in sources:
        try:
            for piece in _from(wire, repository, blob, at):
                at += len(piece)
                found.update(piece)
                if on_bytes is not None:
                    on_bytes(len(piece))
                yield piece
            break
        except RegistryError:
            if (wire, repository) == sources[-1]:
                raise
    hexdigest = blob.digest.partition(":")[2]
    if found.hexdigest() != hexdigest:
        where = f"the registry {sources[-1][0].host}"
        raise DigestMismatch(where, "a blob", blob.digest, f"{found.name}:{found.hexdigest()}")


def _from(wire: Wire, repository: str, blob: Descriptor, at: int) -> Iterator[bytes]:
    retries = Retries(wire)
    while at < blob.size:
        try:
            for piece in _attempt(wire, repository, blob, at):
                at += len(piece)
                retries.progressed()
                yield piece
            if at < blob.size:
                short = f"the registry {wire.host} gave only {at} of the {blob.size} bytes of {blob.digest}"
                raise Transient(RegistryError(short))
        except Transient as exc:
            retries.wait(exc)


def _attempt(wire: Wire, repository: str, blob: Descriptor, start: int) -> Iterator[bytes]:
    headers = {"Range": f"bytes={start}-"} if start else {}
    url, scopes, doing = wire.url(f"{repository}/blobs/{blob.digest}"), pull(repository), f"read {repository}"
    with wire.exchange("GET", url, scopes=scopes, doing=doing, headers=headers) as response:
        if response.status_code == 404:
            raise NotInRegistry(wire.host, f"blob {blob.digest} in {repository}")
        if response.status_code not in (200, 206):
            raise wire.refusal(wire.whole(response), doing, scopes)
        skip = start - _begins(response)
        left = blob.size - start
        for piece in response.iter_raw():
            wire.check()
            kept = piece[skip:]
            skip = max(0, skip - len(piece))
            left -= len(kept)
            if left < 0:
                raise DigestMismatch(f"the registry {wire.host}", "a blob", f"{blob.size} bytes", "more")
            if kept:
                yield kept


def _begins(response: httpx.Response) -> int:
    """Return the offset of the first byte of an answer: a server need not heed `Range`."""
    match = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(match[1]) if response.status_code == 206 and match else 0
