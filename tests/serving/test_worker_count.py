"""How many workers serve a model best: by its plan, the processors, and the memory that is left."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest

from mlopsnb.serving import memory, workers
from mlopsnb.serving.tuning import Options, Plan

INLINE = Plan(
    inline=True,
    instances=1,
    threads=1,
    joins=True,
    max_batch_size=64,
    inline_rows=64,
    row_seconds=1e-6,
    forward_seconds=1e-5,
)
MB = 1 << 20


@pytest.mark.parametrize(
    ("plan", "options", "cpus", "each", "left", "count"),
    [
        (INLINE, Options(), 1, 100 * MB, 8000 * MB, 1),
        (INLINE, Options(), 4, 100 * MB, 8000 * MB, 4),
        (INLINE, Options(), 64, 100 * MB, 80000 * MB, workers.MOST),
        (INLINE, Options(), 4, 100 * MB, 399 * MB, 2),
        (INLINE, Options(), 4, 100 * MB, 100 * MB, 1),
        (INLINE, Options(), 4, None, 8000 * MB, 1),
        (INLINE, Options(), 4, 100 * MB, None, 1),
        (INLINE, Options(instances=0), 4, 100 * MB, 8000 * MB, 4),
        (replace(INLINE, inline=False), Options(), 4, 100 * MB, 8000 * MB, 4),
        (replace(INLINE, inline=False), Options(instances=1), 4, 100 * MB, 8000 * MB, 1),
        (replace(INLINE, inline=False, instances=4), Options(), 4, 100 * MB, 8000 * MB, 1),
        (replace(INLINE, inline=False, threads=4), Options(), 4, 100 * MB, 8000 * MB, 1),
    ],
)
def test_how_many_workers_there_are(plan, options, cpus, each, left, count):
    assert workers.choose(plan, options, cpus, each=each, left=left) == count


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


FREE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n"}
V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        (FREE, 5000 * 1024),
        (
            {
                **FREE,
                "proc/self/cgroup": "0::/a\n",
                f"{V2}a/memory.max": "1000000\n",
                f"{V2}a/memory.current": "700000\n",
                f"{V2}a/memory.stat": "anon 5\ninactive_file 20000\n",
            },
            320_000,
        ),
        (
            {
                **FREE,
                "proc/self/cgroup": "0::/a\n",
                f"{V2}a/memory.max": "max\n",
                f"{V2}a/memory.current": "1\n",
                f"{V2}a/memory.stat": "",
            },
            5000 * 1024,
        ),
        (
            {
                "proc/self/cgroup": "3:memory:/p\n",
                f"{V1}p/memory.limit_in_bytes": "1000\n",
                f"{V1}p/memory.usage_in_bytes": "2000\n",
                f"{V1}p/memory.stat": "total_inactive_file 10\n",
                f"{V1}memory.limit_in_bytes": f"{(1 << 63) - 4096}\n",
                f"{V1}memory.usage_in_bytes": "1\n",
                f"{V1}memory.stat": "",
            },
            0,
        ),
    ],
)
def test_what_memory_is_left_is_the_least_of_all(tmp_path, files, left):
    write(tmp_path, files)
    assert memory.available(tmp_path) == left


def test_the_memory_of_this_process():
    assert MB < memory.private() < psutil.Process().memory_info().rss
    assert memory.available() > MB
