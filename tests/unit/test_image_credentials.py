"""Credentials are found where docker and podman keep them, and are never shown."""

from __future__ import annotations

import base64
import json
import os

import pytest

from mlopsnb.images import credentials
from mlopsnb.images.credentials import Credentials, find, missing_helper
from mlopsnb.images.errors import CredentialsUnreadable


def packed(text):
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def docker(monkeypatch, tmp_path):
    """Return a function that writes docker's configuration; nothing else is configured."""
    for name in (
        "REGISTRY_AUTH_FILE",
        "DOCKER_AUTH_CONFIG",
        "DOCKER_CONFIG",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def write(config, path=".docker/config.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(config if isinstance(config, str) else json.dumps(config))
        return tmp_path / path

    return write


@pytest.fixture
def helper(docker, tmp_path):
    """Return a function that installs a credential helper: a shell script."""

    def install(name, script):
        path = tmp_path / "bin" / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


def test_nothing_is_configured(docker):
    assert find("ghcr.io") is None


@pytest.mark.parametrize("key", ["ghcr.io", "https://ghcr.io", "https://ghcr.io/v2/", "http://ghcr.io/v1/"])
def test_a_password(docker, key):
    docker({"auths": {key: {"auth": packed("me:a:b")}}})
    assert find("ghcr.io", "team/fraud") == Credentials(user="me", password="a:b")
    assert find("quay.io") is None


@pytest.mark.parametrize(
    "key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"]
)
def test_docker_hub_has_many_names(docker, key):
    docker({"auths": {key: {"username": "me", "password": "p"}}})
    assert find("docker.io") == Credentials(user="me", password="p")


def test_tokens(docker):
    docker({"auths": {"a.io": {"auth": packed("me:"), "identitytoken": "i"}, "b.io": {"registrytoken": "r"}}})
    assert find("a.io") == Credentials(user="me", identity_token="i")
    assert find("b.io") == Credentials(registry_token="r")


def test_the_most_special_namespace_wins(docker):
    docker(
        {"auths": {"quay.io": {"auth": packed("all:1")}, "quay.io/team": {"auth": packed("team:2")}}},
        ".config/containers/auth.json",
    )
    assert find("quay.io", "team/fraud").user == "team"
    assert find("quay.io", "other/fraud").user == "all"


def test_order_of_the_places(docker, monkeypatch, tmp_path):
    docker({"auths": {"a.io": {"auth": packed("podman:1")}}}, "run/containers/auth.json")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert find("a.io").user == "podman"
    docker({"auths": {"a.io": {"auth": packed("docker:1")}}})
    assert find("a.io").user == "docker"
    docker({"auths": {"a.io": {"auth": packed("other:1")}}}, "other/config.json")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "other"))
    assert find("a.io").user == "other"
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"a.io": {"auth": packed("variable:1")}}}))
    assert find("a.io").user == "variable"
    monkeypatch.setenv(
        "REGISTRY_AUTH_FILE", str(docker({"auths": {"a.io": {"auth": packed("file:1")}}}, "explicit.json"))
    )
    assert find("a.io").user == "file"


def test_a_helper_is_asked_for_the_registry(docker, helper):
    helper("store", 'read server; echo "{\\"Username\\": \\"$server\\", \\"Secret\\": \\"p\\"}"')
    docker({"credsStore": "store", "auths": {"a.io": {}}})
    assert find("a.io", "team/x") == Credentials(user="a.io", password="p")
    assert find("docker.io").user == "https://index.docker.io/v1/"


def test_a_helper_of_one_registry_goes_before_the_store(docker, helper):
    helper("store", 'echo "{\\"Username\\": \\"store\\", \\"Secret\\": \\"p\\"}"')
    helper("ecr", 'echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"t\\"}"')
    docker({"credsStore": "store", "credHelpers": {"a.io": "ecr"}})
    assert find("a.io") == Credentials(identity_token="t")
    assert find("b.io").user == "store"


def test_a_helper_that_has_nothing(docker, helper):
    helper("store", 'echo "credentials not found in native keychain"; exit 1')
    docker({"credsStore": "store", "auths": {"a.io": {"auth": packed("me:p")}}})
    assert find("a.io").user == "me"
    assert find("b.io") is None


def test_a_helper_that_is_not_installed_is_named(docker):
    path = docker({"credsStore": "absent-desktop"})
    assert find("a.io") is None
    assert (
        missing_helper("a.io") == f"{path} names docker-credential-absent-desktop, which is not on the PATH"
    )


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'gpg: no key'; exit 2", "gpg: no key"),
        ("echo 's3cret {'", "not the JSON"),
        ('echo \'{"Secret": "s3cret"}\'', "not the JSON"),
    ],
)
def test_a_broken_helper_is_said_but_not_its_secret(docker, helper, script, found):
    helper("store", script)
    docker({"credsStore": "store"})
    with pytest.raises(CredentialsUnreadable, match=found) as caught:
        find("a.io")
    assert "s3cret" not in str(caught.value)


def test_a_helper_that_hangs_is_ended(docker, helper, monkeypatch):
    monkeypatch.setattr(credentials, "_HELPER_SECONDS", 0.2)
    helper("store", "exec cat /dev/zero >/dev/null")
    docker({"credsStore": "store"})
    with pytest.raises(CredentialsUnreadable, match="no answer"):
        find("a.io")


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"a.io": {"auth": "s3cret!"}}}'])
def test_a_broken_configuration_is_named(docker, text):
    path = docker(text)
    with pytest.raises(CredentialsUnreadable, match=str(path)) as caught:
        find("a.io")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "config", [{}, {"auths": None}, {"auths": []}, {"auths": {"a.io": None}}, {"credHelpers": []}]
)
def test_an_odd_configuration_is_no_credentials(docker, config):
    docker(config)
    assert find("a.io") is None


def test_secrets_are_not_shown():
    shown = repr(Credentials(user="me", password="s3cret", identity_token="s3cret", registry_token="s3cret"))
    assert "me" in shown
    assert "s3cret" not in shown
