"""The notebook on images, run from top to bottom: built without an engine, looked into, built again, over its budget."""

from __future__ import annotations

import re

import pytest
from tiny_base import put_base

import notebooks
from notebooks import text


@pytest.fixture
def executed(home, base_image, fake, monkeypatch):
    """The notebook with its outputs. If no base is named for this machine, Docker Hub may be out of reach: a tiny one does."""
    named = not base_image.startswith("python:")
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", base_image if named else put_base(fake))
    monkeypatch.setenv("MLOPSNB_REGISTRY", f"{fake.host}/team")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")  # nobody is there
    return notebooks.run("images.ipynb", home / "work", timeout=300)


@pytest.mark.timeout(600)
def test_an_image_is_built_without_an_engine_looked_into_and_kept_small(executed, fake):
    assert [o.text for c in executed.cells for o in c.get("outputs", ()) if o.get("name") == "stderr"] == []
    assert "answers as the notebook's model" in text(executed, "build")
    assert "'User': '65532:65532'" in text(executed, "config")
    files = re.findall(r"owner 0:0 +/opt/mlopsnb/(\S+)", text(executed, "files"))
    assert files == ["lock.txt", "model/example.npz", "model/model.json", "model/model/model.onnx"]
    assert "pkg:pypi/onnxruntime" in text(executed, "sbom")
    assert text(executed, "diff") == "the image has what the notebook has"
    assert text(executed, "again").endswith("(True, 0)")
    new = re.search(
        r"new: ([\d,]+) of ([\d,]+) bytes, in the layer of the model metadata", text(executed, "better")
    )
    assert int(new[1].replace(",", "")) < 20_000
    assert "\nFROM base AS dependencies\n" in text(executed, "dockerfile")
    assert "\nFROM dependencies AS check\n" in text(executed, "dockerfile")
    [error] = [o for c in executed.cells if c.id == "budget" for o in c.outputs if o.output_type == "error"]
    assert error.ename == "TooLarge"
    pushed = text(executed, "registry").splitlines()[-1]
    assert re.fullmatch(rf"{re.escape(fake.host)}/team/wine@sha256:[0-9a-f]{{64}}", pushed)
    assert "would be freed" in text(executed, "cleaned")
