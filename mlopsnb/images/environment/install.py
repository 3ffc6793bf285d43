"""From a lock to a tree of installed, stripped packages. Kept by the lock's digest, shared by all builds and kernels.

The tree is made under a name of its own and renamed when it is whole. Files are hard links into uv's cache where that
is on the same disk, so a tree takes little room and is never written to.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import BuildError, MissingExtra
from mlopsnb.events import report_line, report_progress, step
from mlopsnb.images.cache import SIZE, Store
from mlopsnb.images.environment import Environment, InstalledFile, pip, sources, stripping, uv
from mlopsnb.images.environment.kernel import canonical
from mlopsnb.images.environment.request import here, minor
from mlopsnb.images.errors import storing

if TYPE_CHECKING:
    from mlopsnb.images.lock import Lock

_FORMAT = "1"
_SITE = "site-packages"
_INDEX = "files.json"


def install(lock: Lock, cache: Path) -> Environment:
    """Return the packages of *lock* as they go into an image, from the directory *cache* if they were there before.

    A build must be `using` the store at *cache* for as long as it reads the tree. Raises `IndexFailed`, `DiskFull`,
    `BuildError` if a wheel is not the locked one, and `MissingExtra` where neither uv nor pip is.
    """
    place = cache / "environments" / _key(lock)
    if (found := _kept(lock, place)) is not None:
        return found
    store = Store(cache)
    with store.using(), store.alone(f"environment {place.name}"):
        if (found := _kept(lock, place)) is not None:  # made meanwhile by another kernel
            return found
        with step("install", f"{len(lock.packages)} packages") as log, _draft(cache) as (draft, trash):
            _run(lock, draft / _SITE)
            packages = _files(draft / _SITE, trash)
            _write(draft / _INDEX, packages)
            environment = Environment(lock=lock, root=place / _SITE, packages=packages)
            (draft / SIZE).write_text(str(environment.size), encoding="ascii")
            _keep(draft, place)
            log.result = f"{len(packages)} packages, {environment.size / 1e6:.0f} MB"
            return environment


def _key(lock: Lock) -> str:
    return hashlib.sha256(f"{_FORMAT} {stripping.PROFILE} {lock.digest}".encode()).hexdigest()


def _kept(lock: Lock, place: Path) -> Environment | None:
    try:
        index = (place / _INDEX).stat()
        os.utime(place)  # the store removes what was not used for longest
        return _read(lock, place, index.st_ino, index.st_mtime_ns)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=2)
def _read(lock: Lock, place: Path, inode: int, changed: int) -> Environment:
    """Return the environment at *place*: tens of thousands of files, so read once while its index is the same file."""
    rows = json.loads((place / _INDEX).read_bytes())
    packages = {name: tuple(InstalledFile(*row) for row in files) for name, files in rows.items()}
    return Environment(lock=lock, root=place / _SITE, packages=packages)


@contextmanager
def _draft(cache: Path) -> Iterator[tuple[Path, Path]]:
    """Yield two directories, not there yet: the draft, which is gone after the block unless it was kept, and trash."""
    place = cache / "tmp"
    try:
        place.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix="environment-", dir=place))
    except OSError as exc:
        raise storing(place, exc) from exc
    try:
        (room / "draft").mkdir()
        yield room / "draft", room / "trash"
    except BaseException as exc:
        shutil.rmtree(room, ignore_errors=True)
        if isinstance(exc, OSError):
            raise storing(room, exc) from exc
        raise
    Thread(target=shutil.rmtree, args=(room, True)).start()  # nobody need wait for it


def _run(lock: Lock, into: Path) -> None:
    into.mkdir()
    if not lock.packages:
        return

    def tell(line: str) -> None:
        if line.strip().startswith("Downloading"):
            report_progress("install", line.strip().lower())
        else:
            report_line("install", line)

    if (program := uv.find()) is not None:
        uv.install(program, lock, into, sources.for_uv(), tell)
    elif pip.available() and (lock.platform, lock.python) == (here(), minor()):
        pip.install(lock, into, sources.for_pip(), tell)
    else:
        raise MissingExtra("uv", "images")


def _files(root: Path, trash: Path) -> dict[str, tuple[InstalledFile, ...]]:
    """Return what each package installed and an image needs, by the packages' own records; move the rest to *trash*.

    What is proved is then what goes into the image. Of a file that several packages bring, the one that lies there
    counts.
    """
    records = {
        canonical(record.parent.name.partition("-")[0]): dict(_recorded(record))
        for record in sorted(root.glob("*.dist-info/RECORD"))
    }
    kept = {path for files in records.values() for path in files}
    there = _strip(root, kept, trash)
    if missing := sorted(kept - there.keys()):
        owner = next(name for name, files in records.items() if missing[0] in files)
        raise BuildError(
            f"{owner}: {missing[0]} was not installed",
            hint="the cache of packages is damaged: uv cache clean, or pip cache purge",
        )
    _settle(root, records)
    return {
        name: tuple(
            InstalledFile(path, *_size(there[path], digest)) for path, digest in sorted(files.items())
        )
        for name, files in sorted(records.items())
    }


def _size(status: os.stat_result, digest: str) -> tuple[int, str, int]:
    return status.st_size, digest, 0o755 if status.st_mode & 0o111 else 0o644


def _recorded(record: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of one package with their digests, in hex.

    Source: https://packaging.python.org/specifications/recording-installed-packages.
    """
    with record.open(encoding="utf-8", newline="") as lines:
        for path, digest, _ in csv.reader(lines):
            if stripping.is_needed(path):
                algorithm, _, value = digest.partition("=")
                if algorithm == "sha256":
                    yield path, base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
                else:
                    yield path, _sha256(record.parent.parent / path)


def _settle(root: Path, records: Mapping[str, dict[str, str]]) -> None:
    """Leave a file that several packages bring to the one whose it is."""
    owners: dict[str, str] = {}
    for name, files in records.items():
        for path, digest in list(files.items()):
            other = owners.setdefault(path, name)
            if other == name:
                continue
            if records[other][path] != digest and _sha256(root / path) == digest:
                del records[other][path]
                owners[path] = name
            else:
                del files[path]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _strip(root: Path, kept: set[str], trash: Path) -> dict[str, os.stat_result]:
    """Move directories without any of the *kept* files to *trash*, remove other files, and return what is left.

    To remove all of a framework's headers one by one takes longer than to install it.
    """
    trash.mkdir()
    directories = {path[:i] for path in kept for i, letter in enumerate(path) if letter == "/"}
    found: dict[str, os.stat_result] = {}
    left = [""]
    while left:
        above = left.pop()
        with os.scandir(root / above) as entries:
            for entry in entries:
                path = f"{above}/{entry.name}" if above else entry.name
                if path in kept:
                    found[path] = entry.stat()
                elif path in directories:
                    left.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    Path(entry.path).rename(trash / path.replace("/", "!"))
                else:
                    os.unlink(entry.path)  # noqa: PTH108  thousands of them
    return found


def _write(path: Path, packages: Mapping[str, tuple[InstalledFile, ...]]) -> None:
    rows: Mapping[str, Any] = packages
    path.write_text(json.dumps(rows, separators=(",", ":")), encoding="utf-8")


def _keep(draft: Path, place: Path) -> None:
    """Move the finished draft to its place in one step."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():  # half of it, from a disk that went down
        shutil.rmtree(place)
    draft.chmod(0o755)
    draft.rename(place)
