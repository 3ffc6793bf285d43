"""Where the notebook's packages, the lock and what an image holds differ. Pure, but for `kernel.versions`."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlopsnb.images.environment import kernel
from mlopsnb.images.environment.request import here, minor

if TYPE_CHECKING:
    from mlopsnb.images.lock import Lock, LockedPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One package, or `python` or `platform`: its version in the notebook, the lock and the image, and what it means.

    A version is empty where there is none.
    """

    name: str
    notebook: str
    lock: str
    image: str
    note: str


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences, by name. Empty if a model meets the same versions in the image as in the notebook."""

    differences: tuple[Difference, ...]

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __str__(self) -> str:
        if not self.differences:
            return "the image has what the notebook has"
        rows = [("", "notebook", "lock", "image", "")]
        rows += [(d.name, d.notebook or "-", d.lock or "-", d.image or "-", d.note) for d in self.differences]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def diff(
    lock: Lock, *, installed: Mapping[str, str] | None = None, image: Mapping[str, str] | None = None
) -> Diff:
    """Compare *lock* with the kernel's packages (*installed*) and with those found in an *image*, by canonical name.

    Packages of the notebook that the lock does without are no difference. Without *image* it is taken to hold the lock.
    """
    notebook = kernel.versions() if installed is None else installed
    found = [_of_machine(name, *both) for name, both in _machine(lock).items()]
    found += [_of_package(package, notebook, image) for package in lock.packages]
    if image is not None:
        locked = {package.name for package in lock.packages}
        found += [
            Difference(name=n, notebook=notebook.get(n, ""), lock="", image=v, note="not in the lock")
            for n, v in sorted(image.items())
            if n not in locked and n != "mlopsnb"
        ]
    return Diff(tuple(sorted((d for d in found if d is not None), key=lambda d: d.name)))


def in_image(paths: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages whose files have *paths* in an image."""
    names = {part for path in paths for part in path.split("/") if part.endswith(".dist-info")}
    return dict(filter(None, map(kernel.parsed, sorted(names))))


def _machine(lock: Lock) -> dict[str, tuple[str, str]]:
    return {
        "python": (minor(), lock.python),
        "platform": (here() or platform.platform(terse=True), lock.platform),
    }


def _of_machine(name: str, notebook: str, lock: str) -> Difference | None:
    if notebook == lock:
        return None
    note = "the model was not loaded from the environment before it was packed"
    return Difference(name=name, notebook=notebook, lock=lock, image=lock, note=note)


def _of_package(
    package: LockedPackage, notebook: Mapping[str, str], image: Mapping[str, str] | None
) -> Difference | None:
    here = notebook.get(package.name, "")
    there = package.version if image is None else image.get(package.name, "")
    notes = [_note(here, package), "" if there == package.version else _missed(there)]
    if not any(notes):
        return None
    return Difference(
        name=package.name,
        notebook=here,
        lock=package.version,
        image=there,
        note="; ".join(note for note in notes if note),
    )


def _note(here: str, package: LockedPackage) -> str:
    if here == package.version:
        return ""
    if not here:
        who = f", wanted by {', '.join(package.wanted_by)}" if package.wanted_by else ""
        return f"not installed in the notebook{who}"
    if here.partition("+")[0] == package.version.partition("+")[0]:
        return "another build of the same version"
    return "another version than the notebook's"


def _missed(there: str) -> str:
    return "the image has another version" if there else "the image lacks it"
