"""The script that makes layers of what pip installed, run as a build runs it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from importlib import resources

import pytest

LOCK = "numpy==2.0 --hash=sha256:00\n"


@pytest.fixture
def build(tmp_path):
    """Lay out what `assemble.py` finds in a build; return what runs it."""
    shutil.copy(str(resources.files("mlopsnb.images.inside") / "assemble.py"), tmp_path)
    (tmp_path / "requirements.txt").write_text(LOCK)
    lists = tmp_path / "lists"
    lists.mkdir()
    made_for = hashlib.sha256(LOCK.encode()).hexdigest()
    (lists / "1-big.txt").write_text(f"{made_for}\nbig/so\t755\n")
    (lists / "2-dependencies.txt").write_text(f"{made_for}\nsmall/__init__.py\t644\n")
    for name, mode in (
        ("big/so", 0o700),
        ("small/__init__.py", 0o775),
        ("small/tests/x.py", 0o644),
        ("bin/run", 0o755),
    ):
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(mode)

    def run():
        names = ("site", "venv", "layers", "lists/1-big.txt", "lists/2-dependencies.txt")
        command = [sys.executable, tmp_path / "assemble.py", *(tmp_path / name for name in names)]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def tree(root):
    return {p.relative_to(root).as_posix(): p.stat().st_mode & 0o777 for p in root.rglob("*") if p.is_file()}


def layer(tmp_path, name):
    return tree(tmp_path / "layers" / name / (tmp_path / "venv").relative_to("/"))


def test_layers_hold_what_was_proved_and_no_more(build, tmp_path):
    assert build().returncode == 0
    assert layer(tmp_path, "1-big") == {"big/so": 0o755}
    assert layer(tmp_path, "2-dependencies") == {"small/__init__.py": 0o644}
    assert tree(tmp_path / "venv") == {"big/so": 0o755, "small/__init__.py": 0o644}
    assert not (tmp_path / "site").exists()


def test_other_requirements_than_it_was_made_for_install_as_they_are(build, tmp_path):
    (tmp_path / "requirements.txt").write_text(LOCK.replace("2.0", "2.1"))
    assert build().returncode == 0
    assert layer(tmp_path, "1-big") == {"big/so": 0o755}
    assert layer(tmp_path, "2-dependencies") == {
        "small/__init__.py": 0o755,
        "small/tests/x.py": 0o644,
        "bin/run": 0o755,
    }


def test_a_file_that_pip_did_not_bring_fails_the_build(build, tmp_path):
    (tmp_path / "site" / "big" / "so").unlink()
    done = build()
    assert done.returncode == 1
    assert done.stderr == "pip did not install 1 of the files that the image needs, such as big/so\n"
