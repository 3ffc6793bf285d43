"""The planner: which file goes into which layer, and how the image is run. Pure: it looks at no disk and no network.

Layers go from what changes least to what changes most, so that a change resends as little as possible, and what lies
below it stays where it is in registries, in engines and on nodes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import BuildError
from mlopsnb.images.digests import digest_of
from mlopsnb.images.plan import (
    GRPC_PORT,
    HTTP_PORT,
    PACKAGE,
    ROOT,
    USER,
    VENV,
    WEIGHTS_MOUNT,
    Entry,
    File,
    ImagePlan,
    Kind,
    Layer,
)

if TYPE_CHECKING:
    from mlopsnb.images.environment import Bytecode, Environment
    from mlopsnb.images.lock import Lock
    from mlopsnb.images.plan import Base

LARGE = 64 << 20
"""A wheel or a file of the package of so many bytes gets a layer of its own."""

SMALL = 1 << 20
"""A file of the package below this goes with the metadata."""

MOST_WHEELS = 20
MOST_WEIGHTS = 12
"""With the others at most 38 layers of ours; engines take about 125 in all."""

WEIGHTS = "models"
"""Where files that are kept out lie in their own artifact, by KServe's convention."""

_HEALTHCHECK = (
    "import socket as s;c=s.create_connection(('127.0.0.1',{port}),3);"
    "c.sendall(b'GET /ready HTTP/1.0\\r\\n\\r\\n');raise SystemExit(b' 200 ' not in c.recv(64))"
)
"""Imports `socket` alone: a check comes every ten seconds and should cost the model nothing."""

_NOT_INHERITED = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV")
"""Variables of a base that would let other code into the environment than what was proved."""


def site_packages(python: str) -> str:
    """Return where packages lie in the image, for Python *python* (`3.11`)."""
    return f"{VENV}/lib/python{python}/site-packages"


def plan_image(
    *,
    name: str,
    version: str,
    base: Base,
    environment: Environment,
    bytecode: Bytecode,
    standard: Sequence[File] = (),
    runtime: Sequence[File],
    package: Path,
    package_digest: str,
    files: Sequence[File],
    code: Sequence[File] = (),
    kept_out: Collection[str] = (),
    labels: Mapping[str, str] | None = None,
) -> ImagePlan:
    """Plan the image that serves version *version* of *name* from the model package *package*.

    *version* is empty for a package that was never logged. *files* are those of the package by their path there,
    *runtime* and *code* (the user's local modules) by their path in `site-packages`; `contents` finds all three. *standard*
    are compiled modules of the base's Python, by their path in the image.
    *kept_out* are paths of *files* that shall not be in the image: it has links to `WEIGHTS_MOUNT` in their place, and
    the plan has them as `weights`.

    Raises `BuildError` for a path that would leave its place.
    """
    site = site_packages(environment.lock.python)
    pyc = _Bytecode(bytecode, runtime, code, site)
    compiled = [*pyc.packages, *standard]
    inside = [f for f in files if f.path not in kept_out]
    outside = [f for f in files if f.path in kept_out]
    layers = [
        *wheel_layers(environment),
        _environment(base),
        _layer("bytecode", _count(compiled, "compiled module"), compiled),
        _layer("runtime", "model server", [*_under(site, runtime), *pyc.runtime]),
        _metadata(inside, outside, [*_under(site, code), *pyc.code], environment.lock),
        *weight_layers(files, kept_out),
    ]
    every = {**(labels or {}), **_labels(name, version, base, environment.lock, package_digest)}
    plan = ImagePlan(
        repository=name,
        tag="",
        base=base,
        lock=environment.lock,
        layers=_each_once(layer for layer in layers if layer.entries),
        config=_config(base, name, version, every),
        package=package,
        package_digest=package_digest,
        weights=tuple(_own_layer(f, f"{WEIGHTS}/{f.path}") for f in sorted(outside, key=_by_path)),
        labels=every,
    )
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", version)[:100]
    return retagged(plan, f"v{plain}" if plain else "")


def retagged(plan: ImagePlan, prefix: str) -> ImagePlan:
    """Return *plan* with its tag, `v3-1a2b3c4`: *prefix*, if there is one, and what tells two builds of it apart."""
    build = plan.digest.removeprefix("sha256:")[:7]
    return replace(plan, tag=f"{prefix}-{build}" if prefix else build)


