"""What the client does with a registry that works: ours, strict, and docker-registry."""

from __future__ import annotations

import json
import os

import pytest
from fake_registry import FakeRegistry, blob_of

from mlopsnb.images import uploads
from mlopsnb.images.errors import (
    DigestMismatch,
    ManifestRejected,
    NotInRegistry,
    RegistryError,
    RegistryFull,
    RegistryUnreachable,
)
from mlopsnb.images.plan import Descriptor
from mlopsnb.images.registry import OCI_MANIFEST, Mirror


def image(client, repository, tag="v1", **extra):
    """Push an image of one small layer, by its digest if it has no tag; return its manifest."""
    config, layer = b'{"rootfs":{}}', b"a layer"
    for data in (config, layer):
        client.upload(repository, blob_of(data), data)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": blob_of(config).digest,
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": blob_of(layer).digest,
                "size": len(layer),
            }
        ],
        **extra,
    }
    data = json.dumps(manifest).encode()
    assert (
        client.put_manifest(repository, tag or blob_of(data).digest, data, OCI_MANIFEST)
        == blob_of(data).digest
    )
    return data


def test_an_image_goes_there_and_back(host, client, repository, tmp_path):
    registry = client(host)
    data = image(registry, repository)
    assert registry.manifest(repository, "v1") == (data, OCI_MANIFEST, blob_of(data).digest)
    assert registry.manifest(repository, blob_of(data).digest).data == data
    assert registry.digest(repository, "v1") == registry.resolve(repository, "v1") == blob_of(data).digest
    assert registry.read(repository, blob_of(b"a layer")) == b"a layer"
    registry.fetch(repository, blob_of(b"a layer"), tmp_path / "layer")
    assert (tmp_path / "layer").read_bytes() == b"a layer"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_not_there(host, client, repository, tmp_path):
    registry = client(host)
    absent = blob_of(b"absent")
    assert registry.digest(repository, "v1") is None
    assert not registry.has(repository, absent.digest)
    assert registry.tags(repository) == ()
    for read in (registry.manifest, registry.resolve):
        with pytest.raises(NotInRegistry, match=f"{repository}:v1"):
            read(repository, "v1")
    with pytest.raises(NotInRegistry, match=absent.digest):
        registry.fetch(repository, absent, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_tags_of_all_pages(host, client, repository):
    registry = client(host)
    for tag in ("v3", "v1", "v2", "v5", "v4"):
        image(registry, repository, tag)
    assert registry.tags(repository) == ("v1", "v2", "v3", "v4", "v5")


@pytest.mark.parametrize("size", [0, 1, 5, 300_000])
def test_a_blob_is_sent_once(host, client, repository, tmp_path, size):
    registry, data, counts = client(host), os.urandom(size), []
    path = tmp_path / "blob"
    path.write_bytes(data)
    assert registry.upload(repository, blob_of(data), path, on_bytes=counts.append) == "sent"
    assert sum(counts) == size
    assert registry.upload(repository, blob_of(data), path, on_bytes=counts.append) == "there"
    assert sum(counts) == size
    assert registry.read(repository, blob_of(data)) == data


@pytest.mark.parametrize("absolute", [False, True])
def test_a_large_blob_goes_in_chunks(fake, client, monkeypatch, absolute):
    monkeypatch.setattr(uploads, "WHOLE", 10)
    monkeypatch.setattr(uploads, "CHUNK", 30)
    fake.absolute_locations, fake.min_chunk = absolute, 40
    data = os.urandom(100)
    client(fake.host).upload("a", blob_of(data), data)
    assert [r[2]["content-range"] for r in fake.sent("PATCH")] == ["0-39", "40-79", "80-99"]
    assert fake.blobs["a", blob_of(data).digest] == data


def test_docker_registry_takes_chunks(host, client, repository, monkeypatch):
    monkeypatch.setattr(uploads, "WHOLE", 10)
    monkeypatch.setattr(uploads, "CHUNK", 30_000)
    data = os.urandom(100_000)
    registry = client(host)
    assert registry.upload(repository, blob_of(data), data) == "sent"
    assert registry.read(repository, blob_of(data)) == data


def test_mounts(host, client, repository):
    registry, data = client(host), b"shared"
    registry.upload(f"{repository}/a", blob_of(data), data)
    assert registry.mount(f"{repository}/b", blob_of(data).digest, f"{repository}/a")
    assert registry.read(f"{repository}/b", blob_of(data)) == data
    assert not registry.mount(f"{repository}/b", blob_of(b"absent").digest, f"{repository}/a")
    how = registry.upload(f"{repository}/c", blob_of(data), data, from_repository=f"{repository}/a")
    assert how == "mounted"
    how = registry.upload(f"{repository}/c", blob_of(b"new"), b"new", from_repository=f"{repository}/a")
    assert how == "sent"


def test_a_refused_mount_leaves_no_upload_behind(fake, client):
    fake.mounts = False
    assert not client(fake.host).mount("b", blob_of(b"x").digest, "a")
    assert fake.sessions == {}


def test_the_session_of_a_refused_mount_is_used(fake, client):
    fake.mounts = False
    assert client(fake.host).upload("b", blob_of(b"x"), b"x", from_repository="a") == "sent"
    assert len(fake.sent("POST")) == 1


@pytest.mark.parametrize("api", [True, False])
def test_referrers(fake, client, api):
    fake.referrers_api = api
    registry = client(fake.host)
    subject = blob_of(image(registry, "a"))
    reference = {"mediaType": OCI_MANIFEST, "digest": subject.digest, "size": subject.size}
    signature = image(registry, "a", "s", subject=reference, artifactType="application/x-signature")
    sbom = image(registry, "a", "", subject=reference, artifactType="application/x-sbom")
    found = registry.referrers("a", subject.digest)
    assert {d["digest"] for d in found} == {blob_of(signature).digest, blob_of(sbom).digest}
    assert [d["digest"] for d in registry.referrers("a", subject.digest, "application/x-sbom")] == [
        blob_of(sbom).digest
    ]


def test_docker_registry_keeps_referrers(host, client, repository):
    registry = client(host)
    subject = blob_of(image(registry, repository))
    reference = {"mediaType": OCI_MANIFEST, "digest": subject.digest, "size": subject.size}
    sbom = image(registry, repository, "sbom", subject=reference, artifactType="application/x-sbom")
    assert [d["digest"] for d in registry.referrers(repository, subject.digest)] == [blob_of(sbom).digest]
    assert registry.referrers(repository, blob_of(sbom).digest) == ()


def test_a_manifest_without_its_blobs_is_rejected(host, client, repository):
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}
    manifest["config"] = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": blob_of(b"absent").digest,
        "size": 6,
    }
    registry = client(host)
    with pytest.raises(ManifestRejected, match="MANIFEST_BLOB_UNKNOWN"):
        registry.put_manifest(repository, "v1", json.dumps(manifest).encode(), OCI_MANIFEST)
    assert registry.digest(repository, "v1") is None


