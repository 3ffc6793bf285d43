"""The image that ours stands on: which one it is, whether it fits, where its Python is, and its layers if need be.

Only the manifest and the configuration are read, unless the configuration says nothing of a Python: then the layers are
searched, once. What a digest stands for is noted, so that it needs no network a second time.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from mlopsnb.errors import BuildError, MissingExtra
from mlopsnb.events import report_bytes, report_progress, step
from mlopsnb.extras import need
from mlopsnb.images.errors import (
    BaseWithoutPython,
    NotInRegistry,
    RegistryUnreachable,
    Unauthorized,
    UnsuitableBase,
    WrongPlatform,
    WrongPython,
)
from mlopsnb.images.plan import Base, Descriptor
from mlopsnb.images.references import Reference, parse
from mlopsnb.images.registry import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Manifest, connect

if TYPE_CHECKING:
    from mlopsnb.images.cache import Store
    from mlopsnb.images.engine import Engine
    from mlopsnb.images.registry import OnBytes, Registry

_OCI_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
"""Media types of docker and what OCI calls the same: our manifest is OCI, and registries refuse a mixture."""

_INTERPRETER = re.compile(r"(?:.*/)?bin/python(3\.\d+)")
_MUSL = re.compile(r"lib/ld-musl-.*\.so\.\d+")
_REPORT = 1 << 20
_NOT_THERE = (NotInRegistry, RegistryUnreachable, Unauthorized)
"""What a registry may say of an image that only the engine has; Docker Hub calls an unknown name unauthorized."""

_RELEASE = re.compile(r"\d+\.\d+\.\d+")


def inspect(reference: str, *, platform: str, python: str, store: Store) -> Base:
    """Return the base *reference* for *platform* (`linux/amd64`), which has to have Python *python* (`3.11`).

    A registry is asked first, then an engine that has the image. A tag costs one request; a digest that was seen before
    none. While the registry is unreachable, a tag is what it was when it was last seen.

    Raises `WrongPlatform`, `WrongPython`, `BaseWithoutPython` or `UnsuitableBase` for a base that does not fit, and
    `RegistryError` if it cannot be read.
    """
    name = parse(reference)
    with step("fetch", f"base image {reference}") as said:
        seen = _seen(name, platform, store)
        base = _fitting(reference, seen, platform, python)
        said.result = f"{name.name.removeprefix('docker.io/library/')}, Python {base.python_version}"
        return base


def fetch_layer(
    base: Base,
    layer: Descriptor,
    store: Store,
    *,
    on_bytes: OnBytes | None = None,
    registry: Registry | None = None,
) -> Path:
    """Return the file of one of the *base*'s layers, brought into *store* if it is not there.

    *registry* is the base's, for who wants to cancel what is under way there.
    """
    if path := store.find(layer.digest, layer.size):
        return path
    name = parse(base.reference)
    with store.alone(layer.digest):
        if path := store.find(layer.digest, layer.size):
            return path
        with nullcontext(registry) if registry else connect(name.registry) as asked:
            try:
                return _into(store, layer, asked.blob(name.repository, layer, on_bytes=on_bytes))
            except _NOT_THERE:
                if _from_engine(base.reference, store, anew=True) is None:
                    raise
    path = store.find(layer.digest, layer.size)
    if path is None:
        raise BuildError(f"the engine's image {base.reference} is another one by now", hint="build again")
    return path


def _into(store: Store, layer: Descriptor, pieces: Iterable[bytes]) -> Path:
    with store.writing() as file:
        for piece in pieces:
            file.write(piece)
        return file.keep(layer.digest)


def _seen(name: Reference, platform: str, store: Store) -> dict[str, Any]:
    """Return what is known of an image: manifest, configuration, interpreters."""
    with connect(name.registry) as registry:
        try:
            digest = name.digest or _digest(registry, name, store)
            if noted := store.note("bases", f"{digest} {platform}"):
                return dict(noted)
            found = _read(registry, name, digest, platform, store)
        except _NOT_THERE as exc:
            here = _from_engine(str(name), store)
            if here is None:
                raise
            report_progress("fetch", f"{exc.message}; the engine has it")
            return here
    store.set_note("bases", f"{digest} {platform}", found)
    return found


def _digest(registry: Registry, name: Reference, store: Store) -> str:
    """Return the digest that a tag stands for, and note it for when the registry cannot be asked."""
    try:
        digest = registry.resolve(name.repository, name.target)
    except RegistryUnreachable as exc:
        noted = store.note("tags", str(name))
        if noted is None:
            raise
        report_progress("fetch", f"{exc.message}; taking {name} for what it was")
        return str(noted)
    store.set_note("tags", str(name), digest)
    return digest


def _read(registry: Registry, name: Reference, digest: str, platform: str, store: Store) -> dict[str, Any]:
    manifest = registry.manifest(name.repository, digest)
    if manifest.media_type in (OCI_INDEX, DOCKER_INDEX):
        manifest = registry.manifest(name.repository, _of_platform(manifest, str(name), platform))
    return _describe(
        manifest,
        str(name),
        lambda config: registry.read(name.repository, config),
        lambda layer: _layer_of(registry, name, layer, store),
        store,
    )


def _layer_of(registry: Registry, name: Reference, layer: Descriptor, store: Store) -> Path:
    path = store.find(layer.digest, layer.size)
    return path or _into(store, layer, _told(registry.blob(name.repository, layer), f"{name}", layer.size))


def _told(pieces: Iterable[bytes], name: str, total: int) -> Iterator[bytes]:
    """Yield *pieces* and report them, some at a time."""
    done = told = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if done - told >= _REPORT or done == total:
            told = done
            report_bytes("fetch", f"looking for Python in {name}", done, total)


def _of_platform(index: Manifest, reference: str, platform: str) -> str:
    """Return the digest of the manifest for *platform*; `WrongPlatform` lists those that there are."""
    found: dict[str, str] = {}
    for entry in json.loads(index.data).get("manifests", ()):
        said = entry.get("platform") or {}
        # Indexes also hold attestations, for a platform `unknown`.
        if said.get("os") not in (None, "unknown"):
            found.setdefault(_platform(said), entry["digest"])
    exact = [digest for name, digest in found.items() if _matches(name, platform)]
    if not exact:
        raise WrongPlatform(reference, sorted(found), platform)
    return exact[0]


def _platform(said: Mapping[str, Any]) -> str:
    return "/".join(filter(None, (said.get("os"), said.get("architecture"), said.get("variant"))))


def _matches(found: str, wanted: str) -> bool:
    """Say whether an image for *found* is one for *wanted*, which need not name a variant (`linux/arm64/v8`)."""
    return found == wanted or (wanted.count("/") == 1 and found.startswith(f"{wanted}/"))


def _describe(
    manifest: Manifest,
    reference: str,
    read: Callable[[Descriptor], bytes],
    layer_file: Callable[[Descriptor], Path],
    store: Store,
) -> dict[str, Any]:
    content = json.loads(manifest.data)
    if manifest.media_type not in (OCI_MANIFEST, DOCKER_MANIFEST) or "layers" not in content:
        raise UnsuitableBase(
            f"the base image {reference} has a manifest of the type {manifest.media_type}, which is none of an image",
            hint="push it anew with a current tool, or give another base",
        )
    config = json.loads(read(_descriptor(content["config"])))
    layers = [_descriptor(layer) for layer in content["layers"]]
    release = _official(config)
    interpreters = [release] if release else _search(layers, layer_file, store)
    return {
        "digest": manifest.digest,
        "config": config,
        "layers": [asdict(layer) for layer in layers],
        "interpreters": interpreters,
    }


def _descriptor(said: Mapping[str, Any]) -> Descriptor:
    media_type = _OCI_LAYERS.get(said["mediaType"], said["mediaType"])
    return Descriptor(media_type=media_type, digest=said["digest"], size=said["size"])


def _official(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return interpreter and version of an image made like the official ones: they say so and build into /usr/local."""
    env = _variables(config)
    version = env.get("PYTHON_VERSION", "")
    signed = "GPG_KEY" in env or "PYTHON_SHA256" in env
    first = env.get("PATH", "").partition(":")[0]
    if not (signed and first == "/usr/local/bin" and _RELEASE.fullmatch(version)):
        return None
    return f"{first}/python{_minor(version)}", version


