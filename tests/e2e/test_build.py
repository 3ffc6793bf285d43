"""`ml.build` from beginning to end, against a registry in this process: what it sends, and what is left when it fails."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import tarfile

import numpy as np
import onnx
import pytest
from served_plans import EXAMPLE
from tiny_base import put_base

import mlopsnb as ml
from mlopsnb import manifest
from mlopsnb.events import reporting_to
from mlopsnb.images.errors import TooLarge, WrongPlatform, WrongPython

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the proof runs what is meant for Linux"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the base of these tests is for amd64"),
]


def images(fake):
    return {name: digest for name, digest in fake.manifests if name != "python"}


def test_an_image_is_in_the_registry_and_nothing_is_sent_twice(fake, build):
    image = build()
    assert image.reference == f"{fake.host}/team/net@{image.digest}"
    assert image.tagged.startswith(f"{fake.host}/team/net:v0-")
    manifest, _ = fake.manifests["team/net", image.digest]
    assert [layer["size"] for layer in json.loads(manifest)["layers"]] == [x.size for x in image.layers]
    assert image.sent > 0
    assert image.layers[0].kind == "base"
    fake.requests.clear()
    again = build()
    assert (again.digest, again.sent) == (image.digest, 0)
    assert [method for method, _, _ in fake.requests] == ["HEAD"]


def test_a_gone_image_is_made_again_from_the_cache(fake, build):
    image = build()
    for key in [key for key in fake.manifests if key[0] == "team/net"]:
        del fake.manifests[key]
    again = build()
    assert again.digest == image.digest
    assert ("team/net", image.digest) in fake.manifests
    assert again.sent < 10_000


def test_another_model_sends_the_model_alone(build, package):
    first = build()
    model = onnx.load(package / "model" / "model.onnx")
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 2), "float32"), "w"))
    second = build(model, example=EXAMPLE)
    assert second.digest != first.digest
    assert second.sent < 50_000
    assert [x.digest for x in second.layers if x.kind == "dependencies"] == [
        x.digest for x in first.layers if x.kind == "dependencies"
    ]


def test_a_logged_version_gives_the_tag(build, package):
    version = ml.log(manifest.artifact(package), name="net")
    image = build(f"models:/net/{version.version}", name=None)
    assert image.tagged.rpartition("/")[2].startswith("net:v1-")
    assert build(version, name=None).sent == 0


@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_an_image_becomes_a_layout(build, package, tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    image = build(output=path)
    if suffix:
        with tarfile.open(path) as archive:
            assert "oci-layout" in archive.getnames()
    else:
        assert (path / "oci-layout").is_file()
    assert build(output=path).sent == 0
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = build(output=path)
    assert again.digest == image.digest
    assert path.exists()


def test_the_budget_is_checked_before_anything_is_sent(fake, build):
    with pytest.raises(TooLarge, match="over its budget of 1.0 MB; the heaviest layers:\n .*packages"):
        build(max_size="1MB")
    assert images(fake) == {}
    assert fake.sent("POST") == []
    assert build(max_size="900MB").size < 900_000_000


def test_an_export_is_a_dockerfile(build, tmp_path):
    made = build(export=tmp_path / "context")
    assert made == tmp_path / "context"
    assert (made / "Dockerfile").is_file()


@pytest.mark.parametrize("step", ["fetch", "resolve", "install", "prove", "pack", "upload"])
def test_an_interrupt_leaves_no_image_and_the_next_build_goes_on(fake, build, step, monkeypatch, tmp_path):
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(tmp_path / "fresh"))

    def interrupt(event):
        if event.step == step and event.state == ("progress" if step == "upload" else "started"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), reporting_to(interrupt):
        build()
    assert images(fake) == {}
    assert build().tagged


def test_two_clones_would_make_the_same(build, package, tmp_path, monkeypatch):
    first = build(output=tmp_path / "a.tar")
    copied = tmp_path / "copied"
    shutil.copytree(package, copied, copy_function=shutil.copyfile)
    for file in copied.rglob("*"):
        os.utime(file, (1, 1))
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(tmp_path / "cache-2"))
    second = build(copied, output=tmp_path / "b.tar")
    assert second.digest == first.digest
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"version": "3.1.4"}, WrongPython),
        ({"architecture": "arm64"}, WrongPlatform),
    ],
)
def test_a_base_that_does_not_fit(fake, build, options, error):
    with pytest.raises(error):
        build(base=put_base(fake, "other", **options))
    assert images(fake).keys() - {"other"} == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "My_Net"}, "'My_Net' cannot name an image.*\n.*'my-net'"),
        ({"name": None}, "an image needs a name"),
        ({"builder": "ocl"}, "no builder named 'ocl'.*\n.*'oci'"),
        ({"accelerator": "gpu"}, "accelerator must be one of cpu, cuda"),
        ({"platform": "amd64"}, "'amd64' is no platform"),
        ({"push": True, "load": "engine"}, "push and load are two places"),
        ({"push": True, "registry": ""}, "push=True needs a registry"),
        ({"load": "docker"}, "load must be one of engine"),
        ({"requirements": "pandas"}, "requirements takes a list"),
        ({"code_paths": ["nowhere.py"]}, "nowhere.py does not exist"),
        ({"max_size": "much"}, "'much' is no size"),
        ({"builder": "oci", "apt": ["libgomp1"]}, "builder 'oci' carries out no apt"),
        ({"base": "Python:3"}, "is no image reference"),
    ],
)
def test_what_cannot_be_is_said_at_once(fake, build, options, message):
    with pytest.raises(ml.UserError, match=message):
        build(**options)
    assert fake.requests == []


def test_a_cluster_gets_the_image_by_its_command(build, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ml.BuildError, match="the command kind is not on the PATH"):
        build(load="kind")
    command = tmp_path / "kind"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    command.chmod(0o755)
    image = build(load="kind")
    assert image.reference.startswith("net:v0-")
    assert (tmp_path / "said").read_text().split()[:2] == ["load", "image-archive"]
    (tmp_path / "said").unlink()
    assert build(load="kind").digest == image.digest
    assert (tmp_path / "said").exists()


def test_a_model_needs_an_example(build):
    import torch

    with pytest.raises(ml.UserError, match="needs an example"):
        build(torch.nn.Linear(4, 2))


def test_cleanup_says_what_it_frees_and_frees_it(build, monkeypatch, tmp_path):
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(tmp_path / "cache"))
    assert ml.cleanup(images=True).removed == ()
    image = build()
    planned = ml.cleanup(images=True, dry_run=True)
    assert planned.freed > 10_000_000
    assert {name for name, _ in planned.removed} == {"packed layers", "environments"}
    assert ml.cleanup(images=True) == ml.Cleanup(removed=planned.removed)
    assert ml.cleanup(images=True).freed == 0
    assert build().digest == image.digest
    with pytest.raises(ml.UserError, match="nothing was chosen"):
        ml.cleanup()
