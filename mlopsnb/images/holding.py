"""What an image that was built earlier, perhaps elsewhere, says of itself, and the golden example that it holds.

Looks into the engine of this machine, if there is one and it has the image; else into the image's registry, where only
small layers are read.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mlopsnb import manifest
from mlopsnb.errors import BuildError, MissingExtra, UserError
from mlopsnb.images.engine import Engine
from mlopsnb.images.errors import EngineForbidden, EngineNotRunning
from mlopsnb.images.plan import PACKAGE, Descriptor
from mlopsnb.images.references import Reference, parse
from mlopsnb.images.registry import Registry, connect

MODEL, PACKAGE_DIGEST = "mlopsnb.model", "mlopsnb.package"
"""Labels: the address of the model version, and the digest of the package."""

_GOLDEN = (f"{PACKAGE}/{manifest.FILE}", f"{PACKAGE}/{manifest.EXAMPLE_FILE}")
_SMALL = 16_000_000


def labels(reference: str) -> Mapping[str, str]:
    """Return what the image *reference* says of itself; `UserError` if it is no serving image of ours.

    `BuildError` if neither the engine nor its registry has it, or that cannot be reached.
    """
    with _engine_with(reference) as (engine, name):
        found = engine.image(name) if engine else None
        config = found.config if found else _of_registry(parse(reference))
    said: Mapping[str, str] = (config.get("config") or {}).get("Labels") or {}
    if PACKAGE_DIGEST not in said:
        raise UserError(f"{reference} is no serving image of mlopsnb", hint="build one: ml.build(model, …)")
    return said


def pinned(reference: str) -> str:
    """Return *reference*, of an image in a registry, by the digest that its tag stands for now."""
    name = parse(reference)
    if name.digest:
        return reference
    with connect(name.registry) as registry:
        return f"{name.name}@{registry.resolve(name.repository, name.target)}"


def golden(reference: str, into: Path) -> Path:
    """Write the manifest and the golden example of the package in an image into the directory *into*; return that.

    `BuildError` if they cannot be had.
    """
    with _engine_with(reference) as (engine, name):
        files = engine.read(name, _GOLDEN) if engine else _from_layers(parse(reference), set(_GOLDEN))
    if missing := set(_GOLDEN) - files.keys():
        raise BuildError(f"{reference} does not hold /{min(missing)}", hint="build it again")
    for path, content in files.items():
        (into / PurePosixPath(path).name).write_bytes(content)
    return into


@contextmanager
def _engine_with(reference: str) -> Iterator[tuple[Engine | None, str]]:
    """Yield an engine that has the image and its name there, or None."""
    try:
        engine = Engine()
    except (EngineNotRunning, EngineForbidden, MissingExtra):
        yield None, ""
        return
    with engine:
        names = (
            reference,
            reference.rpartition("@")[2],
        )  # the digest may be the id of one that was never in a registry
        found = next((name for name in names if engine.image(name) is not None), "")
        yield (engine if found else None), found


def _of_registry(name: Reference) -> Mapping[str, Any]:
    with connect(name.registry) as registry:
        said = _manifest(registry, name)["config"]
        config: Mapping[str, Any] = json.loads(registry.read(name.repository, _descriptor(said)))
    return config


def _from_layers(name: Reference, wanted: Collection[str]) -> dict[str, bytes]:
    """Return the *wanted* files from an image's small layers: what changes most lies on top."""
    found: dict[str, bytes] = {}
    with connect(name.registry) as registry:
        small = [layer for layer in _manifest(registry, name)["layers"] if layer["size"] < _SMALL]
        for layer in reversed(small):
            content = registry.read(name.repository, _descriptor(layer))
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                for info in archive:
                    path = info.name.removeprefix("./")
                    file = archive.extractfile(info) if path in wanted and path not in found else None
                    if file:
                        found[path] = file.read()
            if len(found) == len(wanted):
                break
    return found


def _manifest(registry: Registry, name: Reference) -> Mapping[str, Any]:
    said: Mapping[str, Any] = json.loads(registry.manifest(name.repository, name.target).data)
    if "layers" not in said:
        raise UserError(
            f"{name} is an image for several platforms", hint="name the one that is meant by its digest"
        )
    return said


def _descriptor(said: Mapping[str, Any]) -> Descriptor:
    return Descriptor(media_type=said["mediaType"], digest=said["digest"], size=said["size"])
