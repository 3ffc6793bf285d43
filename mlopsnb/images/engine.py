"""A container engine, through docker-py: load an image into it, sending only layers it lacks, and read a base out.

Source: https://docs.docker.com/reference/api/engine/ and moby's `image/tarexport`, which takes a `docker save` archive
whose layers are left out if it has the chain of layers up to them (moby/moby#18727). That holds for the classic image
stores; the containerd one gets whole archives.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlopsnb import dockerd
from mlopsnb.extras import need
from mlopsnb.images import saved
from mlopsnb.images.digests import digest_of
from mlopsnb.images.errors import EngineError, EngineForbidden, EngineFull, EngineNotRunning
from mlopsnb.images.layout import Member, tar, write_directory
from mlopsnb.images.references import parse

if TYPE_CHECKING:
    from mlopsnb.images.registry import OnBytes

_ANSWER_SECONDS = 10
_PIECE = 1 << 20
_LOAD_SECONDS = 900
"""How long an engine may be silent while it unpacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """A layer to be loaded; `read` yields it as it is stored (`size` bytes) and is called only if the engine lacks it."""

    diff_id: str
    size: int
    read: Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What `load` did: the image's id as the engine says it, and the bytes of layers that were sent."""

    id: str
    sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineImage:
    """An image that an engine has; `config` is in the form of an OCI image configuration, without its history."""

    id: str
    platform: str
    config: Mapping[str, Any]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The `sha256:…` of its unpacked layers, bottom to top."""
        return tuple(self.config["rootfs"]["diff_ids"])


class Engine:
    """The engine that `docker` would use: DOCKER_HOST, else the current docker context, else the local socket.

    Calls raise `EngineNotRunning`, `EngineForbidden`, or `EngineError` for what the engine refuses; `MissingExtra`
    without docker-py.
    """

    def __init__(self) -> None:
        self._docker = need("docker", extra="docker")
        try:
            self._client: Any = dockerd.connect(seconds=_ANSWER_SECONDS)
        except dockerd.Unavailable as exc:
            raise _unavailable(exc.trouble) from exc.__cause__
        self._api = self._client.api
        self._api.timeout = _LOAD_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def image(self, reference: str) -> EngineImage | None:
        """Return what the engine has under a name or id; None if it has nothing."""
        with self._translated(f"look at {reference}"):
            try:
                found = self._api.inspect_image(reference)
            except self._docker.errors.NotFound:
                return None
        return _image(found)

    def chains(self) -> frozenset[tuple[str, ...]]:
        """Return the chains of layers it has: every beginning of every image's diff ids."""
        with self._translated("list its images"):
            ids = {listed["Id"] for listed in self._api.images()}
        found = filter(None, map(self.image, sorted(ids)))
        return frozenset(image.diff_ids[:end] for image in found for end in range(1, len(image.diff_ids) + 1))

    def load(
        self, config: bytes, layers: Sequence[EngineLayer], *, tag: str, on_bytes: OnBytes | None = None
    ) -> Loaded:
        """Load an image as *tag* (`fraud:v3-1a2b3c4`): only the layers it lacks, or all if it does not take that.

        The tag is moved last, to a whole image; if loading fails or is interrupted, it names what it named before.
        """
        diff_ids = tuple(layer.diff_id for layer in layers)
        found = self.image(digest_of(config))
        if found is not None and found.diff_ids == diff_ids:
            self._tag(found.id, tag)
            return Loaded(id=found.id, sent=0)
        present = frozenset() if self._keeps_blobs() else self.chains()
        lacking = {d for end, d in enumerate(diff_ids, start=1) if diff_ids[:end] not in present}
        temporary = f"{parse(tag).repository}:loading-{secrets.token_hex(8)}" if self._keeps_blobs() else ""
        counted = _Counter(on_bytes)
        try:
            identity = self._sent(config, layers, lacking, temporary, counted)
            self._tag(identity, tag)
        finally:
            if temporary:
                with suppress(EngineError):  # what went wrong before is what matters
                    self.remove(temporary)
        return Loaded(id=identity, sent=counted.total)

    def export(self, reference: str, into: Path, *, on_bytes: OnBytes | None = None) -> str:
        """Write an image of the engine as an OCI layout directory (see `layout.Layout`); return its manifest's digest.

        This is how a base that only the engine has is brought into an image that goes elsewhere.
        """
        if self.image(reference) is None:
            raise EngineError(f"the container engine has no image {reference}", hint="see docker image ls")
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=".export-") as folder:
            with self._translated(f"save {reference}"):
                pieces = self._api.get_image(reference, chunk_size=_PIECE)
                manifest, blobs = saved.unpack(_counted(lambda: pieces, on_bytes), Path(folder))
            write_directory(into, manifest, blobs, name=reference)
        return manifest.digest

    def read(self, reference: str, paths: Iterable[str]) -> dict[str, bytes]:
        """Return those of the files *paths* that an image has. It is not run."""
        found: dict[str, bytes] = {}
        with self._translated(f"look into {reference}"):
            container = self._api.create_container(reference, command=["none"])["Id"]
            try:
                for path in paths:
                    with suppress(self._docker.errors.NotFound):
                        pieces, _ = self._api.get_archive(container, f"/{path}")
                        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
                            file = archive.extractfile(archive.getmembers()[0])
                            found[path] = file.read() if file else b""
            finally:
                self._api.remove_container(container, force=True)
        return found

    def remove(self, reference: str) -> None:
        """Remove a name; the image with it, if that was the last name and no container uses it."""
        with self._translated(f"remove {reference}"), suppress(self._docker.errors.NotFound):
            self._api.remove_image(reference)

    def _keeps_blobs(self) -> bool:
        """Say whether it has the containerd image store, which needs the blobs of all layers."""
        with self._translated("describe itself"):
            status = self._api.info().get("DriverStatus") or ()
        return any("io.containerd" in str(value) for row in status for value in row)

    def _sent(
        self,
        config: bytes,
        layers: Sequence[EngineLayer],
        lacking: set[str],
        temporary: str,
        counted: _Counter,
    ) -> str:
        """Load the image without those layers that it does not lack; with them if that fails. Return its id."""
        try:
            return self._whole(
                _archive(config, layers, lacking, temporary, counted), config, layers, temporary
            )
        except EngineFull:
            raise
        except EngineError:
            everything = {layer.diff_id for layer in layers}
            if lacking == everything:
                raise
        counted(-counted.total)
        return self._whole(
            _archive(config, layers, everything, temporary, counted), config, layers, temporary
        )

    def _whole(
        self, archive: Iterator[bytes], config: bytes, layers: Sequence[EngineLayer], temporary: str
    ) -> str:
        """Load an archive and see that the engine then has all of the image."""
        with self._translated("load the image"):
            for line in self._api.load_image(archive):
                if said := line.get("error") or ("stream" not in line and line.get("message")):
                    raise _refused("load the image", str(said))
        name = temporary or digest_of(config)
        found = self.image(name)
        if found is None or found.diff_ids != tuple(layer.diff_id for layer in layers):
            raise EngineError("the container engine took the image but has not all of it")
        return found.id

    def _tag(self, identity: str, tag: str) -> None:
        repository, _, label = tag.rpartition(":")
        with self._translated(f"tag the image {tag}"):
            self._api.tag(identity, repository, label)

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._docker.errors.APIError as exc:
            raise _refused(doing, str(exc.explanation or exc)) from exc
        except dockerd.transport_errors() as exc:
            trouble = dockerd.trouble(exc, connected=True)
            if trouble.forbidden:
                raise EngineForbidden(trouble.where) from exc
            raise EngineError(
                f"the container engine at {trouble.where} did not {doing}: {trouble.found}"
            ) from exc


