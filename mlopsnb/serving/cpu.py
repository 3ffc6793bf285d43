"""How many processors this process may use: what the kernel schedules it on, and what its cgroup pays for.

A container on a large machine sees every processor and may use two of them; frameworks that start a thread for
each then stand in their own way. Reads files under /proc and /sys, and decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def limit(root: Path = Path("/")) -> float:
    """Return the processors that this process may use, fractions included; *root* holds proc and sys.

    Knows cgroup v2's `cpu.max` and v1's `cpu.cfs_quota_us`, of its own group and of those above it.
    """
    return min([_scheduled(), *_quotas(root)])


def _scheduled() -> float:
    if hasattr(os, "sched_getaffinity"):
        return float(len(os.sched_getaffinity(0)))
    return float(os.cpu_count() or 1)


def _quotas(root: Path) -> Iterator[float]:
    mount = root / "sys/fs/cgroup"
    for controllers, path in groups(root):
        if controllers == "":
            for group in upwards(mount, path):
                yield from _quota(_words(group / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for group in (g for name in ("cpu", controllers) for g in upwards(mount / name, path)):
                yield from _quota(_words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us"))


def groups(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the controllers and the path of each hierarchy that we are in; v2 names no controllers."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or /proc is hidden
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        yield controllers, path


def upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the group at *path* and all above it. In a container only the last, the mount itself, may be there."""
    inner = PurePosixPath(path.lstrip("/"))
    for part in (inner, *inner.parents):
        yield mount / part


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _quota(words: list[str]) -> Iterator[float]:
    """Yield quota / period of *words*, or nothing if there is no limit ("max", or -1 in v1)."""
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[0]) and int(words[1]):
        yield int(words[0]) / int(words[1])
