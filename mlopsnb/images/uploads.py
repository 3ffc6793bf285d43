"""Sending one blob to a registry: at once if it is not large, else in chunks; going on where a connection broke off.

Source: distribution specification v1.1, "Pushing blobs": POST opens a session, PATCH appends to it, PUT with the digest
ends it, GET says how much of it has arrived, DELETE gives it up. Whatever ends an upload early also deletes its session.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlopsnb.errors import BuildError
from mlopsnb.images.errors import DigestMismatch, RegistryError
from mlopsnb.images.tokens import push
from mlopsnb.images.wire import Answer, Retries, Transient

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from mlopsnb.images.blobs import Source
    from mlopsnb.images.plan import Descriptor
    from mlopsnb.images.wire import Wire

WHOLE = 256 << 20
"""Bytes up to which a blob goes in one request: the fastest way, and one that every registry has."""

CHUNK = 64 << 20
SMALL_CHUNK = 16 << 20
"""Bytes of a chunk after the registry, or a proxy before it, found a request too large (413)."""

_PIECE = 256 << 10
_DOUBTFUL = {400, 404, 409, 416}
"""Answers to a part of an upload after which its session is gone, or has another offset than we think."""

_DOUBTS = 3
"""How often in a row that may be answered, without any progress between."""


class Upload:
    """One blob on its way. `run` sends it, and is called once."""

    def __init__(
        self,
        wire: Wire,
        repository: str,
        blob: Descriptor,
        source: Source,
        *,
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        self._wire, self._blob, self._source, self._on_bytes = wire, blob, source, on_bytes
        self._path = f"{repository}/blobs/"
        self._scopes = push(repository)
        self._doing = f"store a blob in {repository}"
        self._session: httpx.URL | None = None
        self._lost = False
        self._smallest = self._arrived = self._most = self._reported = self._doubts = 0
        self._chunk = 0 if blob.size <= WHOLE else CHUNK

    def run(self, session: Answer | None = None) -> None:
        """Send the blob, into the *session* that an answer with 202 has opened, if there is one already."""
        retries = Retries(self._wire)
        try:
            if session is not None:
                self._adopt(session)
            while not self._tried(retries):
                if self._arrived > self._most:
                    self._most, self._doubts = self._arrived, 0
                    retries.progressed()
        except BaseException:
            self._abandon()
            raise
        self._report(self._blob.size)

    def _tried(self, retries: Retries) -> bool:
        try:
            return self._step()
        except Transient as exc:
            self._lost = self._session is not None
            retries.wait(exc)
            return False

    def _step(self) -> bool:
        """Send the next request; say whether the blob is in the repository."""
        if self._lost:
            return self._recovered()
        if self._session is None:
            url = self._wire.url(f"{self._path}uploads/")
            self._adopt(self._wire.call("POST", url, scopes=self._scopes, doing=self._doing, expect=(202,)))
        if self._chunk == 0 and self._arrived == 0:
            return self._finished(self._blob.size)
        if self._arrived == self._blob.size:
            return self._finished(0)
        self._append()
        return False

    def _adopt(self, answer: Answer) -> None:
        self._move(answer)
        smallest = answer.headers.get("oci-chunk-min-length", "")
        self._smallest = int(smallest) if smallest.isdecimal() else 0
        self._arrived = 0

    def _move(self, answer: Answer) -> None:
        """Go on at the Location of an answer: each one may name another."""
        if location := answer.headers.get("location"):
            self._session = self._wire.follow(location, answer.url)
        elif self._session is None:
            raise RegistryError(f"the registry {self._wire.host} opened an upload but said not where")

    def _append(self) -> None:
        end = min(self._blob.size, self._arrived + max(self._chunk or CHUNK, self._smallest))
        answer = self._send("PATCH", self._open_session(), self._arrived, end)
        if answer.status in (202, 204):
            self._move(answer)
            self._arrived = _arrived(answer, otherwise=end)
            self._lost = self._arrived > end
        elif answer.status in (405, 411, 501) and self._chunk:
            self._chunk = 0  # it knows no chunks
            self._restart()
        else:
            self._object(answer)

    def _finished(self, size: int) -> bool:
        """End the upload with its last *size* bytes."""
        session = self._open_session()
        last = session.join(f"{session}{'&' if session.query else '?'}digest={self._blob.digest}")
        answer = self._send("PUT", last, self._blob.size - size, self._blob.size)
        if answer.status not in (201, 204):
            self._object(answer)
            return False
        self._session = None
        found = answer.headers.get("docker-content-digest", "")
        if found.startswith("sha256:") and found != self._blob.digest:
            raise DigestMismatch(f"the registry {self._wire.host}", "what arrived", self._blob.digest, found)
        return True

    def _object(self, answer: Answer) -> None:
        """See what can be done after an answer that is not the one hoped for."""
        small = (
            self._smallest > SMALL_CHUNK or 0 < self._chunk <= SMALL_CHUNK or self._blob.size <= SMALL_CHUNK
        )
        if answer.status == 413 and not small:
            self._chunk = SMALL_CHUNK
            self._restart()
        elif answer.status in _DOUBTFUL and self._doubts < _DOUBTS:
            self._doubts += 1
            if b"DIGEST_INVALID" in answer.data or b"SIZE_INVALID" in answer.data:
                self._restart()
            else:
                self._lost = True
        else:
            if answer.status in _DOUBTFUL:
                self._check_source()
            raise self._wire.refusal(answer, self._doing, self._scopes)

    def _recovered(self) -> bool:
        """Ask how much has arrived; say whether it is all in the repository. A session that is gone is opened anew."""
        url, doing, scopes = self._open_session(), self._doing, self._scopes
        with self._wire.exchange("GET", url, scopes=scopes, doing=doing) as response:
            answer = self._wire.whole(response)
        if answer.status in (200, 202, 204) and (arrived := _arrived(answer, otherwise=0)) <= self._blob.size:
            self._move(answer)
            self._arrived, self._lost = arrived, False
            return False
        if answer.status >= 500 or answer.status == 429:
            raise self._wire.refusal(answer, doing, scopes)
        head = self._wire.url(self._path + self._blob.digest)
        if self._wire.call("HEAD", head, scopes=scopes, doing=doing, expect=(200, 404)).status == 200:
            self._session = None
            return True
        self._restart()
        return False

    def _open_session(self) -> httpx.URL:
        assert self._session is not None
        return self._session

    def _restart(self) -> None:
        self._abandon()
        self._arrived, self._lost = 0, False

    def _abandon(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            self._wire.forget(session, self._scopes)

    def _send(self, method: str, url: httpx.URL, start: int, end: int) -> Answer:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - start)}
        if method == "PATCH":
            headers["Content-Range"] = f"{start}-{end - 1}"
        body = (lambda: self._pieces(start, end)) if end > start else None
        doing, scopes = self._doing, self._scopes
        with self._wire.exchange(
            method, url, scopes=scopes, doing=doing, headers=headers, body=body
        ) as response:
            return self._wire.whole(response)

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        self._report(start)
        if isinstance(self._source, bytes):
            yield self._source[start:end]
            self._report(end)
            return
        with self._source.open("rb") as file:
            file.seek(start)
            while start < end:
                self._wire.check()
                if not (piece := file.read(min(_PIECE, end - start))):
                    raise BuildError(f"{self._source} became shorter while it was sent")
                yield piece
                start += len(piece)
                self._report(start)

    def _report(self, now: int) -> None:
        if self._on_bytes is not None and now != self._reported:
            self._on_bytes(now - self._reported)
        self._reported = now

    def _check_source(self) -> None:
        """Raise `BuildError` if the registry was right: the file is not what it was when its digest was taken."""
        if isinstance(self._source, bytes):
            return
        with self._source.open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != self._blob.digest:
            raise BuildError(
                f"{self._source} was changed after it was packed: its digest is {found}, not {self._blob.digest}",
                hint="ml.cleanup(images=True) empties the cache; then build again",
            )


def _arrived(answer: Answer, *, otherwise: int) -> int:
    """Read how many bytes are in a session from `Range: 0-LAST`; `0-0` is what registries say of an empty one too."""
    match = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("range", "").strip())
    if match is None:
        return otherwise
    last = int(match[1])
    return last + 1 if last else 0
