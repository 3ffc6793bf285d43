"""Small plans, and the bases they stand on, for tests of builders."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile

from fake_registry import blob_of

from mlopsnb.images.environment import Bytecode, Environment, InstalledFile
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.images.plan import File
from mlopsnb.images.planning import data_file, plan_image
from mlopsnb.images.registry import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
PYTHON = {"usr/bin/python3.11": b"\x7fELF", "usr/bin/python3": "python3.11", "etc/os-release": b"ID=debian"}
OFFICIAL = ("PATH=/usr/local/bin:/usr/bin", "GPG_KEY=A0", "PYTHON_VERSION=3.11.9")


def tar_of(files):
    """Return a gzipped tar: bytes are a file, a text is a link, None a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
                info.linkname = content or ""
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return gzip.compress(out.getvalue(), mtime=0)


def put_base(fake, *layers, env=("PATH=/usr/bin",), machine="amd64", repository="library/base", **config):
    """Give the fake registry a base image of these *layers*, as files; return the digest of its manifest."""
    blobs = [tar_of(files) for files in layers]
    diff_ids = [f"sha256:{hashlib.sha256(gzip.decompress(b)).hexdigest()}" for b in blobs]
    said = {
        "architecture": machine,
        "os": "linux",
        "config": {"Env": list(env), "Labels": {"vendor": "base"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        **config,
    }
    data = json.dumps(said).encode()
    for blob in (data, *blobs):
        fake.blobs[repository, blob_of(blob).digest] = blob
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": _listed(data, "application/vnd.docker.container.image.v1+json"),
        "layers": [_listed(blob, LAYER) for blob in blobs],
    }
    return put_manifest(fake, manifest, repository)


def put_index(fake, *entries, repository="library/base"):
    """Give the fake registry an index of (platform, digest) pairs under the tag `1`."""
    manifests = []
    for platform, digest in entries:
        names = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        manifests.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": names})
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return put_manifest(fake, index, repository)


def put_manifest(fake, manifest, repository):
    data = json.dumps(manifest).encode()
    digest = blob_of(data).digest
    for ref in ("1", digest):
        fake.manifests[repository, ref] = (data, manifest["mediaType"])
    return digest


def _listed(blob, media_type):
    return {"mediaType": media_type, "digest": blob_of(blob).digest, "size": len(blob)}


def environment(root, **wheels):
    """Write an environment of *wheels* (name: size in bytes) to *root*."""
    packages = {}
    for name, size in wheels.items():
        data = hashlib.shake_128(name.encode()).digest(size)
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "__init__.py").write_bytes(data)
        packages[name] = (InstalledFile(f"{name}/__init__.py", size, hashlib.sha256(data).hexdigest()),)
    locked = [LockedPackage(name=n, version="1.0", filename="", sha256="00") for n in sorted(wheels)]
    lock = Lock(python="3.11", platform="linux/amd64", packages=tuple(locked))
    return Environment(lock=lock, root=root, packages=packages)


def a_plan(place, base, *, weights=b"weights", version="3", wheels=None, large=0):
    """Plan an image of a package in *place* with these *weights*; *large* bytes of them lie in a file of their own."""
    model = place / "package" / "model"
    model.mkdir(parents=True, exist_ok=True)
    files = [data_file("model.json", b"{}"), data_file("model/w.bin", weights)]
    if large:
        data = os.urandom(large)
        (model / "large.bin").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        # It says that it is larger than it is, so that tests need no 64 MB.
        files.append(File(path="model/large.bin", source=model / "large.bin", size=64 << 20, sha256=digest))
    return plan_image(
        name="fraud",
        version=version,
        base=base,
        environment=environment(place / "site", **(wheels or {"numpy": 3000, "torch": 9000})),
        bytecode=Bytecode(files={"numpy/__pycache__/__init__.cpython-311.pyc": b"pyc"}),
        runtime=(data_file("mlopsnb/__init__.py", b"server"),),
        package=place / "package",
        package_digest="sha256:00",
        files=files,
    )
