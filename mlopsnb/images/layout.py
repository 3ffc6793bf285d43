"""OCI image layouts, as a directory or as a tar of one: write an image into one, read a base out of one.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md. A tar also has the `manifest.json` of
`docker save`, so that engines that know no OCI layout load it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb.images.blobs import Source, Spliced, pieces
from mlopsnb.images.errors import InvalidReference, LayoutError, storing
from mlopsnb.images.references import parse
from mlopsnb.images.registry import OCI_MANIFEST, Manifest

if TYPE_CHECKING:
    from mlopsnb.images.plan import Descriptor
    from mlopsnb.images.registry import OnBytes

Blobs = Mapping[str, Source]
"""All blobs of an image, configuration included, by digest."""

_MARK = b'{"imageLayoutVersion":"1.0.0"}'
_REF = "org.opencontainers.image.ref.name"
_NAME = "io.containerd.image.name"
"""The whole name, by the annotation that containerd and BuildKit read and write; `ref.name` is only the tag."""

_PIECE = 1 << 20
_READ_LIMIT = 16_000_000
_FICLONE = 0x40049409
"""Linux's request to share a file's blocks until one of the two is written to (`ioctl_ficlone(2)`)."""


def write_directory(
    path: Path, manifest: Manifest, blobs: Blobs, *, name: str, on_bytes: OnBytes | None = None
) -> int:
    """Add an image to the layout directory *path* under *name* (`fraud:v3-1a2b3c4`); return the bytes written.

    Blobs are cloned or linked where the file system can, and not written if they are there. The index is replaced
    last, so others see the old one or the new one; if anything fails, what was new is removed again. `LayoutError` if
    *path* is something else than a layout or an empty directory.
    """
    entry = _entry(manifest, name)
    with _undone_on_failure(path) as made, _locked(path, made):
        old = _index(path) if (path / "oci-layout").exists() else None
        if old is None and any(path.iterdir()):
            raise LayoutError(
                f"{path} is neither an OCI layout nor empty", hint="give another path, or one ending in .tar"
            )
        folder = path / "blobs" / "sha256"
        _make(folder, made)
        written = 0
        for digest, source in {**blobs, manifest.digest: manifest.data}.items():
            target = folder / digest.removeprefix("sha256:")
            if not target.exists():
                size = _put(target, source, made)
                written += size
                if on_bytes is not None:
                    on_bytes(size)
        if old is None:
            _put(path / "oci-layout", _MARK, made)
        others = [
            d for d in (old or {}).get("manifests", ()) if _names(d).isdisjoint({entry["annotations"][_NAME]})
        ]
        _put(path / "index.json", _canonical(_as_index([*others, entry])), [])
    return written


def write_archive(
    path: Path, manifest: Manifest, blobs: Blobs, *, name: str, on_bytes: OnBytes | None = None
) -> int:
    """Write an image to the tar *path*, replacing it when all is written; return its bytes. Equal images, equal tars."""
    content = json.loads(manifest.data)
    listed = {
        "Config": _blob_path(content["config"]["digest"]),
        "RepoTags": [name],
        "Layers": [_blob_path(layer["digest"]) for layer in content["layers"]],
    }
    heads = {
        "oci-layout": _MARK,
        "index.json": _canonical(_as_index([_entry(manifest, name)])),
        "manifest.json": _canonical([listed]),
    }
    files = {_blob_path(d): source for d, source in sorted({**blobs, manifest.digest: manifest.data}.items())}
    half = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with half.open("xb") as file:
            members = [
                (name, _size(source), partial(pieces, source)) for name, source in {**heads, **files}.items()
            ]
            for piece in tar(members):
                file.write(piece)
                if on_bytes is not None:
                    on_bytes(len(piece))
            size = file.tell()
        half.replace(path)
    except OSError as exc:
        raise storing(path, exc) from exc
    finally:
        half.unlink(missing_ok=True)
    return size


Member = tuple[str, int, Callable[[], Iterable[bytes]]]
"""A file of a tar: its name, its size in bytes, and what reads it."""


def tar(members: Iterable[Member]) -> Iterator[bytes]:
    """Yield a tar of root-owned files of the epoch, piece by piece; `LayoutError` if one has not the size it should."""
    for name, size, read in members:
        info = tarfile.TarInfo(name)
        info.size = size
        yield info.tobuf(tarfile.PAX_FORMAT)
        left = size
        for piece in read():
            left -= len(piece)
            yield piece
        if left:
            raise LayoutError(f"{name} has {size - left} bytes instead of {size}")
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file of a layout lies: whole, or in a tar."""

    path: Path
    offset: int
    size: int


