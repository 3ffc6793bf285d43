"""Wheels that a build context brings along, as files: those of the lock that no public index has."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlopsnb import events
from mlopsnb.errors import BuildError, MissingExtra
from mlopsnb.images.environment import sources
from mlopsnb.images.environment.tools import Tool
from mlopsnb.images.errors import storing

if TYPE_CHECKING:
    from mlopsnb.images.lock import Lock, LockedPackage


def bring(packages: Iterable[LockedPackage], lock: Lock, cache: Path) -> Mapping[str, Path]:
    """Return the files of *packages* by name: where they lie on this machine, else downloaded into *cache*.

    pip downloads them, with the index, proxy, certificates and credentials that it is configured with. `BuildError`
    if one cannot be had, or is not the one that was locked.
    """
    found: dict[str, Path] = {}
    for package in packages:
        path = _local(package) or cache / package.sha256 / package.filename
        if not path.is_file():
            _download(package, lock, path)
        if _sha256(path) != package.sha256:
            raise BuildError(
                f"{path.name} is not the wheel that was locked: its SHA-256 should be {package.sha256}",
                hint="build again; if that does not help, the index has replaced the file",
            )
        found[package.filename] = path
    return found


def _local(package: LockedPackage) -> Path | None:
    parts = urlsplit(package.url)
    path = Path(url2pathname(parts.path)) if parts.scheme == "file" else None
    return path if path and path.is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(package: LockedPackage, lock: Lock, path: Path) -> None:
    if find_spec("pip") is None:
        raise MissingExtra("pip", "docker")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = path.parent / "requirement.txt"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    except OSError as exc:
        raise storing(path, exc) from exc
    events.report_progress("fetch", package.filename)
    command: list[str | Path] = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes")
    ]
    command += ["--only-binary", ":all:", "--python-version", lock.python, "--dest", path.parent]
    for platform in package.filename.removesuffix(".whl").rpartition("-")[2].split("."):
        command += ["--platform", platform]
    command += ["--requirement", wanted]
    with Tool(command, env=sources.for_pip()) as tool:
        done = tool.wait()
    if done.status or not path.is_file():
        said = [line for line in done.said.splitlines() if line.strip()][-1:] or ["it wrote another file"]
        raise BuildError(
            f"pip cannot download {package.filename}: {said[0][:300]}",
            hint="the image needs it, and no public index has it; check pip's index and find-links settings",
        )
