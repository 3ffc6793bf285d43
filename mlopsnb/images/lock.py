"""The lock of an image's environment: which wheels, at which versions, with which digests. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mlopsnb.images.digests import digest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPackage:
    """One wheel of the lock.

    `name` is canonical (PEP 503), `version` keeps its local part (`2.13.0+cpu`); `sha256` is the wheel's digest in hex.
    `url` says where it was found, without user and password. `wanted_by` are the names of the packages that require
    it; empty for what the model or the runtime itself needs.
    """

    name: str
    version: str
    filename: str
    sha256: str
    url: str = ""
    wanted_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The wheels of one environment, sorted by name, for one platform and one minor version of Python."""

    python: str
    """Major and minor, `3.11`."""

    platform: str
    """As OCI writes it: `linux/amd64`."""

    packages: tuple[LockedPackage, ...]

    @property
    def text(self) -> str:
        """The lock as pip and uv take it: `name==version --hash=sha256:…`, one package a line."""
        lines = (f"{p.name}=={p.version} --hash=sha256:{p.sha256}" for p in self.packages)
        return "\n".join([f"# python {self.python}, {self.platform}", *lines]) + "\n"

    @property
    def digest(self) -> str:
        """`sha256:…` of the text: equal locks install equal environments."""
        return digest_of(self.text.encode())
