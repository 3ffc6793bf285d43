"""Environments on disk: what is in them, and what is left when making one goes wrong. By a real uv and a real pip."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wheelhouse import wheel

import mlopsnb
from mlopsnb.errors import BuildError
from mlopsnb.events import reporting_to
from mlopsnb.images.cache import Store
from mlopsnb.images.environment import InstalledFile, uv
from mlopsnb.images.environment import install as module
from mlopsnb.images.environment.install import install
from mlopsnb.images.environment.locking import resolve
from mlopsnb.images.environment.tools import Tool
from mlopsnb.images.errors import DiskFull
from mlopsnb.images.lock import Lock

BOTH = pytest.mark.parametrize("tool", ["uv", "pip"])


@pytest.fixture
def house(tmp_path, monkeypatch):
    place = tmp_path / "house"
    place.mkdir()
    for name in [n for n in os.environ if n.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
        "PIP_CACHE_DIR": str(tmp_path / "pip-cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(place),
    }.items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture
def use(monkeypatch):
    def use(tool):
        if tool == "pip":
            monkeypatch.setattr(uv, "find", lambda: None)
        elif uv.find() is None:
            pytest.skip("uv is not installed")

    return use


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def left(cache):
    """What is in a store but for its locks and notes."""
    names = (p.relative_to(cache) for p in cache.rglob("*"))
    return sorted(
        str(n) for n in names if n.parts[0] not in ("lock", "locks", "notes", "grown") and len(n.parts) > 1
    )


FILES = {
    "a/__init__.py": "x = 1\n",
    "a/native.so": "binary",
    "a/data/table.csv": "1,2",
    "a/include/a.h": "header",
    "a/tests/test_a.py": "assert True",
    "torch/include/deep/er.hpp": "header",
    "a/stub.pyi": "x: int",
}


@BOTH
def test_an_environment_holds_what_an_image_needs_and_no_more(tool, use, house, tmp_path):
    use(tool)
    wheel(house, "a", files=FILES, requires=["b"])
    wheel(house, "b")
    environment = install(resolve(["a"], installed={}), tmp_path / "store")
    assert environment.packages["a"][1:] == (
        InstalledFile("a-1.0.dist-info/WHEEL", 75, environment.packages["a"][1].sha256, 0o644),
        InstalledFile("a/__init__.py", 6, sha256("x = 1\n"), 0o644),
        InstalledFile("a/data/table.csv", 3, sha256("1,2"), 0o644),
        InstalledFile("a/native.so", 6, sha256("binary"), 0o755),
    )
    there = {str(p.relative_to(environment.root)) for p in environment.root.rglob("*") if p.is_file()}
    assert there == {f.path for files in environment.packages.values() for f in files}
    assert not (environment.root / "torch").exists()
    assert environment.size == sum(p.stat().st_size for p in environment.root.rglob("*") if p.is_file())


def test_both_tools_make_the_same_environment(use, house, tmp_path, monkeypatch):
    wheel(house, "a", files=FILES)
    use("uv")
    lock = resolve(["a"], installed={})
    first = install(lock, tmp_path / "first")
    use("pip")
    assert resolve(["a"], installed={}).text == lock.text
    assert install(lock, tmp_path / "second").packages == first.packages


def test_it_is_made_once(house, tmp_path, monkeypatch):
    wheel(house, "a")
    lock = resolve(["a"], installed={})
    events = []
    with reporting_to(events.append):
        first = install(lock, tmp_path / "store")
        monkeypatch.setattr(module, "_run", None)
        again = install(lock, tmp_path / "store")
        assert (again.root, again.packages) == (first.root, first.packages)
    assert [(e.step, e.state, e.message) for e in events if e.state != "progress"] == [
        ("install", "started", "1 packages"),
        ("install", "succeeded", "1 packages, 0 MB"),
    ]
    assert Store(tmp_path / "store").clear() > 0
    assert not first.root.exists()


def test_an_empty_lock_is_an_empty_environment(tmp_path):
    environment = install(Lock(python="3.11", platform="linux/amd64", packages=()), tmp_path / "store")
    assert environment.packages == {}
    assert environment.root.is_dir()


def test_a_file_of_two_packages_is_of_the_one_that_lies_there(house, tmp_path):
    wheel(house, "a", files={"shared/__init__.py": "", "shared/x.py": "of a"})
    wheel(house, "b", files={"shared/__init__.py": "", "shared/x.py": "of b"})
    environment = install(resolve(["a", "b"], installed={}), tmp_path / "store")
    paths = [f.path for files in environment.packages.values() for f in files]
    assert len(paths) == len(set(paths))
    text = (environment.root / "shared/x.py").read_text()
    owner = text.removeprefix("of ")
    assert sha256(text) in {f.sha256 for f in environment.packages[owner]}


def test_a_wheel_that_is_not_the_locked_one_is_refused(house, tmp_path, monkeypatch):
    wheel(house, "a")
    lock = resolve(["a"], installed={})
    wheel(house, "a", files={"a.py": "import evil"})
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "another-cache"))
    with pytest.raises(BuildError, match="a package is not what was locked|cannot be had from the index"):
        install(lock, tmp_path / "store")
    assert left(tmp_path / "store") == []


def test_a_cache_of_packages_that_lost_a_file_is_told(house, tmp_path):
    place = wheel(house, "a", files={"a.py": "", "b.py": ""})
    lock = resolve(["a"], installed={})
    install(lock, tmp_path / "first")
    for path in (tmp_path / "uv-cache").rglob("b.py"):
        path.unlink()
    with pytest.raises(BuildError, match=r"a: b\.py was not installed") as caught:
        install(lock, tmp_path / "second")
    assert "uv cache clean" in caught.value.hint
    assert left(tmp_path / "second") == []
    assert place.exists()


def test_two_kernels_make_one_environment(house, tmp_path):
    wheel(house, "a", files={f"a/m{i}.py": "x = 1\n" for i in range(300)})
    lock = resolve(["a"], installed={})
    script = (
        "import sys; from pathlib import Path\n"
        "from mlopsnb.images.environment.install import install\n"
        "from mlopsnb.images.environment.locking import resolve\n"
        "e = install(resolve(['a'], installed={}), Path(sys.argv[1]))\n"
        "print(e.lock.digest, len(e.packages['a']), all((e.root / f.path).exists() for f in e.packages['a']))"
    )
    path = {**os.environ, "PYTHONPATH": str(Path(mlopsnb.__file__).parents[1])}
    kernels = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            env=path,
            text=True,
        )
        for _ in range(3)
    ]
    told = {kernel.communicate(timeout=100)[0] for kernel in kernels}
    assert told == {f"{lock.digest} 302 True\n"}
    assert len(list((tmp_path / "store/environments").iterdir())) == 1
    threads = ThreadPoolExecutor(3)
    same = list(threads.map(lambda _: install(lock, tmp_path / "other"), range(3)))
    threads.shutdown()
    assert same[0].packages == same[1].packages == same[2].packages
    assert {environment.root for environment in same} == {same[0].root}


@pytest.mark.parametrize("fails_in", ["write_text", "mkdir"])
def test_a_full_disk_leaves_nothing_half(house, tmp_path, monkeypatch, fails_in):
    wheel(house, "a")
    lock = resolve(["a"], installed={})
    real = getattr(Path, fails_in)

    def full(self, *args, **options):
        if "environment-" in str(self):
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, fails_in, full)
    with pytest.raises(DiskFull, match="no space left"):
        install(lock, tmp_path / "store")
    assert left(tmp_path / "store") == []


def test_a_tool_that_finds_the_disk_full_says_so(tmp_path, monkeypatch):
    said = "error: Failed to install: a.whl\n  cause: No space left on device (os error 28)"
    script = tmp_path / "uv"
    script.write_text(f"#!/bin/sh\ncat >&2 <<'E'\n{said}\nE\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(uv, "find", lambda: script)
    lock = Lock(python="3.11", platform="linux/amd64", packages=(_locked(),))
    with pytest.raises(DiskFull, match="no space left on the disk that holds .*site-packages"):
        install(lock, tmp_path / "store")
    assert left(tmp_path / "store") == []


def _locked():
    from mlopsnb.images.lock import LockedPackage

    return LockedPackage(name="a", version="1", filename="a-1-py3-none-any.whl", sha256="0" * 64)


def test_an_interrupt_ends_the_tool_and_leaves_no_draft(tmp_path, monkeypatch):
    pipe = tmp_path / "pids"
    os.mkfifo(pipe)
    script = tmp_path / "uv"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pipe}\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(uv, "find", lambda: script)
    pids = []

    def interrupt():
        pids.extend(int(pid) for pid in pipe.read_text().split())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    events = []
    lock = Lock(python="3.11", platform="linux/amd64", packages=(_locked(),))
    with reporting_to(events.append), pytest.raises(KeyboardInterrupt):
        install(lock, tmp_path / "store")
    thread.join()
    assert events[-1].state == "cancelled"
    assert left(tmp_path / "store") == []
    for pid in pids:
        assert _has_ended(pid)


def _has_ended(pid):
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(process, "rb"):
        return bool(select.select([process], [], [], 20)[0])


def test_what_a_tool_says_is_passed_on_line_by_line_without_secrets():
    script = "import sys; print('out', sys.stdin.read()); print('see http://me:pw@host/x', file=sys.stderr)"
    lines = []
    with Tool([sys.executable, "-c", script], env=os.environ, given="in") as tool:
        done = tool.wait(lines.append)
    assert done == (0, "out in\n", "see http://host/x")
    assert lines == ["see http://host/x"]


def test_what_is_kept_is_plain(house, tmp_path):
    wheel(house, "a")
    environment = install(resolve(["a"], installed={}), tmp_path / "store")
    kept = json.loads((environment.root.parent / "files.json").read_text())
    assert [row[0] for row in kept["a"]] == ["a-1.0.dist-info/METADATA", "a-1.0.dist-info/WHEEL", "a.py"]
    assert int((environment.root.parent / "size").read_text()) == environment.size
