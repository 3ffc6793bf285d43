"""What builds keep: blobs by digest, layers by key. Shared by all kernels of a user, and safe for any number at once.

A file is written under a name of its own and renamed when it is whole, so nobody sees half of one. Locks are the
kernel's (`flock`): they end with the process that holds them, however that ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class Store:
    """A directory of blobs and of what is known about them.

    *limit* is how many bytes it may hold after a build; what was used least recently goes first.
    """

    def __init__(self, root: Path, *, limit: int = 20_000_000_000) -> None:
        self.root = root
        self.limit = limit

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep everything in the store while the block runs; afterwards bring it below its limit."""
        yield

    def path(self, digest: str) -> Path | None:
        """Return the file of the blob `sha256:…`, or None if it is not here."""
        raise NotImplementedError

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Yield a file to write a blob to; `keep` it before the block ends, else it is gone. `DiskFull` if it is."""
        raise NotImplementedError

    def note(self, kind: str, key: str) -> object | None:
        """Return what was noted (as JSON) about *key*, or None."""
        raise NotImplementedError

    def clear(self) -> int:
        """Remove everything; return how many bytes that were. `BuildError` while another build uses the store."""
        raise NotImplementedError