@pytest.mark.parametrize(
    ("fault", "error"),
    [("507", RegistryFull), ("413", RegistryFull), ("digest", DigestMismatch)],
)
def test_lasting_faults_of_uploads(fake, client, fault, error):
    fake.faults = [None, None, fault, None]
    with pytest.raises(error):
        client(fake.host).upload("a", blob_of(b"x"), b"x")
    assert fake.sessions == {}


def test_no_space_in_the_words_of_docker_registry(fake, client):
    fake.faults = []
    fake.finish_with = (500, "UNKNOWN", "write /var/lib/registry/x: no space left on device")
    with pytest.raises(RegistryFull, match="no space left"):
        client(fake.host).upload("a", blob_of(b"x"), b"x")


def test_a_proxy_with_a_small_limit_gets_small_chunks(fake, client, monkeypatch):
    monkeypatch.setattr(uploads, "SMALL_CHUNK", 20)
    fake.max_body = 25
    data = os.urandom(50)
    assert client(fake.host).upload("a", blob_of(data), data) == "sent"
    fake.max_body = 5
    with pytest.raises(RegistryFull):
        client(fake.host).upload("b", blob_of(data), data)
    assert fake.sessions == {}


def test_a_file_that_changed_since_it_was_packed(fake, client, tmp_path):
    path = tmp_path / "layer"
    path.write_bytes(b"other")
    with pytest.raises(Exception, match="was changed after it was packed"):
        client(fake.host).upload("a", blob_of(b"given"), path)
    assert fake.sessions == {}


