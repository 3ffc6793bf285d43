"""A base image of a few bytes, which says of itself that it is an official Python image. Nothing can run on it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def put_base(registry, repository="python", tag="slim", *, version=None, architecture="amd64"):
    """Put the base into a `FakeRegistry` and return its reference."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("etc/base"))
    layer = gzip.compress(tar.getvalue(), mtime=0)
    version = version or platform.python_version()
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin", f"PYTHON_VERSION={version}", "GPG_KEY=1"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(tar.getvalue())]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _blob(registry, repository, config, "application/vnd.oci.image.config.v1+json"),
        "layers": [_blob(registry, repository, layer, "application/vnd.oci.image.layer.v1.tar+gzip")],
    }
    data = json.dumps(manifest).encode()
    for name in (tag, _digest(data)):
        registry.manifests[repository, name] = (data, MANIFEST)
    return f"{registry.host}/{repository}:{tag}"


def _blob(registry, repository, data, media_type):
    registry.blobs[repository, _digest(data)] = data
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
