"""What the operating system says of the processes of one server, added up, under prometheus_client's names. Linux.

CPU seconds are those of the supervisor and of all workers that there ever were, so that the sum never goes back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_GAUGES = (
    ("process_virtual_memory_bytes", "Virtual memory size in bytes, of all processes."),
    (
        "process_resident_memory_bytes",
        "Resident memory size in bytes, of all processes; shared pages count in each.",
    ),
    ("process_open_fds", "Number of open file descriptors, of all processes."),
)


class Processes(Collector):
    """The supervisor *first* and the workers that *others* returns."""

    def __init__(self, first: int, others: Callable[[], Sequence[int]]) -> None:
        self._first, self._others = first, others

    def collect(self) -> Iterator[Metric]:
        """Yield every family; none where there is no /proc."""
        found = []
        for pid in (self._first, *self._others()):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found.append(_read(pid, ended=pid == self._first))
        if not found:
            return
        cpu, *sums = (sum(column) for column in zip(*found, strict=True))
        yield CounterMetricFamily(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds, of all processes.",
            value=cpu,
        )
        for (name, told), value in zip(_GAUGES, sums, strict=True):
            yield GaugeMetricFamily(name, told, value=value)


def _read(pid: int, *, ended: bool) -> tuple[float, float, float, float]:
    """Return CPU seconds, virtual and resident bytes, and descriptors of *pid*; with *ended* children's CPU too."""
    proc = Path("/proc") / str(pid)
    fields = (proc / "stat").read_text().rpartition(")")[2].split()  # from the state on, which is field 3
    ticks = sum(map(int, fields[11 : 15 if ended else 13]))
    virtual, resident = int(fields[20]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return ticks / os.sysconf("SC_CLK_TCK"), virtual, resident, len(list((proc / "fd").iterdir()))
