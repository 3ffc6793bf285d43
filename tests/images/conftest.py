"""Registries to test against: a strict one in this process, and Debian's docker-registry where it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import urllib.request

import pytest
from fake_registry import FakeRegistry

from mlopsnb.images.registry import Registry


@pytest.fixture
def fake():
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def client():
    """Return a function that connects to a host, impatiently; the connections are closed in the end."""
    made = []

    def connect(host, **options):
        made.append(Registry(host, plain=True, **{"patience": 5.0, **options}))
        return made[-1]

    yield connect
    for registry in made:
        registry.close()


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory):
    """Start docker-registry on a free loopback port; its host."""
    root = tmp_path_factory.mktemp("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = root / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n"
        f"http: {{addr: {host!r}, secret: tests}}\n"
    )
    command = [shutil.which("docker-registry"), "serve", str(config)]
    with (root / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _await(f"http://{host}/v2/", process)
            yield host
        finally:
            process.terminate()


def _await(url, process):
    never = threading.Event()
    for _ in range(200):
        assert process.poll() is None, "docker-registry ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            never.wait(0.05)
    raise AssertionError(f"no answer at {url}")


@pytest.fixture(params=["strict", pytest.param("docker-registry", marks=pytest.mark.registry)])
def host(request):
    """Both kinds, for what holds of every registry."""
    if request.param == "strict":
        return request.getfixturevalue("fake").host
    return request.getfixturevalue("docker_registry")


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """Hide the credentials of whoever runs the tests."""
    for name in (
        "REGISTRY_AUTH_FILE",
        "DOCKER_AUTH_CONFIG",
        "DOCKER_CONFIG",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def repository():
    return f"team/t{os.urandom(4).hex()}"
