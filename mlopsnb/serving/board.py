"""Numbers that the processes of one server share: each worker counts in a row of its own, and all may read all.

The memory is anonymous and comes by fork. There are no locks: one writer a row, one number a store. What a worker
counted stays when it dies, and the one that takes its place counts on, so that sums never go back.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, cast

_CELLS = 2048
_NOTE_BYTES = 4096
_BYTES_A_CELL = 8
SPARE_BYTES = 48 << 20
"""Memory for what has a size that the supervisor cannot know. The system gives it page by page, as it is used."""

Numbers = MutableSequence[float]
"""A list of counters, or as many doubles in shared memory."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some counters: `own` are those of this process, `rows` those of every worker, our own included."""

    own: Numbers
    rows: Sequence[Numbers]

    def total(self) -> list[float]:
        """Return the counters, added up over all workers."""
        return [sum(column) for column in zip(*self.rows, strict=True)]


class Alone:
    """Where a process that is alone keeps its counters."""

    def take(self, count: int) -> Part:
        """Return *count* new counters."""
        own: Numbers = [0.0] * count
        return Part(own, (own,))


class Board:
    """Rows for *workers* workers, a note that the first worker leaves for the others, and `spare` memory, all zeros."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = mmap.mmap(-1, _NOTE_BYTES + workers * _CELLS * _BYTES_A_CELL)
        self._cells = memoryview(self._memory)[_NOTE_BYTES:].cast("d")
        self.spare = mmap.mmap(-1, SPARE_BYTES, mmap.MAP_SHARED | getattr(mmap, "MAP_NORESERVE", 0))

    def part(self, worker: int, start: int, stop: int) -> Part:
        """Return the counters from *start* to *stop* as *worker*, counted from 0, has them."""
        assert stop <= _CELLS, "a row of the board is too short"
        firsts = range(0, self.workers * _CELLS, _CELLS)
        # A memoryview of doubles has all of a list of counters that does not grow.
        rows = [cast("Numbers", self._cells[first + start : first + stop]) for first in firsts]
        return Part(rows[worker], rows)

    def leave_note(self, content: dict[str, Any]) -> None:
        """Leave *content*, in JSON; once, before the other workers are started."""
        text = json.dumps(content).encode()
        self._memory[: len(text)] = text

    @property
    def note(self) -> dict[str, Any]:
        """What the first worker found out; empty before that."""
        text = self._memory[:_NOTE_BYTES].rstrip(b"\0")
        found: dict[str, Any] = json.loads(text) if text else {}
        return found


class Row:
    """Where a worker keeps its counters: its row of the board, from cell *start* on.

    All workers run the same code, so that each finds the same counters in the same places.
    """

    def __init__(self, board: Board, worker: int, *, start: int) -> None:
        self._board, self._worker, self._next = board, worker, start

    def take(self, count: int) -> Part:
        """Return *count* counters, which go on from what the last worker of this row counted."""
        start, self._next = self._next, self._next + count
        return self._board.part(self._worker, start, self._next)
