"""Hold a name against other deploys from this machine, by a lock on a file.

The operating system lets go of the lock however its holder ends, so no claim outlives who made it.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlopsnb.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Iterator

_WRITES_WITHIN = 1.0


@contextmanager
def claim(directory: Path, name: str) -> Iterator[None]:
    """Hold *name* by the file `lock` in *directory*, which is made; `DeployError` at once if another deploy holds it.

    The directory may be removed inside the block.
    """
    with _lock(directory, name) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(directory: Path, name: str) -> TextIO:
    """Return the lock file, open and locked."""
    path = directory / "lock"
    while True:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # whoever held it before has just removed the directory
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                holder = _holder(file)
            raise DeployError(
                f"another deploy of {name!r} is under way{holder}",
                hint="wait for it, or interrupt it where it runs",
            ) from None
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()  # it was removed before we locked it: our lock is on a file that nobody sees


def _holder(file: TextIO) -> str:
    """Say which process holds the lock *file*: it writes so a moment after it has it."""
    end = time.monotonic() + _WRITES_WITHIN
    while True:
        file.seek(0)
        if pid := file.read().strip():
            return f" (process {pid})"
        if time.monotonic() > end:
            return ""
        time.sleep(0.01)
