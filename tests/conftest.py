"""What all tests share: a home of its own for every test, and what to do when a test's surroundings are missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from functools import cache, partial
from pathlib import Path

import pytest
from built_images import fresh, image_place, parts, served
from surroundings import Kubectl, docker_registry

from mlopsnb.targets.process import Process


def _no_browser() -> str:
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed"
    return "" if shutil.which("chromium") else "no chromium on the PATH"


def _silent(*command: str) -> str:
    """Return why *command* cannot be relied on, or nothing if it succeeds."""
    if shutil.which(command[0]) is None:
        return f"no {command[0]} on the PATH"
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    return "" if done.returncode == 0 else f"{' '.join(command)} ended with {done.returncode}"


TESTS = Path(__file__).parent
VENVS = TESTS.parent / ".venv"
"""Clients of other servers live apart: they pin old versions of packages that we use."""


def _no_client(name: str) -> str:
    if (VENVS / name / "bin" / "python").exists():
        return ""
    return f"no .venv/{name}; .ci/run shows how it is made"


SURROUNDINGS = {
    name: value
    for name, value in os.environ.items()
    if name.startswith("MLOPSNB_TEST_") or name in ("MLOPSNB_BASE_IMAGE", "MLOPSNB_REQUIRE")
}
"""What tests are told of the machine: MLOPSNB_TEST_REGISTRY (HOST:PORT), MLOPSNB_TEST_CONTEXT, MLOPSNB_BASE_IMAGE, ….

The base image is a setting as well, and no test shall see that one.
"""


def _no_devcluster() -> str:
    """Say why the cluster is not one that tests may break: it has to be this machine's own, made for them."""
    if "MLOPSNB_TEST_DEVCLUSTER" not in SURROUNDINGS:
        return "no MLOPSNB_TEST_DEVCLUSTER: the cluster is not one that tests/devcluster has made for them"
    server = ("config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}")
    found = subprocess.run(["kubectl", *server], capture_output=True, text=True, timeout=30, check=False)
    return "" if found.stdout == "https://127.0.0.1:6443" else "kubectl's current context is another cluster"


__all__ = ["fresh", "image_place", "parts", "served"]

MISSING = {
    "browser": _no_browser,
    "cluster": cache(lambda: _silent("kubectl", "get", "--raw", "/readyz")),
    "fuzz": lambda: "" if importlib.util.find_spec("atheris") else "the package atheris is not installed",
    "devcluster": cache(_no_devcluster),
    "engine": cache(lambda: _silent("docker", "version")),
    "kserve": partial(_no_client, "kserve"),
    "sigstore": lambda: (
        ""
        if (VENVS / "sigstore" / "node_modules").exists()
        else "no .venv/sigstore; .ci/run shows how it is made"
    ),
    "prometheus": lambda: "" if shutil.which("promtool") else "no promtool on the PATH",
    "registry": lambda: "" if shutil.which("docker-registry") else "no docker-registry on the PATH",
    "skopeo": lambda: "" if shutil.which("skopeo") else "no skopeo on the PATH",
    "triton": partial(_no_client, "triton"),
}
"""Markers of tests that need more than Python, and what says why that is missing (nothing if it is there).

Such a test is skipped where that is missing. Where the variable MLOPSNB_REQUIRE names the marker (comma-separated),
nothing is run without it: a machine that is meant to have it must not pass by skipping.
"""


def pytest_sessionstart(session):
    required = {name.strip() for name in os.environ.get("MLOPSNB_REQUIRE", "").split(",")} - {""}
    if unknown := required - MISSING.keys():
        raise pytest.UsageError(f"MLOPSNB_REQUIRE: unknown {sorted(unknown)}; there are {sorted(MISSING)}")
    for name in sorted(required):
        if reason := MISSING[name]():
            raise pytest.UsageError(f"MLOPSNB_REQUIRE names {name}, which is missing: {reason}")


@cache
def _needs_engine(file):
    return (
        re.search(r"mark\.(engine|cluster)\b", (TESTS.parent / file).read_text(encoding="utf-8")) is not None
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Where tests run side by side, those of a file stay together and share its fixtures.

    The engine, which the cluster runs on too, is for one file at a time: tests look at what they left there.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "engine" if _needs_engine(file) else file

    return ByFile(config, log)


def pytest_runtest_setup(item):
    for marker in MISSING.keys() & {m.name for m in item.iter_markers()}:
        if reason := MISSING[marker]():
            pytest.skip(f"{marker}: {reason}")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Directories, MLflow store and working directory of this test alone; what it left running is ended."""
    for name in [n for n in os.environ if n.startswith(("MLOPSNB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLOPSNB_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)  # MLflow keeps the files of a database store in ./mlruns
    yield tmp_path
    _end_all(Process(state_dir=tmp_path / "state"))


def _end_all(target: Process) -> None:
    from mlopsnb.rollout import Forget

    for name in target.names():
        target.apply(name, Forget(), timeout=10)


@pytest.fixture(scope="session")
def base_image():
    """The image that serving images stand on in tests: this Python's minor version."""
    minor = ".".join(platform.python_version_tuple()[:2])
    return SURROUNDINGS.get("MLOPSNB_BASE_IMAGE", f"python:{minor}-slim")


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """The host of a registry that the engine and the cluster can reach; one is started if none is named."""
    if "MLOPSNB_TEST_REGISTRY" in SURROUNDINGS:
        yield SURROUNDINGS["MLOPSNB_TEST_REGISTRY"]
    else:
        with docker_registry(tmp_path_factory.mktemp("registry")) as host:
            yield host


@pytest.fixture(scope="session")
def engine():
    """docker-py's client of the engine."""
    import docker

    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def cluster():
    """kubectl in the context of somebody who may work in one namespace and not more, if there is such a context."""
    return Kubectl.of(SURROUNDINGS.get("MLOPSNB_TEST_CONTEXT", ""))


@pytest.fixture(scope="session")
def admin_context():
    """The context of somebody who may do everything on the cluster."""
    context = SURROUNDINGS.get("MLOPSNB_TEST_CONTEXT", "")
    if reason := _silent("kubectl", *(("--context", context) if context else ()), "auth", "can-i", "*", "*"):
        pytest.skip(f"MLOPSNB_TEST_CONTEXT is not an administrator's: {reason}")
    return context


@pytest.fixture(scope="session")
def devcluster():
    """What starts and kills parts of the tests' own cluster; for tests of the marker of that name."""
    command = SURROUNDINGS["MLOPSNB_TEST_DEVCLUSTER"]
    return lambda *words: subprocess.run([command, *words], capture_output=True, check=True, timeout=240)


@pytest.fixture
def space(admin_context):
    """kubectl as an administrator in a namespace of this test alone, which is removed behind it."""
    admin, name = Kubectl(admin_context), f"test-{os.urandom(4).hex()}"
    admin("create", "namespace", name)
    yield Kubectl(admin_context, name)
    admin("--namespace", name, "delete", "pods", "--all", "--grace-period=1", "--wait=false")
    admin("delete", "namespace", name, "--wait=false")
