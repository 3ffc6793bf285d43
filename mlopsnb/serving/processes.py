"""What the operating system says of the processes of one server, added up, under prometheus_client's names. Linux.

CPU seconds are those of the supervisor and of all workers that there ever were, so that the sum never goes back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_CPU, _START = "process_cpu_seconds_total", "process_start_time_seconds"


class Processes(Collector):
    """The supervisor *first* and the workers that *others* returns. Memory that they share counts in each."""

    def __init__(self, first: int, others: Callable[[], Sequence[int]]) -> None:
        self._first, self._others = first, others

    def collect(self) -> Iterator[Metric]:
        """Yield every family; none where there is no /proc."""
        values: dict[str, list[float]] = {}
        families: list[Metric] = []
        for pid in (self._first, *self._others()):
            found = _said_of(pid)
            families = families or found
            for sample in (sample for family in found for sample in family.samples):
                values.setdefault(sample.name, []).append(sample.value)
        values.setdefault(_CPU, []).append(_of_the_dead(self._first))
        for family in families:
            family.samples = [
                sample._replace(value=(min if sample.name == _START else sum)(values[sample.name]))
                for sample in family.samples
            ]
            yield family


def _said_of(pid: int) -> list[Metric]:
    return list(ProcessCollector(pid=lambda: pid, registry=None).collect())


def _of_the_dead(parent: int) -> float:
    """Return the CPU seconds of the children of *parent* that have ended; see proc_pid_stat(5)."""
    try:
        fields = (Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
