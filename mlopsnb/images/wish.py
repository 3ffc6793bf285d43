"""What a build is asked for: its arguments, checked before anything is done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mlopsnb.errors import BuildError, MissingExtra, UserError, nearest
from mlopsnb.images.destinations import LOADERS, command_of
from mlopsnb.images.environment.request import Accelerator, minor, native
from mlopsnb.images.image import Destination
from mlopsnb.images.references import parse, parse_registry
from mlopsnb.images.scanning import Severity, severity
from mlopsnb.images.sizes import read_size

if TYPE_CHECKING:
    from mlopsnb.settings import Settings

_PLATFORM = re.compile(r"linux/[a-z0-9]+(/v[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How an image is to be made.

    `budget` is the most bytes that it may have, `fail_on` the severity of a vulnerability that stops the build, `sign`
    the file of the key to sign with. `separate_weights` is as `weights.kept_out` takes it.
    """

    base: str
    platform: str
    accelerator: Accelerator
    requirements: tuple[str, ...]
    code_paths: tuple[Path, ...]
    budget: int | None
    separate_weights: bool | None
    fail_on: Severity | None
    sign: Path | None


def read(
    *,
    base: str,
    platform: str | None,
    accelerator: str,
    requirements: Sequence[str],
    code_paths: Sequence[str | Path],
    max_size: int | str | None,
    separate_weights: bool | None,
    scan: str | None,
    sign: str | Path | None,
) -> Wish:
    """Check the arguments of a build; `UserError` names the one that cannot be."""
    return Wish(
        base=str(parse(base or default_base())),
        platform=_platform(platform),
        accelerator=_accelerator(accelerator),
        requirements=_sequence("requirements", requirements),
        code_paths=_existing(_sequence("code_paths", code_paths)),
        budget=None if max_size is None else read_size(max_size),
        separate_weights=separate_weights,
        fail_on=None if scan is None else severity(scan),
        sign=None if sign is None else Path(sign).expanduser().absolute(),
    )


def default_base() -> str:
    """Return the official image of the kernel's version of Python."""
    return f"docker.io/library/python:{minor()}-slim"


def destination(
    chosen: Settings,
    name: str,
    *,
    push: bool | None,
    load: str | None,
    output: str | Path | None,
) -> Destination:
    """Return where an image is to go: where the call says, else to the registry, else into an engine, else the cache.

    An engine counts if one answers. `UserError` if the call says several places, or a registry that is not known.
    """
    said = [n for n, v in (("push", push), ("load", load), ("output", output)) if v]
    if len(said) > 1:
        raise UserError(f"{' and '.join(said)} are two places", hint="give one; build again for the other")
    if push and not chosen.registry:
        raise UserError(
            "push=True needs a registry", hint="give registry='ghcr.io/team', or set MLOPSNB_REGISTRY"
        )
    if output is not None:
        path = Path(output).expanduser().absolute()
        return Destination(place="archive" if path.suffix == ".tar" else "layout", path=path)
    if load is not None:
        if one_of("load", load, ("engine", *LOADERS)) == "engine":
            return Destination(place="engine")
        command_of(load)  # before anything is built
        return Destination(place="archive", path=chosen.cache_dir / "layouts" / f"{name}.tar")
    if chosen.registry and push is not False:
        parse_registry(chosen.registry)
        return Destination(place="registry", registry=chosen.registry)
    if _engine_answers():
        return Destination(place="engine")
    return Destination(place="layout", path=chosen.cache_dir / "layouts" / name)


def _engine_answers() -> bool:
    from mlopsnb.images.engine import Engine

    try:
        Engine().close()
    except (BuildError, MissingExtra):
        return False
    return True


def one_of(argument: str, value: object, known: Sequence[str]) -> str:
    """Return *value* if it is one of the *known*."""
    if value in known:
        return str(value)
    raise UserError(
        f"{argument} must be one of {', '.join(known)}; found {value!r}", hint=nearest(str(value), known)
    )


def _accelerator(given: str) -> Accelerator:
    known: dict[str, Accelerator] = {name: name for name in get_args(Accelerator)}
    return known[one_of("accelerator", given, tuple(known))]


def _platform(given: str | None) -> str:
    if given is None:
        return native()
    if _PLATFORM.fullmatch(given):
        return given
    raise UserError(f"{given!r} is no platform", hint='give "linux/amd64" or "linux/arm64"')


def _sequence(argument: str, values: object) -> tuple[str, ...]:
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return tuple(map(str, values))
    raise UserError(f"{argument} takes a list of texts, found {values!r}", hint=f"{argument}=[{values!r}]")


def _existing(paths: Sequence[str]) -> tuple[Path, ...]:
    found = tuple(Path(path).expanduser().absolute() for path in paths)
    for path in found:
        if not path.exists():
            raise UserError(
                f"code_paths: {path} does not exist", hint="paths are relative to the working directory"
            )
    return found
