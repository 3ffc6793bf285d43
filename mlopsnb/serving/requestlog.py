"""The request log: one line of JSON a request, without its query and its body. Gathers lines and writes them together.

A line may be late by `FLUSH_SECONDS`, none is left out: whoever ends the server flushes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import BinaryIO

import orjson

FLUSH_SECONDS = 0.05
_MOST_LINES = 200
_Noted = tuple[int, str, str, str, int, float, int | None, str]
_log = logging.getLogger("mlopsnb.serving")


class RequestLog:
    """Writes to *file*, from the event loop alone; stops for good if nobody can take it any more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: BinaryIO | None = file
        self._noted: list[_Noted] = []
        self._flush_is_due = False
        self._second = 0
        self._stamp = ""

    def write(
        self,
        request_id: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        rows: int | None,
        fallback: str = "",
    ) -> None:
        """Note one request; *fallback* is why the fallback answered, if it did."""
        if self._file is None:
            return
        self._noted.append((time.time_ns(), request_id, method, path, status, seconds, rows, fallback))
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif len(self._noted) >= _MOST_LINES:
            self._write_out()

    def _lines(self, noted: Iterable[_Noted]) -> Iterable[bytes]:
        """Write lines one behind the other, which takes half the time of one here and one there."""
        for when, request_id, method, path, status, seconds, rows, fallback in noted:
            line = {
                "time": self._stamped(when),
                "request_id": request_id,
                "method": method,
                "path": path[:200],
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                "rows": rows,
            }
            if fallback:
                line["fallback"] = fallback
            yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    def _stamped(self, when: int) -> str:
        """Return the time *when* to the millisecond; what is above a second is written once a second."""
        second, rest = divmod(when, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._stamp}.{rest // 1_000_000:03d}+00:00"

    def flush(self) -> None:
        """Write what has gathered."""
        self._flush_is_due = False
        self._write_out()

    def _write_out(self) -> None:
        noted, self._noted = self._noted, []
        if self._file is None or not noted:
            return
        try:
            self._file.write(b"".join(self._lines(noted)))
            self._file.flush()
        except OSError as exc:
            self._file = None
            _log.warning("the request log is closed: %s", exc)