def _unavailable(trouble: dockerd.Trouble) -> EngineError:
    if trouble.forbidden:
        return EngineForbidden(trouble.where)
    return EngineNotRunning(trouble.where, trouble.found)


class _Counter:
    """Counts the bytes of layers, for us and for who watches."""

    def __init__(self, on_bytes: OnBytes | None) -> None:
        self.total, self._on_bytes = 0, on_bytes

    def __call__(self, count: int) -> None:
        self.total += count
        if self._on_bytes is not None:
            self._on_bytes(count)


def _archive(
    config: bytes, layers: Sequence[EngineLayer], lacking: set[str], name: str, counted: _Counter
) -> Iterator[bytes]:
    """Yield the archive that `docker load` takes; layers that the engine has are named but left out."""
    head = f"{hashlib.sha256(config).hexdigest()}.json"
    listed = {
        "Config": head,
        "RepoTags": [name] if name else None,
        "Layers": [_file(layer.diff_id) for layer in layers],
    }
    manifest = json.dumps([listed]).encode()
    sent = {layer.diff_id: layer for layer in layers if layer.diff_id in lacking}
    members: list[Member] = [
        ("manifest.json", len(manifest), lambda: [manifest]),
        (head, len(config), lambda: [config]),
    ]
    members += [(_file(d), layer.size, partial(_counted, layer.read, counted)) for d, layer in sent.items()]
    return tar(members)


def _counted(read: Callable[[], Iterable[bytes]], on_bytes: OnBytes | None) -> Iterator[bytes]:
    for piece in read():
        yield piece
        if on_bytes is not None:
            on_bytes(len(piece))


def _file(diff_id: str) -> str:
    return f"{diff_id.removeprefix('sha256:')}.tar"


def _image(found: Mapping[str, Any]) -> EngineImage:
    platform = "/".join(filter(None, [found["Os"], found["Architecture"], found.get("Variant")]))
    config = {
        "architecture": found["Architecture"],
        "os": found["Os"],
        "config": found.get("Config") or {},
        "rootfs": {"type": "layers", "diff_ids": list(found["RootFS"].get("Layers") or ())},
    }
    if variant := found.get("Variant"):
        config["variant"] = variant
    return EngineImage(id=found["Id"], platform=platform, config=config)


def _refused(doing: str, said: str) -> EngineError:
    text = " ".join(said.split())[:400]
    if "no space left" in text or "disk quota" in text:
        return EngineFull(text)
    return EngineError(f"the container engine did not {doing}: {text}")
