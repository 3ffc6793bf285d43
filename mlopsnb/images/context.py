"""The plan as a directory that any builder of Dockerfiles can build, without mlopsnb: `export=DIR`.

`context` is pure: it says which files the Dockerfile needs. `export` writes them to a directory.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.errors import BuildError
from mlopsnb.images import dockerfile
from mlopsnb.images.errors import storing
from mlopsnb.images.plan import ROOT, Entry
from mlopsnb.images.planning import WEIGHTS, site_packages

if TYPE_CHECKING:
    from mlopsnb.images.lock import LockedPackage
    from mlopsnb.images.plan import ImagePlan

_OURS = re.compile(
    r"Dockerfile|README\.md|\.dockerignore|requirements\.txt|wheels|scripts|lists"
    r"|environment|runtime|metadata|(weights|kept-out)-\d+"
)
"""The names that an export writes."""


def private(plan: ImagePlan, *, own_index: bool) -> tuple[LockedPackage, ...]:
    """Return the wheels that the context has to bring along, since not every builder finds them.

    These are files of this machine, local versions, which PyPI takes none of, and with *own_index*, which says that
    the user has set up an index besides PyPI or in its place, all: which of the two has a wheel is not known.
    """
    return tuple(
        p for p in plan.lock.packages if own_index or "+" in p.version or not p.url.startswith("https://")
    )


def context(
    plan: ImagePlan,
    wheels: Mapping[str, Path],
    *,
    base: str = "",
    apt: Sequence[str] = (),
    steps: Sequence[str] = (),
) -> tuple[Entry, ...]:
    """Return the files of the context, sorted by path; *wheels* are those that come along, by file name.

    *base*, *apt* and *steps* are as `dockerfile.render` takes them.
    """
    fetched = len(wheels) < len(plan.lock.packages)
    text = dockerfile.render(plan, fetched=fetched, brought=bool(wheels), base=base, apt=apt, steps=steps)
    requirements = plan.lock.text.encode()
    entries = [
        Entry(path="Dockerfile", source=text.encode()),
        Entry(path="README.md", source=_readme(plan, fetched=fetched).encode()),
        Entry(path="requirements.txt", source=requirements),
        *(Entry(path=f"wheels/{name}", source=path) for name, path in wheels.items()),
        *_scripts(),
        *_lists(plan, hashlib.sha256(requirements).hexdigest()),
        *_files(plan),
    ]
    needed = sorted({entry.path.partition("/")[0] for entry in entries})
    ignored = "".join(f"{line}\n" for line in ("*", *(f"!{name}" for name in needed)))
    return tuple(sorted([*entries, Entry(path=".dockerignore", source=ignored.encode())], key=_path))


def _path(entry: Entry) -> str:
    return entry.path


def _scripts() -> Iterator[Entry]:
    inside = resources.files("mlopsnb.images.inside")
    for name in ("assemble.py", "check.py"):
        yield Entry(path=f"scripts/{name}", source=(inside / name).read_bytes())


def _lists(plan: ImagePlan, lock: str) -> Iterator[Entry]:
    """Yield what `assemble.py` reads: of each layer of wheels, its files in site-packages and their modes."""
    site = f"{site_packages(plan.lock.python)}/"
    for name, layer in dockerfile.installed(plan).items():
        lines = [lock, *sorted(f"{entry.path.removeprefix(site)}\t{entry.mode:o}" for entry in layer.entries)]
        yield Entry(path=f"lists/{name}.txt", source="".join(f"{line}\n" for line in lines).encode())


def _files(plan: ImagePlan) -> Iterator[Entry]:
    for layers, place in ((dockerfile.copied(plan), ROOT), (dockerfile.kept_out(plan), WEIGHTS)):
        for name, layer in layers.items():
            for entry in layer.entries:
                yield replace(entry, path=f"{name}/{entry.path.removeprefix(f'{place}/')}")


def _readme(plan: ImagePlan, *, fetched: bool) -> str:
    name = f"{plan.repository}:{plan.tag}"
    index = (
        "Wheels come from PyPI, or from `--build-arg PIP_INDEX_URL=…`; those that it lacks are in `wheels/`."
        if fetched
        else "All wheels are in `wheels/`; the build needs no network but for the base image."
    )
    return f"""# {name}

A model and its server as a build context. It needs neither mlopsnb nor BuildKit:

    docker build -t {name} .
    docker run --rm --read-only --cap-drop ALL -p 8080:8080 -p 8081:8081 {name}

{index} Each is checked against its digest in `requirements.txt`.
The build serves the model once and compares its answers with those it was exported with; a difference fails the build.
"""


def export(entries: Sequence[Entry], into: Path) -> Path:
    """Write *entries* to the directory *into* and return it.

    What an earlier export wrote there is replaced and other files are left alone; `BuildError` if one is in the way.
    """
    new = {entry.path.partition("/")[0] for entry in entries}
    old = _earlier(into)
    if foreign := sorted(name for name in new - old if os.path.lexists(into / name)):
        raise BuildError(
            f"{into} has a {foreign[0]} that no earlier export wrote; nothing was changed",
            hint="give a directory that is new, empty or of an earlier export",
        )
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlopsnb-", dir=into) as made:
            place = Path(made)
            for entry in entries:
                _write(entry, place / "new" / entry.path)
            (place / "old").mkdir()
            for name in old:
                (into / name).rename(place / "old" / name)
            for name in new:
                (place / "new" / name).rename(into / name)
    except OSError as exc:
        raise storing(into, exc) from exc
    return into


def _earlier(into: Path) -> set[str]:
    """Return the names in *into* that an earlier export wrote."""
    try:
        with (into / "Dockerfile").open(encoding="utf-8") as file:
            ours = file.readline().rstrip("\n") == dockerfile.HEADER
    except (OSError, UnicodeDecodeError):
        ours = False
    return {p.name for p in into.iterdir() if _OURS.fullmatch(p.name)} if ours else set()


def _write(entry: Entry, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.link:
        target.symlink_to(entry.link)
    elif isinstance(entry.source, Path):
        shutil.copyfile(entry.source, target)
        target.chmod(entry.mode)
    else:
        target.write_bytes(entry.source or b"")
        target.chmod(entry.mode)
