"""Local clusters: which command is run, what it is given, and what its failures mean. The commands are stand-ins."""

from __future__ import annotations

import json
import stat
import subprocess

import pytest
from fake_registry import FakeRegistry
from image_plans import a_plan, put_base

from mlopsnb.errors import BuildError
from mlopsnb.images import destinations
from mlopsnb.images.destinations import LOADERS, cluster_of, load

COMMAND = """#!/bin/sh
printf '%s\\n' "$@" >"$(dirname "$0")/said"
for word in "$@"; do case "$word" in *.tar) cp "$word" "$(dirname "$0")/got.tar";; esac; done
{end}
"""
CONTEXTS = {"kind": "kind-dev", "minikube": "dev", "k3d": "k3d-dev"}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Put a command on the PATH, and nothing else but the shell's own; return its directory."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:/bin:/usr/bin")

    def make(name, end="exit 0"):
        path = place / name
        path.write_text(COMMAND.format(end=end))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return place

    make("kubectl", "exit 1")
    return make


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("kind", ["load", "image-archive", "{}", "--name", "dev"]),
        ("minikube", ["image", "load", "{}", "--profile", "dev"]),
        ("k3d", ["image", "import", "{}", "--cluster", "dev"]),
    ],
)
def test_the_archive_goes_to_the_cluster_of_the_context(command, tmp_path, kind, words):
    place, archive = command(kind), tmp_path / "image.tar"
    archive.write_bytes(b"image")
    load(kind, archive, context=CONTEXTS[kind])
    assert (place / "said").read_text().split() == [word.format(archive) for word in words]
    assert (place / "got.tar").read_bytes() == b"image"


def test_without_a_context_it_is_the_current_one_if_that_is_of_the_kind(command, tmp_path):
    place = command("kind")
    for current, words in (("kind-other", ["--name", "other"]), ("production", [])):
        command("kubectl", f"echo {current}")
        load("kind", tmp_path / "x.tar")
        assert (place / "said").read_text().split()[3:] == words


def test_a_missing_command_says_where_it_is_to_be_had(command, tmp_path):
    for kind, loader in LOADERS.items():
        with pytest.raises(BuildError, match=f"the command {kind} is not on the PATH") as caught:
            load(kind, tmp_path / "x.tar")
        assert loader.install in caught.value.hint
        assert "registry=" in caught.value.hint


def test_a_failure_is_told_in_the_commands_own_words(command, tmp_path):
    command("kind", 'echo "Loading..."; echo "ERROR: no nodes found for cluster \\"dev\\"" >&2; exit 1')
    with pytest.raises(
        BuildError, match=r"kind could not load the image \(exit code 1\): ERROR: no nodes found"
    ) as caught:
        load("kind", tmp_path / "x.tar", context="kind-dev")
    assert "kind get clusters" in caught.value.hint
    command("k3d", "exit 3")
    (tmp_path / "x.tar").touch()
    with pytest.raises(BuildError, match="it did not say why"):
        load("k3d", tmp_path / "x.tar", context="k3d-dev")


@pytest.mark.parametrize(
    ("kind", "context", "cluster"),
    [
        ("kind", "kind-a-b", "a-b"),
        ("kind", "k3d-a", ""),
        ("k3d", "k3d-a", "a"),
        ("minikube", "minikube", "minikube"),
        ("minikube", "kind-a", ""),
        ("minikube", "", ""),
    ],
)
def test_contexts_name_clusters(kind, context, cluster):
    assert cluster_of(kind, context) == cluster


def test_without_kubectl_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert destinations.current_context() == ""


@pytest.mark.skopeo
def test_what_the_command_gets_is_an_image(command, tmp_path):
    from mlopsnb.images import base
    from mlopsnb.images.cache import Store
    from mlopsnb.images.image import Destination
    from mlopsnb.images.oci import Oci

    place, archive = command("kind"), tmp_path / "image.tar"
    with FakeRegistry() as fake:
        put_base(fake, {"usr/bin/python3.11": b"\x7fELF"})
        found = base.inspect(
            f"{fake.host}/library/base:1", platform="linux/amd64", python="3.11", store=Store(tmp_path / "s")
        )
        image = Oci().build(a_plan(tmp_path, found), Destination(place="archive", path=archive))
    load("kind", archive, context="kind-dev")
    told = subprocess.run(
        ["skopeo", "inspect", f"oci-archive:{place / 'got.tar'}"], capture_output=True, check=True
    )
    assert json.loads(told.stdout)["Digest"] == image.digest
