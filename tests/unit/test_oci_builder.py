"""The builder without an engine, against a strict registry: the same image everywhere, all of it or none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fake_registry import FAULTS, FakeRegistry
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from image_plans import OFFICIAL, a_plan, put_base

from mlopsnb.errors import BuildError
from mlopsnb.events import reporting_to
from mlopsnb.images import wire
from mlopsnb.images.base import inspect
from mlopsnb.images.cache import Store
from mlopsnb.images.errors import ManifestRejected, RegistryFull, RegistryUnreachable, Unauthorized
from mlopsnb.images.image import Destination
from mlopsnb.images.layout import Layout
from mlopsnb.images.oci import Oci
from mlopsnb.plugins import create
from mlopsnb.settings import settings


@pytest.fixture
def fake():
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(wire, "_LONGEST_WAIT", 0.001)


def base_of(fake, **how):
    put_base(fake, {"usr/lib/libc.so": os.urandom(5000)}, {"etc/x": b"y"}, env=OFFICIAL, **how)
    store = Store(settings().cache_dir / "images")
    with store.using():
        return inspect(f"{fake.host}/library/base:1", platform="linux/amd64", python="3.11", store=store)


def team(fake):
    return Destination(place="registry", registry=f"{fake.host}/team")


def forget(kind=""):
    shutil.rmtree(settings().cache_dir / "images" / kind, ignore_errors=True)


def pulled(fake, image):
    """Return the manifest and configuration of an image, after all its blobs were compared with their digests."""
    data, _ = fake.manifests["team/fraud", image.tagged.rpartition(":")[2]]
    assert image.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    manifest = json.loads(data)
    for blob in (manifest["config"], *manifest["layers"]):
        found = fake.blobs["team/fraud", blob["digest"]]
        assert (len(found), f"sha256:{hashlib.sha256(found).hexdigest()}") == (blob["size"], blob["digest"])
    return manifest, json.loads(fake.blobs["team/fraud", manifest["config"]["digest"]])


def half(fake):
    """Say what a failed build left: tags, uploads, files."""
    tags = [ref for name, ref in fake.manifests if name == "team/fraud" and ":" not in ref]
    store = settings().cache_dir / "images"
    return tags, fake.left(), [p for p in store.glob("tmp/*") if p.is_file()]


def test_an_image_in_a_registry(fake, tmp_path):
    plan = a_plan(tmp_path, base_of(fake), large=20_000)
    image = Oci().build(plan, team(fake))
    manifest, config = pulled(fake, image)
    assert image.reference == f"{fake.host}/team/fraud@{image.digest}"
    assert image.tagged == f"{fake.host}/team/fraud:{plan.tag}"
    assert [la.kind for la in image.layers] == ["base", "base", *(la.kind for la in plan.layers)]
    assert [la["digest"] for la in manifest["layers"]] == [la.digest for la in image.layers]
    assert config["rootfs"]["diff_ids"] == [la.diff_id for la in image.layers]
    assert config["config"] == plan.config
    assert len(config["history"]) == len(image.layers)
    assert config["created"] == "1970-01-01T00:00:00Z"
    assert config["config"]["Labels"]["vendor"] == "base"
    assert image.layers[-1].media_type == "application/vnd.oci.image.layer.v1.tar"
    # The base was mounted, not sent.
    sent = sum(la.size for la in image.layers if la.kind != "base")
    assert image.sent == sent + manifest["config"]["size"] + len(json.dumps(manifest, separators=(",", ":")))
    assert not [r for r in fake.sent("GET") if image.layers[0].digest in r[1]]
    assert image.base == f"{fake.host}/library/base:1@{plan.base.digest}"


def test_the_builder_is_found_by_its_name():
    assert isinstance(create("builder", "oci"), Oci)


def test_two_machines_make_the_same_image(fake, tmp_path):
    digests = []
    for name in ("one", "two"):
        forget()
        digests.append(Oci().build(a_plan(tmp_path / name, base_of(fake)), team(fake)).digest)
        fake.blobs = {k: v for k, v in fake.blobs.items() if k[0] != "team/fraud"}
    assert digests[0] != digests[1]  # the base is another one each time
    base = base_of(fake)
    again = []
    for name in ("three", "four"):
        forget()
        again.append(Oci().build(a_plan(tmp_path / name, base), team(fake)))
    assert again[0] == replace(again[1], sent=again[0].sent)


def test_nothing_changed_is_one_question(fake, tmp_path):
    plan = a_plan(tmp_path, base_of(fake))
    first = Oci().build(plan, team(fake))
    fake.requests.clear()
    assert Oci().build(plan, team(fake)) == replace(first, sent=0)
    assert [r[0] for r in fake.requests] == ["HEAD"]


def test_a_change_of_the_model_sends_the_last_layers(fake, tmp_path):
    base = base_of(fake)
    Oci().build(a_plan(tmp_path / "1", base, weights=b"one"), team(fake))
    fake.requests.clear()
    Oci().build(a_plan(tmp_path / "2", base, weights=b"two"), team(fake))
    assert len(fake.sent("PUT", "/blobs/")) == 2  # what the model is, and the configuration


def test_a_tag_that_somebody_removed_comes_back(fake, tmp_path):
    plan = a_plan(tmp_path, base_of(fake))
    first = Oci().build(plan, team(fake))
    fake.manifests = {k: v for k, v in fake.manifests.items() if k[0] != "team/fraud"}
    assert Oci().build(plan, team(fake)).digest == first.digest
    pulled(fake, first)


def test_a_base_of_another_registry_is_brought_across(fake, tmp_path):
    plan = a_plan(tmp_path, base_of(fake))
    with FakeRegistry() as other:
        image = Oci().build(plan, team(other))
        pulled(other, image)
        assert image.sent > sum(la.size for la in image.layers)


def test_a_registry_without_mounts(fake, tmp_path):
    fake.mounts = False
    pulled(fake, Oci().build(a_plan(tmp_path, base_of(fake)), team(fake)))


def test_progress(fake, tmp_path):
    events = []
    with reporting_to(events.append):
        Oci().build(a_plan(tmp_path, base_of(fake)), team(fake))
    said = [(e.step, e.state) for e in events if e.state != "progress" and e.step != "fetch"]
    assert said == [
        ("pack", "started"),
        ("pack", "succeeded"),
        ("upload", "started"),
        ("upload", "succeeded"),
    ]
    for step in ("pack", "upload"):
        last = [e for e in events if e.step == step and e.state == "progress"][-1]
        assert last.done == last.total > 0


@pytest.mark.parametrize("place", ["layout", "archive"])
def test_an_image_on_the_disk_is_the_one_in_a_registry(fake, tmp_path, place):
    plan = a_plan(tmp_path, base_of(fake), large=20_000)
    there = Oci().build(plan, team(fake))
    path = tmp_path / "out.tar"
    image = Oci().build(plan, Destination(place=place, path=path))
    assert image.digest == there.digest
    layout = Layout(path)
    manifest = layout.manifest(f"fraud:{plan.tag}")
    assert manifest.digest == there.digest
    for blob in image.layers:
        assert sum(map(len, layout.blob(blob))) == blob.size


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo on the PATH")
@pytest.mark.parametrize("place", ["layout", "archive"])
def test_skopeo_takes_it(fake, tmp_path, place):
    plan = a_plan(tmp_path, base_of(fake), large=20_000)
    image = Oci().build(plan, Destination(place=place, path=tmp_path / "out.tar"))
    # It unpacks each layer, and compares what it finds with the configuration.
    command = ["skopeo", "--insecure-policy", "copy", "--dest-decompress", image.reference]
    done = subprocess.run([*command, f"dir:{tmp_path}/copy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    copied = {p.name for p in (tmp_path / "copy").iterdir()}
    assert {la.diff_id.removeprefix("sha256:") for la in image.layers} <= copied


def test_a_failure_names_itself_and_leaves_no_tag(fake, tmp_path, quick):
    plan = a_plan(tmp_path, base_of(fake))
    for fault, error in (("507", RegistryFull), ("403", Unauthorized)):
        fake.faults = [fault] * 50
        with pytest.raises(error):
            Oci().build(plan, team(fake))
        fake.faults = []
        assert half(fake) == ([], [], [])
    pulled(fake, Oci().build(plan, team(fake)))


def test_a_full_disk_leaves_nothing(fake, tmp_path):
    plan = a_plan(tmp_path, base_of(fake), wheels={"torch": 400_000})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
    try:
        with pytest.raises(BuildError, match="cannot be written"):
            Oci().build(plan, team(fake))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert half(fake) == ([], [], [])
    pulled(fake, Oci().build(plan, team(fake)))


def test_a_manifest_that_is_refused_leaves_no_tag(fake, tmp_path, quick):
    plan = a_plan(tmp_path, base_of(fake))
    Oci().build(replace(plan, tag="other"), team(fake))
    fake.faults = [*[None] * (len(plan.layers) + 4), "rejected"]
    with pytest.raises(ManifestRejected):
        Oci().build(plan, team(fake))
    assert half(fake)[0] == ["other"]


def test_a_registry_that_is_not_there(tmp_path, fake, monkeypatch):
    from mlopsnb.images.registry import Registry

    plan = a_plan(tmp_path, base_of(fake))
    monkeypatch.setattr("mlopsnb.images.oci.connect", lambda host: Registry(host, plain=True, patience=0.2))
    with pytest.raises(RegistryUnreachable):
        Oci().build(plan, Destination(place="registry", registry="127.0.0.1:9"))


@given(st.lists(st.one_of(st.none(), st.sampled_from(FAULTS)), max_size=25))
@examples(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_through_a_failing_registry_a_build_ends_right_or_clean(fake, tmp_path, quick, faults):
    fake.manifests = {k: v for k, v in fake.manifests.items() if k[0] != "team/fraud"}
    fake.blobs = {k: v for k, v in fake.blobs.items() if k[0] != "team/fraud"}
    base = base_of(fake)
    fake.faults = list(faults)
    try:
        image = Oci().build(a_plan(tmp_path, base), team(fake))
    except BuildError:
        assert half(fake) == ([], [], [])
    else:
        pulled(fake, image)
        assert half(fake)[1:] == ([], [])
    fake.faults = []


BUILD = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from image_plans import a_plan
from mlopsnb.images.base import inspect
from mlopsnb.images.cache import Store
from mlopsnb.images.image import Destination
from mlopsnb.images.oci import Oci
from mlopsnb.settings import settings
host, place = sys.argv[2:]
store = Store(settings().cache_dir / "images")
with store.using():
    base = inspect(f"{host}/library/base:1", platform="linux/amd64", python="3.11", store=store)
plan = a_plan(Path(place), base, wheels={"torch": 40_000_000, "numpy": 10_000_000})
try:
    print("ready", flush=True)
    print(Oci().build(plan, Destination(place="registry", registry=f"{host}/team")).digest)
except KeyboardInterrupt:
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        thread.join(10)  # one that was just starting is not waited for
    print("interrupted", threading.active_count())
"""


