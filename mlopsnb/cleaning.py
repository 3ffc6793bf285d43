"""Remove what can be made again, and say what that was."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mlopsnb.errors import UserError
from mlopsnb.images.cache import Store
from mlopsnb.images.environment import prober
from mlopsnb.settings import settings

_PARTS = {
    "images/blobs": "packed layers",
    "images/environments": "environments",
    "layouts": "images that were kept in the cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleanup:
    """What was removed, and its bytes; with `dry_run` what would have been."""

    removed: tuple[tuple[str, int], ...]
    dry_run: bool = False

    @property
    def freed(self) -> int:
        """Bytes of all that was removed."""
        return sum(size for _, size in self.removed)


def cleanup(*, images: bool = False, dry_run: bool = False) -> Cleanup:
    """Remove what past steps left in the cache; the next one makes what it needs again.

    Args:
        images: packed layers, environments and resolved locks of past builds, and images that `build` wrote to the
            cache because it was told no other place. Images in registries and engines stay.
        dry_run: say what would be removed, and remove nothing.

    Returns:
        A `Cleanup`: what was removed, and `.freed` bytes.

    Raises:
        UserError: nothing was chosen.
        BuildError: a build is using the cache; nothing was removed.
    """
    if not images:
        raise UserError("nothing was chosen to clean up", hint="cleanup(images=True)")
    cache = settings().cache_dir
    found = [(name, _size(cache / part)) for part, name in _PARTS.items()]
    if not dry_run:
        prober.end_all()
        Store(cache / "images").clear()
        shutil.rmtree(cache / "layouts", ignore_errors=True)
    return Cleanup(removed=tuple((name, size) for name, size in found if size), dry_run=dry_run)


def _size(directory: Path) -> int:
    """Return the bytes on the disk below *directory*; a file that has two names there counts once."""
    found = [(Path(root) / name).lstat() for root, _, names in os.walk(directory) for name in names]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in found}.values())
