"""What builds keep: blobs by digest, and notes by key. Shared by all kernels of a user, safe for any number at once.

A file is written under a name of its own and renamed when it is whole, so nobody sees half of one. Locks are those of
the operating system (`flock`): they end with the process that holds them, however that ends. Anything in a store can
be made again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from mlopsnb.errors import BuildError
from mlopsnb.images.errors import storing

_TREES = ("environments",)
"""Directories whose entries others keep here, and which are removed as a whole when their turn comes."""

SIZE = "size"
"""The file in such an entry that holds its size in bytes."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
"""What a file system says that has no locks."""

_POLL = 0.02


class Store:
    """A directory of blobs and notes.

    *limit* is how many bytes it may hold after a build; what was used least recently goes first.
    """

    def __init__(self, root: Path, *, limit: int = 20_000_000_000) -> None:
        self.root = root
        self.limit = limit

    @contextmanager
    def using(self) -> Iterator[None]:
        """Let nothing be removed while the block runs; then bring the store below its limit, if nobody else uses it."""
        with _Lock(self._place("lock")) as lock:
            lock.wait(fcntl.LOCK_SH)
            try:
                yield
            finally:
                lock.release()
                if self._grown.exists() and lock.try_now():
                    self._trim(self.limit)

    @contextmanager
    def alone(self, key: str, *, cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold *key* against other threads and kernels, so that one of them makes what all of them need.

        Waits without end, but asks *cancelled* meanwhile, and raises `KeyboardInterrupt` if that says so.
        """
        with _Lock(self._place("locks", _hex(key))) as lock:
            lock.wait(fcntl.LOCK_EX, cancelled)
            yield

    def find(self, digest: str, size: int) -> Path | None:
        """Return the file of the blob `sha256:…`, or None if it is not here with *size* bytes."""
        path = self._blob(digest)
        try:
            if path.stat().st_size != size:  # the machine went down while it was on its way to the disk
                return None
            os.utime(path)
        except OSError:
            return None
        return path

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """Yield a blob to be written while `using` the store; it is gone after the block unless it was kept.

        Raises `DiskFull` if there is no room.
        """
        place = self._place("tmp", "")
        try:
            fd, name = tempfile.mkstemp(dir=place)
        except OSError as exc:
            raise storing(place, exc) from exc
        file = Writing(self, fd, Path(name))
        try:
            self._grown.touch()
            yield file
        finally:
            file.close()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a directory for the time of the block."""
        try:
            name = tempfile.mkdtemp(dir=self._place("tmp", ""))
        except OSError as exc:
            raise storing(self.root, exc) from exc
        try:
            yield Path(name)
        finally:
            shutil.rmtree(name, ignore_errors=True)

    def note(self, kind: str, key: str) -> Any:
        """Return what was noted about *key*, or None."""
        try:
            return json.loads(self._note(kind, key).read_bytes())
        except (OSError, ValueError):
            return None

    def set_note(self, kind: str, key: str, value: object) -> None:
        """Note *value*, which JSON can hold, about *key*."""
        with self.writing() as file:
            file.write(json.dumps(value, sort_keys=True).encode())
            file.move_to(self._note(kind, key))

    def clear(self) -> int:
        """Remove everything and return how many bytes that were. `BuildError` while a build uses the store."""
        if not self.root.is_dir():
            return 0
        with _Lock(self._place("lock")) as lock:
            if not lock.try_now():
                raise BuildError(
                    f"the cache of images in {self.root} is in use by a build",
                    hint="try again when the build has ended",
                )
            freed = self._trim(0)
            for name in ("notes", "locks"):
                shutil.rmtree(self.root / name, ignore_errors=True)
            return freed

    def _trim(self, limit: int) -> int:
        """Remove what was used least recently until the rest is within *limit*. Only for who has the whole store."""
        shutil.rmtree(self.root / "tmp", ignore_errors=True)  # of builds that were killed
        items = sorted(self._items(), key=lambda item: item.used)
        total, freed = sum(item.size for item in items), 0
        for item in items:
            if total - freed <= limit:
                break
            gone = self._place("tmp", item.path.name)
            item.path.rename(gone)  # at once, so that nobody finds half a tree
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
            freed += item.size
        self._grown.unlink(missing_ok=True)
        return freed

    def _items(self) -> Iterator[_Item]:
        for path in self._children("blobs"):
            found = path.stat()
            yield _Item(path, found.st_size, found.st_mtime)
        for tree in _TREES:
            for path in self._children(tree):
                yield _Item(path, _tree_size(path), path.stat().st_mtime)

    def _children(self, name: str) -> list[Path]:
        place = self.root / name
        return list(place.iterdir()) if place.is_dir() else []

    @property
    def _grown(self) -> Path:
        """A file that is there when something was written since the store was last brought below its limit."""
        return self.root / "grown"

    def _blob(self, digest: str) -> Path:
        return self.root / "blobs" / digest.removeprefix("sha256:")

    def _note(self, kind: str, key: str) -> Path:
        return self.root / "notes" / kind / f"{_hex(key)}.json"

    def _place(self, *parts: str) -> Path:
        path = self.root.joinpath(*parts)
        try:
            (path if parts[-1] == "" else path.parent).mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise storing(path, exc) from exc
        return path


def _tree_size(path: Path) -> int:
    """Return the bytes of a tree, as it says itself: to look at all of its files after each build takes long."""
    try:
        return int((path / SIZE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())


class _Item(NamedTuple):
    path: Path
    size: int
    used: float


class Writing:
    """A blob on its way into a store."""

    def __init__(self, store: Store, fd: int, path: Path) -> None:
        self._store, self._fd, self._path = store, fd, path

    def write(self, data: bytes) -> None:
        """Append *data*; `DiskFull` if there is no room for it."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as exc:
            raise storing(self._path, exc) from exc

    def keep(self, digest: str) -> Path:
        """Make it the blob *digest*, all of which was written, and return its file."""
        return self.move_to(self._store._blob(digest))

    def move_to(self, path: Path) -> Path:
        """Make it the file *path*, in place of any other."""
        try:
            os.fchmod(self._fd, 0o644)
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._path.replace(path)
        except OSError as exc:
            raise storing(path, exc) from exc

    def close(self) -> None:
        """End writing; what was not kept is gone."""
        os.close(self._fd)
        self._path.unlink(missing_ok=True)


class _Lock:
    """A lock on a file, for as long as the block and the process live."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise storing(self._path, exc) from exc
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
        os.close(self._fd)

    def wait(self, mode: int, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Take the lock when it is free, in small steps: a thread that the system puts to sleep hears no Ctrl-C."""
        while True:
            try:
                return fcntl.flock(self._fd, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if cancelled():
                    raise KeyboardInterrupt from None
                time.sleep(_POLL)
            except OSError as exc:
                if exc.errno not in _NO_LOCKS:
                    raise
                return None  # work may be done twice here, no more

    def try_now(self) -> bool:
        """Take the lock for us alone if it is free."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give it back, also for children that inherited it."""
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)


def _hex(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
