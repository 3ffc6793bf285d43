"""Time, CPU and extra memory of a call, and what an import costs. The standard library only: it runs in every environment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path


def measured(call):
    """Return what *call* returns and what it cost: seconds of wall clock and CPU, and bytes of peak memory over the start."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
    before = _memory("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    cost = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return result, cost | {"memory": max(0, _memory("VmHWM") - before)}


def _memory(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def import_cost(statement, times=5):
    """Return the median CPU seconds that a fresh interpreter spends on *statement*."""
    code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(times)
    ]
    return sorted(float(run.stdout.split()[-1]) for run in runs)[times // 2]


def answer(found):
    """Hand *found* to the process that started this one: the last line of its output."""
    print(json.dumps(found))
