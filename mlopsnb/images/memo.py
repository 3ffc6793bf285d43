"""Which image the same inputs gave before, so that a build that would change nothing only looks whether it is there.

A memo is a note in the store. Its key is a digest of everything that the image is made from; what is not in there
cannot change an image. That an image is still where it was brought is asked of that place, by one request.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import BuildError, MissingExtra
from mlopsnb.images.environment import kernel, sources
from mlopsnb.images.image import Destination, Image, ImageLayer
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.images.references import parse

if TYPE_CHECKING:
    from mlopsnb.images.cache import Store

_KIND = "builds"

FRESH = 600.0
"""Seconds for which a base named by a tag is taken to be what it was."""

_asked: dict[str, tuple[float, str]] = {}


def key(inputs: Mapping[str, object]) -> str:
    """Return the key of a build from *inputs*, which say what is built; what all builds depend on is added."""
    everything = {
        **inputs,
        "kernel": [sys.version, kernel.versions()],
        "mlopsnb": sorted(files_seen([Path(__file__).parents[1]], suffix=".py")),
        "indexes": [sources.key(os.environ, tool=tool) for tool in ("pip", "uv")],
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


def files_seen(paths: Sequence[Path], *, suffix: str = "") -> Iterator[tuple[str, int, int, int]]:
    """Yield path, size, time of change (ns) and inode of every file that *paths* are or hold: none is read."""
    for path in paths:
        for file in _walk(path, suffix):
            found = file.stat()
            yield str(file), found.st_size, found.st_mtime_ns, found.st_ino


def _walk(path: Path, suffix: str) -> Iterator[Path]:
    if path.is_file():
        yield path
    for root, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(root) / name for name in names if name.endswith(suffix))


def pinned(base: str) -> str:
    """Return what *base* means now: its digest, as its registry said within the last ten minutes, else its name."""
    name = parse(base)
    if name.digest:
        return name.digest
    asked_at, digest = _asked.get(base, (float("-inf"), ""))
    if time.monotonic() - asked_at > FRESH:
        from mlopsnb.images.registry import connect

        try:
            with connect(name.registry) as registry:
                digest = registry.resolve(name.repository, name.target)
        except (BuildError, MissingExtra):
            return base  # it may be in the engine; if it is nowhere, the build says so
        _asked[base] = time.monotonic(), digest
    return digest or base


def remember(store: Store, key: str, image: Image) -> None:
    """Note that the build of this *key* made *image*."""
    store.set_note(_KIND, key, dataclasses.asdict(image) | {"destination": _place_json(image.destination)})


def recall(store: Store, key: str) -> Image | None:
    """Return the image that the build of this *key* made, if it is still where it was brought."""
    data = store.note(_KIND, key)
    if data is None:
        return None
    try:
        image = _image(data)
    except (KeyError, TypeError):  # another version of mlopsnb wrote it
        return None
    return image if there(image) else None


def _place_json(to: Destination) -> dict[str, Any]:
    return {"place": to.place, "registry": to.registry, "path": None if to.path is None else str(to.path)}


def _image(data: dict[str, Any]) -> Image:
    to, lock = data["destination"], data["lock"]
    packages = tuple(LockedPackage(**{**p, "wanted_by": tuple(p["wanted_by"])}) for p in lock["packages"])
    return Image(
        **{
            **data,
            "destination": Destination(**{**to, "path": to["path"] and Path(to["path"])}),
            "layers": tuple(ImageLayer(**layer) for layer in data["layers"]),
            "lock": Lock(**{**lock, "packages": packages}),
            "sent": 0,
        }
    )


def there(image: Image) -> bool:
    """Ask the place where *image* was brought whether its tag still names it; False if that cannot be said."""
    try:
        return _tagged(image)
    except (BuildError, MissingExtra):
        return False  # the build that follows meets the same failure, and says what is wrong


def _tagged(image: Image) -> bool:
    match image.destination.place:
        case "registry":
            from mlopsnb.images.registry import connect

            name = parse(image.tagged)
            with connect(name.registry) as registry:
                return registry.digest(name.repository, name.tag) == image.digest
        case "engine":
            from mlopsnb.images.engine import Engine

            with Engine() as engine:
                found = engine.image(image.tagged)
                return found is not None and found.id == image.id
        case "layout" | "archive":
            from mlopsnb.images.layout import Layout

            path = image.destination.path
            assert path is not None
            tag = image.tagged.rpartition(":")[2]
            return path.exists() and Layout(path).manifest(tag).digest == image.digest
