"""What `docker save` streams, taken apart into the blobs and the manifest of an OCI image.

An engine keeps no manifest of an image that it built or loaded itself: it is made here, and is the same each time.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from mlopsnb.images.digests import digest_of
from mlopsnb.images.errors import EngineError, storing
from mlopsnb.images.layers import TAR
from mlopsnb.images.registry import OCI_MANIFEST, Manifest

_PIECE = 1 << 20
_PACKED = {b"\x1f\x8b": "+gzip", b"\x28\xb5\x2f\xfd": "+zstd"}
"""How compressed layers begin; engines with the containerd store keep and save them so."""


class _File(NamedTuple):
    path: Path
    digest: str
    size: int
    head: bytes


def unpack(pieces: Iterator[bytes], folder: Path) -> tuple[Manifest, dict[str, Path | bytes]]:
    """Write the image's files into *folder*; return its manifest, and where each blob lies.

    `EngineError` if the stream is no archive of one image, or a layer is not what the configuration says; `DiskFull`.
    """
    files: dict[str, _File] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Stream(pieces)), mode="r|", bufsize=_PIECE) as archive:
            for info in archive:
                name = posixpath.normpath(info.name)
                if info.isreg():
                    content = archive.extractfile(info)
                    assert content is not None
                    files[name] = _store(content, folder / str(len(files)))
                elif info.issym():
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname))
                elif info.islnk():
                    links[name] = posixpath.normpath(info.linkname)
    except tarfile.TarError as exc:
        raise EngineError(f"what the container engine saved is no whole archive: {exc}") from exc
    try:
        return _image({**files, **{name: files[target] for name, target in links.items() if target in files}})
    except (KeyError, ValueError, LookupError, TypeError) as exc:
        raise EngineError(f"what the container engine saved is no image: {type(exc).__name__} {exc}") from exc


def _image(files: dict[str, _File]) -> tuple[Manifest, dict[str, Path | bytes]]:
    (listed,) = json.loads(files["manifest.json"].path.read_bytes())
    config = files[posixpath.normpath(listed["Config"])]
    layers = [files[posixpath.normpath(name)] for name in listed["Layers"]]
    diff_ids = json.loads(config.path.read_bytes())["rootfs"]["diff_ids"]
    if len(diff_ids) != len(layers):
        raise ValueError(f"{len(layers)} layers for {len(diff_ids)} diff ids")
    for layer, diff_id in zip(layers, diff_ids, strict=True):
        if not _packing(layer) and layer.digest != diff_id:
            raise ValueError(f"a layer is {layer.digest}, not {diff_id}")
    content: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [_descriptor(TAR + _packing(layer), layer) for layer in layers],
    }
    data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    manifest = Manifest(data, OCI_MANIFEST, digest_of(data))
    return manifest, {file.digest: file.path for file in (config, *layers)}


def _descriptor(media_type: str, file: _File) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": file.digest, "size": file.size}


def _packing(file: _File) -> str:
    return next((suffix for magic, suffix in _PACKED.items() if file.head.startswith(magic)), "")


def _store(content: IO[bytes], path: Path) -> _File:
    digest, size, head = hashlib.sha256(), 0, b""
    try:
        with path.open("xb") as file:
            while piece := content.read(_PIECE):
                head = head or piece[:4]
                digest.update(piece)
                size += file.write(piece)
    except OSError as exc:
        raise storing(path.parent, exc) from exc
    return _File(path, f"sha256:{digest.hexdigest()}", size, head)


class _Stream(io.RawIOBase):
    """The pieces as a file that is read once, forwards."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int = -1) -> bytes:
        parts, found = [self._rest], len(self._rest)
        while (found < size or size < 0) and (piece := next(self._pieces, b"")):
            parts.append(piece)
            found += len(piece)
        whole = b"".join(parts)
        end = found if size < 0 else size
        self._rest = whole[end:]
        return whole[:end]
