from __future__ import annotations

import os

import pytest

from mlopsnb.serving import cpu

HERE = float(len(os.sched_getaffinity(0)))


@pytest.fixture
def machine(tmp_path):
    """Write /proc and /sys of a machine: the groups we are in, and files of its hierarchies."""

    def write(groups, files):
        for name, text in {"proc/self/cgroup": groups, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, HERE),
        ("0::/a/b\n", {"a/cpu.max": "25000 100000", "a/b/cpu.max": "max 100000"}, 0.25),
        ("0::/not/mounted/here\n", {"cpu.max": "75000 100000"}, 0.75),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "60000", "cpu/cpu.cfs_period_us": "100000"}, 0.6),
        ("4:cpu,cpuacct:/p\n", {"cpu,cpuacct/p/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1"}, HERE),
        ("4:cpuset:/\n3:name=systemd:/\n", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "9"}, HERE),
        ("0::/\n", {"cpu.max": "9900000 100000"}, HERE),
    ],
)
def test_the_limit_is_the_least_of_all(machine, groups, files, limit):
    root = machine(groups, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert cpu.limit(root) == limit


def test_without_cgroups_the_scheduler_decides(tmp_path):
    assert cpu.limit(tmp_path) == HERE
