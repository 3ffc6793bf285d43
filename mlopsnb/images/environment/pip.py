"""Resolves and installs by pip (https://pip.pypa.io) where there is no uv. Slower, and for this platform alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mlopsnb.errors import BuildError
from mlopsnb.images.environment import failures
from mlopsnb.images.environment.kernel import canonical
from mlopsnb.images.environment.tools import Tool, clean
from mlopsnb.images.lock import Lock, LockedPackage

if TYPE_CHECKING:
    from mlopsnb.images.environment.request import Request

_COMMON = ("--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--no-color")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of builds without CUDA, which uv knows by the name `cpu`."""

_REQUIRED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def available() -> bool:
    """Say whether pip is installed here."""
    return find_spec("pip") is not None


def resolve(
    request: Request, env: Mapping[str, str], scratch: Path, *, backend: str = ""
) -> tuple[LockedPackage, ...]:
    """Return the wheels that *request* comes to, with who wants each; see `uv.resolve`."""
    constraints, roots, report = (scratch / name for name in ("constraints.txt", "roots.txt", "report.json"))
    constraints.write_text(request.constraints, encoding="utf-8")
    roots.write_text("\n".join(request.roots) + "\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--report", report, *_COMMON),
        *("--ignore-installed", "-r", roots, "-c", constraints),
        *(("--extra-index-url", CPU_INDEX) if backend == "cpu" else ()),
    ]
    with Tool(command, env=env) as tool:
        done = tool.wait()
    if done.status != 0:
        raise failures.pip_failed(f"{done.said}\n{clean(done.out)}", request)
    return parse(report.read_text(encoding="utf-8"))


def parse(report: str) -> tuple[LockedPackage, ...]:
    """Read pip's report of an installation: https://pip.pypa.io/en/stable/reference/installation-report."""
    try:
        installed = json.loads(report)["install"]
        wants = _wanted_by(item["metadata"] for item in installed)
        found = [_package(item, wants) for item in installed]
    except (KeyError, TypeError, ValueError) as exc:
        raise BuildError(
            f"the report that pip made cannot be read: {exc!r}", hint="pip install --upgrade pip uv"
        ) from exc
    return tuple(sorted(found, key=lambda package: package.name))


def _package(item: Mapping[str, Any], wants: Mapping[str, set[str]]) -> LockedPackage:
    url, name = clean(item["download_info"]["url"]), canonical(item["metadata"]["name"])
    return LockedPackage(
        name=name,
        version=item["metadata"]["version"],
        filename=unquote(PurePosixPath(urlsplit(url).path).name),
        sha256=item["download_info"]["archive_info"]["hashes"]["sha256"],
        url=url,
        wanted_by=tuple(sorted(wants.get(name, ()))),
    )


def _wanted_by(metadata: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return who requires what, extras left aside: pip does not say which of them were asked for."""
    wants: dict[str, set[str]] = {}
    for package in metadata:
        for line in package.get("requires_dist", ()):
            required = _REQUIRED.match(line)
            if required and "extra ==" not in line:
                wants.setdefault(canonical(required[0]), set()).add(canonical(package["name"]))
    return wants


def install(lock: Lock, into: Path, env: Mapping[str, str], on_line: Callable[[str], None]) -> None:
    """Install *lock* into the directory *into*; see `uv.install`."""
    wheels = into.parent / "lock.txt"
    wheels.write_text(lock.text, encoding="utf-8")
    command = [
        *(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--target",
            into,
            "-r",
            wheels,
            "--no-deps",
            "--require-hashes",
        ),
        *("--no-compile", "--no-warn-script-location", *_COMMON),
        *(("--extra-index-url", CPU_INDEX) if any(CPU_INDEX in p.url for p in lock.packages) else ()),
    ]
    with Tool(command, env=env) as tool:
        done = tool.wait(on_line)
    wheels.unlink()
    if done.status != 0:
        raise failures.installation_failed(done.said, {"path": str(into)})
