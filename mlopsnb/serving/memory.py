"""How much memory is left for more processes: what the kernel can give, and what our cgroup may still take.

Reads files under /proc and /sys, in bytes, and decides nothing. Where they are not there, nothing is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mlopsnb.serving import cpu

_UNLIMITED = 1 << 60
"""Version 1 of cgroups says "no limit" by a number near 2⁶³."""


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process and its children may still take; None if nobody says."""
    return min([*_free(root), *_left(root)], default=None)


def private(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process shares with no file, which another one like it would take again."""
    try:
        _, resident, shared, *_ = (root / "proc/self/statm").read_text().split()
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _free(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _left(root: Path) -> Iterator[int]:
    """Yield what is left in our groups and in those above; what the kernel would drop first counts as left."""
    mount = root / "sys/fs/cgroup"
    for controllers, path in cpu.groups(root):
        if controllers == "":
            for group in cpu.upwards(mount, path):
                yield from _room(group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            for group in cpu.upwards(mount / "memory", path):
                yield from _room(
                    group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                )


def _room(group: Path, limit: str, usage: str, droppable: str) -> Iterator[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        words = (group / "memory.stat").read_text().split()
    except OSError:  # the root group has no such files
        return
    if not most.isdecimal() or int(most) >= _UNLIMITED:
        return
    counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    yield max(0, int(most) - used + counts.get(droppable, 0))
