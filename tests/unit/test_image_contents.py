"""What goes into an image besides the packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlopsnb
from mlopsnb.errors import UserError
from mlopsnb.images.contents import code_files, package_files, runtime_files
from mlopsnb.manifest import BadPackage, Manifest, file_digests, write
from mlopsnb.records import Signature


def write_files(files, place):
    for file in files:
        path = place / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.source if isinstance(file.source, bytes) else file.source.read_bytes())
    return place


def imports_of_ours(source):
    """Yield the modules of mlopsnb that *source* imports when it runs, wherever in it."""
    todo = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        todo += ast.iter_child_nodes(node)


def test_all_that_the_runtime_imports_of_us_is_there():
    files = {f.path: f.source for f in runtime_files()}
    home = Path(mlopsnb.__file__).parents[1]
    missing = {
        path
        for name, source in files.items()
        if name.endswith(".py") and name != "mlopsnb/__init__.py"  # which leads to all of it, on request
        for module in imports_of_ours(source)
        if module.split(".")[0] == "mlopsnb"
        for path in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py")
        if (home / path).exists() and path not in files
    }
    assert missing == set()


def test_the_runtime_starts_from_these_files_alone(tmp_path):
    place = write_files(runtime_files(), tmp_path / "site")
    code = (
        "import mlopsnb.serving.__main__ as m, mlopsnb.serving.app, mlopsnb.serving.server, mlopsnb.serving.rpc.service\n"
        "from importlib.metadata import version\n"
        "import mlopsnb; assert version('mlopsnb') == mlopsnb.__version__\n"
        "print(mlopsnb.__file__); raise SystemExit(m.main(['nowhere']))"
    )
    packages = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": f"{place}{os.pathsep}{packages}", "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr  # no sound package
    assert done.stdout.startswith(str(place))


def test_nothing_compiled_or_hidden_and_nothing_of_the_notebook_side():
    paths = [f.path for f in runtime_files()]
    assert "mlopsnb/serving/pages/page.css" in paths
    assert not [p for p in paths if "__pycache__" in p or "/." in p or "notebook" in p or "images" in p]


@pytest.fixture
def package(tmp_path):
    package = tmp_path / "package"
    (package / "model").mkdir(parents=True)
    (package / "model" / "w.bin").write_bytes(b"weights")
    write(
        package,
        Manifest(format="onnx", signature=Signature(inputs=(), outputs=()), files=file_digests(package)),
    )
    return package


def test_the_files_of_a_package(package):
    found = {f.path: f for f in package_files(package)}
    assert set(found) == {"model.json", "model/w.bin"}
    assert f"sha256:{found['model/w.bin'].sha256}" == file_digests(package)["model/w.bin"]
    assert found["model/w.bin"].size == 7
    (package / "model" / "w.bin").unlink()
    with pytest.raises(BadPackage, match=r"w\.bin"):
        package_files(package)


def test_modules_of_the_user(tmp_path):
    (tmp_path / "features.py").write_text("x = 1")
    tree = tmp_path / "lib"
    for name in ("__init__.py", "a/b.py", "__pycache__/a.pyc", ".env", ".git/config"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("secret")
    (tree / "a" / "back").symlink_to(tree)
    paths = [f.path for f in code_files([tree, tmp_path / "features.py"])]
    assert paths == ["features.py", "lib/__init__.py", "lib/a/b.py"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lib").mkdir()
    with pytest.raises(UserError, match="the same name"):
        code_files([tree, tmp_path / "other" / "lib"])
