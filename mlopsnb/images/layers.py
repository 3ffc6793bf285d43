"""From a planned layer to a blob: a tar that is the same wherever it is made, and gzip of it by all cores.

A tar says nothing of where and when: owner 0:0, time 0, sorted, its directories before what is in them. gzip is made
of blocks that are compressed apart (RFC 1952, 2.2: members follow each other), so its bytes do not depend on how many
threads there were. One pass over the files gives the digests of the tar and of the blob.
"""

from __future__ import annotations

import hashlib
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlopsnb.errors import BuildError
from mlopsnb.extras import need
from mlopsnb.images.blobs import Piece, Source, Spliced, opened
from mlopsnb.images.image import ImageLayer

if TYPE_CHECKING:
    from mlopsnb.images.cache import Store
    from mlopsnb.images.plan import Entry, Layer

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
TAR = "application/vnd.oci.image.layer.v1.tar"

FORMAT = 1
"""Raised when the same entries give other bytes than before."""

LEVEL = 2
"""Of ISA-L, at which its output is the same on all x86-64 processors with SSE 4.2 (at level 3 it is not)."""

BLOCK = 4 << 20
_WAITING = 4
"""Blocks that may wait for a thread, so that memory stays at some 20 MB a layer."""

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A layer that was packed, and what its blob is read from."""

    layer: ImageLayer
    source: Source


def pack(
    layer: Layer,
    store: Store,
    threads: Executor,
    *,
    on_bytes: OnBytes = lambda count: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Packed:
    """Pack *layer*, or find it in *store* if it was packed before.

    *threads* compress; *on_bytes* is told how many more bytes of files were packed. A layer that is not compressed is
    written nowhere: its files are read where they are. Raises `BuildError` if a file cannot be read or is written to
    meanwhile, `DiskFull`, and `KeyboardInterrupt` soon after *cancelled* says so.
    """
    key = _key(layer)
    with store.alone(key, cancelled=cancelled):
        if packed := find(layer, store):
            on_bytes(layer.size)
            return packed
        source = archive(layer.entries)
        tell = _Teller(on_bytes, cancelled, layer.size / source.size)
        packed = (
            _compressed(layer, source, tell, store, threads)
            if layer.compress
            else _plain(layer, source, tell)
        )
        store.set_note("layers", key, asdict(packed.layer))
        return packed


def find(layer: Layer, store: Store) -> Packed | None:
    """Return *layer* as it was packed before, if it was and is still there."""
    noted = store.note("layers", _key(layer))
    if noted is None:
        return None
    found = ImageLayer(**{**noted, "kind": layer.kind, "name": layer.name})
    if not layer.compress:
        source = archive(layer.entries)
        return Packed(layer=found, source=source) if source.size == found.size else None
    path = store.find(found.digest, found.size)
    return Packed(layer=found, source=path) if path else None


class _Teller:
    """Passes on how many bytes of files were packed, and stops who packs them when all is called off.

    *share* is how much of the tar are files.
    """

    def __init__(self, on_bytes: OnBytes, cancelled: Callable[[], bool], share: float) -> None:
        self._on_bytes, self._cancelled, self._share = on_bytes, cancelled, share
        self._read = self._told = 0

    def __call__(self, count: int) -> None:
        if self._cancelled():
            raise KeyboardInterrupt
        self._read += count
        told, self._told = self._told, round(self._read * self._share)
        self._on_bytes(self._told - told)


def _key(layer: Layer) -> str:
    how = f"isal {_isal().__version__} {LEVEL} {BLOCK}" if layer.compress else "plain"
    return f"{layer.key} {FORMAT} {how}"


def _isal() -> Any:
    return need("isal", extra="images")


def _blocks(source: Spliced, tell: _Teller, spare: list[bytearray]) -> Iterator[memoryview]:
    """Yield *source* in blocks of `BLOCK` bytes, the last one shorter.

    Whoever is done with a block gives it back to *spare*: memory that is new each time has to be cleared each time.
    """
    with opened(source) as file:
        while True:
            block = memoryview(spare.pop() if spare else bytearray(BLOCK))
            count = file.readinto(block)
            tell(count)
            yield block[:count]
            if count < BLOCK:
                return


def _compressed(layer: Layer, source: Spliced, tell: _Teller, store: Store, threads: Executor) -> Packed:
    compressor = need("isal.isal_zlib", extra="images").compressobj

    def deflate(block: memoryview) -> bytes:
        gzip = compressor(LEVEL, 8, 31)  # unlike the module's `compress`, it works while other threads do
        return bytes(gzip.compress(block) + gzip.flush())

    tar, blob = hashlib.sha256(), hashlib.sha256()
    unpacked = size = 0
    waiting: deque[tuple[memoryview, Future[bytes]]] = deque()
    spare: list[bytearray] = []
    with store.writing() as file:
        for block in _blocks(source, tell, spare):
            waiting.append((block, threads.submit(deflate, block)))
            tar.update(block)
            unpacked += len(block)
            while len(waiting) > (_WAITING if len(block) == BLOCK else 0):
                done, task = waiting.popleft()
                data = task.result()
                spare.append(cast("bytearray", done.obj))
                blob.update(data)
                file.write(data)
                size += len(data)
        found = ImageLayer(
            kind=layer.kind,
            name=layer.name,
            digest=f"sha256:{blob.hexdigest()}",
            diff_id=f"sha256:{tar.hexdigest()}",
            size=size,
            unpacked=unpacked,
            media_type=GZIP,
        )
        return Packed(layer=found, source=file.keep(found.digest))


def _plain(layer: Layer, source: Spliced, tell: _Teller) -> Packed:
    tar = hashlib.sha256()
    spare: list[bytearray] = []
    for block in _blocks(source, tell, spare):
        tar.update(block)
        spare.append(cast("bytearray", block.obj))
    digest = f"sha256:{tar.hexdigest()}"
    found = ImageLayer(
        kind=layer.kind,
        name=layer.name,
        digest=digest,
        diff_id=digest,
        size=source.size,
        unpacked=source.size,
        media_type=TAR,
    )
    return Packed(layer=found, source=source)


def archive(entries: Iterable[Entry]) -> Spliced:
    """Return the tar of *entries*: equal entries, equal bytes. `BuildError` for a file that cannot be read."""
    return Spliced(tuple(_tar(entries)))


def _tar(entries: Iterable[Entry]) -> Iterator[bytes | Piece]:
    """Yield the archive: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html."""
    made: set[str] = set()
    for entry in sorted(entries, key=lambda e: e.path):
        yield from _directories(entry.path, made)
        if entry.source is None:
            yield _header(entry.path, b"2", mode=0o777, link=entry.link)
        elif isinstance(entry.source, bytes):
            size = len(entry.source)
            yield _header(entry.path, b"0", mode=entry.mode, size=size) + entry.source + bytes(-size % 512)
        else:
            size = _size(entry.source)
            yield _header(entry.path, b"0", mode=entry.mode, size=size)
            yield Piece(entry.source, size)
            yield bytes(-size % 512)
    yield bytes(1024)


def _directories(path: str, made: set[str]) -> Iterator[bytes]:
    """Yield the headers of those directories above *path* that are not *made* yet, the outermost first."""
    above = path.rpartition("/")[0]
    if above and above not in made:
        yield from _directories(above, made)
        made.add(above)
        yield _header(f"{above}/", b"5", mode=0o755)


def _size(path: Path) -> int:
    try:
        found = path.stat()
    except OSError as exc:
        raise BuildError(f"{path} cannot be packed: {exc.strerror}") from exc
    if not stat.S_ISREG(found.st_mode):
        raise BuildError(f"{path} cannot be packed: it is no regular file")
    return found.st_size


def _header(path: str, kind: bytes, *, mode: int, size: int = 0, link: str = "") -> bytes:
    """Return a ustar header, after an extended one for what it cannot hold.

    Our own and not `tarfile`'s: that one's bytes have changed with versions of Python.
    """
    name, target = path.encode(), link.encode()
    more = b""
    if len(name) > 100 or not path.isascii():
        more += _record(b"path", name)
    if len(target) > 100 or not link.isascii():
        more += _record(b"linkpath", target)
    if size > 0o77777777777:
        more += _record(b"size", b"%d" % size)
    extended = (
        _ustar(b"././@PaxHeader", b"x", mode=0o644, size=len(more)) + more + bytes(-len(more) % 512)
        if more
        else b""
    )
    name, target = path.encode("ascii", "replace"), link.encode("ascii", "replace")
    return extended + _ustar(name[:100], kind, mode=mode, size=size, link=target[:100])


def _record(key: bytes, value: bytes) -> bytes:
    """Return `LENGTH key=value`, whose length counts its own digits."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(name: bytes, kind: bytes, *, mode: int, size: int, link: bytes = b"") -> bytes:
    size = min(size, 0o77777777777)
    fields = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%s" % (
        name.ljust(100, b"\0"), mode, 0, 0, size, 0, kind, link.ljust(100, b"\0")
    )  # fmt: skip
    block = bytearray(fields.ljust(512, b"\0"))
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
