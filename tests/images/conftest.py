"""Registries to test against: a strict one in this process, and Debian's docker-registry where it is installed."""

from __future__ import annotations

import os

import pytest
import surroundings
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
    with surroundings.docker_registry(tmp_path_factory.mktemp("docker-registry")) as host:
        yield host


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