@pytest.mark.parametrize("requests", [0, 1, 9])
def test_ctrl_c_leaves_nothing_and_the_next_build_goes_on(fake, tmp_path, requests):
    """Interrupt a build that has sent so many requests; there are about forty."""
    base_of(fake)
    support = Path(__file__).parents[1] / "support"
    command = [sys.executable, "-c", BUILD, str(support), fake.host, str(tmp_path / "plan")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=support.parents[1]) as child:
        assert child.stdout.readline() == "ready\n"
        seen = len(fake.requests)
        while len(fake.requests) < seen + requests:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.001)
        child.send_signal(signal.SIGINT)
        assert child.stdout.read().split() == ["interrupted", "1"]
    assert half(fake) == ([], [], [])
    done = subprocess.run(command, capture_output=True, text=True, cwd=support.parents[1], check=True)
    assert done.stdout.split()[1] in {ref for name, ref in fake.manifests if name == "team/fraud"}


def test_two_kernels_build_the_same_at_once(fake, tmp_path):
    plan = a_plan(tmp_path, base_of(fake), wheels={"torch": 5_000_000})
    images = []
    threads = [
        threading.Thread(target=lambda: images.append(Oci().build(plan, team(fake)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert images[0] == replace(images[1], sent=images[0].sent)
    pulled(fake, images[0])
