"""OCI layouts: written whole or not at all, alike each time, and read again."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_registry import blob_of

from mlopsnb.errors import BuildError
from mlopsnb.images import layout
from mlopsnb.images.errors import DiskFull, LayoutError
from mlopsnb.images.layout import Layout, write_archive, write_directory
from mlopsnb.images.registry import OCI_MANIFEST, Manifest


def tar_of(name, data):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def image(tmp_path):
    """Return a function that makes an image of one layer, which lies in a file: its manifest and its blobs."""

    def make(content=b"hello"):
        layer = tar_of("etc/hello", content)
        path = tmp_path / f"cache-{hashlib.sha256(content).hexdigest()[:8]}"
        path.write_bytes(layer)
        diff_id = blob_of(layer).digest
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            }
        ).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _described("application/vnd.oci.image.config.v1+json", config),
            "layers": [_described("application/vnd.oci.image.layer.v1.tar", layer)],
        }
        data = json.dumps(manifest).encode()
        blobs = {blob_of(config).digest: config, diff_id: path}
        return Manifest(data, OCI_MANIFEST, blob_of(data).digest), blobs

    return make


def _described(media_type, data):
    return {"mediaType": media_type, "digest": blob_of(data).digest, "size": len(data)}


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("write", [write_directory, write_archive])
def test_what_is_written_is_read_again(image, tmp_path, write):
    (manifest, blobs), counts = image(), []
    path = tmp_path / "out.tar"
    written = write(path, manifest, blobs, name="fraud:v3", on_bytes=counts.append)
    assert written == sum(counts) > 0
    found = Layout(path)
    for ref in ("", "v3", "fraud:v3", "docker.io/library/fraud:v3", manifest.digest):
        assert found.manifest(ref) == manifest
    for digest, source in blobs.items():
        data = source if isinstance(source, bytes) else source.read_bytes()
        assert found.has(digest)
        assert found.read(blob_of(data)) == data
    assert not found.has(blob_of(b"absent").digest)


@pytest.mark.parametrize("write", [write_directory, write_archive])
def test_equal_images_equal_bytes(image, tmp_path, write):
    manifest, blobs = image()
    (tmp_path / "all").mkdir()
    write(tmp_path / "all" / "a", manifest, blobs, name="fraud:v3")
    backwards = dict(reversed(blobs.items()))
    (tmp_path / "again").mkdir()
    write(tmp_path / "again" / "a", manifest, backwards, name="fraud:v3")
    assert files(tmp_path / "all") == files(tmp_path / "again")


def test_a_second_image_shares_what_it_can(image, tmp_path):
    manifest, blobs = image()
    path = tmp_path / "layout"
    write_directory(path, manifest, blobs, name="fraud:v1")
    assert write_directory(path, manifest, blobs, name="fraud:v2") == 0
    other, more = image(b"other")
    write_directory(path, other, more, name="fraud:v1")
    assert Layout(path).manifest("v1") == other
    assert Layout(path).manifest("v2") == manifest
    with pytest.raises(LayoutError, match=r"2 images named ''; there are: docker.io/library/fraud:v1, .*v2"):
        Layout(path).manifest()
    with pytest.raises(LayoutError, match="0 images named 'v9'"):
        Layout(path).manifest("v9")


def test_blobs_are_linked_where_they_cannot_be_cloned(image, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(layout.fcntl, "ioctl", refuse)
    manifest, blobs = image()
    write_directory(tmp_path / "layout", manifest, blobs, name="fraud:v1")
    digest, source = next((d, s) for d, s in blobs.items() if not isinstance(s, bytes))
    assert source.samefile(tmp_path / "layout" / "blobs" / "sha256" / digest.removeprefix("sha256:"))


def test_another_file_system_gets_copies(image, tmp_path, monkeypatch):
    def across(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(type(tmp_path), "hardlink_to", across)
    manifest, blobs = image()
    write_directory(tmp_path / "layout", manifest, blobs, name="fraud:v1")
    assert Layout(tmp_path / "layout").manifest() == manifest


def test_a_directory_of_something_else_is_left_alone(image, tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "notes").write_text("mine")
    with pytest.raises(LayoutError, match="neither an OCI layout nor empty"):
        write_directory(path, *image(), name="fraud:v1")
    assert files(path) == {"notes": b"mine"}


@pytest.mark.parametrize("write", [write_directory, write_archive])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), OSError(5, "I/O error")]
)
def test_nothing_is_left_of_what_fails(image, tmp_path, monkeypatch, write, error):
    manifest, blobs = image()
    path = tmp_path / "new" / "layout"
    path.parent.mkdir()
    expected = {28: DiskFull, 5: BuildError}.get(getattr(error, "errno", None), KeyboardInterrupt)

    def fail(*args):
        raise error

    monkeypatch.setattr(layout, "_canonical" if write is write_directory else "pieces", fail)
    with pytest.raises(expected):
        write(path, manifest, blobs, name="fraud:v1")
    assert list(path.parent.iterdir()) == []


def test_a_failed_second_image_leaves_the_first(image, tmp_path, monkeypatch):
    manifest, blobs = image()
    write_directory(tmp_path / "layout", manifest, blobs, name="fraud:v1")
    before = files(tmp_path / "layout")
    other, more = image(b"other")
    more["sha256:" + "0" * 64] = tmp_path / "absent"
    with pytest.raises(BuildError):
        write_directory(tmp_path / "layout", other, more, name="fraud:v2")
    assert files(tmp_path / "layout") == before


def test_an_archive_is_replaced_when_it_is_whole(image, tmp_path):
    manifest, blobs = image()
    path = tmp_path / "fraud.tar"
    path.write_bytes(b"old")
    with pytest.raises(BuildError):
        write_archive(path, manifest, {**blobs, "sha256:" + "0" * 64: tmp_path / "absent"}, name="fraud:v1")
    assert path.read_bytes() == b"old"
    write_archive(path, manifest, blobs, name="fraud:v1")
    assert Layout(path).manifest() == manifest


def test_writers_at_the_same_time(image, tmp_path):
    images = [image(f"{n}".encode()) for n in range(8)]
    gate = threading.Barrier(8)

    def write(n):
        gate.wait()
        write_directory(tmp_path / "layout", *images[n], name=f"fraud:v{n}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    for n, (manifest, _) in enumerate(images):
        assert Layout(tmp_path / "layout").manifest(f"v{n}") == manifest


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"x" * 2000)])
def test_no_layouts(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(LayoutError, match="no OCI image layout"):
        Layout(tmp_path / "x")


@pytest.mark.parametrize("write", [write_directory, write_archive])
def test_a_blob_that_is_another_one(image, tmp_path, write):
    manifest, blobs = image()
    wrong = {digest: b"x" * 20 if isinstance(source, bytes) else source for digest, source in blobs.items()}
    write(tmp_path / "out", manifest, wrong, name="fraud:v1")
    digest = next(d for d, s in blobs.items() if isinstance(s, bytes))
    with pytest.raises(LayoutError, match="is another one"):
        Layout(tmp_path / "out").read(blob_of(blobs[digest]))


@pytest.mark.skopeo
@pytest.mark.parametrize(("write", "kind"), [(write_directory, "oci"), (write_archive, "oci-archive")])
def test_skopeo_accepts_it(image, tmp_path, write, kind):
    manifest, blobs = image()
    write(tmp_path / "out", manifest, blobs, name="fraud:v3")
    command = [
        "skopeo",
        "--insecure-policy",
        "copy",
        f"{kind}:{tmp_path / 'out'}:v3",
        f"dir:{tmp_path / 'copy'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == manifest.data
