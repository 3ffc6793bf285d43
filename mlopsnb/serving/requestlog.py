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

import msgspec

if TYPE_CHECKING:
    from mlopsnb.serving.tracecontext import Trace

FLUSH_SECONDS = 0.05
_MOST_LINES = 200
_PROBED = frozenset({"/healthz", "/ready", "/v2/health/live", "/v2/health/ready", "/metrics", "/profile"})
"""What somebody asks every few seconds, for as long as the server runs."""

_Noted = tuple[int, str, str, str, int, float, int | None, str, bool, "Trace | None"]
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


class _Line(msgspec.Struct, omit_defaults=True, gc=False):
    """What is said of a request, in this order; of the last four only what there is."""

    time: str
    request_id: str
    method: str
    path: str
    status: int
    duration_ms: float
    rows: int | None
    model: str
    version: str
    fallback: str = ""
    check: bool = False
    trace_id: str = ""
    span_id: str = ""


_ENCODER = msgspec.json.Encoder()


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
        *,
        check: bool = False,
    ) -> None:
        """Note one request; *fallback* is why the fallback answered, if it did. What probes find well is no news."""
        if self._file is not None and not (status < 400 and path in _PROBED):
            self._note(
                (time.time_ns(), request_id, method, path, status, seconds, rows, fallback, check, trace)
            )

    def _lines(self, noted: Iterable[_Noted]) -> Iterable[bytes]:
        """Write all lines in one go, which takes a third of the time of one at a time."""
        stamp, model, version = self._clock.stamp, self._model, self._version
        lines = [
            _Line(
                stamp(when),
                request_id,
                method,
                path[:200],
                status,
                int(seconds * 1_000_000 + 0.5) / 1000,
                rows,
                model,
                version,
                fallback,
                check,
                *((trace.trace_id, trace.span_id) if trace is not None else ()),
            )
            for when, request_id, method, path, status, seconds, rows, fallback, check, trace in noted
        ]
        return (_ENCODER.encode_lines(lines),)


class Clock:
    """Writes times; what stays the same from one to the next is not written anew."""

    def __init__(self) -> None:
        self._second = self._millisecond = 0
        self._start = self._stamp = ""

    def stamp(self, when: int) -> str:
        """Return the time *when*, in nanoseconds since 1970, to the millisecond."""
        millisecond = when // 1_000_000
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._start = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._stamp = f"{self._start}.{rest:03d}+00:00"
        return self._stamp
