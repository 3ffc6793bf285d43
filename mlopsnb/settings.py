"""Settings: one frozen record, one reader.

Precedence: argument of the call > `%mlopsnb set` for this kernel > `MLOPSNB_*` > `[tool.mlopsnb]` of the nearest
`pyproject.toml` > default.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import InvalidSettings, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping


def _home(variable: str, fallback: str) -> Path:
    """Return mlopsnb's directory under an XDG base directory (https://specifications.freedesktop.org/basedir)."""
    return Path(os.environ.get(variable) or Path.home() / fallback) / "mlopsnb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a person or a machine can set once instead of with every call."""

    target: str = "process"
    """Where `deploy` puts models: the name of an installed target."""

    cache_dir: Path
    """Where exported packages are kept; anything in it can be made again."""

    state_dir: Path
    """Where the process target keeps its releases and their logs."""

    timeout: float = 600.0
    """Seconds that a deploy waits for a revision to become ready."""

    registry: str = ""
    """Where images are pushed: a host, with a namespace if there is one, such as `ghcr.io/team`."""

    base_image: str = ""
    """The image that serving images stand on; the official `python:3.X-slim` of the kernel's version if empty."""

    insecure_registries: str = ""
    """Registries that are spoken to over plain HTTP, comma-separated; those on the loopback interface always are."""

    registry_mirrors: str = ""
    """Where base images are read from first, `HOST=MIRROR` and comma-separated: `docker.io=harbor.corp/hub-proxy`."""

    image_cache_bytes: int = 20_000_000_000
    """How much the layers and environments of past builds may take; the oldest go first."""

    context: str = ""
    """The context of the kubeconfig that names the cluster; its current one if empty."""

    namespace: str = ""
    """The namespace of the cluster to work in; the context's own if empty."""

    pull_secret: str = ""
    """The Secret of that namespace with which the cluster pulls images, if their registry wants one."""

    prometheus: str = ""
    """Address of a Prometheus server that scrapes what is deployed, for `metrics`; empty asks the replicas themselves."""

    status: str = "auto"
    """How a notebook shows progress: `auto`, `widget`, `display` (updated output), `lines` or `off`."""


CHOICES: Mapping[str, tuple[str, ...]] = {"status": ("auto", "widget", "display", "lines", "off")}
_session: dict[str, Any] = {}


def set_for_session(**values: object) -> None:
    """Set values until this process ends; None forgets one. `InvalidSettings` changes nothing."""
    checked = {k: None if v is None else _parse(k, v, "%mlopsnb set") for k, v in values.items()}
    for key, value in checked.items():
        if value is None:
            _session.pop(key, None)
        else:
            _session[key] = value


def settings(**arguments: object) -> Settings:
    """Read all sources; *arguments* that are not None win."""
    merged = (
        _from_pyproject()
        | _from_environment(os.environ)
        | _session
        | {k: _parse(k, v, "the call") for k, v in arguments.items() if v is not None}
    )
    defaults = Settings(
        cache_dir=_home("XDG_CACHE_HOME", ".cache"), state_dir=_home("XDG_STATE_HOME", ".local/state")
    )
    return replace(defaults, **merged)


def _parse(key: str, value: object, source: str) -> Any:
    known = {f.name for f in fields(Settings)}
    if key not in known:
        raise InvalidSettings(
            f"{source}: no setting named {key!r}; there are {', '.join(sorted(known))}",
            hint=nearest(key, known),
        )
    if key in ("cache_dir", "state_dir"):
        return Path(str(value)).expanduser().absolute()
    if key == "image_cache_bytes":
        if not str(value).isdecimal() or int(str(value)) == 0:
            raise InvalidSettings(f"{source}: {key} must be a number of bytes above 0, found {value!r}")
        return int(str(value))
    if key == "timeout":
        try:
            seconds = float(str(value))
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            raise InvalidSettings(f"{source}: timeout must be a positive number of seconds, found {value!r}")
        return seconds
    text = str(value)
    if key in CHOICES and text not in CHOICES[key]:
        raise InvalidSettings(
            f"{source}: {key} must be one of {', '.join(CHOICES[key])}; found {text!r}",
            hint=nearest(text, CHOICES[key]),
        )
    return text


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = {f.name for f in fields(Settings)}
    given = {k.removeprefix("MLOPSNB_").lower(): v for k, v in environ.items() if k.startswith("MLOPSNB_")}
    # Other MLOPSNB_ variables belong to the runtime in an image and to the test suite; a misspelled setting is near one.
    for key in given:
        if not key.startswith("test_") and key not in known and (hint := nearest(key, known)):
            raise InvalidSettings(f"MLOPSNB_{key.upper()}: no setting of that name", hint=hint)
    return {k: _parse(k, v, f"MLOPSNB_{k.upper()}") for k, v in given.items() if k in known and v}


def _from_pyproject() -> dict[str, Any]:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the directory the kernel was started in is gone
        return {}
    for directory in (here, *here.parents):
        path = directory / "pyproject.toml"
        if path.is_file():
            try:
                table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("mlopsnb", {})
            except (OSError, tomllib.TOMLDecodeError) as exc:
                raise InvalidSettings(f"{path} cannot be read: {exc}") from exc
            return {k: _parse(k, v, str(path)) for k, v in table.items()}
    return {}
