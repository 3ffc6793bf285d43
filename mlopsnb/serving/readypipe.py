"""How a server, or one of its workers, tells who started it that it serves: one line of JSON, once, on a descriptor.

`{"ready": true, "url": …, "pid": …}`, with `grpc` where gRPC is served too; or `{"ready": false, "error": …, "hint": …}`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlopsnb.errors import MlopsnbError


class ReadyPipe:
    """Tells the parent, once, whether we serve."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def ready(self, url: str, grpc: str | None = None) -> None:
        """We serve at *url*, and gRPC at the address *grpc*."""
        also = {} if grpc is None else {"grpc": grpc}
        self._write({"ready": True, "url": url, **also, "pid": os.getpid()})

    def forward(self, message: dict[str, Any]) -> None:
        """Tell what a worker told us."""
        self._write(message)

    def close(self) -> None:
        """Leave it to another process to tell."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def failed(self, exc: MlopsnbError) -> None:
        """We do not serve, because of *exc*."""
        self._write({"ready": False, "error": exc.message, "hint": exc.hint})

    def _write(self, message: dict[str, Any]) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, json.dumps(message).encode() + b"\n")
        except OSError as exc:  # the parent is gone; that is no reason not to serve
            print(f"mlopsnb.serving: nobody reads --ready-fd: {exc}", file=sys.stderr)  # noqa: T201
        finally:
            os.close(fd)
