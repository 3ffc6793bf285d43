"""Resolves and installs by uv (https://docs.astral.sh/uv): one process each, on uv's own cache."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from mlopsnb.errors import BuildError
from mlopsnb.images.environment import failures, sources
from mlopsnb.images.environment.kernel import canonical
from mlopsnb.images.environment.request import PLATFORMS, Request
from mlopsnb.images.environment.tools import Tool, clean
from mlopsnb.images.lock import Lock, LockedPackage

_COMMON = ("--only-binary", ":all:", "--no-progress", "--color", "never")
_PYTORCH = re.compile(r"//download(?:-r2)?\.pytorch\.org/whl/(?P<backend>[a-z0-9.]+)/")


def find() -> Path | None:
    """Return uv's program, the one installed beside us first, or None."""
    if find_spec("uv") is not None:
        import uv

        try:
            return Path(uv.find_uv_bin())
        except FileNotFoundError:
            pass
    found = shutil.which("uv")
    return Path(found) if found else None


def resolve(
    uv: Path, request: Request, env: Mapping[str, str], scratch: Path, *, backend: str = ""
) -> tuple[LockedPackage, ...]:
    """Return the wheels that *request* comes to, with who wants each.

    *scratch* is a directory to write to; *backend* takes PyTorch's packages from its own index (`cpu`). Raises
    `Unresolvable`, `NoWheel`, `IndexFailed` or `DiskFull`.
    """
    constraints = scratch / "constraints.txt"
    constraints.write_text(request.constraints, encoding="utf-8")
    command = [
        *(uv, "pip", "compile", "-", "--constraints", constraints, "--python", sys.executable),
        *("--python-version", request.full_python, "--python-platform", PLATFORMS[request.platform]),
        *("--no-header", *_COMMON, *_no_index(env), *(("--torch-backend", backend) if backend else ())),
    ]
    given = "\n".join(request.roots)
    told = (*command, "--annotation-style", "line")
    with (
        Tool((*command, "--format", "pylock.toml"), env=env, given=given) as first,
        Tool(told, env=env, given=given) as second,  # the lock does not say who wants what
    ):
        lock = first.wait()
        if lock.status != 0:
            raise failures.failed(lock.said, request)
        return parse(lock.out, wanted_by(second.wait().out))


def _no_index(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return what keeps uv off any index, for which it has no variable."""
    return ("--no-index",) if env.get(sources.NO_INDEX) else ()


def parse(pylock: str, wants: Mapping[str, tuple[str, ...]]) -> tuple[LockedPackage, ...]:
    """Read a lock as PEP 751 has it, one wheel for each package; *wants* says who requires it."""
    try:
        entries = tomllib.loads(pylock)["packages"]
        found = [_package(entry, wants) for entry in entries]
    except (KeyError, IndexError, TypeError, tomllib.TOMLDecodeError) as exc:
        raise BuildError(
            f"the lock that uv made cannot be read: {exc!r}", hint="pip install --upgrade uv"
        ) from exc
    return tuple(sorted(found, key=lambda package: package.name))


def _package(entry: Mapping[str, Any], wants: Mapping[str, tuple[str, ...]]) -> LockedPackage:
    wheel, name = entry["wheels"][0], canonical(entry["name"])
    url = clean(wheel.get("url") or Path(wheel["path"]).absolute().as_uri())
    return LockedPackage(
        name=name,
        version=entry["version"],
        filename=wheel.get("name") or unquote(PurePosixPath(urlsplit(url).path).name),
        sha256=wheel["hashes"]["sha256"],
        url=url,
        wanted_by=wants.get(name, ()),
    )


def wanted_by(text: str) -> dict[str, tuple[str, ...]]:
    """Read who requires what from lines `NAME==VERSION  # via NAME, NAME`, uv's annotations."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        requirement, _, via = line.partition("# via ")
        names = (part.strip() for part in via.split(","))
        wanted = {canonical(n) for n in names if n and not n.startswith(("-r ", "-c ", "-"))}
        found[canonical(requirement.partition("==")[0].strip())] = tuple(sorted(wanted))
    return found


def install(uv: Path, lock: Lock, into: Path, env: Mapping[str, str], on_line: Callable[[str], None]) -> None:
    """Install *lock* into the directory *into*, its files linked from uv's cache where that can be.

    Raises `IndexFailed`, `DiskFull`, or `BuildError` if a wheel is not the locked one.
    """
    command: list[str | Path] = [
        *(uv, "pip", "install", "--target", into, "-r", "-", "--no-deps", "--require-hashes"),
        *("--python", sys.executable, "--python-version", lock.python),
        *("--python-platform", PLATFORMS[lock.platform], "--link-mode", "hardlink", "--no-compile-bytecode"),
        *("--no-build", *_COMMON[2:], *_no_index(env)),
    ]
    if backends := {m["backend"] for p in lock.packages if (m := _PYTORCH.search(p.url))}:
        command += ["--torch-backend", min(backends)]
    with Tool(command, env=env, given=lock.text) as tool:
        done = tool.wait(on_line)
    if done.status != 0:
        raise failures.installation_failed(done.said, {"path": str(into)})
