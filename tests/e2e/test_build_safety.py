"""What keeps an image safe: no secret in it, a bill of materials, a signature, a vulnerability gate, weights apart."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import os
import platform
import stat
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from served_plans import EXAMPLE, WEIGHTS
from surroundings import restricted_pod, until_ready

import mlopsnb as ml
from mlopsnb.errors import GateRejected, UserError
from mlopsnb.images import referrers, sbom, signing
from mlopsnb.images.registry import connect

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the proof runs what is meant for Linux"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the base of these tests is for amd64"),
]
TESTS = Path(__file__).parents[1]
SIGSTORE = TESTS.parent / ".venv" / "sigstore"


@pytest.fixture
def key(tmp_path, monkeypatch):
    """A key to sign with: the file, and its public part."""
    private = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "signing.pem"
    locked = serialization.BestAvailableEncryption(b"planted-cosign-s3cret")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(private.private_bytes(pem, pkcs8, locked))
    monkeypatch.setenv("COSIGN_PASSWORD", "planted-cosign-s3cret")
    return path, private.public_key()


@pytest.fixture
def private_index():
    """An index with nothing in it that wants a user and a password; yield its address with both."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            said = base64.b64decode(self.headers.get("authorization", "").partition(" ")[2])
            self.send_response(404 if said == b"index-user:index-s3cret" else 401)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://index-user:index-s3cret@127.0.0.1:{server.server_port}/simple"
        server.shutdown()
        thread.join()