def _variables(config: Mapping[str, Any]) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in (config.get("config") or {}).get("Env") or ())


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _search(
    layers: Sequence[Descriptor], layer_file: Callable[[Descriptor], Path], store: Store
) -> list[tuple[str, str]]:
    """Return the interpreters in *layers*, whose listings are noted: a layer is shared by many images."""
    there: dict[str, str] = {}
    for layer in layers:
        listing = store.note("listings", layer.digest)
        if listing is None:
            try:
                listing = list(_listing(layer_file(layer)))
            except tarfile.TarError as exc:
                raise UnsuitableBase(
                    f"the layer {layer.digest} of the base image cannot be searched for Python: it is neither gzip nor "
                    f"tar ({layer.media_type})",
                    hint="give a base whose configuration has PYTHON_VERSION, such as an official python image",
                ) from exc
            store.set_note("listings", layer.digest, listing)
        for path in listing:
            _apply(path, there)
    return sorted(there.items())


def _apply(path: str, there: dict[str, str]) -> None:
    """Add what a layer brings, or take away what it hides (https://github.com/opencontainers/image-spec, layer.md)."""
    place = PurePosixPath(path)
    if place.name.startswith(".wh."):
        hidden = (
            place.parent if place.name == ".wh..wh..opq" else place.with_name(place.name.removeprefix(".wh."))
        )
        for known in [k for k in there if PurePosixPath(k) == hidden or hidden in PurePosixPath(k).parents]:
            del there[known]
    elif match := _INTERPRETER.fullmatch(path):
        there[path] = match[1]
    elif _MUSL.fullmatch(path.lstrip("/")):
        there[path] = "musl"


