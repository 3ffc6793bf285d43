"""The builder without an engine, where there is one: loading into it, and standing on a base that only it has."""

from __future__ import annotations

import gzip
import subprocess
import uuid

import pytest
from image_plans import OFFICIAL, PYTHON, a_plan, tar_of

from mlopsnb.images.base import fetch_layer, inspect
from mlopsnb.images.cache import Store
from mlopsnb.images.image import Destination
from mlopsnb.images.layout import Layout
from mlopsnb.images.oci import Oci
from mlopsnb.settings import settings

pytestmark = pytest.mark.engine


def docker(*command, **how):
    done = subprocess.run(["docker", *command], capture_output=True, timeout=120, **how)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.fixture
def base():
    """Give the engine a base of its own, by a name whose registry is not there."""
    name = f"127.0.0.1:9/mlopsnb-test/base-{uuid.uuid4().hex[:8]}:1"
    changes = [part for line in OFFICIAL for part in ("--change", f"ENV {line}")]
    files = {**PYTHON, "unique": uuid.uuid4().bytes}
    docker("import", *changes, "-", name, input=gzip.decompress(tar_of(files)))
    yield name
    docker("rmi", name)


@pytest.fixture
def plan(base, tmp_path):
    store = Store(settings().cache_dir / "images")
    with store.using():
        found = inspect(base, platform="linux/amd64", python="3.11", store=store)
    plan = a_plan(tmp_path, found)
    yield plan
    subprocess.run(["docker", "rmi", f"fraud:{plan.tag}"], capture_output=True)


def test_a_base_that_only_the_engine_has(plan, tmp_path):
    image = Oci().build(plan, Destination(place="layout", path=tmp_path / "out"))
    layout = Layout(tmp_path / "out")
    assert [sum(map(len, layout.blob(la))) for la in image.layers] == [la.size for la in image.layers]


def test_its_layers_are_fetched_again_when_the_cache_was_cleared(plan):
    store = Store(settings().cache_dir / "images")
    assert store.clear() > 0
    with store.using():
        assert fetch_layer(plan.base, plan.base.layers[0], store).stat().st_size == plan.base.layers[0].size


def test_an_image_in_the_engine(plan):
    image = Oci().build(plan, Destination(place="engine"))
    assert image.reference == f"fraud:{plan.tag}"
    assert docker("image", "inspect", "-f", "{{.Id}}", image.reference) == image.id
    assert docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", image.reference) == (
        "[" + ",".join(f'"{la.diff_id}"' for la in image.layers) + "]"
    )
    assert image.sent < image.size
    again = Oci().build(plan, Destination(place="engine"))
    assert (again.id, again.sent) == (image.id, 0)
