"""Which files go into an image besides the packages: the model server, the model package, the user's own modules.

Looks at the disk so that the planner need not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from mlopsnb import manifest
from mlopsnb.errors import BuildError, UserError
from mlopsnb.images.plan import File
from mlopsnb.images.planning import data_file
from mlopsnb.version import __version__

RUNTIME = (
    *(
        "__init__.py",
        "errors.py",
        "extras.py",
        "manifest.py",
        "parity.py",
        "plugins.py",
        "profiles.py",
        "protocols.py",
    ),
    *("records.py", "tensors.py", "version.py", "formats", "serving"),
)
"""What the server imports of mlopsnb; a test holds that it needs nothing else."""

_LEFT_OUT = ("__pycache__",)


def runtime_files() -> tuple[File, ...]:
    """Return the model server's files by their path in `site-packages`."""
    home = Path(str(resources.files("mlopsnb")))
    found = [data_file(f"mlopsnb/{path}", (home / path).read_bytes()) for path in _named(home, RUNTIME)]
    text = f"Metadata-Version: 2.1\nName: mlopsnb\nVersion: {__version__}\n"
    name = f"mlopsnb-{__version__}.dist-info/METADATA"
    return (*found, data_file(name, text.encode()))


def _named(home: Path, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        path = home / name
        yield from ([name] if path.is_file() else (f"{name}/{inner}" for inner in _walk(path)))


def _walk(directory: Path, above: tuple[Path, ...] = ()) -> Iterator[str]:
    """Yield the files below *directory*, sorted, without what is hidden or compiled; a link that leads back is left."""
    inside = (*above, directory.resolve())
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name in _LEFT_OUT or path.suffix == ".pyc":
            continue
        if path.is_dir():
            if path.resolve() not in inside:
                yield from (f"{path.name}/{inner}" for inner in _walk(path, inside))
        elif path.is_file():
            yield path.name


def package_files(package: Path) -> tuple[File, ...]:
    """Return the files of the model package *package* by their path in it; `BadPackage` if it is none.

    Their digests are those of its manifest: who writes to a package after `manifest.verify` gets what he asked for.
    """
    listed = manifest.read(package).files
    try:
        found = [
            File(
                path=path,
                source=package / path,
                size=(package / path).stat().st_size,
                sha256=digest.removeprefix("sha256:"),
            )
            for path, digest in sorted(listed.items())
        ]
    except OSError as exc:
        raise manifest.BadPackage(
            f"{package} is damaged: {exc.filename}: {exc.strerror}", hint="export or fetch the model again"
        ) from exc
    return (data_file(manifest.FILE, (package / manifest.FILE).read_bytes()), *found)


def code_files(code_paths: Iterable[Path]) -> tuple[File, ...]:
    """Return the user's own modules by their path in `site-packages`: a file as a module, a directory as a package.

    Hidden files and what was compiled stay here. `UserError` if two of *code_paths* have the same name.
    """
    found: dict[str, Path] = {}
    for path in code_paths:
        if path.name in found:
            raise UserError(
                f"code_paths: {found[path.name]} and {path} would have the same name in the image",
                hint="rename one of the two",
            )
        found[path.name] = path
    return tuple(
        file
        for name, path in sorted(found.items())
        for file in (
            [_read(name, path)] if path.is_file() else [_read(f"{name}/{p}", path / p) for p in _walk(path)]
        )
    )


def _read(name: str, path: Path) -> File:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(path=name, source=path, size=path.stat().st_size, sha256=digest)
    except OSError as exc:
        raise BuildError(f"code_paths: {path} cannot be read: {exc.strerror}") from exc
