"""The request log: one line of JSON a request, without its query and its body. Gathers lines and writes them together.

A line may be late by `FLUSH_SECONDS`, none is left out: whoever ends the server flushes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import orjson

if TYPE_CHECKING:
    from mlopsnb.serving.tracecontext import Trace

FLUSH_SECONDS = 0.05
_MOST_LINES = 200
_Noted = tuple[int, str, str, str, int, float, int | None, str, "Trace | None"]
_Item = TypeVar("_Item")
_log = logging.getLogger("mlopsnb.serving")


class Sink(Protocol):
    """What lines are written to: a file, or what stands for one."""

    def write(self, data: bytes, /) -> object:
        """Take whole lines."""

    def flush(self) -> object:
        """Hand on what was taken."""


class WholeLines:
    """A file that several processes write to: cut between lines, into what a pipe takes in one piece."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes, /) -> None:
        """Write *data*, whole lines. One line of more than a pipe takes may be mixed with others."""
        start = 0
        while start < len(data):
            stop = len(data)
            if stop - start > PIPE_BUF:
                stop = data.rfind(b"\n", start, start + PIPE_BUF) + 1 or data.find(b"\n", start) + 1
            start += os.write(self._fd, data[start:stop])

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""


class Gathered(Generic[_Item]):
    """Notes items and writes them to *file* together, from the event loop alone; stops for good if that fails."""

    _called = "log"

    def __init__(self, file: Sink) -> None:
        self._file: Sink | None = file
        self._noted: list[_Item] = []
        self._flush_is_due = False

    def _note(self, item: _Item) -> None:
        self._noted.append(item)
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif len(self._noted) >= _MOST_LINES:
            self._write_out()

    def _lines(self, noted: Iterable[_Item]) -> Iterable[bytes]:
        raise NotImplementedError

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
            _log.warning("the %s is closed: %s", self._called, exc)


class RequestLog(Gathered[_Noted]):
    """Writes a line a request; all of them name the *model* and its *version*."""

    _called = "request log"

    def __init__(self, file: Sink, *, model: str, version: str) -> None:
        super().__init__(file)
        self._model, self._version = model, version
        self._clock = Clock()

    def write(
        self,
        request_id: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        rows: int | None,
        fallback: str = "",
        trace: Trace | None = None,
    ) -> None:
        """Note one request; *fallback* is why the fallback answered, if it did."""
        if self._file is not None:
            self._note((time.time_ns(), request_id, method, path, status, seconds, rows, fallback, trace))

    def _lines(self, noted: Iterable[_Noted]) -> Iterable[bytes]:
        """Write lines one behind the other, which takes half the time of one here and one there."""
        for when, request_id, method, path, status, seconds, rows, fallback, trace in noted:
            line = {
                "time": self._clock.stamp(when),
                "request_id": request_id,
                "method": method,
                "path": path[:200],
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                "rows": rows,
                "model": self._model,
                "version": self._version,
            }
            if fallback:
                line["fallback"] = fallback
            if trace is not None:
                line["trace_id"], line["span_id"] = trace.trace_id, trace.span_id
            yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


class Clock:
    """Writes times; what is above a second is written once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._stamp = ""

    def stamp(self, when: int) -> str:
        """Return the time *when*, in nanoseconds since 1970, to the millisecond."""
        second, rest = divmod(when, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._stamp}.{rest // 1_000_000:03d}+00:00"
