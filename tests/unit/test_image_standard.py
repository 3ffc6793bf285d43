"""What a base's Python would compile at each start is compiled in the image."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import marshal
import subprocess
import sys
import textwrap

import pytest
from fake_registry import FakeRegistry
from image_plans import OFFICIAL, put_base

from mlopsnb.errors import BuildError
from mlopsnb.images import standard
from mlopsnb.images.base import inspect
from mlopsnb.images.cache import Store
from mlopsnb.images.errors import Cancelled
from mlopsnb.images.standard import Standard

MINOR = "{}.{}".format(*sys.version_info)
LIB = f"usr/local/lib/python{MINOR}"
TAG = sys.implementation.cache_tag
SOURCE = b"'''A module.'''\nimport sys\nANSWER = {'a', 'b', 'c'}\ndef f(x): return x in ('.', 'name', 7)\n"
OURS = tuple(v.replace("3.11.9", f"{MINOR}.1") for v in OFFICIAL)

pytestmark = pytest.mark.usefixtures("no_engine")


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")


@pytest.fixture
def fake():
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def made(fake, tmp_path):
    """Return a function that compiles *modules* of a base of *layers*."""
    store = Store(tmp_path / "store")

    def compiled(modules, *layers):
        if layers:
            put_base(fake, *layers, env=OURS)
        with store.using():
            base = inspect(f"{fake.host}/library/base:1", platform="linux/amd64", python=MINOR, store=store)
            fake.requests.clear()
            with Standard(base, store) as found:
                return {file.path: file.source for file in found.compiled(modules)}

    return compiled


def pyc(name):
    directory, _, module = name.rpartition("/")
    return f"{f'{directory}/' if directory else ''}__pycache__/{module.removesuffix('.py')}.{TAG}.pyc"


def head(flags, rest):
    return importlib.util.MAGIC_NUMBER + flags.to_bytes(4, "little") + rest


def test_a_module_is_compiled_to_where_python_looks_for_it_and_never_compared_with_its_source(made):
    found = made(
        ["a.py", "pkg/b.py"], {f"{LIB}/a.py": SOURCE, f"{LIB}/pkg/b.py": SOURCE, f"{LIB}/c.py": SOURCE}
    )
    assert sorted(found) == [f"{LIB}/__pycache__/a.{TAG}.pyc", f"{LIB}/pkg/__pycache__/b.{TAG}.pyc"]
    data = found[f"{LIB}/{pyc('a.py')}"]
    assert data[:16] == head(1, importlib.util.source_hash(SOURCE))
    code = marshal.loads(data[16:])
    assert code.co_filename == f"/{LIB}/a.py"
    names = {}
    exec(code, names)
    assert (names["ANSWER"], names["f"]("name")) == ({"a", "b", "c"}, True)


@pytest.mark.parametrize(
    ("compiled", "anew"),
    [
        (head(0, (0).to_bytes(4, "little") + len(SOURCE).to_bytes(4, "little")), False),
        (head(0, (1).to_bytes(4, "little") + len(SOURCE).to_bytes(4, "little")), True),
        (head(0, (0).to_bytes(4, "little") + (1).to_bytes(4, "little")), True),
        (head(1, b"01234567"), False),
        (head(3, importlib.util.source_hash(SOURCE)), False),
        (head(3, b"01234567"), True),
        (b"\0\0\0\0" + bytes(12), True),
        (b"", True),
    ],
)
def test_what_python_would_take_as_it_is_stays(made, compiled, anew):
    assert bool(made(["a.py"], {f"{LIB}/a.py": SOURCE, f"{LIB}/{pyc('a.py')}": compiled})) is anew


def test_upper_layers_count_and_hide(made):
    first = {f"{LIB}/a.py": b"A = 1\n", f"{LIB}/b.py": b"B = 1\n", f"{LIB}/pkg/c.py": b"C = 1\n"}
    second = {f"{LIB}/a.py": b"A = 2\n", f"{LIB}/.wh.b.py": b"", f"{LIB}/pkg/.wh..wh..opq": b""}
    found = made(["a.py", "b.py", "pkg/c.py", "none.py"], first, second)
    assert list(found) == [f"{LIB}/{pyc('a.py')}"]
    assert b"A" in found[f"{LIB}/{pyc('a.py')}"]
    assert found[f"{LIB}/{pyc('a.py')}"][8:16] == importlib.util.source_hash(b"A = 2\n")


@pytest.mark.parametrize(
    "layer",
    [
        {"usr/local/lib": "/usr/lib", f"{LIB}/a.py": SOURCE},
        {"usr/local": "/usr", f"{LIB}/a.py": SOURCE},
        {f"{LIB}/a.py": "b.py", f"{LIB}/b.py": SOURCE},
    ],
)
def test_no_link_of_the_base_is_replaced(made, layer):
    assert made(["a.py"], layer) == {}


def test_a_base_is_searched_once(fake, made):
    layer = {f"{LIB}/a.py": SOURCE, f"{LIB}/b.py": SOURCE}
    first = made(["a.py"], layer)
    assert [r[0] for r in fake.requests] == ["GET"]
    assert made(["a.py"]) == first
    assert fake.requests == []
    both = made(["b.py"])
    assert list(both) == [f"{LIB}/{pyc('b.py')}"]
    assert made(["a.py", "b.py"]) == first | both
    assert made([]) == {}


def test_a_very_large_base_is_not_fetched_for_that(fake, made, monkeypatch):
    monkeypatch.setattr(standard, "_MOST_BYTES", 10)
    assert made(["a.py"], {f"{LIB}/a.py": SOURCE}) == {}
    assert fake.requests == []


def test_a_layer_that_cannot_be_read_is_none_to_compile(made, monkeypatch):
    monkeypatch.setattr(
        standard, "unpacked", lambda file: io.BytesIO(b"\x28\xb5\x2f\xfd" * 500)
    )  # zstd's magic
    assert made(["a.py"], {f"{LIB}/a.py": SOURCE}) == {}


def test_leaving_by_an_exception_calls_the_search_off(fake, tmp_path):
    put_base(fake, {f"{LIB}/a.py": SOURCE}, env=OURS)
    store = Store(tmp_path / "store")
    with store.using():
        base = inspect(f"{fake.host}/library/base:1", platform="linux/amd64", python=MINOR, store=store)
        fake.release.clear()  # from here on the registry keeps everybody waiting
        with pytest.raises(KeyboardInterrupt), Standard(base, store) as found:
            raise KeyboardInterrupt
        assert found._search.cancelled() or isinstance(found._search.exception(), Cancelled)
        fake.release.set()
        with Standard(base, store) as found:
            assert len(found.compiled(["a.py"])) == 1


def test_a_search_that_is_over_ends_between_two_files(fake, tmp_path):
    put_base(fake, {f"{LIB}/a.py": SOURCE}, env=OURS)
    store = Store(tmp_path / "store")
    with store.using():
        base = inspect(f"{fake.host}/library/base:1", platform="linux/amd64", python=MINOR, store=store)
        found = Standard(base, store)
        found._crew._cancelled.set()
        with found, pytest.raises(BuildError, match="called off"):
            found._search.result()


def test_the_bytes_are_the_same_whatever_else_a_process_did():
    code = """
        import hashlib, json, sys
        extra = sys.argv[1:]
        for name in extra:
            __import__(name)
        from pathlib import Path
        import asyncio.base_events, dataclasses, typing
        from mlopsnb.images.standard import Library, _compile
        modules = {n: (Path(m.__file__).read_bytes(), 0) for n, m in
                   (("asyncio/base_events.py", asyncio.base_events), ("dataclasses.py", dataclasses), ("typing.py", typing))}
        made = _compile(Library(sources=modules), sorted(modules), "usr/lib/python")
        print(json.dumps({k: hashlib.sha256(v).hexdigest() for k, v in made.items()}))
    """

    def digests(*modules):
        command = [sys.executable, "-c", textwrap.dedent(code), *modules]
        return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=100).stdout)

    first = digests()
    assert len(first) == 3
    assert len(set(first.values())) == 3
    assert all(len(v) == len(hashlib.sha256().hexdigest()) for v in first.values())
    assert digests("pandas", "ast", "inspect") == first
