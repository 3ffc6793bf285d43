"""Where live counters are kept: windows of time in memory that the processes of one server share, or in a mapped file.

Each process has a part of its own, so that there are no locks: one writer a part, and whoever reads adds them up. A
window's place follows from its number, seconds since 1970 by the window's length, so that those of replicas begin at
the same times and the oldest makes room for the newest. All of it has the size that it has from the beginning.

In a file, what is counted is the kernel's from that moment on: it survives the process however that ends. A file
that cannot be made (no space, read-only, a file system that maps none) is no fault: counters are kept in memory then.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.profiles import Snapshot
from mlopsnb.serving.board import SPARE_BYTES

if TYPE_CHECKING:
    from mlopsnb.tensors import Array

FILE = "profile.counts"
WINDOW_SECONDS = 300
KEEP_SECONDS = 86_400
MOST_BYTES = SPARE_BYTES
"""What the windows of all processes of a server take at most; where they would take more, windows are longer."""

_HEADER_BYTES = 4096
_PROTOCOL = 1
_EMPTY = -1
_log = logging.getLogger("mlopsnb.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a memory of counters holds: *parts* of *slots* windows, for the profile *digest* with so many *cells*.

    `sums` is how many moments there are beside the cells, `seconds` a window's length.
    """

    digest: str
    cells: int
    sums: int
    parts: int
    seconds: int
    slots: int
    protocol: int = _PROTOCOL

    @classmethod
    def fitting(
        cls,
        digest: str,
        cells: int,
        sums: int,
        parts: int,
        *,
        seconds: int = WINDOW_SECONDS,
        most: int = MOST_BYTES,
    ) -> Layout | None:
        """Return the layout with the shortest windows, *seconds* or twice that and so on, that takes *most* bytes.

        None if not even one window fits for each part.
        """
        while True:
            # One more than are kept: that of now is not whole.
            slots = math.ceil(KEEP_SECONDS / seconds) + 1
            made = cls(digest=digest, cells=cells, sums=sums, parts=parts, seconds=seconds, slots=slots)
            if made.nbytes <= most:
                return made
            if seconds >= KEEP_SECONDS:
                return None
            seconds *= 2

    @property
    def window(self) -> np.dtype[Any]:
        """One window: its number, its rows, the moments and the cells."""
        return np.dtype(
            [
                ("number", "<i8"),
                ("rows", "<i8"),
                ("sums", "<f8", (self.sums,)),
                ("cells", "<u4", (self.cells,)),
            ]
        )

    @property
    def part_bytes(self) -> int:
        """The size of a part: its windows, and what all that there ever were had in each cell."""
        return -(-(self.slots * self.window.itemsize + self.cells * 8) // 8) * 8

    @property
    def nbytes(self) -> int:
        """The size of all of it."""
        return _HEADER_BYTES + self.parts * self.part_bytes

    @property
    def header(self) -> bytes:
        """What stands before the parts."""
        return json.dumps(asdict(self), sort_keys=True).encode().ljust(_HEADER_BYTES, b"\0")


class Windows:
    """The counters in *memory*, which has *layout*; this process writes part *part*. *clock* tells seconds since 1970.

    `saved`: they outlive the server.
    """

    def __init__(
        self, memory: mmap.mmap, layout: Layout, part: int, clock: Callable[[], float], *, saved: bool = False
    ) -> None:
        self.layout = layout
        self.saved = saved
        self._clock = clock
        self._all = [_windows(memory, layout, n) for n in range(layout.parts)]
        self._ever = [_ever(memory, layout, n) for n in range(layout.parts)]
        self._mine, self._my_ever = self._all[part], self._ever[part]

    @property
    def now(self) -> int:
        """The number of the window that counts now."""
        return int(self._clock() // self.layout.seconds)

    def add(self, rows: int, cells: Array, sums: Array) -> None:
        """Add to the window of now."""
        number = self.now
        window = self._mine[number % self.layout.slots]
        if window["number"] != number:
            window["number"] = _EMPTY  # who reads meanwhile takes it for none
            window["rows"], window["sums"], window["cells"] = 0, 0, 0
            window["number"] = number
        window["cells"] += cells.astype(np.uint32)
        window["sums"] += sums
        window["rows"] += rows
        self._my_ever += cells.astype(np.uint64)

    def ever(self) -> Array:
        """Return what all windows had that there ever were, those that are forgotten too, in each cell (int64)."""
        total: Array = np.sum(self._ever, axis=0).astype(np.int64)
        return total

    def counted(self) -> dict[int, int]:
        """Return the rows of each window of the last day, by its number, the oldest first."""
        newest, found = self.now, dict[int, int]()
        for part in self._all:
            for number, rows in zip(part["number"].tolist(), part["rows"].tolist(), strict=True):
                if newest - self.layout.slots < number <= newest and rows:
                    found[number] = found.get(number, 0) + rows
        return dict(sorted(found.items()))

    def read(self, number: int) -> Snapshot:
        """Return what all parts have in window *number*."""
        cells, sums, rows = np.zeros(self.layout.cells, np.int64), np.zeros(self.layout.sums), 0
        for part in self._all:
            window = part[number % self.layout.slots]
            if window["number"] == number:
                cells += window["cells"]
                sums += window["sums"]
                rows += int(window["rows"])
        seconds = self.layout.seconds
        start, end = number * seconds, (number + 1) * seconds
        return Snapshot(start=start, end=end, rows=rows, cells=cells, sums=sums)

    def restore(self, snapshots: Iterable[Snapshot], ever: Array) -> None:
        """Take over what an earlier server counted. Before this one counts."""
        newest, layout = self.now, self.layout
        for one in snapshots:
            number = int(one.start // layout.seconds)
            window = self._mine[number % layout.slots]
            if not newest - layout.slots < number <= newest:
                continue
            if window["number"] != number:
                window["number"], window["rows"], window["sums"], window["cells"] = number, 0, 0, 0
            window["cells"] += one.cells.astype(np.uint32)
            window["sums"] += one.sums
            window["rows"] += one.rows
        self._my_ever += ever.astype(np.uint64)


def _windows(memory: mmap.mmap, layout: Layout, part: int) -> Array:
    start = _HEADER_BYTES + part * layout.part_bytes
    return np.frombuffer(memory, layout.window, layout.slots, start)


def _ever(memory: mmap.mmap, layout: Layout, part: int) -> Array:
    start = _HEADER_BYTES + part * layout.part_bytes + layout.slots * layout.window.itemsize
    return np.frombuffer(memory, "<u8", layout.cells, start)


def _begin(memory: mmap.mmap, layout: Layout) -> None:
    """Make *memory*, all zeros, counters that have counted nothing."""
    for part in range(layout.parts):
        _windows(memory, layout, part)["number"] = _EMPTY
    memory[:_HEADER_BYTES] = layout.header


def in_memory(
    layout: Layout, clock: Callable[[], float], *, shared: mmap.mmap | None = None, part: int = 0
) -> Windows:
    """Return counters that end with the server, in *shared* if other processes count there as well.

    The first of them finds it empty, those that come later as the first has made it.
    """
    memory = mmap.mmap(-1, layout.nbytes) if shared is None else shared
    if memory[:_HEADER_BYTES] != layout.header:
        _begin(memory, layout)
    return Windows(memory, layout, part, clock)


def in_directory(directory: Path, layout: Layout, clock: Callable[[], float]) -> Windows:
    """Return counters in a new file in *directory*, the first part of which has what an older file there had.

    What was counted for another profile is left behind. OSError if there can be no such file.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / FILE
    before = _read(path, layout, clock)
    draft = path.with_name(f"{FILE}.{os.getpid()}")
    try:
        memory = _mapped(draft, layout.nbytes, os.O_CREAT | os.O_TRUNC)
        _begin(memory, layout)
        made = Windows(memory, layout, 0, clock, saved=True)
        if before is not None:
            made.restore(*before)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return made


def beside(directory: Path, layout: Layout, part: int, clock: Callable[[], float]) -> Windows:
    """Return the counters that the first process of this server has made in *directory*.

    OSError if they are not there, or another server's.
    """
    memory = _mapped(directory / FILE, layout.nbytes, 0)
    if memory[:_HEADER_BYTES] != layout.header:
        raise OSError(f"{directory / FILE} is another server's")
    return Windows(memory, layout, part, clock, saved=True)


def _mapped(path: Path, size: int, flags: int) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        if flags:
            # Blocks that are ours already: a page that the disk has no room for would end the process.
            os.posix_fallocate(fd, 0, size) if hasattr(os, "posix_fallocate") else os.write(fd, bytes(size))
        if os.fstat(fd).st_size != size:
            raise OSError(f"{path} has not the size that it should have")
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _read(path: Path, layout: Layout, clock: Callable[[], float]) -> tuple[Sequence[Snapshot], Array] | None:
    """Return what an older file holds, if that is for the same profile; None if there is none that can be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.pread(fd, _HEADER_BYTES, 0)
        found = Layout(**json.loads(text.rstrip(b"\0")))
        same = (found.digest, found.cells, found.sums) == (layout.digest, layout.cells, layout.sums)
        if not same or found.header != text or os.fstat(fd).st_size != found.nbytes:
            return None
        memory = mmap.mmap(fd, found.nbytes, access=mmap.ACCESS_READ)
    except (OSError, TypeError, ValueError) as exc:
        _log.warning("the counters in %s cannot be read and begin anew: %s", path, exc)
        return None
    finally:
        os.close(fd)
    old = Windows(memory, found, 0, clock)
    return [old.read(number) for number in old.counted()], old.ever()
