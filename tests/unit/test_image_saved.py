"""What `docker save` streams is taken apart, whichever engine wrote it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest
from fake_registry import blob_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlopsnb.images.errors import EngineError
from mlopsnb.images.saved import unpack

LAYER, OTHER = b"layer" * 3000, b"other" * 1000


def archive(entries):
    """Return a tar of (name, bytes, or the name a symbolic link points to)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                out.addfile(info)
            else:
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return file.getvalue()


def config_of(*layers):
    return json.dumps(
        {"rootfs": {"type": "layers", "diff_ids": [blob_of(layer).digest for layer in layers]}}
    ).encode()


def listed(config, *layers):
    return json.dumps([{"Config": config, "RepoTags": ["a:1"], "Layers": list(layers)}]).encode()


CONFIG = config_of(LAYER, OTHER, LAYER)
CLASSIC = archive(
    [
        ("1/VERSION", b"1.0"),
        ("1/layer.tar", LAYER),
        ("2/layer.tar", OTHER),
        ("3/layer.tar", "../1/layer.tar"),
        ("c.json", CONFIG),
        ("manifest.json", listed("c.json", "1/layer.tar", "2/layer.tar", "3/layer.tar")),
    ]
)
"""As the classic stores write it: a layer that occurs twice is a link."""


def pieces(data, size=1000):
    return (data[at : at + size] for at in range(0, len(data), size))


def descriptors(manifest):
    content = json.loads(manifest.data)
    return [(d["mediaType"].rpartition(".")[2], d["digest"], d["size"]) for d in content["layers"]]


@pytest.mark.parametrize("size", [1, 512, 1000, 1 << 20])
def test_a_classic_archive(tmp_path, size):
    manifest, blobs = unpack(pieces(CLASSIC, size), tmp_path)
    expected = [("tar", blob_of(data).digest, len(data)) for data in (LAYER, OTHER, LAYER)]
    assert descriptors(manifest) == expected
    assert manifest.digest == blob_of(manifest.data).digest
    assert {digest: path.read_bytes() for digest, path in blobs.items()} == {
        blob_of(data).digest: data for data in (CONFIG, LAYER, OTHER)
    }


def test_an_archive_with_an_oci_layout_and_packed_layers(tmp_path):
    packed = gzip.compress(LAYER, mtime=0)
    paths = [f"blobs/sha256/{blob_of(data).digest[7:]}" for data in (CONFIG, packed, OTHER)]
    data = archive(
        [
            ("oci-layout", b"{}"),
            (paths[0], config_of(LAYER, OTHER)),
            (paths[1], packed),
            (paths[2], OTHER),
            ("index.json", b"{}"),
            ("manifest.json", listed(*paths)),
        ]
    )
    manifest, _ = unpack(pieces(data), tmp_path)
    assert descriptors(manifest) == [
        ("tar+gzip", blob_of(packed).digest, len(packed)),
        ("tar", blob_of(OTHER).digest, len(OTHER)),
    ]


def test_two_runs_give_the_same_manifest(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert unpack(pieces(CLASSIC), tmp_path / "a")[0] == unpack(pieces(CLASSIC, 77), tmp_path / "b")[0]


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [("manifest.json", b"[]")],
        [("manifest.json", b"{")],
        [("manifest.json", listed("c.json")), ("c.json", b"[]")],
        [("manifest.json", listed("absent.json"))],
        [("manifest.json", listed("c.json", "1.tar")), ("c.json", config_of(LAYER)), ("1.tar", OTHER)],
        [("manifest.json", listed("c.json")), ("c.json", config_of(LAYER))],
        [("manifest.json", "/etc/passwd")],
    ],
)
def test_no_images(tmp_path, entries):
    with pytest.raises(EngineError, match="is no image"):
        unpack(pieces(archive(entries)), tmp_path)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(end=st.integers(0, CLASSIC.rindex(b"layer.tar")))
def test_a_stream_that_breaks_off(tmp_path_factory, end):
    with pytest.raises(EngineError):
        unpack(pieces(CLASSIC[:end]), tmp_path_factory.mktemp("cut"))
