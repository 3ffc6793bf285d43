"""What the kernel has compiled already saves a compilation where it is what the compiler would give, and only there."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import sys
import sysconfig
from pathlib import Path

import pytest

from mlopsnb.images.environment import probe
from mlopsnb.images.environment.probe import Elsewhere, Known, Recorder

PLACE = "/opt/mlopsnb/venv/lib/python3/site-packages"
SOURCE = b"def double(x):\n    return 2 * x\n"
OTHER = b"def double(x):\n    return 3 * x\n"

alike = pytest.mark.skipif(sys.version_info[:2] not in probe._ALIKE, reason="this Python compiles anew")


@pytest.fixture
def kernel(tmp_path):
    """Make a directory with a module, compiled in one of the ways that there are."""

    def make(mode=py_compile.PycInvalidationMode.TIMESTAMP):
        file = tmp_path / "module.py"
        file.write_bytes(SOURCE)
        py_compile.compile(str(file), doraise=True, invalidation_mode=mode)
        return file

    return make


def taken(file, source=SOURCE):
    return Elsewhere([str(file.parent)]).code(file.name, source, f"{PLACE}/{file.name}")


@alike
@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_a_module_with_the_same_source_is_taken_and_says_where_it_will_lie(kernel, mode):
    code = taken(kernel(mode))
    assert code is not None
    assert code.co_filename == f"{PLACE}/module.py"
    assert code.co_consts[0].co_filename == f"{PLACE}/module.py"


@alike
@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_another_source_is_not_taken_for_it(kernel, mode):
    assert taken(kernel(mode), OTHER) is None


@alike
@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_a_source_that_was_changed_since_is_not_taken(kernel, mode):
    file = kernel(mode)
    now = file.stat()
    file.write_bytes(OTHER)
    os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns + 2_000_000_000))
    assert taken(file, OTHER) is None


@alike
@pytest.mark.parametrize("damage", [lambda pyc: pyc[:20], lambda pyc: b"1234" + pyc[4:], lambda pyc: b""])
def test_what_is_damaged_or_of_another_python_is_not_taken(kernel, damage):
    file = kernel()
    compiled = Path(importlib.util.cache_from_source(str(file)))
    compiled.write_bytes(damage(compiled.read_bytes()))
    assert taken(file) is None


def test_a_module_that_is_not_there_is_not_taken(tmp_path):
    assert taken(tmp_path / "module.py") is None


@alike
def test_it_gives_the_bytes_that_the_compiler_gives(tmp_path, monkeypatch):
    library = Path(sysconfig.get_path("stdlib"))
    found = [str(file) for name in ("asyncio", "json", "email") for file in (library / name).glob("*.py")]
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    for file in found:
        py_compile.compile(file, doraise=True)

    def compiled(*directories):
        recorder = Recorder([str(library)], PLACE, Known(None), Elsewhere(list(directories)))
        for file in found:
            recorder.code(file, Path(file).read_bytes)
        return recorder.compiled

    assert taken(Path(found[0]), Path(found[0]).read_bytes()) is not None
    assert compiled(str(library)) == compiled()
