"""How images get into a cluster, as far as it is decided from what is known."""

import sys

import pytest

from mlopsnb.errors import DeployError
from mlopsnb.events import reporting_to
from mlopsnb.settings import set_for_session, settings
from mlopsnb.targets import cluster_images
from mlopsnb.targets.cluster_images import check_pull, decide, delivery, is_loopback, local_kind, pull_policy

DOCKER, CONTAINERD = "docker://20.10.24", "containerd://1.7.1"


@pytest.mark.parametrize(
    ("known", "shared"),
    [
        ({"environ": {"MINIKUBE_ACTIVE_DOCKERD": "dev"}}, True),
        ({"environ": {"MINIKUBE_ACTIVE_DOCKERD": "other"}}, None),
        ({"pods": ["a", "b"], "on_engine": ["b", "z"]}, True),
        ({"pods": ["a", "b"], "on_engine": ["b"], "runtimes": [DOCKER]}, True),
        ({"pods": ["a"], "on_engine": ["a"], "runtimes": [DOCKER, DOCKER]}, False),
        ({"pods": ["a"], "on_engine": ["z"]}, False),
        ({"runtimes": [CONTAINERD]}, False),
        ({"runtimes": [DOCKER]}, None),
        ({}, None),
        ({"context": "docker-desktop", "runtimes": [DOCKER], "pods": ["a"]}, True),
        ({"context": "docker-desktop", "runtimes": [CONTAINERD]}, False),
        ({"context": "docker-desktop", "pods": ["a"]}, None),
    ],
)
def test_a_cluster_shares_the_engine_if_its_pods_run_there(known, shared):
    asked = {"context": "dev", "on_engine": [], "pods": [], "runtimes": [], "environ": {}, **known}
    assert decide(**asked) is shared


@pytest.mark.parametrize(
    ("context", "environ", "kind"),
    [
        ("kind-dev", {}, "kind"),
        ("k3d-dev", {}, "k3d"),
        ("minikube", {}, "minikube"),
        ("minikube", {"MINIKUBE_ACTIVE_DOCKERD": "minikube"}, None),
        ("production", {}, None),
        ("my-kind-dev", {}, None),
    ],
)
def test_local_clusters_are_known_by_their_context(context, environ, kind):
    assert local_kind(context, environ) == kind


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1:5000", True),
        ("localhost", True),
        ("registry.localhost:5000", True),
        ("[::1]:5000", True),
        ("ghcr.io", False),
        ("10.0.0.7:5000", False),
        ("localhost.example", False),
    ],
)
def test_loopback_addresses_are_known(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("fraud:v3-1a2b3c4", "Never"),
        ("team/fraud:1", "Never"),
        ("ghcr.io/team/fraud@sha256:ab", "IfNotPresent"),
        ("localhost/fraud:1", "IfNotPresent"),
        ("127.0.0.1:5000/fraud@sha256:ab", "IfNotPresent"),
    ],
)
def test_an_image_without_a_registry_is_never_pulled(image, policy):
    assert pull_policy(image) == policy


class Place:
    """A cluster as far as it is looked at when it shares no engine."""

    def __init__(self, context, server):
        self.context, self.server = context, server


@pytest.fixture(autouse=True)
def no_engine(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_cluster_pulls_from_the_registry_that_is_set():
    place = Place("production", "https://k8s.example")
    assert delivery(place, settings(registry="ghcr.io/team")) == "registry"
    near = Place("dev", "https://127.0.0.1:6443")
    assert delivery(near, settings(registry="127.0.0.1:5000")) == "registry"


def test_a_cluster_elsewhere_cannot_pull_from_this_machine():
    with pytest.raises(DeployError, match=r"cannot pull from localhost:5000: .*this machine's own") as caught:
        delivery(Place("production", "https://k8s.example"), settings(registry="localhost:5000/x"))
    assert "MLOPSNB_REGISTRY" in caught.value.hint


def test_an_image_is_checked_before_nodes_are_sent_for_it():
    far, told = Place("production", "https://k8s.example"), []
    with pytest.raises(DeployError, match="cannot pull from 127.0.0.1:5000"):
        check_pull(far, "127.0.0.1:5000/fraud@sha256:ab")
    set_for_session(insecure_registries="a.example, b.example:5000")
    try:
        with reporting_to(lambda event: told.append(event.message)):
            check_pull(far, "b.example:5000/fraud@sha256:ab")
            check_pull(far, "ghcr.io/team/fraud@sha256:ab")
            check_pull(far, "fraud:v3")
    finally:
        set_for_session(insecure_registries=None)
    [line] = told
    assert line.startswith("b.example:5000 is spoken to over plain HTTP")


def test_if_there_is_no_way_all_that_is_missing_is_told():
    with pytest.raises(DeployError, match="does not run its pods in .* engine; no registry is set"):
        delivery(Place("production", "https://k8s.example"), settings())
    with pytest.raises(DeployError, match="the command kind, .* not on the PATH .*; no registry is set"):
        delivery(Place("kind-dev", "https://127.0.0.1:1"), settings())
    assert delivery(Place("kind-dev", "https://127.0.0.1:1"), settings(registry="ghcr.io/a")) == "registry"


def test_a_local_cluster_is_loaded_by_its_command(tmp_path):
    (tmp_path / "k3d").write_text("#!/bin/sh\n")
    (tmp_path / "k3d").chmod(0o755)
    assert delivery(Place("k3d-dev", "https://127.0.0.1:1"), settings(registry="ghcr.io/a")) == "k3d"
    assert cluster_images.local_kind("k3d-dev", {}) == "k3d"
