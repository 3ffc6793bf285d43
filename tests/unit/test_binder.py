"""The Binder set-up: the right files, the right order, and the versions that this release is tested with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
BINDER = ROOT / "binder"


@pytest.fixture(scope="module")
def dockerfile():
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "repo2docker"), "--no-build", "--debug"),
            *("--user-id", "1000", "--user-name", "jovyan", str(ROOT)),
        ],
        env=os.environ | {"DOCKER_HOST": "tcp://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


PIN = re.compile(r"\s*(?:- )?([A-Za-z0-9._-]+)==(\S+)")


def pins(path: Path) -> dict[str, str]:
    found = [PIN.fullmatch(line) for line in path.read_text().splitlines()]
    return {canonicalize_name(m[1]): m[2] for m in found if m}


def needed(*extras: str) -> set[str]:
    """Return the packages that mlopsnb and these extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e])]
    requirements = [Requirement(line) for line in lines]
    own = {e for r in requirements if r.name == "mlopsnb" for e in r.extras}
    named = {canonicalize_name(r.name) for r in requirements if r.name != "mlopsnb"}
    return named | (needed(*own) if own else set())


def test_packages_come_before_the_repository_and_mlopsnb_after_it(dockerfile):
    steps = [
        "COPY --chown=1000:1000 src/binder/environment.yml",
        'env update -p ${NB_PYTHON_PREFIX} --file "binder/environment.yml"',
        "COPY --chown=1000:1000 src/ ",
        "RUN ./binder/postBuild",
    ]
    places = [dockerfile.index(step) for step in steps]
    assert places == sorted(places)


def test_torch_is_the_one_without_cuda_and_python_one_that_the_package_supports():
    lines = (BINDER / "environment.yml").read_text().splitlines()
    assert "  - python=3.11" in lines
    assert "  - pytorch-cpu>=2.6" in lines


def test_pins_are_those_of_the_tested_environment():
    tested, on_binder = pins(ROOT / "constraints.txt"), pins(BINDER / "environment.yml")
    assert on_binder == {name: tested[name] for name in on_binder}


def test_pins_cover_what_the_quickstart_and_its_page_need_and_no_more():
    assert set(pins(BINDER / "environment.yml")) == needed("notebook") | {
        "jupyter-server-proxy",
        "scikit-learn",
    }


def test_tested_versions_cover_all_direct_dependencies():
    assert needed("dev") - set(pins(ROOT / "constraints.txt")) == set()


def test_post_build_stops_at_the_first_error():
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/bash\n")
    assert "set -euo pipefail" in script.read_text()
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
