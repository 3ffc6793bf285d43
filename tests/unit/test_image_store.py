"""What builds keep: never half a file, never a lock that outlives its holder, never what somebody is using."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlopsnb.errors import BuildError
from mlopsnb.images.cache import Store
from mlopsnb.images.errors import DiskFull


def put(store, name, size=10, used=None):
    with store.writing() as file:
        file.write(bytes(size))
        path = file.keep(f"sha256:{name}")
    if used is not None:
        os.utime(path, (used, used))
    return path


def kept(store):
    return sorted(p.name for p in (store.root / "blobs").glob("*"))


def python(code, *args):
    """Start another kernel that runs *code*; it says `ready` on its standard output when it is."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout.readline() == "ready\n"
    return child


HOLD = """
import sys; from pathlib import Path; from mlopsnb.images.cache import Store
store = Store(Path(sys.argv[1]), limit=5)
with store.using(), store.alone("torch"), store.writing() as file:
    file.write(b"half"); print("ready", flush=True); sys.stdin.readline()
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_blob_is_found_with_its_size_only(store):
    path = put(store, "a", 10)
    assert store.find("sha256:a", 10) == path
    assert store.find("sha256:a", 11) is None
    assert store.find("sha256:b", 10) is None


def test_notes(store):
    assert store.note("layers", "k") is None
    store.set_note("layers", "k", {"a": [1]})
    assert store.note("layers", "k") == {"a": [1]}
    assert store.note("other", "k") is None


def test_what_was_not_kept_is_gone(store):
    with store.writing() as file:
        file.write(b"half")
    assert list(store.root.glob("tmp/*")) == []


def test_the_least_recently_used_goes_first(store):
    store.limit = 25
    with store.using():
        for name, used in (("old", 1), ("older", 0), ("new", 3), ("newest", 4)):
            put(store, name, 10, used)
        assert len(kept(store)) == 4
    assert kept(store) == ["new", "newest"]


def test_finding_is_using(store):
    store.limit = 25
    with store.using():
        for name, used in (("a", 0), ("b", 1), ("c", 2)):
            put(store, name, 10, used)
        store.find("sha256:a", 10)
    assert kept(store) == ["a", "c"]


def test_environments_go_as_a_whole(store):
    for name, used in (("old", 0), ("new", 5)):
        tree = store.root / "environments" / name / "site"
        tree.mkdir(parents=True)
        (tree / "a.py").write_bytes(bytes(20))
        os.utime(tree.parent, (used, used))
    store.limit = 35
    with store.using():
        put(store, "blob", 10, 3)
    assert kept(store) == ["blob"]
    assert [p.name for p in (store.root / "environments").iterdir()] == ["new"]


def test_nothing_is_removed_while_another_kernel_builds(store):
    store.limit = 5
    child = python(HOLD, store.root)
    with store.using():
        put(store, "a")
    assert kept(store) == ["a"]
    with pytest.raises(BuildError, match="in use by a build"):
        store.clear()
    child.communicate("go on\n", timeout=30)  # the last to leave tidies up
    assert kept(store) == []


def test_a_killed_kernel_leaves_no_lock_and_nothing_half(store):
    child = python(HOLD, store.root)
    waits = []
    with pytest.raises(KeyboardInterrupt), store.alone("torch", cancelled=lambda: waits.append(1) or True):
        pass
    assert waits
    with store.alone("numpy"):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.communicate()
    with store.alone("torch"):
        pass
    assert len(list(store.root.glob("tmp/*"))) == 1
    with store.using():
        put(store, "a")
    assert list(store.root.glob("tmp/*")) == []
    assert kept(store) == ["a"]


def test_a_thread_that_waits_goes_on_when_the_other_is_done(store):
    order = []
    inside = threading.Event()

    def second():
        inside.wait()
        with store.alone("torch"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with store.alone("torch"):
        inside.set()
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_clear_says_how_much_it_freed(store):
    assert store.clear() == 0
    put(store, "a", 1000)
    store.set_note("layers", "k", 1)
    assert store.clear() == 1000
    assert kept(store) == []
    assert store.note("layers", "k") is None


PACK = """
import os, sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path
from mlopsnb.images.cache import Store
from mlopsnb.images.layers import pack
from mlopsnb.images.plan import Entry, Layer
store = Store(Path(sys.argv[1]))
layer = Layer(kind="wheel", name="torch", key="sha256:1", entries=(Entry(path="a", source=Path(sys.argv[2])),))
print("ready", flush=True); sys.stdin.readline()
read = []
with store.using(), ThreadPoolExecutor(2) as threads:
    packed = pack(layer, store, threads, on_bytes=read.append)
print(packed.layer.digest, packed.source.stat().st_size == packed.layer.size, len(read))
"""


def test_two_kernels_that_need_the_same_layer_pack_it_once(store, tmp_path):
    (tmp_path / "big").write_bytes(os.urandom(64 << 20))
    children = [python(PACK, store.root, tmp_path / "big") for _ in range(2)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=120)[0].split() for child in children]
    assert answers[0][:2] == answers[1][:2]
    assert answers[0][1] == "True"
    assert sorted(int(a[2]) for a in answers) == [1, 17]  # one read it in blocks, the other found it
    assert len(kept(store)) == 1


def test_a_full_disk_leaves_nothing(store):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with store.using():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
            with pytest.raises(BuildError, match="cannot be written"), store.writing() as file:
                file.write(bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(store.root.glob("tmp/*")) == []
    put(store, "a", 2 << 20)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_no_space_left_is_named(store):
    with store.writing() as file:
        os.dup2(os.open("/dev/full", os.O_WRONLY), file._fd)
        with pytest.raises(DiskFull, match="no space left"):
            file.write(b"x")


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "store").write_text("a file is in the way")
    with pytest.raises(BuildError, match=r"store"), Store(tmp_path / "store").using():
        pass