def _labels(name: str, version: str, base: Base, lock: Lock, package_digest: str) -> dict[str, str]:
    """Return what the image says of itself: https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md."""
    return {
        "org.opencontainers.image.title": name,
        **({"org.opencontainers.image.version": version} if version else {}),
        "org.opencontainers.image.base.name": base.reference.partition("@")[0],
        "org.opencontainers.image.base.digest": base.digest,
        "mlopsnb.lock": lock.digest,
        "mlopsnb.package": package_digest,
    }


class _Bytecode:
    """Compiled modules, each with what it was compiled from: a new runtime need not resend those of the packages."""

    def __init__(self, bytecode: Bytecode, runtime: Sequence[File], code: Sequence[File], site: str) -> None:
        of_runtime, of_code = ({PurePosixPath(f.path) for f in files} for files in (runtime, code))
        self.packages: list[File] = []
        self.runtime: list[File] = []
        self.code: list[File] = []
        for path, data in sorted(bytecode.files.items()):
            source = _source_of(path)
            home = self.runtime if source in of_runtime else self.code if source in of_code else self.packages
            home.append(data_file(f"{site}/{path}", data))


def _source_of(path: str) -> PurePosixPath:
    """Return the module that `a/__pycache__/b.cpython-311.pyc` was compiled from: `a/b.py`."""
    pyc = PurePosixPath(path)
    return pyc.parent.parent / f"{pyc.name.partition('.')[0]}.py"