def everything(fake):
    """All that the registry was given, unpacked where it is compressed."""
    for data, _ in fake.manifests.values():
        yield data
    for data in fake.blobs.values():
        yield gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def test_no_secret_and_no_place_of_this_machine_is_in_any_layer_label_or_history(
    fake, build, key, private_index, tmp_path, tmp_path_factory, monkeypatch, capfd
):
    uv_cache = subprocess.run(
        [sys.executable, "-m", "uv", "cache", "dir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    home = tmp_path_factory.mktemp("home-of-somebody")
    for name, value in {
        "UV_CACHE_DIR": uv_cache,
        "MLOPSNB_CACHE_DIR": str(tmp_path / "cache-of-somebody"),
        "HOME": str(home),
        "PIP_EXTRA_INDEX_URL": private_index,
        "AWS_SECRET_ACCESS_KEY": "planted-aws-s3cret",
        "HF_TOKEN": "planted-hf-s3cret",
        "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-s3cret",
    }.items():
        monkeypatch.setenv(name, value)
    image = build(sign=key[0])
    planted = [b"s3cret", b"index-user", b"home-of-somebody", b"cache-of-somebody", str(tmp_path).encode()]
    planted.append(key[0].read_bytes().splitlines()[1])
    for data in everything(fake):
        assert [secret for secret in planted if secret in data] == []
    assert "s3cret" not in repr(image)
    shown = capfd.readouterr()
    assert "s3cret" not in shown.out + shown.err


def test_the_bill_of_materials_lies_beside_the_image(fake, build):
    image = build()
    with connect(fake.host) as registry:
        bills = referrers.read(registry, "team/net", image.digest, sbom.MEDIA_TYPE)
    assert [json.loads(bill) for bill in bills] == [image.sbom()]
    assert {p.name for p in image.lock.packages} <= {c["name"] for c in image.sbom()["components"]}


@pytest.mark.sigstore
def test_a_signature_is_found_and_verified_by_another_implementation(fake, build, key, tmp_path):
    image = build(sign=key[0])
    with connect(fake.host) as registry:
        (bundle,) = referrers.read(registry, "team/net", image.digest, signing.BUNDLE_TYPE)
    (tmp_path / "bundle.json").write_bytes(bundle)
    (tmp_path / "public.pem").write_bytes(
        key[1].public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    said = subprocess.run(
        [
            *("node", TESTS / "unit" / "verify_bundle.cjs", SIGSTORE),
            *(tmp_path / "bundle.json", tmp_path / "public.pem"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(said)["subject"][0]["digest"]["sha256"] == image.digest.removeprefix("sha256:")


def test_a_signature_that_cannot_be_made_is_told_before_anything_is_sent(fake, build, tmp_path):
    with pytest.raises(UserError, match="signing key"):
        build(sign=tmp_path / "nowhere.pem")
    assert [method for method, _, _ in fake.requests if method not in ("GET", "HEAD")] == []


def test_a_signature_needs_a_registry(build, key, tmp_path):
    with pytest.raises(UserError, match="goes to none"):
        build(sign=key[0], output=tmp_path / "layout")


@pytest.fixture
def trivy(tmp_path, monkeypatch):
    """Put a scanner on the PATH that finds a critical vulnerability in numpy."""
    found = {
        "VulnerabilityID": "CVE-2099-1",
        "PkgName": "numpy",
        "InstalledVersion": "2.0",
        "Severity": "CRITICAL",
    }
    program = tmp_path / "bin" / "trivy"
    program.parent.mkdir()
    report = json.dumps({"Results": [{"Vulnerabilities": [found]}]})
    program.write_text(f"#!/bin/sh\necho '{report}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_grave_vulnerability_stops_the_build_even_of_an_image_that_is_there(fake, build, trivy):
    with pytest.raises(GateRejected, match="CVE-2099-1"):
        build(scan="high")
    assert {name for name, _ in fake.manifests} == {"python"}
    build()
    with pytest.raises(GateRejected, match="CVE-2099-1"):
        build(scan="high")


def test_weights_are_kept_in_an_image_of_their_own(fake, build):
    image = build(separate_weights=True)
    weights_name, _, digest = image.weights.rpartition("@")
    assert weights_name == f"{fake.host}/team/net-weights"
    assert image.labels["mlopsnb.weights"] == f"net-weights@{digest}"
    assert ("team/net-weights", digest) in fake.manifests
    assert not [layer for layer in image.layers if layer.kind == "weights"]
    again = build(separate_weights=True)
    assert (again.digest, again.weights, again.sent) == (image.digest, image.weights, 0)


def asked(url, name):
    """Return what the server of the model *name* says to the example."""
    inputs = [{"name": "x", "shape": [3, 4], "datatype": "FP32", "data": EXAMPLE.ravel().tolist()}]
    said = httpx.post(f"{url}/v2/models/{name}/infer", json={"inputs": inputs}).json()
    return np.reshape(said["outputs"][0]["data"], (3, 2))


@pytest.mark.cluster
@pytest.mark.registry
def test_a_pod_fetches_the_weights_in_an_init_container(cluster, registry, base_image, package):
    name = f"test-weights-{uuid.uuid4().hex[:8]}"
    image = ml.build(package, name=name, base=base_image, registry=registry, separate_weights=True)
    spec = restricted_pod(image.reference)
    spec["securityContext"]["fsGroup"] = 65532
    spec["volumes"] = [{"name": "weights", "emptyDir": {}}]
    server = spec["containers"][0]
    mount = {"name": "weights", "mountPath": "/mnt/models"}
    server["volumeMounts"] = [{**mount, "readOnly": True}]
    spec["initContainers"] = [
        {
            "name": "weights",
            "image": image.weights,
            "securityContext": server["securityContext"],
            "volumeMounts": [mount],
        }
    ]
    with cluster.pod(name, spec):
        cluster("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
        with cluster.forwarded(name, 8080) as port:
            assert np.allclose(asked(f"http://127.0.0.1:{port}", name), EXAMPLE @ WEIGHTS)


@pytest.mark.engine
def test_an_image_without_its_weights_runs_once_they_are_mounted(engine, base_image, package):
    name = f"weights-{uuid.uuid4().hex[:8]}"
    image = ml.build(package, name=name, base=base_image, load="engine", separate_weights=True)
    volume = engine.volumes.create(name)
    where = {name: {"bind": "/mnt/models", "mode": "rw"}}
    try:
        without = engine.containers.run(image.tagged, detach=True, read_only=True)
        assert without.wait(timeout=60)["StatusCode"] == 3
        assert b"kept apart, and /mnt/models/model/model.onnx is not there" in without.logs()
        without.remove()
        # A fresh volume of the engine belongs to root; a pod's belongs to its fsGroup.
        engine.containers.run(image.weights, remove=True, read_only=True, user="0", volumes=where)
        server = engine.containers.run(
            image.tagged,
            detach=True,
            read_only=True,
            cap_drop=["ALL"],
            ports={"8080/tcp": ("127.0.0.1", None)},
            volumes={name: {"bind": "/mnt/models", "mode": "ro"}},
        )
        try:
            server.reload()
            port = server.attrs["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostPort"]
            until_ready(f"http://127.0.0.1:{port}/ready")
            assert np.allclose(asked(f"http://127.0.0.1:{port}", name), EXAMPLE @ WEIGHTS)
        finally:
            server.remove(force=True)
    finally:
        volume.remove(force=True)
        for made in (image.tagged, image.weights):
            engine.images.remove(made, force=True)
