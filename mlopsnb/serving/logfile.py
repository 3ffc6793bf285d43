"""A log file of bounded size: when it is full it becomes `NAME.1`, in the place of the one before, and a new one begins.

Several processes may write to one file. Each looks, before it writes, whether the file is still the one that it
has open; who finds it full moves it away, under a lock on it. Knows nothing of what is written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from mlopsnb.serving.errors import BadOption

MAX_BYTES = 10 << 20
"""What kubelet gives a container's log file, too."""


class LogFile:
    """The file *path*, which grows to about *max_bytes*; *also* are descriptors that lead to it as well, then and now.

    With *also* = (1, 2) all that the process and its libraries say is in the file and counts. Lines that children
    write on inherited descriptors stay in the file that was there when they were started.
    Raises `BadOption` if the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, also: Sequence[int] = ()) -> None:
        self.path = path.absolute()
        self._max_bytes = max_bytes
        self._also = tuple(also)
        self._fd = -1
        try:
            self._open()
        except OSError as exc:
            raise BadOption(f"the log file {path} cannot be opened: {exc.strerror or exc}") from exc

    def write(self, data: bytes, /) -> None:
        """Append *data*, whole lines, and never in part to one file and in part to the next."""
        self._turn(len(data))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the file, not the descriptors that lead to it as well."""
        os.close(self._fd)

    def _open(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._fd < 0:
            self._fd = fd
        else:
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
        for other in self._also:
            os.dup2(self._fd, other)

    def _turn(self, more: int) -> None:
        """Begin a new file if *more* bytes do not fit; follow, if another process has begun one."""
        mine = os.fstat(self._fd)
        if not self._is_at_path(mine):
            self._open()
            mine = os.fstat(self._fd)
        if not mine.st_size or mine.st_size + more <= self._max_bytes:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process is at it; there is a next time
        if self._is_at_path(mine):
            self.path.replace(f"{self.path}.1")
        self._open()  # the lock goes with the last descriptor of the old file

    def _is_at_path(self, mine: os.stat_result) -> bool:
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)