class Layout:
    """A layout directory, or a tar of one, to read from; `LayoutError` if it is neither. Safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = _members(path)
        if self._place("oci-layout") is None or self._place("index.json") is None:
            raise LayoutError(f"{path} is no OCI image layout: it has no oci-layout and index.json")

    def manifest(self, ref: str = "") -> Manifest:
        """Return the manifest or index named *ref* (a tag, a name with a tag, or a digest), verified.

        Without *ref* it is the only one there is. `LayoutError` lists what there is if that is not clear.
        """
        listed = self._json("index.json").get("manifests", ())
        names = {ref, _whole_name(ref)} - {""}
        found = {d["digest"]: d for d in listed if not ref or d["digest"] == ref or names & _names(d)}
        if not found and ref.startswith("sha256:") and self.has(ref):
            data = b"".join(self._pieces(ref))
            return Manifest(data, json.loads(data).get("mediaType", OCI_MANIFEST), ref)
        if len(found) != 1:
            there = ", ".join(sorted(min(_names(d), default=d["digest"]) for d in listed)) or "nothing"
            raise LayoutError(f"{self.path} has {len(found)} images named {ref!r}; there are: {there}")
        ((digest, descriptor),) = found.items()
        return Manifest(b"".join(self._pieces(digest)), descriptor["mediaType"], digest)

    def has(self, digest: str) -> bool:
        """Say whether the blob is there."""
        return self._place(_blob_path(digest)) is not None

    def blob(self, blob: Descriptor) -> Iterator[bytes]:
        """Yield a blob in order; `LayoutError` if it is absent or, after the last piece, if it was another one."""
        return self._pieces(blob.digest)

    def read(self, blob: Descriptor) -> bytes:
        """Return a small blob, such as a configuration, verified."""
        if blob.size > _READ_LIMIT:
            raise LayoutError(f"the blob {blob.digest} has {blob.size} bytes, too many to be read whole")
        return b"".join(self.blob(blob))

    def _pieces(self, digest: str) -> Iterator[bytes]:
        place = self._place(_blob_path(digest))
        if place is None:
            raise LayoutError(f"{self.path} has no blob {digest}")
        found = hashlib.new(digest.partition(":")[0])
        for piece in _part(place):
            found.update(piece)
            yield piece
        if found.hexdigest() != digest.partition(":")[2]:
            raise LayoutError(
                f"{self.path}: the blob {digest} is another one: {found.name}:{found.hexdigest()}"
            )

    def _json(self, name: str) -> dict[str, Any]:
        place = self._place(name)
        assert place is not None
        return _object(b"".join(_part(place)), self.path / name)

    def _place(self, name: str) -> _Place | None:
        if self._members is not None:
            return self._members.get(name)
        path = self.path / name
        return _Place(path, 0, path.stat().st_size) if path.is_file() else None


def _members(path: Path) -> dict[str, _Place] | None:
    """Return where the files of a tar begin; None for a directory."""
    if path.is_dir():
        return None
    try:
        with tarfile.open(path, "r:") as archive:
            files = (info for info in archive if info.isreg())
            return {os.path.normpath(info.name): _Place(path, info.offset_data, info.size) for info in files}
    except (OSError, tarfile.TarError) as exc:
        raise LayoutError(f"{path} is no OCI image layout, and no uncompressed tar of one: {exc}") from exc


def _part(place: _Place) -> Iterator[bytes]:
    try:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            left = place.size
            while left and (piece := file.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece
    except OSError as exc:
        raise LayoutError(f"{place.path} cannot be read: {exc.strerror}") from exc


def _index(path: Path) -> dict[str, Any]:
    file = path / "index.json"
    return _object(file.read_bytes(), file) if file.exists() else {}


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as exc:
        raise LayoutError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise LayoutError(f"{path} is not a JSON object")
    return found


def _entry(manifest: Manifest, name: str) -> dict[str, Any]:
    reference = parse(name)
    return {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": len(manifest.data),
        "annotations": {_REF: reference.tag or "latest", _NAME: _whole_name(name)},
    }


def _as_index(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    ordered = sorted(manifests, key=lambda d: (sorted(_names(d)), d["digest"]))
    return {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": ordered}


def _names(descriptor: Mapping[str, Any]) -> set[str]:
    annotations = descriptor.get("annotations") or {}
    return {annotations[key] for key in (_REF, _NAME) if key in annotations}


def _whole_name(name: str) -> str:
    try:
        reference = parse(name)
    except InvalidReference:
        return ""
    return f"{reference.name}:{reference.tag or 'latest'}"


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _size(source: Source) -> int:
    if isinstance(source, Spliced):
        return source.size
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _put(target: Path, source: Source, made: list[Path]) -> int:
    """Make the file *target*, complete as soon as it is seen; return its bytes."""
    half = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    made.append(half)
    if isinstance(source, bytes):
        half.write_bytes(source)
    elif isinstance(source, Spliced):
        with source.open() as reader, half.open("xb") as writer:
            shutil.copyfileobj(reader, writer, _PIECE)
    else:
        _clone(source, half)
    size = half.stat().st_size
    half.replace(target)
    made[-1] = target
    return size


def _clone(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer, suppress(OSError):
        fcntl.ioctl(writer, _FICLONE, reader.fileno())
        return
    target.unlink()
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _make(folder: Path, made: list[Path]) -> None:
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            made.append(path)
            path.mkdir(exist_ok=True)


@contextmanager
def _locked(path: Path, made: list[Path]) -> Iterator[None]:
    """Hold the directory against other writers; the lock is the directory's own, and ends with us."""
    _make(path, made)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _undone_on_failure(path: Path) -> Iterator[list[Path]]:
    """Yield a list of what is made; if the block fails, all of it is removed. A full disk is named."""
    made: list[Path] = []
    try:
        yield made
    except BaseException as exc:
        for new in reversed(made):
            with suppress(OSError):  # not made yet, or somebody has put something into it
                new.rmdir() if new.is_dir() else new.unlink()
        if isinstance(exc, OSError):
            raise storing(path, exc) from exc
        raise
