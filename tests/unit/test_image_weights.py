"""Weights kept out of the image: which, where to, and how the serving image says where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlopsnb.errors import UserError
from mlopsnb.images import weights
from mlopsnb.images.image import Destination, Image
from mlopsnb.images.lock import Lock
from mlopsnb.images.plan import Base, Entry, File, ImagePlan, Layer

GIB = 1 << 30


def file(path, size):
    return File(path=path, source=Path(path), size=size, sha256="ab" * 32)


PACKAGE = (file("model.json", 900), file("model/a.bin", 2 * GIB), file("model/b.bin", GIB - 1))
PLAN = ImagePlan(
    repository="fraud",
    tag="v3-1a2b3c4",
    base=Base(
        reference="python:3.11-slim",
        digest="sha256:0b",
        platform="linux/amd64",
        config={"config": {"Env": ["PATH=/bin"], "Entrypoint": ["/theirs"]}},
        layers=(),
        python="/usr/bin/python3.11",
        python_version="3.11.2",
    ),
    lock=Lock(python="3.11", platform="linux/amd64", packages=()),
    layers=(),
    config={"Labels": {"mlopsnb.package": "sha256:0c"}},
    package=Path("/package"),
    package_digest="sha256:0c",
    weights=(
        Layer(
            kind="weights",
            name="model/a.bin",
            key="sha256:0d",
            entries=(Entry(path="models/model/a.bin", source=b"w"),),
            compress=False,
        ),
    ),
    labels={"mlopsnb.package": "sha256:0c"},
)


@pytest.mark.parametrize(
    ("separate", "files", "expected"),
    [
        (None, PACKAGE, ["model/a.bin"]),
        (None, PACKAGE[:1], []),
        (True, PACKAGE, ["model/a.bin"]),
        (True, (PACKAGE[0], PACKAGE[2]), ["model/b.bin"]),
        (False, PACKAGE, []),
    ],
)
def test_what_is_kept_out(separate, files, expected):
    assert list(weights.kept_out(files, separate)) == expected


def test_a_package_without_weights_has_none_to_keep_out():
    with pytest.raises(UserError, match="no weights"):
        weights.kept_out(PACKAGE[:1], separate=True)


def test_the_image_of_the_weights_has_them_and_the_base_alone():
    made = weights.plan_weights(PLAN)
    assert made.repository == "fraud-weights"
    assert made.layers == PLAN.weights
    assert made.weights == ()
    assert made.config["Entrypoint"][0] == "/usr/bin/python3.11"
    assert made.config["User"] == "65532:65532"
    assert made.tag.startswith("weights-")
    assert made == weights.plan_weights(PLAN)


def test_the_serving_image_names_its_weights_by_digest():
    held = Image(
        reference="",
        tagged="",
        digest="sha256:0e",
        id="",
        destination=Destination(place="layout"),
        builder="oci",
        platform="linux/amd64",
        base="",
        layers=(),
        lock=PLAN.lock,
        package_digest="",
    )
    made = weights.naming(PLAN, held)
    assert made.labels["mlopsnb.weights"] == "fraud-weights@sha256:0e"
    assert made.config["Labels"]["mlopsnb.weights"] == "fraud-weights@sha256:0e"
    assert made.tag.startswith("v3-")
    assert made.tag != PLAN.tag


def test_the_copy_brings_each_file_whole(tmp_path):
    """The init container's program, run on directories of this test in the place of the container's."""
    (tmp_path / "models" / "model").mkdir(parents=True)
    (tmp_path / "models" / "model" / "a.bin").write_bytes(b"weights")
    (tmp_path / "mnt" / "models").mkdir(parents=True)
    program = weights.plan_weights(PLAN).config["Entrypoint"][-1]
    here = program.replace("'/m", f"'{tmp_path}/m")
    for _ in range(2):  # a pod that is restarted runs it again
        subprocess.run([sys.executable, "-I", "-S", "-c", here], check=True)
    found = [p.relative_to(tmp_path / "mnt").as_posix() for p in (tmp_path / "mnt").rglob("*") if p.is_file()]
    assert found == ["models/model/a.bin"]
