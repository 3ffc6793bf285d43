"""A registry that fails in every way we know: each call ends right, or clean with an error of its own."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import PosixPath

import pytest
from fake_registry import FAULTS, LASTING, FakeRegistry, blob_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlopsnb.images import uploads, wire
from mlopsnb.images.errors import Cancelled, DiskFull, RegistryError, RegistryUnreachable
from mlopsnb.images.registry import OCI_MANIFEST, Registry

DATA = os.urandom(4000)
CONFIG = b"{}"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": blob_of(CONFIG).digest,
            "size": 2,
        },
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": blob_of(DATA).digest,
                "size": 4000,
            }
        ],
    }
).encode()


@pytest.fixture
def quick():
    """Let retries wait a moment only, and blobs go in chunks of a kilobyte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_LONGEST_WAIT", 0.001)
        patch.setattr(uploads, "SMALL_CHUNK", 100)
        patch.setattr(uploads, "CHUNK", 1000)
        yield patch


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pull").mkdir()
    return tmp_path / "pull"


def push(registry, counts):
    for data in (CONFIG, DATA):
        registry.upload("team/a", blob_of(data), data, on_bytes=counts.append)
    registry.put_manifest("team/a", "v1", MANIFEST, OCI_MANIFEST)


def pull(registry, into):
    assert registry.manifest("team/a", "v1").data == MANIFEST
    registry.fetch("team/a", blob_of(DATA), into)
    assert registry.read("team/a", blob_of(CONFIG)) == CONFIG


def clean(fake, folder):
    """Nothing half done is left: no upload, no half file, no tag without its image."""
    assert fake.left() == []
    assert [path.name for path in folder.iterdir() if path.name != "layer"] == []
    for repository, ref in fake.manifests:
        assert (repository, ref) in {("team/a", "v1"), ("team/a", blob_of(MANIFEST).digest)}
        assert {digest for name, digest in fake.blobs if name == repository} >= {blob_of(DATA).digest}


examples = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
faults = st.lists(st.none() | st.sampled_from(FAULTS), max_size=14)


@examples
@given(faults=faults, chunked=st.booleans(), min_chunk=st.sampled_from([0, 1500]))
def test_what_passes_is_overcome(quick, tmp_path_factory, faults, chunked, min_chunk):
    quick.setattr(uploads, "WHOLE", 100 if chunked else 10_000)
    folder, counts = tmp_path_factory.mktemp("pull"), []
    with FakeRegistry() as fake, Registry(fake.host, plain=True, patience=10) as registry:
        fake.min_chunk = min_chunk
        fake.faults = list(faults)
        push(registry, counts)
        assert sum(counts) <= len(DATA) + len(CONFIG)
        fake.faults = [fault for fault in faults if fault != "amnesia"]
        pull(registry, folder / "layer")
        assert (folder / "layer").read_bytes() == DATA
        fake.faults = []
        clean(fake, folder)


@examples
@given(faults=faults, lasting=st.sampled_from(LASTING), chunked=st.booleans(), later=faults)
def test_what_lasts_ends_clean(quick, tmp_path_factory, faults, lasting, chunked, later):
    quick.setattr(uploads, "WHOLE", 100 if chunked else 10_000)
    folder = tmp_path_factory.mktemp("pull")
    with FakeRegistry() as fake, Registry(fake.host, plain=True, patience=10) as registry:
        fake.faults = [
            *faults,
            lasting,
            *(fault for fault in later if fault not in ("drop", "half", "lost", "cut")),
        ]
        with contextlib.suppress(RegistryError):
            push(registry, [])
            pull(registry, folder / "layer")
        fake.faults = []
        clean(fake, folder)


@pytest.mark.parametrize("fault", ["drop", "500", "503", "429", "cut", "short"])
def test_patience_ends(fake, client, folder, fault):
    registry = client(fake.host, patience=0.3)
    registry.upload("team/a", blob_of(DATA), DATA)
    fake.faults = [fault] * 10_000
    with pytest.raises(RegistryError):
        registry.fetch("team/a", blob_of(DATA), folder / "layer")
    assert not (folder / "layer").exists()
    fake.faults = []
    clean(fake, folder)


def test_a_wait_longer_than_our_patience_is_not_begun(fake, client):
    fake.faults, fake.retry_after = ["429"], "3600"
    with pytest.raises(RegistryError, match="HTTP 429"):
        client(fake.host).digest("team/a", "v1")
    assert len(fake.requests) == 1


def test_retry_after_is_heeded(fake, client, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waits.append(seconds) and False)
    fake.faults, fake.retry_after = ["429"], "2"
    assert client(fake.host).digest("team/a", "v1") is None
    assert 2.0 in waits


def test_a_registry_that_dies_while_we_send(client, tmp_path):
    with FakeRegistry() as fake:
        registry = client(fake.host, patience=0.3)
        assert not registry.has("team/a", blob_of(DATA).digest)
        host = fake.host
    with pytest.raises(RegistryUnreachable, match=host):
        registry.upload("team/a", blob_of(DATA), DATA)


def test_a_full_disk_here_is_named(fake, client, folder):
    registry = client(fake.host)
    registry.upload("team/a", blob_of(DATA), DATA)
    with pytest.raises(DiskFull, match="/dev/full"):
        registry.fetch("team/a", blob_of(DATA), _Full(folder / "layer"))
    assert list(folder.iterdir()) == []


class _Full(PosixPath):
    """A path whose neighbours lie on a full device."""

    def with_name(self, name):
        return _Device("/dev/full")

    def __str__(self):
        return "/dev/full"


class _Device(PosixPath):
    def open(self, mode):
        return super().open("wb", buffering=0)

    def unlink(self, missing_ok=False):
        """The device stays."""


def test_cancel_ends_uploads_at_once_and_deletes_them(fake, client, tmp_path):
    path = tmp_path / "layer"
    path.write_bytes(os.urandom(30 << 20))
    registry, begun = client(fake.host), threading.Event()
    blob = blob_of(path.read_bytes())
    registry.upload("team/a", blob_of(b"x"), b"x")

    def on_bytes(count):
        fake.release.clear()
        begun.set()

    with ThreadPoolExecutor(2) as pool:
        future = pool.submit(registry.upload, "team/a", blob, path, on_bytes=on_bytes)
        assert begun.wait(10)
        registry.cancel()
        fake.release.set()
        with pytest.raises(Cancelled):
            future.result(timeout=10)
        with pytest.raises(Cancelled):
            registry.has("team/a", blob.digest)
    assert fake.sessions == {}
    assert ("team/a", blob.digest) not in fake.blobs


def test_cancel_wakes_who_waits_for_an_answer(fake, client):
    registry = client(fake.host)
    registry.has("team/a", blob_of(b"x").digest)
    fake.release.clear()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(registry.has, "team/a", blob_of(b"x").digest)
        while len(fake.requests) < 2:
            assert not future.done()
        registry.cancel()
        with pytest.raises(Cancelled):
            future.result(timeout=5)


def test_many_threads_share_the_connections(fake, client):
    registry = client(fake.host)
    datas = [os.urandom(1000 + i) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        arrivals = list(pool.map(lambda data: registry.upload("team/a", blob_of(data), data), datas))
    assert arrivals == ["sent"] * 40
    assert len(fake.connections) <= 8
