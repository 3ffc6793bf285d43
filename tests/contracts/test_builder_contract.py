"""What every builder does with a plan: the same image, that runs with no right at all, and nothing else left behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import signal
import subprocess
import tarfile
import threading
import time
from contextlib import contextmanager

import grpc
import httpx
import numpy as np
import pytest
from built_images import leftovers
from served_plans import EXAMPLE, WEIGHTS
from surroundings import restricted_pod

from mlopsnb import events
from mlopsnb.client import Client
from mlopsnb.images import registry as registries
from mlopsnb.images.image import Destination
from mlopsnb.images.plan import Descriptor

pytestmark = [pytest.mark.engine, pytest.mark.registry, pytest.mark.timeout(600)]


def content(entry):
    return entry.source if isinstance(entry.source, bytes) else entry.source.read_bytes()


def entries(plan):
    """All files and links of a plan by path, but the bytecode, which a builder may make by itself."""
    return {e.path: e for layer in plan.layers for e in layer.entries if not e.path.endswith(".pyc")}


def is_ours(path):
    return path.startswith("opt/mlopsnb/") and not path.endswith(".pyc")


@contextmanager
def running(engine, image, **options):
    """Run an image with no right at all; yield the container and the addresses of its ports."""
    container = engine.containers.run(
        image,
        detach=True,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        user="65532",
        ports={"8080/tcp": ("127.0.0.1", None), "8081/tcp": ("127.0.0.1", None)},
        **options,
    )
    try:
        container.reload()
        bound = container.attrs["NetworkSettings"]["Ports"]
        yield container, *(f"127.0.0.1:{bound[port][0]['HostPort']}" for port in ("8080/tcp", "8081/tcp"))
    finally:
        container.remove(force=True)


def until(true, seconds=90):
    """Ask again and again; what is waited for is in another process, which tells nobody."""
    end, never = time.monotonic() + seconds, threading.Event()
    while not true():
        assert time.monotonic() < end, "waited in vain"
        never.wait(0.2)


def is_healthy(container):
    container.reload()
    state = container.attrs["State"]
    assert state["Running"], container.logs().decode()
    return state["Health"]["Status"] == "healthy"


def test_the_configuration_is_the_plans(built, engine):
    found = engine.images.get(built.image.reference).attrs
    config = found["Config"]
    wanted = built.plan.config
    assert {key: config[key] for key in wanted if key != "Env"} == {
        k: v for k, v in wanted.items() if k != "Env"
    }
    assert sorted(config["Env"]) == sorted(wanted["Env"])
    assert not config.get("Cmd")
    assert f"{found['Os']}/{found['Architecture']}" == built.image.platform
    assert found["Id"] == built.image.id
    assert dict(built.image.labels) == wanted["Labels"]


def test_the_record_says_where_it_is_and_what_it_is_made_of(built, registry):
    image, plan = built.image, built.plan
    assert image.tagged == f"{registry}/{plan.repository}:{plan.tag}"
    assert image.reference == f"{registry}/{plan.repository}@{image.digest}"
    assert (image.lock, image.package_digest) == (plan.lock, plan.package_digest)
    ours = [(layer.kind, layer.name) for layer in image.layers if layer.kind != "base"]
    assert ours == [(layer.kind, layer.name) for layer in plan.layers]
    assert all(layer.size > 0 for layer in image.layers)
    assert 0 < image.sent <= image.size


def test_what_the_registry_has_is_the_image_layer_by_layer(built, registry):
    image, repository = built.image, built.plan.repository
    with registries.connect(registry) as client:
        assert client.digest(repository, built.plan.tag) == image.digest
        manifest = json.loads(client.manifest(repository, image.digest).data)
        config = json.loads(client.read(repository, _descriptor(manifest["config"])))
        assert [blob["digest"] for blob in manifest["layers"]] == [layer.digest for layer in image.layers]
        found = {}
        for blob, diff_id, layer in zip(
            manifest["layers"], config["rootfs"]["diff_ids"], image.layers, strict=True
        ):
            data = b"".join(client.blob(repository, _descriptor(blob)))
            unpacked = gzip.decompress(data) if blob["mediaType"].endswith("gzip") else data
            assert "sha256:" + hashlib.sha256(unpacked).hexdigest() == diff_id == layer.diff_id
            if layer.kind != "base":
                found |= members(unpacked)
    assert found == {path: _described(entry) for path, entry in entries(built.plan).items()}


def _descriptor(blob):
    return Descriptor(media_type=blob["mediaType"], digest=blob["digest"], size=blob["size"])


def members(layer):
    """What a layer has of ours, by path. Everything in it belongs to root, and only root may write."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for member in archive:
            assert (member.uid, member.gid) == (0, 0), member.name
            assert member.issym() or not member.mode & 0o022 or member.name in ("tmp", "tmp/"), member.name
            path = member.name.removeprefix("./")
            if not member.isdir() and is_ours(path):
                data = b"" if member.issym() else archive.extractfile(member).read()
                found[path] = (member.linkname, hashlib.sha256(data).hexdigest(), member.mode & 0o111 != 0)
    return found


def _described(entry):
    data = b"" if entry.link else content(entry)
    return entry.link, hashlib.sha256(data).hexdigest(), bool(entry.link) or entry.mode & 0o111 != 0


