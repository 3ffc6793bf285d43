"""Which base an image stands on: found once, then known; refused with reasons."""

from __future__ import annotations

import pytest
from fake_registry import FakeRegistry
from image_plans import OFFICIAL, PYTHON, put_base, put_index, put_manifest

from mlopsnb.images import wire
from mlopsnb.images.base import fetch_layer, inspect
from mlopsnb.images.cache import Store
from mlopsnb.images.errors import (
    BaseWithoutPython,
    NotInRegistry,
    RegistryUnreachable,
    UnsuitableBase,
    WrongPlatform,
    WrongPython,
)


@pytest.fixture
def fake():
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def look(fake, tmp_path, monkeypatch):
    """Return a function that inspects a base of the fake registry; no engine answers."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    store = Store(tmp_path / "store")

    def inspected(ref=":1", platform="linux/amd64", python="3.11"):
        fake.requests.clear()
        with store.using():
            return inspect(f"{fake.host}/library/base{ref}", platform=platform, python=python, store=store)

    inspected.store = store
    return inspected


def test_an_official_image_is_believed(fake, look):
    digest = put_base(fake, {"not": b"read"}, env=OFFICIAL)
    base = look()
    assert (base.digest, base.python, base.python_version) == (digest, "/usr/local/bin/python3.11", "3.11.9")
    assert base.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar+gzip"
    assert not fake.sent("GET", base.layers[0].digest)


def test_a_digest_that_was_seen_needs_no_network_and_a_tag_one_request(fake, look):
    digest = put_base(fake, PYTHON)
    first = look()
    assert look() == first
    assert [r[0] for r in fake.requests] == ["HEAD"]
    assert look(f"@{digest}").python == first.python
    assert fake.requests == []


def test_a_tag_is_what_it_was_while_its_registry_is_away(fake, look, monkeypatch):
    put_base(fake, PYTHON)
    first = look()
    fake.stop()
    monkeypatch.setattr(wire, "_LONGEST_WAIT", 0.001)
    monkeypatch.setattr("mlopsnb.images.base.connect", _impatient)
    try:
        assert look() == first
        with pytest.raises(RegistryUnreachable):
            look(":2")
    finally:
        fake.start()


def _impatient(host):
    from mlopsnb.images.registry import Registry

    return Registry(host, plain=True, patience=0.2)


def test_the_python_that_a_shell_would_find_is_taken(fake, look):
    put_base(
        fake,
        {"opt/conda/bin/python3.11": b"x", **PYTHON},
        {"usr/local/bin/python3.11": b"x", "usr/bin/python3.12": b"x"},
        env=("PATH=/usr/local/bin:/usr/bin",),
    )
    assert look().python == "/usr/local/bin/python3.11"
    assert look(python="3.12").python == "/usr/bin/python3.12"


@pytest.mark.parametrize("hidden", ["usr/bin/.wh.python3.11", "usr/.wh.bin", "usr/.wh..wh..opq"])
def test_a_python_that_a_later_layer_removed_is_not_there(fake, look, hidden):
    put_base(fake, PYTHON, {hidden: b""})
    with pytest.raises(BaseWithoutPython, match="has no Python"):
        look()


def test_layers_are_searched_once_for_all_images_that_have_them(fake, look):
    put_base(fake, PYTHON)
    look()
    digest = put_base(fake, PYTHON, {"another": b"layer"})
    assert look().digest == digest
    assert len(fake.sent("GET", "blobs")) == 2  # the configuration and the new layer


def test_another_minor_version_is_refused_naming_both(fake, look):
    put_base(fake, PYTHON)
    with pytest.raises(WrongPython, match=r"has Python 3\.11; the model was made with 3\.13"):
        look(python="3.13")


def test_the_manifest_of_the_platform_is_taken_from_an_index(fake, look):
    amd = put_base(fake, PYTHON)
    arm = put_base(fake, {**PYTHON, "arm": b""}, machine="arm64", variant="v8")
    put_index(fake, ("unknown/unknown", amd), ("linux/amd64", amd), ("linux/arm64/v8", arm))
    assert look().digest == amd
    assert look(platform="linux/arm64").digest == arm
    assert look(platform="linux/arm64/v8").digest == arm
    with pytest.raises(WrongPlatform, match=r"not for linux/s390x; it is for linux/amd64, linux/arm64/v8"):
        look(platform="linux/s390x")


def test_another_architecture_is_refused(fake, look):
    put_base(fake, PYTHON, machine="arm64")
    with pytest.raises(WrongPlatform, match="not for linux/amd64; it is for linux/arm64"):
        look()


def test_musl_is_refused_because_wheels_are_for_glibc(fake, look):
    alpine = {"created_by": "ADD alpine-minirootfs-3.20.tar.gz / # buildkit"}
    put_base(fake, {"x": b""}, env=OFFICIAL, history=[alpine])
    with pytest.raises(UnsuitableBase, match="musl"):
        look()
    put_base(fake, {**PYTHON, "lib/ld-musl-x86_64.so.1": b""})
    with pytest.raises(UnsuitableBase, match="musl"):
        look()


def test_what_is_no_image_is_refused(fake, look):
    put_manifest(
        fake,
        {"schemaVersion": 1, "mediaType": "application/vnd.docker.distribution.manifest.v1+json"},
        "library/base",
    )
    with pytest.raises(UnsuitableBase, match="none of an image"):
        look()


def test_an_absent_base_is_named(look):
    with pytest.raises(NotInRegistry, match="library/base:1"):
        look()


def test_a_layer_is_fetched_once(fake, look):
    put_base(fake, {"a": b"b" * 1000}, env=OFFICIAL)
    base = look()
    fake.requests.clear()
    with look.store.using():
        paths = {fetch_layer(base, base.layers[0], look.store) for _ in range(2)}
    assert [p.stat().st_size for p in paths] == [base.layers[0].size]
    assert len(fake.requests) == 1
