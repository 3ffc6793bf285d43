"""What is installed beside us, in the kernel. Reads names of directories: metadata of hundreds of packages takes long."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlopsnb.images.environment.tools import clean

_INSTALLED = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.]*?)-(?P<version>[0-9][\w.+!]*?)(?:-py[0-9.]+)?\.(?:dist|egg)-info"
)
"""`NAME-VERSION.dist-info`, https://packaging.python.org/specifications/recording-installed-packages; eggs are older."""


def canonical(name: str) -> str:
    """Return the name of a package as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parsed(directory: str) -> tuple[str, str] | None:
    """Return the canonical name and the version that *directory*, of an installed package's metadata, is named after."""
    match = _INSTALLED.fullmatch(directory)
    return (canonical(match["name"]), match["version"]) if match else None


def versions(paths: Iterable[str] | None = None) -> dict[str, str]:
    """Return the version of each installed package, local part included; the first on the path is the one imported."""
    found: dict[str, str] = {}
    for directory in sys.path if paths is None else paths:
        with suppress(OSError):
            for entry in sorted(os.listdir(directory or ".")):  # noqa: PTH208  `Path` takes thrice as long
                if package := parsed(entry):
                    found.setdefault(*package)
    return found


def origin(name: str, paths: Iterable[str] | None = None) -> str:
    """Return where the package *name* was installed from, if that was no index (PEP 610), without credentials."""
    for directory in sys.path if paths is None else paths:
        with suppress(OSError, ValueError):
            for entry in os.listdir(directory or "."):  # noqa: PTH208
                package = parsed(entry)
                if package and package[0] == name:
                    record: Any = json.loads((Path(directory) / entry / "direct_url.json").read_bytes())
                    return clean(str(record.get("url", "")))
    return ""


def providers(modules: Iterable[str]) -> dict[str, str]:
    """Return the installed package that each of *modules* comes from, of those that do. Takes a moment."""
    from importlib.metadata import packages_distributions

    known = packages_distributions()
    return {module: canonical(known[module][0]) for module in modules if module in known}
