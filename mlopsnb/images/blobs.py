"""What a blob is read from: a file, bytes, or a row of both that is written nowhere as a whole."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO, FileIO
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

from mlopsnb.errors import BuildError

_PIECE = 1 << 20


class Piece(NamedTuple):
    """A file that is a part of a blob, with the size in bytes that it had when it was looked at."""

    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Spliced:
    """A blob made of bytes and of whole files, in order. Large weights become a layer without being copied."""

    pieces: tuple[bytes | Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return sum(len(p) if isinstance(p, bytes) else p.size for p in self.pieces)

    def open(self, mode: Literal["rb"] = "rb") -> BufferedReader:
        """Open the blob for reading, as a `Path` does; `BuildError` while reading if a file has another size by now."""
        return BufferedReader(_Reader(self.pieces), _PIECE)


Source = Path | bytes | Spliced


def opened(source: Source) -> BufferedReader | BytesIO:
    """Open a blob for reading, from the start; it can be sought in."""
    if isinstance(source, bytes):
        return BytesIO(source)
    return source.open("rb")


def pieces(source: Source) -> Iterator[bytes]:
    """Yield a blob in order."""
    with opened(source) as file:
        while piece := file.read(_PIECE):
            yield piece


class _Reader(io.RawIOBase):
    """Reads over the pieces as if they were one file, with one of them open at a time."""

    def __init__(self, pieces: tuple[bytes | Piece, ...]) -> None:
        self._pieces = pieces
        self._ends = list(accumulate(len(p) if isinstance(p, bytes) else p.size for p in pieces))
        self._at = 0
        self._open: tuple[int, FileIO] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1] if self._ends else 0}
        self._at = max(0, start[whence] + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        which = bisect_right(self._ends, self._at)
        if which == len(self._pieces):
            return 0
        piece, start = self._pieces[which], self._ends[which - 1] if which else 0
        view = memoryview(buffer)[: self._ends[which] - self._at]
        if isinstance(piece, bytes):
            view[:] = piece[self._at - start :][: len(view)]
            count = len(view)
        else:
            file = self._file(which, *piece)
            file.seek(self._at - start)
            count = file.readinto(view)
            if not count:
                raise changed(piece.path)
        self._at += count
        return count

    def _file(self, which: int, path: Path, size: int) -> FileIO:
        if self._open is None or self._open[0] != which:
            self._shut()
            file = path.open("rb", buffering=0)
            self._open = which, file
            if os.fstat(file.fileno()).st_size != size:
                raise changed(path)
        assert self._open is not None
        return self._open[1]

    def _shut(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        self._shut()
        super().close()


def changed(path: Path) -> BuildError:
    """Return what to raise when a file is not what it was when it was looked at."""
    return BuildError(
        f"{path} was changed while it was packed", hint="build again when nothing writes to it any more"
    )
