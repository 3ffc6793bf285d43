"""The process target's files: releases as JSON, revisions as directories, and who is alive.

A state file only says what was wanted. Whether a revision's process lives is told by a lock that it holds on its
`alive` file from its first moment to its last: the kernel of the operating system lets go of it however the
process ends, so a stale file or a reused process number cannot deceive us.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import shutil
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlopsnb.errors import DeployError
from mlopsnb.records import Release
from mlopsnb.targets.claims import claim
from mlopsnb.targets.revisions import plain, restored

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEP_REVISIONS = 10
"""How many revisions stay for rollback and logs."""

_PROTOCOL = 1


@dataclass(frozen=True, slots=True)
class RevisionFiles:
    """The directory of one revision."""

    root: Path

    @property
    def package(self) -> Path:
        """The model package that this revision serves."""
        return self.root / "package"

    @property
    def fallback(self) -> Path:
        """The package that answers while that one cannot, if there is one."""
        return self.root / "fallback"

    @property
    def profile(self) -> Path:
        """Where its server keeps what it counts of live rows, if the package has a reference profile."""
        return self.root / "profile"

    @property
    def captured(self) -> Path:
        """Where its server writes the rows that it was asked, if it does."""
        return self.root / "captured"

    @property
    def log(self) -> Path:
        """What its server wrote to its standard output and error; a full file becomes `server.log.1`."""
        return self.root / "server.log"

    @property
    def alive(self) -> Path:
        """The file that its process holds a lock on."""
        return self.root / "alive"

    @property
    def pid_file(self) -> Path:
        """Holds the number of its process."""
        return self.root / "pid"

    @property
    def http(self) -> Path:
        """The socket on which this revision alone answers."""
        return self.root / "http.sock"

    @property
    def control(self) -> Path:
        """The socket through which the listener changes hands."""
        return self.root / "control.sock"

    def is_alive(self) -> bool:
        """Say whether the revision's process lives, from the lock it holds."""
        self._reap()
        try:
            with self.alive.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError as exc:
            if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return True
            raise
        return False

    @property
    def pid(self) -> int | None:
        """The number of the revision's process, whether or not it still lives."""
        try:
            return int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def found(self) -> int | None:
        """Look for the number of a process that lives, where its starter was killed before it could write it down (Linux)."""
        wanted = os.fsencode(self.control)
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended, or is somebody else's
                pid = int(place.name)
                if wanted in (place / "cmdline").read_bytes().split(b"\0") and os.getpgid(pid) == pid:
                    return pid
        return None

    def _reap(self) -> None:
        """Take note of a child's end, so that it does not stay as a zombie of this kernel."""
        if (pid := self.pid) is not None:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the log so far: of the file that became full last, and of the one after it.

        Both are open before a line is read, so that none is missed or told twice if one becomes full meanwhile.
        """
        with ExitStack() as opened:
            files: dict[int, TextIO] = {}
            for path in (self.log, self.log.with_name(f"{self.log.name}.1")):
                with suppress(FileNotFoundError):
                    part = opened.enter_context(path.open(encoding="utf-8", errors="replace"))
                    files.setdefault(os.fstat(part.fileno()).st_ino, part)
            for file in reversed(files.values()):
                for line in file:
                    yield line.rstrip("\n")

    def last_lines(self, count: int = 15) -> list[str]:
        """Return the end of the log."""
        return list(deque(self.lines(), count))


@dataclass(frozen=True, slots=True)
class ReleaseFiles:
    """The directory of one release, named as the release is."""

    root: Path

    @property
    def name(self) -> str:
        """The release's name."""
        return self.root.name

    def revision(self, number: int) -> RevisionFiles:
        """Return the files of revision *number*."""
        return RevisionFiles(self.root / "revisions" / str(number))

    def check_owner(self) -> None:
        """Raise `DeployError` if the name belongs to another user of this machine."""
        try:
            owner = self.root.stat().st_uid
        except FileNotFoundError:
            return
        if owner != os.geteuid():
            raise DeployError(
                f"{self.name!r} is taken: it is deployed by user {_user(owner)}",
                hint="choose another name, or ask that user to undeploy it",
            )

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the name; `DeployError` at once if another deploy holds it."""
        self.check_owner()
        with claim(self.root, self.name):
            try:
                yield
            finally:
                if not (self.root / "release.json").exists():
                    shutil.rmtree(self.root, ignore_errors=True)  # nothing came of it, or it was removed

    def read(self) -> tuple[Release, int | None]:
        """Return the release as it was last written, and the port it was given."""
        empty = Release(name=self.name, target="process")
        try:
            data = json.loads((self.root / "release.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return empty, None
        except PermissionError:
            self.check_owner()
            raise
        except ValueError as exc:
            raise DeployError(
                f"{self.root / 'release.json'} cannot be read: {exc}",
                hint=f"remove {self.root} and deploy again",
            ) from exc
        if data.get("protocol") != _PROTOCOL:
            raise DeployError(
                f"{self.root / 'release.json'} was written by another version of mlopsnb",
                hint=f"remove {self.root} and deploy again",
            )
        weights = {int(k): v for k, v in data["weights"].items()}
        revisions = tuple(restored(r) for r in data["revisions"])
        return replace(empty, revisions=revisions, weights=weights), data["port"]

    def write(self, release: Release, port: int | None) -> None:
        """Replace the state file in one step; a reader sees the old or the new one."""
        data = {
            "protocol": _PROTOCOL,
            "port": port,
            "weights": dict(release.weights),
            "revisions": [plain(r) for r in release.revisions],
        }
        draft = self.root / "release.json.new"
        draft.touch(mode=0o600)  # a revision's environment may hold secrets
        draft.write_text(json.dumps(data, indent=1), encoding="utf-8")
        draft.replace(self.root / "release.json")


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name!r} (uid {uid})"
    except KeyError:
        return f"with uid {uid}"