def data_file(path: str, data: bytes) -> File:
    """Return a file that is known by its bytes."""
    return File(path=path, source=data, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _under(place: str, files: Iterable[File]) -> list[File]:
    return [replace(f, path=f"{place}/{f.path}") for f in files]


def _by_path(file: File) -> str:
    return file.path


@lru_cache(maxsize=2)
def wheel_layers(environment: Environment) -> tuple[Layer, ...]:
    """Return a layer for each large wheel, largest first, and one for the others; the same for every model.

    Largest first, because in an engine a layer stays only while all below it do: a new wheel moves none that is larger.
    """
    site = site_packages(environment.lock.python)
    versions = {p.name: p.version for p in environment.lock.packages}
    wheels = {
        name: [
            File(
                path=f"{site}/{f.path}",
                source=environment.root / f.path,
                size=f.size,
                sha256=f.sha256,
                mode=f.mode,
            )
            for f in files
        ]
        for name, files in environment.packages.items()
    }
    sizes = {name: sum(f.size for f in files) for name, files in wheels.items()}
    large = sorted((n for n in wheels if sizes[n] >= LARGE), key=lambda n: (-sizes[n], n))[:MOST_WHEELS]
    rest = sorted(wheels.keys() - set(large))
    seen: set[str] = set()  # wheels of one namespace may bring the same file; it lies there once
    layers = [
        _layer("wheel", f"{name} {versions.get(name, '')}".rstrip(), _new(wheels[name], seen))
        for name in large
    ]
    others = [f for name in rest for f in wheels[name]]
    return (*layers, _layer("dependencies", _count(rest, "package"), _new(others, seen)))


def _new(files: Iterable[File], seen: set[str]) -> list[File]:
    """Return those *files* whose path is not among *seen*, and add them there."""
    new = [f for f in {f.path: f for f in files}.values() if f.path not in seen]
    seen.update(f.path for f in new)
    return new


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _environment(base: Base) -> Layer:
    """Return the layer that makes the packages a virtual environment on the base's Python (PEP 405)."""
    home = PurePosixPath(base.python).parent
    text = f"home = {home}\ninclude-system-site-packages = false\nversion = {base.python_version}\n"
    links = [
        Entry(path=f"{VENV}/bin/python", link=base.python),
        Entry(path=f"{VENV}/bin/python3", link="python"),
    ]
    return _layer(
        "environment", "virtual environment", [data_file(f"{VENV}/pyvenv.cfg", text.encode())], links
    )


def _metadata(inside: Sequence[File], outside: Sequence[File], code: Sequence[File], lock: Lock) -> Layer:
    small = _under(PACKAGE, (f for f in inside if f.size < SMALL))
    links = [Entry(path=f"{PACKAGE}/{f.path}", link=f"/{WEIGHTS_MOUNT}/{f.path}") for f in outside]
    text = data_file(f"{ROOT}/lock.txt", lock.text.encode())
    return _layer("metadata", "model metadata", [*small, *code, text], links)


def weight_layers(files: Sequence[File], kept_out: Collection[str] = ()) -> list[Layer]:
    """Return the layers of the larger *files* of a package, but for those *kept_out*; they depend on nothing else.

    Those that are `LARGE` stay as they are, for they hardly shrink.
    """
    inside = [f for f in files if f.path not in kept_out]
    bundle = _under(PACKAGE, (f for f in inside if SMALL <= f.size < LARGE))
    large = sorted((f for f in inside if f.size >= LARGE), key=_by_path)
    each = -(-len(large) // MOST_WEIGHTS) or 1  # more shards than layers: some share one
    groups = [large[i : i + each] for i in range(0, len(large), each)]
    return [
        _layer("weights", _count(bundle, "file"), bundle),
        *(
            _own_layer(group[0], f"{PACKAGE}/{group[0].path}")
            if len(group) == 1
            else _layer("weights", _count(group, "file"), _under(PACKAGE, group), compress=False)
            for group in groups
        ),
    ]


def _own_layer(file: File, path: str) -> Layer:
    return _layer("weights", file.path, [replace(file, path=path)], compress=False)


def _layer(
    kind: Kind, name: str, files: Iterable[File], links: Sequence[Entry] = (), *, compress: bool = True
) -> Layer:
    found = list(files)
    entries = [*(Entry(path=f.path, source=f.source, mode=_mode(f)) for f in found), *links]
    lines = [f"{f.path}\0{_mode(f):o}\0{f.sha256}\n" for f in found]
    lines += [f"{link.path}\0link\0{link.link}\n" for link in links]
    for entry in entries:
        _check(entry.path)
    return Layer(
        kind=kind,
        name=name,
        key=digest_of("".join(sorted(lines)).encode()),
        entries=tuple(sorted(entries, key=lambda e: e.path)),
        compress=compress,
        size=sum(f.size for f in found),
    )


def _mode(file: File) -> int:
    return 0o755 if file.mode & 0o111 else 0o644


def _check(path: str) -> None:
    """Raise `BuildError` unless *path* is one way, and the only one, to a place below the root."""
    plain = (
        path.encode(errors="replace").decode() == path
    )  # a name that is no Unicode means another thing elsewhere
    if not plain or "\0" in path or {"", ".", ".."} & set(path.split("/")):
        raise BuildError(
            f"{path!r} cannot be put into an image: it leads elsewhere",
            hint="a file of the package or of a wheel has a name that is no plain relative path",
        )


def _each_once(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Raise `BuildError` if a path comes twice: the upper one would hide what was proved."""
    kept = tuple(layers)
    owner: dict[str, str] = {}
    directories: set[str] = set()
    for layer in kept:
        for entry in layer.entries:
            if entry.path in owner:
                raise BuildError(
                    f"/{entry.path} would come into the image twice: with {owner[entry.path]} and with {layer.name}",
                    hint="rename a local module that is called like an installed package, or leave out one of the two",
                )
            owner[entry.path] = layer.name
            above = entry.path.rpartition("/")[0]
            while above and above not in directories:
                directories.add(above)
                above = above.rpartition("/")[0]
    if both := sorted(directories & owner.keys()):
        raise BuildError(f"/{both[0]} would be a file ({owner[both[0]]}) and a directory in the image")
    return kept


def _config(base: Base, name: str, version: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the `config` of the image: https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md."""
    theirs = base.config.get("config") or {}
    python = f"/{VENV}/bin/python"
    second = 10**9
    return {
        "User": USER,
        "Env": _variables(theirs.get("Env") or ()),
        "WorkingDir": "/",
        "Entrypoint": [
            *(python, "-m", "mlopsnb.serving", f"/{PACKAGE}", "--host", "0.0.0.0"),  # noqa: S104  of the container
            *("--port", str(HTTP_PORT), "--grpc-port", str(GRPC_PORT), "--name", name),
            *(("--version", version) if version else ()),
        ],
        "ExposedPorts": {f"{HTTP_PORT}/tcp": {}, f"{GRPC_PORT}/tcp": {}},
        "StopSignal": "SIGTERM",
        "Healthcheck": {
            "Test": ["CMD", python, "-I", "-S", "-c", _HEALTHCHECK.format(port=HTTP_PORT)],
            "Interval": 10 * second,
            "Timeout": 5 * second,
            "StartPeriod": 60 * second,
            "Retries": 3,
        },
        "Labels": {**(theirs.get("Labels") or {}), **labels},
    }


def _variables(inherited: Iterable[str]) -> list[str]:
    """Return the base's variables with ours, as `NAME=value`; nothing comes from the machine that builds."""
    known = dict(line.partition("=")[::2] for line in inherited)
    for name in _NOT_INHERITED:
        known.pop(name, None)
    path = known.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    ours = {"PATH": f"/{VENV}/bin:{path}", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    return [f"{name}={value}" for name, value in {**known, **ours}.items()]
