"""What is asked of uv or pip: which packages, held to which versions, for which platform and Python. Pure."""

from __future__ import annotations

import platform as machine
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mlopsnb.errors import UserError, nearest
from mlopsnb.images.environment.kernel import canonical
from mlopsnb.images.environment.roots import exact, takes

Accelerator = Literal["cpu", "cuda"]

PLATFORMS: Mapping[str, str] = {
    "linux/amd64": "x86_64-manylinux_2_28",
    "linux/arm64": "aarch64-manylinux_2_28",
}
"""What uv calls the platforms of images. glibc 2.28 is in Debian 10, RHEL 8, Ubuntu 18.10 and all that came later."""

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_TORCH = ("torch", "torchaudio", "torchvision")
"""Packages of one version in several builds, which their local version tells apart: `+cpu`, `+cu130`. On PyPI the plain
version is the CUDA build for Linux, some gigabytes with what it needs."""


def native() -> str:
    """Return the platform of images for this machine's processor, `linux/amd64`."""
    found = machine.machine().lower()
    return f"linux/{_MACHINES.get(found, found)}"


def here() -> str:
    """Return the platform of this machine as OCI writes it, or nothing if no image is made for it."""
    return native() if sys.platform == "linux" and native() in PLATFORMS else ""


def minor() -> str:
    """Return the minor version of this Python, `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Packages for one platform and one Python. `held` are constraints, by canonical name: `==2.4.6`."""

    roots: tuple[str, ...]
    held: Mapping[str, str]
    platform: str
    python: str
    accelerator: Accelerator = "cpu"

    @property
    def constraints(self) -> str:
        """The constraints as pip and uv read them."""
        return "".join(f"{name}{version}\n" for name, version in sorted(self.held.items()))

    @property
    def full_python(self) -> str:
        """The version of Python to resolve for: this one's if the minor is the same."""
        return machine.python_version() if self.python == minor() else self.python

    @property
    def is_native(self) -> bool:
        """Whether what is installed would run here."""
        return self.platform == here() and self.python == minor()


def request(
    roots: Iterable[str],
    *,
    installed: Mapping[str, str],
    platform: str,
    python: str,
    accelerator: Accelerator = "cpu",
) -> Request:
    """Return the request for *roots* with everything else held to the *installed* version.

    `UserError` for a platform or accelerator that is not known.
    """
    from packaging.requirements import Requirement

    if platform not in PLATFORMS:
        raise UserError(
            f"no images are made for the platform {platform!r}; there are {', '.join(PLATFORMS)}",
            hint=nearest(platform, PLATFORMS),
        )
    if accelerator not in ("cpu", "cuda"):
        raise UserError(f"accelerator must be 'cpu' or 'cuda', found {accelerator!r}")
    held = {name: _build(name, v, accelerator) for name, v in installed.items() if _is_version(v)}
    held.pop("mlopsnb", None)
    asked: list[str] = []
    for text in roots:
        root = Requirement(text)
        name = canonical(root.name)
        if exact(root) or not takes(root, installed.get(name, "")):
            held.pop(name, None)
        asked.append(_rebuilt(root, accelerator))
    return Request(roots=tuple(asked), held=held, platform=platform, python=python, accelerator=accelerator)


def _is_version(text: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _build(name: str, version: str, accelerator: Accelerator) -> str:
    """Return what holds *name* to *version*, in the build that *accelerator* asks for."""
    public, _, local = version.partition("+")
    if name not in _TORCH:
        return f"=={version}"
    if accelerator == "cpu":
        return f"=={public}+cpu"
    return f"=={version}" if local not in ("", "cpu") else f"=={public},!={public}+cpu"


def _rebuilt(root: object, accelerator: Accelerator) -> str:
    """Return the requirement *root* in the build that *accelerator* asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    assert isinstance(root, Requirement)
    name = canonical(root.name)
    if name in _TORCH and exact(root):
        version = next(s.version for s in root.specifier if s.operator == "==")
        root.specifier = SpecifierSet(_build(name, version, accelerator))
    return str(root)
