"""The environment of an image: from what a model needs to a tree of installed packages that was seen to run it.

`roots` says what is needed, `locking` at which versions and from which wheels, `install` unpacks them, `prove` loads
and runs the model there and yields compiled modules, `diff` shows where notebook, lock and image differ. Packs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlopsnb.images.lock import Lock


class InstalledFile(NamedTuple):
    """One file of an installed package; a tuple, for there are tens of thousands.

    `path` is relative to `site-packages`, `size` in bytes, `sha256` in hex as the wheel records it; `mode` is 0o755
    or 0o644.
    """

    path: str
    size: int
    sha256: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Environment:
    """The packages of a lock, installed and stripped: what `root` holds goes into the image, and nothing else.

    Equal only to itself, so that what is worked out for one can be kept.

    `root` is a `site-packages` directory; it is shared by builds and hard links lead to its files, so nobody may write
    there. `packages` maps each name of the lock to its files.
    """

    lock: Lock
    root: Path
    packages: Mapping[str, tuple[InstalledFile, ...]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for files in self.packages.values() for file in files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytecode:
    """Compiled modules, those that loading and serving the model imports, by their path in `site-packages`.

    They are found valid without a look at their sources (PEP 552, unchecked), which never change in an image. `notes`
    say what could not be proved here, and why. `standard` are the modules of Python's own library that it imports as well,
    by their path there.
    """

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()
    standard: tuple[str, ...] = ()
