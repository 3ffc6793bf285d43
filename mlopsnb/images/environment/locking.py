"""From roots to a lock: which wheels, at the kernel's versions, from the user's own index. Asks an index at most once.

A lock is kept by what it was made from, so the same roots in the same kernel come to the same lock without a question.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from mlopsnb.errors import BuildError, MissingExtra
from mlopsnb.events import step
from mlopsnb.images.cache import Store
from mlopsnb.images.environment import kernel, pip, sources, uv
from mlopsnb.images.environment.kernel import canonical
from mlopsnb.images.environment.request import Accelerator, Request, here, minor, request
from mlopsnb.images.errors import IndexFailed, NoWheel, Unresolvable
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.settings import settings

_FORMAT = 1
"""Of the notes that locks are kept in."""

_CUDA = ("nvidia-", "cuda-", "triton")


class _Resolver(Protocol):
    """Asks one tool, with PyTorch's own index for its packages if *backend* says so."""

    def __call__(self, scratch: Path, *, backend: str = "") -> tuple[LockedPackage, ...]:
        """Return the wheels; `Unresolvable`, `NoWheel`, `IndexFailed` or `DiskFull`."""
        ...


def resolve(
    roots: Sequence[str],
    *,
    platform: str = "",
    python: str = "",
    accelerator: Accelerator = "cpu",
    installed: Mapping[str, str] | None = None,
    cache: Path | None = None,
) -> Lock:
    """Return the wheels that *roots* come to, each with its digest, for *platform* and Python *python*.

    Both are the kernel's by default. What *installed* has (the kernel's packages, by canonical name) is taken at that
    version. With *accelerator* `cpu`, PyTorch comes in its build without CUDA, from PyTorch's own index if the user's
    has none; with `cuda` as the index has it. uv resolves, or pip where there is no uv.

    Raises `Unresolvable` with who wants what, `NoWheel` for what would need a compiler, `IndexFailed` or `DiskFull`;
    `MissingExtra` where neither uv nor pip is.
    """
    asked = request(
        roots,
        installed=kernel.versions() if installed is None else installed,
        platform=platform or here(),
        python=python or minor(),
        accelerator=accelerator,
    )
    store = Store(cache or settings().cache_dir / "images")
    program = uv.find()
    tool = "uv" if program else "pip"
    env = sources.for_uv(accelerator=accelerator) if program else sources.for_pip()
    key = _key(asked, tool, env)
    with step("resolve", f"{len(asked.roots)} requirements") as log, store.using():
        if (lock := _kept(store, key)) is None:

            def resolver(scratch: Path, *, backend: str = "") -> tuple[LockedPackage, ...]:
                if program is not None:
                    return uv.resolve(program, asked, env, scratch, backend=backend)
                return pip.resolve(asked, env, scratch, backend=backend)

            lock = _lock(asked, _resolved(asked, resolver, check=program is None))
            store.set_note("locks", key, dataclasses.asdict(lock))
        log.result = f"{len(lock.packages)} packages"
        return lock


def _key(asked: Request, tool: str, env: Mapping[str, str]) -> str:
    said = [_FORMAT, dataclasses.asdict(asked), asked.full_python, tool, sources.key(env, tool=tool)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _kept(store: Store, key: str) -> Lock | None:
    note = store.note("locks", key)
    try:
        packages = (LockedPackage(**{**p, "wanted_by": tuple(p["wanted_by"])}) for p in note["packages"])
        return Lock(python=note["python"], platform=note["platform"], packages=tuple(packages))
    except (KeyError, TypeError):  # nothing was kept, or by another version of us
        return None


def _lock(asked: Request, packages: Sequence[LockedPackage]) -> Lock:
    names = {canonical(_name(root)) for root in asked.roots}
    wanted = (replace(p, wanted_by=()) if p.name in names else p for p in packages)
    return Lock(
        python=asked.python,
        platform=asked.platform,
        packages=tuple(p for p in wanted if p.name != "mlopsnb"),
    )


def _name(root: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(root).name


def _resolved(asked: Request, resolver: _Resolver, *, check: bool) -> tuple[LockedPackage, ...]:
    """Ask *resolver*, and again with PyTorch's own index if that alone has the build without CUDA."""
    if check and not (pip.available() and asked.is_native):  # pip resolves for the machine that it runs on
        raise MissingExtra("uv", "images")
    if not asked.roots:
        return ()
    with tempfile.TemporaryDirectory(prefix="mlopsnb-") as scratch:
        try:
            packages = resolver(Path(scratch))
        except (Unresolvable, NoWheel, IndexFailed) as exc:
            if asked.accelerator != "cpu" or "torch" not in exc.message:
                raise _with_origins(exc, asked) from exc.__cause__
            first: BuildError | None = exc
        else:
            first = None
            if not _brings_cuda(asked, packages):
                return packages
        try:
            packages = resolver(Path(scratch), backend="cpu")
        except (Unresolvable, NoWheel, IndexFailed) as exc:
            raise _no_cpu_build(first or exc, exc) from exc
    if _brings_cuda(asked, packages):
        raise _no_cpu_build(first, None)
    return packages


def _brings_cuda(asked: Request, packages: Sequence[LockedPackage]) -> bool:
    """Say whether PyTorch came with what it needs for CUDA though none was asked for."""
    if asked.accelerator != "cpu":
        return False
    return any(p.name.startswith(_CUDA) and "torch" in p.wanted_by for p in packages)


def _no_cpu_build(first: BuildError | None, second: BuildError | None) -> Unresolvable:
    found = f" On the index: {first.message}" if first is not None else " The index has the CUDA build alone."
    also = f" On {pip.CPU_INDEX}: {second.message}" if second is not None and second is not first else ""
    return Unresolvable(
        f"PyTorch without CUDA, which runs on a CPU, was not found.{found}{also}",
        hint=f"add its index (PIP_EXTRA_INDEX_URL or UV_INDEX={pip.CPU_INDEX}, or your mirror of it) or the directory of its"
        " wheel (PIP_FIND_LINKS); accelerator='cuda' takes the CUDA build, some gigabytes",
    )


def _with_origins(exc: BuildError, asked: Request) -> BuildError:
    """Say of packages in *exc* that were not installed from an index where they did come from."""
    named = [name for name in asked.held if name in exc.message]
    came = {name: found for name in named if (found := kernel.origin(name))}
    if came:
        told = ", ".join(f"{name} from {where}" for name, where in sorted(came.items()))
        exc.message += f" Not installed from an index here: {told}."
        exc.hint = "make a wheel of it (pip wheel --no-deps), name its directory in PIP_FIND_LINKS; or give code_paths"
        exc.args = (exc.message,)
    return exc
