"""Who may ask: bearer tokens out of a file, as RFC 6750 sends them.

The file has one token a line; empty lines and those that begin with # are left aside. It is read again when it
changes, so that a mounted secret can be rotated without a restart. What is kept, compared and shown holds no token:
digests are kept and compared, in constant time, and messages name lines by their number.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.serving.errors import BadSecret

if TYPE_CHECKING:
    from mlopsnb.serving.routes import Headers

_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")
_MOST_BYTES = 1 << 20
_Stamp = tuple[int, int, int, int, int]
_log = logging.getLogger("mlopsnb.serving")


class Tokens:
    """The tokens in *path*. Raises `BadSecret` if the file cannot be used or holds none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp, self._digests = _read(path)
        self._told = ""
        if not self._digests:
            raise BadSecret(f"the token file {path} holds no token", hint="write one token a line into it")

    def allow(self, headers: Headers) -> bool:
        """Say whether *headers* carry one of the tokens. Takes as long for a wrong one as for a right one."""
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        digest = sha256(token.strip()).digest()
        found = False
        for known in self._digests:
            found |= compare_digest(digest, known)
        return found and scheme.lower() == b"bearer"

    def refresh(self) -> bool:
        """Read the file again if it has changed, and say whether it has; cheap if not.

        A file that was emptied lets nobody in. One that cannot be used leaves the tokens as they are, and the log
        says so.
        """
        try:
            if _stamp(self._path.stat()) == self._stamp:
                return False
            self._stamp, self._digests = _read(self._path)
        except (OSError, BadSecret) as exc:
            problem = exc.message if isinstance(exc, BadSecret) else f"{self._path}: {exc.strerror or exc}"
            if problem != self._told:
                _log.error("the tokens stay as they were: %s", problem)
            self._told = problem
            return False
        self._told = ""
        _log.warning("the token file was read again; it holds %d", len(self._digests))
        return True


def _read(path: Path) -> tuple[_Stamp, tuple[bytes, ...]]:
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            _check(path, about)
            content = file.read(_MOST_BYTES)
    except OSError as exc:
        raise BadSecret(f"the token file {path} cannot be read: {exc.strerror or exc}") from exc
    return _stamp(about), tuple(_digests(path, content))


def _check(path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise BadSecret(f"the token file {path} is no regular file")
    if about.st_mode & stat.S_IROTH:
        raise BadSecret(
            f"the token file {path} can be read by everybody (mode {stat.S_IMODE(about.st_mode):04o})",
            hint="chmod 600 it; a secret that Kubernetes mounts needs defaultMode: 0400",
        )
    if about.st_size > _MOST_BYTES:
        raise BadSecret(f"the token file {path} has {about.st_size} bytes; at most {_MOST_BYTES} are read")


def _digests(path: Path, content: bytes) -> list[bytes]:
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith(b"#"):
            continue
        if not _TOKEN.fullmatch(token):
            raise BadSecret(
                f"line {number} of the token file {path} is no bearer token",
                hint="a token has letters, digits and -._~+/ and may end with =",
            )
        found.append(sha256(token).digest())
    return found


def _stamp(about: os.stat_result) -> _Stamp:
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size, about.st_mode
