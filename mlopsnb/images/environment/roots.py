"""What an image needs of packages: what the model names, what its server needs, what was declared. Pinned as here."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.errors import BuildError, UserError
from mlopsnb.images.environment import kernel
from mlopsnb.images.environment.kernel import canonical
from mlopsnb.images.environment.tools import clean

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from mlopsnb.manifest import Manifest

_EXTRAS = ("serving", "grpc")
_EXTRA = re.compile(r"""\bextra == ["']([^"']+)["']""")
_TARGET = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}


def roots(
    manifest: Manifest,
    *,
    extra: Sequence[str] = (),
    code_paths: Iterable[Path] = (),
    installed: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return the requirements of an image that serves the package of *manifest*, sorted, each held to one version.

    These are what the package and the model server need, what modules in *code_paths* import, and *extra*. Versions
    are those of the kernel (*installed*, by canonical name), unless the package or *extra* name another. What is not
    installed here stays as it is asked for.

    Raises `UserError` for an *extra* that is no requirement, or that names a file or URL.
    """
    here = kernel.versions() if installed is None else installed
    asked = [
        *(_parsed(text, "the package") for text in manifest.requirements),
        *_of_runtime(),
        *(_parsed(name, "code_paths") for name in _imported(code_paths)),
        *(_parsed(text, "requirements") for text in extra),
    ]
    merged: dict[tuple[str, str], Requirement] = {}
    for requirement in asked:
        name, marker = canonical(requirement.name), str(requirement.marker or "")
        if name == "mlopsnb":  # its files come as they are here
            continue
        known = merged.setdefault((name, marker), requirement)
        if known is not requirement:
            known.extras |= requirement.extras
            known.specifier &= requirement.specifier
    return tuple(sorted(_held(requirement, here.get(name)) for (name, _), requirement in merged.items()))


def _parsed(text: str, where: str) -> Requirement:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as exc:
        raise UserError(
            f"{where}: {clean(text)!r} is no requirement: {str(exc).splitlines()[0]}",
            hint="give NAME==VERSION",
        ) from None
    if requirement.url:
        raise UserError(
            f"{where}: {requirement.name} is asked for by its address, which an image cannot be built from again",
            hint=f"put its wheel into a directory, name that in PIP_FIND_LINKS, and ask for {requirement.name}==VERSION",
        )
    return requirement


def _of_runtime() -> list[Requirement]:
    """Return what the model server needs, from the metadata of mlopsnb itself."""
    try:
        lines = requires("mlopsnb") or []
    except PackageNotFoundError as exc:
        raise BuildError(
            "mlopsnb is not installed here, so nothing says what its model server needs",
            hint="pip install 'mlopsnb[serving,grpc]'",
        ) from exc
    requirements = [_parsed(line, "mlopsnb") for line in lines if _extra(line) in ("", *_EXTRAS)]
    return [
        _unmarked(r)
        for r in requirements
        if r.marker is None or r.marker.evaluate({**_TARGET, "extra": _extra(str(r.marker))})
    ]


def _extra(line: str) -> str:
    """Return the extra that the line of metadata belongs to, or nothing. To parse all of them takes long."""
    found = _EXTRA.search(line)
    return found[1] if found else ""


def _unmarked(requirement: Requirement) -> Requirement:
    requirement.marker = None
    return requirement


def _held(requirement: Requirement, installed: str | None) -> str:
    """Return *requirement* at its version here, unless it names one itself or does not take ours."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    marker = f" ; {requirement.marker}" if requirement.marker else ""
    name = f"{canonical(requirement.name)}{extras}"
    if installed and not exact(requirement) and takes(requirement, installed):
        return f"{name}=={installed}{marker}"
    return f"{name}{requirement.specifier}{marker}"


def exact(requirement: Requirement) -> bool:
    """Say whether *requirement* takes one version alone."""
    return any(s.operator in ("==", "===") and not s.version.endswith(".*") for s in requirement.specifier)


def takes(requirement: Requirement, version: str) -> bool:
    """Say whether *requirement* is met by *version*."""
    from packaging.version import InvalidVersion, Version

    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _imported(code_paths: Iterable[Path]) -> list[str]:
    """Return the installed packages that the modules in *code_paths* import, those of these paths themselves left out."""
    paths = list(code_paths)
    own = {path.stem for path in paths}
    modules: set[str] = set()
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            modules |= _imports(file)
    wanted = modules - own - sys.stdlib_module_names
    return sorted(set(kernel.providers(wanted).values())) if wanted else []


def _imports(file: Path) -> set[str]:
    """Return the top-level names that *file* imports anywhere; `UserError` if it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as exc:
        raise UserError(f"code_paths: {file} cannot be read as Python: {exc}") from exc
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
