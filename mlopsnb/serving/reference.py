"""From a package's reference profile to the counters of one process: reads the one, finds a place for the other.

Nothing of it keeps a server from serving: what cannot be done is told at /profile and in the log.
"""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb import profiles
from mlopsnb.serving import windows
from mlopsnb.serving.counters import Counters
from mlopsnb.serving.windows import Layout, Windows

if TYPE_CHECKING:
    from mlopsnb.serving.model import Package

NO_REFERENCE = (
    "the package has no reference profile; log the model with reference= to have its live data counted"
)
_log = logging.getLogger("mlopsnb.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one process of a server counts: as *part* of *parts*, in a file in *directory* or in memory.

    *first*: it makes what the others find. They have the memory *shared*. A window has *seconds*.
    """

    directory: Path | None = None
    seconds: int = windows.WINDOW_SECONDS
    parts: int = 1
    part: int = 0
    first: bool = True
    shared: mmap.mmap | None = None
    clock: Callable[[], float] = time.time


def counters(package: Package, place: Place) -> Counters | str:
    """Return what counts for *package* at *place*, or why nothing does."""
    try:
        profile = profiles.from_json((package.path / profiles.FILE).read_bytes())
    except FileNotFoundError:
        return NO_REFERENCE
    except (OSError, profiles.BadProfile) as exc:
        _log.warning("live rows are not counted: %s", exc)
        return f"the reference profile cannot be read: {exc}"
    layout = Layout.fitting(
        profile.digest, profile.cells, 2 * len(profile.features), place.parts, seconds=place.seconds
    )
    if layout is None:
        return f"the reference profile has {len(profile.features)} features, too many to be counted"
    notes: list[str] = []
    return Counters(profile, package.manifest.signature, _windows(layout, place, notes), notes=notes)


def _windows(layout: Layout, place: Place, notes: list[str]) -> Windows:
    if place.directory is not None:
        try:
            if place.first:
                return windows.in_directory(place.directory, layout, place.clock)
            return windows.beside(place.directory, layout, place.part, place.clock)
        except OSError as exc:
            why = exc.strerror or str(exc)
            notes.append(f"the counters end with the server: {place.directory} cannot be used: {why}")
            _log.warning("%s", notes[-1])
    return windows.in_memory(layout, place.clock, shared=place.shared, part=place.part)