def _listing(path: Path) -> Iterator[str]:
    """Yield what matters of a layer: interpreters, what C library there is, and what it hides of those below."""
    with path.open("rb") as file, unpacked(file) as plain, tarfile.open(fileobj=plain) as archive:
        for member in archive:
            name = f"/{member.name.removeprefix('./')}"
            hides = "/.wh." in name
            if hides or (not member.isdir() and (_INTERPRETER.fullmatch(name) or _MUSL.fullmatch(name[1:]))):
                yield name


def unpacked(file: BinaryIO) -> Any:
    """Return what reads the tar in *file*: ISA-L is three times as fast as `gzip`."""
    magic = file.read(2)
    file.seek(0)
    return need("isal.igzip", extra="images").GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file


def _fitting(reference: str, seen: Mapping[str, Any], platform: str, python: str) -> Base:
    """Return the base that *seen* describes, if it fits."""
    config = seen["config"]
    if not _matches(_platform(config), platform):
        raise WrongPlatform(reference, [_platform(config)], platform)
    history = [str(line.get("created_by", "")) for line in config.get("history") or ()]
    if any("alpine-minirootfs" in line for line in history) or any(
        version == "musl" for _, version in seen["interpreters"]
    ):
        raise UnsuitableBase(
            f"the base image {reference} has musl for a C library (Alpine); wheels for Linux need glibc",
            hint=f"give a base on Debian, Ubuntu or the like, such as python:{python}-slim",
        )
    found = [(path, version) for path, version in seen["interpreters"] if version != "musl"]
    if not found:
        raise BaseWithoutPython(reference, "looked for bin/python3.* in all layers")
    fit = [(path, version) for path, version in found if _minor(version) == python]
    if not fit:
        raise WrongPython(reference, ", ".join(sorted({version for _, version in found})), python)
    path, version = min(fit, key=lambda one: _rank(one[0], _variables(config).get("PATH", "")))
    return Base(
        reference=reference,
        digest=seen["digest"],
        platform=platform,
        config=config,
        layers=tuple(Descriptor(**layer) for layer in seen["layers"]),
        python=path,
        python_version=version,
    )


def _rank(interpreter: str, path: str) -> tuple[int, str]:
    """Order interpreters as a shell in the image would find them."""
    places = path.split(":")
    home = str(PurePosixPath(interpreter).parent)
    return (places.index(home) if home in places else len(places)), interpreter


def _from_engine(reference: str, store: Store, *, anew: bool = False) -> dict[str, Any] | None:
    """Return what is known of an image that an engine has, if it has it.

    It is exported the first time, or *anew*: then its layers are in *store*.
    """
    from mlopsnb.images.engine import Engine

    with suppress(BuildError, MissingExtra), Engine() as engine:
        image = engine.image(reference)
        if image is None:
            return None
        found = None if anew else store.note("bases", image.id)
        if found is None:
            found = _exported(engine, reference, store)
            store.set_note("bases", image.id, found)
        return dict(found)
    return None


def _exported(engine: Engine, reference: str, store: Store) -> dict[str, Any]:
    from mlopsnb.images.layout import Layout

    def keep(layer: Descriptor) -> Path:
        path = store.find(layer.digest, layer.size)
        return path or _into(store, layer, layout.blob(layer))

    with store.scratch() as folder:
        engine.export(reference, folder / "layout")
        layout = Layout(folder / "layout")
        manifest = layout.manifest()
        for layer in json.loads(manifest.data)["layers"]:
            keep(_descriptor(layer))
        return _describe(manifest, reference, layout.read, keep, store)