def test_what_comes_is_verified(fake, client, tmp_path):
    registry = client(fake.host)
    data = image(registry, "a")
    fake.faults = ["corrupt"]
    with pytest.raises(DigestMismatch):
        registry.manifest("a", blob_of(data).digest)
    fake.faults = ["corrupt"]
    with pytest.raises(DigestMismatch):
        registry.manifest("a", "v1")
    fake.faults = ["corrupt"]
    with pytest.raises(DigestMismatch):
        registry.fetch("a", blob_of(b"a layer"), tmp_path / "layer")
    assert list(tmp_path.glob("*layer*")) == []
    longer = Descriptor(media_type="", digest=blob_of(b"a layer").digest, size=3)
    with pytest.raises(DigestMismatch, match="3 bytes"):
        registry.read("a", longer)


def test_mirrors_are_read_first_and_written_never(fake, client):
    with FakeRegistry() as mirror:
        data = image(client(mirror.host), "cache/a")
        registry = client(fake.host, mirrors=[Mirror(client(mirror.host, patience=0.5), "cache")])
        assert registry.resolve("a", "v1") == blob_of(data).digest
        assert registry.manifest("a", "v1").data == data
        assert registry.read("a", blob_of(b"a layer")) == b"a layer"
        assert fake.requests == []
        assert registry.digest("a", "v1") is None
        image(registry, "a", "v2")
        assert registry.manifest("a", "v2").digest == registry.digest("a", "v2")
    assert registry.read("a", blob_of(b"a layer")) == b"a layer"


def test_the_rest_comes_from_the_registry_when_a_mirror_fails(fake, client):
    data = os.urandom(1000)
    with FakeRegistry() as mirror:
        for host in (mirror.host, fake.host):
            client(host).upload("a", blob_of(data), data)
        mirror.faults = ["cut", "403"]
        registry = client(fake.host, mirrors=[Mirror(client(mirror.host, patience=0.5))])
        assert registry.read("a", blob_of(data)) == data
    assert fake.sent("GET")[-1][2]["range"] == "bytes=500-"


def test_an_unreachable_registry_is_named_soon(client):
    with pytest.raises(RegistryUnreachable, match=r"127\.0\.0\.1:1 cannot be reached"):
        client("127.0.0.1:1", patience=0.5).digest("a", "v1")


def test_a_location_that_leads_from_https_to_http_is_refused(fake):
    from mlopsnb.images.wire import Wire

    wire = Wire("registry.example", credentials=lambda repository: None, plain=False, patience=1)
    with pytest.raises(RegistryError, match="X-Forwarded-Proto"):
        wire.follow("http://registry.example/v2/a", wire.url("a/blobs/uploads/"))
    assert (
        str(wire.follow("/v2/b?_state=a%3D&x", wire.url("a")))
        == "https://registry.example/v2/b?_state=a%3D&x"
    )
    assert str(wire.follow("https://user:pw@other.example/c", wire.url("a"))) == "https://other.example/c"


def test_a_digest_without_its_header_is_computed(fake, client):
    fake.manifests["a", "v1"] = (b"{}", "application/vnd.oci.image.manifest.v1+json")
    fake.silent = True
    assert client(fake.host).digest("a", "v1") == blob_of(b"{}").digest