def test_it_runs_with_no_right_at_all_answers_and_drains(built, engine):
    with running(engine, built.image.reference) as (container, http, grpc_address):
        until(lambda: is_healthy(container))
        with Client(f"http://{http}", built.plan.repository) as client:
            np.testing.assert_allclose(client.infer({"x": EXAMPLE})["y"], EXAMPLE @ WEIGHTS, rtol=1e-6)
        np.testing.assert_allclose(
            ask_grpc(grpc_address, built.plan.repository), EXAMPLE @ WEIGHTS, rtol=1e-6
        )
        answer = httpx.get(f"http://{http}/v2/models/{built.plan.repository}", trust_env=False)
        assert answer.json()["versions"] == ["3"]
        container.kill(signal.SIGTERM)
        assert container.wait(timeout=30)["StatusCode"] == 0


def ask_grpc(address, model):
    from mlopsnb.serving.rpc.messages import METHODS, SERVICE, message

    assert "ModelInfer" in METHODS
    request = message("ModelInferRequest")(model_name=model)
    tensor = request.inputs.add(name="x", datatype="FP32", shape=EXAMPLE.shape)
    tensor.contents.fp32_contents.extend(EXAMPLE.ravel().tolist())
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda r: r.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )
        answer = call(request, timeout=30)
    output = answer.outputs[0]
    values = output.contents.fp32_contents or np.frombuffer(answer.raw_output_contents[0], "<f4")
    return np.array(values, "float32").reshape(output.shape)


@pytest.mark.cluster
def test_it_runs_as_a_pod_of_the_restricted_kind(built, cluster):
    name = f"{built.plan.repository}-pod"
    with cluster.pod(name, restricted_pod(built.image.reference)):
        cluster("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
        with (
            cluster.forwarded(name, 8080) as port,
            Client(f"http://127.0.0.1:{port}", built.plan.repository) as client,
        ):
            np.testing.assert_allclose(client.infer({"x": EXAMPLE})["y"], EXAMPLE @ WEIGHTS, rtol=1e-6)
        assert "/infer" in cluster("logs", name)


@pytest.mark.skopeo
def test_skopeo_reads_it_from_the_registry(built):
    found = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{built.image.reference}"))
    assert found["Digest"] == built.image.digest
    assert found["Labels"] == built.plan.config["Labels"]
    assert found["Layers"] == [layer.digest for layer in built.image.layers]


@pytest.mark.skopeo
@pytest.mark.parametrize("place", ["layout", "archive"])
def test_layouts_and_archives_are_taken_by_skopeo_and_the_engine(
    make_builder, fresh, engine, tmp_path, place
):
    path = tmp_path / ("image.tar" if place == "archive" else "image")
    image = make_builder().build(fresh, Destination(place=place, path=path))
    found = json.loads(skopeo("inspect", image.reference))
    assert found["Digest"] == image.digest
    assert found["Layers"] == [layer.digest for layer in image.layers]
    if place == "archive":
        with path.open("rb") as file:
            loaded = engine.images.load(file)
        assert [i.id for i in loaded] == [image.id]
        with running(engine, image.id) as (container, _, _):
            until(lambda: is_healthy(container))


def skopeo(*words):
    done = subprocess.run(["skopeo", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_into_the_engine_under_its_tag(make_builder, fresh, engine):
    image = make_builder().build(fresh, Destination(place="engine"))
    assert image.tagged == f"{fresh.repository}:{fresh.tag}"
    assert engine.images.get(image.reference).id == image.id
    assert engine.images.get(image.tagged).id == image.id


def test_the_same_again_sends_nothing_and_changes_nothing(make_builder, fresh, registry):
    to = Destination(place="registry", registry=f"{registry}/team")
    first = make_builder().build(fresh, to)
    second = make_builder().build(fresh, to)
    assert second.reference == first.reference == f"{registry}/team/{fresh.repository}@{first.digest}"
    assert (second.layers, second.sent) == (first.layers, 0)


@pytest.mark.parametrize("when", ["pack", "upload"])
def test_an_interrupt_leaves_nothing_and_the_next_build_goes_on(make_builder, fresh, engine, registry, when):
    before = leftovers(engine)
    with events.reporting_to(interrupt_at(when)), pytest.raises(KeyboardInterrupt):
        make_builder().build(fresh, Destination(place="registry", registry=registry))
    assert leftovers(engine) <= before
    with registries.connect(registry) as client:
        assert fresh.tag not in client.tags(fresh.repository)
    image = make_builder().build(fresh, Destination(place="registry", registry=registry))
    with registries.connect(registry) as client:
        assert client.digest(fresh.repository, fresh.tag) == image.digest


def interrupt_at(step):
    """Return a reporter that presses Ctrl-C when *step* has begun; packing is well under way by then."""

    def report(event):
        under_way = event.state == "started" if step == "upload" else (event.fraction or 0) > 0.2
        if event.step == step and under_way:
            signal.raise_signal(signal.SIGINT)

    return report


@pytest.mark.parametrize("place", ["registry", "archive"])
def test_nothing_is_left_beside_the_image(make_builder, fresh, engine, registry, tmp_path, place):
    before = leftovers(engine)
    to = Destination(place=place, registry=registry, path=tmp_path / "image.tar")
    make_builder().build(fresh, to)
    assert leftovers(engine) <= before
