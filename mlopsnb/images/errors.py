"""
What can go wrong while an image is made and brought to where it is needed:

* BuildError               (mlopsnb.errors)
  x RegistryError          a registry refused or failed
    + RegistryUnreachable  no answer, or none within the time that retries have
    + Unauthorized         it does not know us, or we may not do this
    + NotInRegistry        no such manifest, blob or repository
    + RegistryFull         no space or quota for what was sent
    + ManifestRejected     it took the layers but not the image made of them
    + DigestMismatch       what came or arrived is not what was asked for or sent
    + CredentialsUnreadable  docker's configuration or a credential helper is broken
    + Cancelled            by `Registry.cancel`
  x EngineError            the container engine refused or failed
    + EngineNotRunning
    + EngineForbidden      it runs, but its socket is not ours to use
    + EngineFull           no space on its disk
  x LayoutError            an OCI layout that cannot be read or written
  x DiskFull               no space here
  x UnsuitableBase         the base image cannot carry the environment
    + BaseWithoutPython
    + WrongPython          another minor version than the kernel's
    + WrongPlatform        another architecture or operating system
  x Unresolvable           no set of versions satisfies what is required
  x NoWheel                a package that has no wheel for the platform
  x IndexFailed            the index of packages cannot be reached, or refused
  x Incomplete             the environment cannot load the model, or it answers otherwise
  x TooLarge               the image is over its `max_size`
* UserError
  x InvalidReference       not a name that an image can have

Text from a server is cut short before it goes into a message, and addresses lose their password and query.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from mlopsnb.errors import BuildError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class InvalidReference(UserError):
    """Not a name that an image can have."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(
            f"{text!r} is no image reference: {why}",
            hint="give [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST], such as ghcr.io/team/fraud:v3",
        )


class RegistryError(BuildError):
    """A registry refused or failed."""


class RegistryUnreachable(RegistryError):
    """No answer, or none within the time that retries have."""

    def __init__(self, host: str, found: str, *, plain: bool = False) -> None:
        hint = "check the name, the network and the proxy (HTTPS_PROXY, NO_PROXY)"
        if not plain:
            hint += f"; if it speaks plain HTTP, name it in MLOPSNB_INSECURE_REGISTRIES={host}"
        super().__init__(f"the registry {host} cannot be reached: {found}", hint=hint)
        self.host = host


class Unauthorized(RegistryError):
    """The registry does not know us, or we may not do this."""

    def __init__(self, host: str, doing: str, found: str, *, user: str = "") -> None:
        who = f"as {user!r}" if user else "without credentials"
        super().__init__(
            f"the registry {host} did not let us {doing} ({who}): {found}",
            hint=f"docker login {host}, or put its credentials into $DOCKER_CONFIG/config.json"
            + ("; or ask its owner for the right" if user else ""),
        )
        self.host = host


class NotInRegistry(RegistryError):
    """No such manifest, blob or repository."""

    def __init__(self, host: str, what: str) -> None:
        super().__init__(
            f"the registry {host} has no {what}",
            hint="check its name, tag and platform; a private one may look absent without docker login",
        )


class RegistryFull(RegistryError):
    """No space or quota for what was sent."""

    def __init__(self, host: str, doing: str, found: str) -> None:
        super().__init__(
            f"the registry {host} has no room left to {doing}: {found}",
            hint="free space or raise the quota there, or raise the body limit of the proxy before it (413)",
        )


class ManifestRejected(RegistryError):
    """The registry took the layers but not the image made of them."""

    def __init__(self, host: str, name: str, found: str) -> None:
        super().__init__(
            f"the registry {host} rejected the manifest of {name}: {found}",
            hint="the tag was not set; an immutable tag needs another version, an old registry may not take OCI manifests",
        )


class DigestMismatch(RegistryError):
    """What came or arrived is not what was asked for or sent."""

    def __init__(self, where: str, what: str, wanted: str, found: str) -> None:
        super().__init__(
            f"{where}: {what} should be {wanted}, found {found}",
            hint="a proxy or mirror on the way changes what it passes on; try without it",
        )


class CredentialsUnreadable(RegistryError):
    """Docker's configuration or a credential helper is broken."""

    def __init__(self, where: str, found: str) -> None:
        super().__init__(
            f"the credentials in {where} cannot be read: {found}",
            hint="repair it, or log in anew with docker login",
        )


class Cancelled(RegistryError):
    """The call was ended by `Registry.cancel`; what it had half sent was deleted."""

    def __init__(self, host: str) -> None:
        super().__init__(f"the exchange with the registry {host} was cancelled")


class EngineError(BuildError):
    """The container engine refused or failed."""


class EngineNotRunning(EngineError):
    """No container engine answers."""

    def __init__(self, where: str, found: str) -> None:
        super().__init__(
            f"no container engine answers at {where}: {found}",
            hint="start Docker, set DOCKER_HOST, or give registry=… or output=…: neither needs an engine",
        )


class EngineForbidden(EngineError):
    """The engine runs, but its socket is not ours to use."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"no permission to use the container engine at {where}",
            hint="add the user to the group docker and log in again, or give registry=… or output=…: neither needs an engine",
        )


class EngineFull(EngineError):
    """No space on the engine's disk."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"the container engine has no room for the image: {found}",
            hint="docker system df shows what takes its space; docker image prune removes images without a name",
        )


class LayoutError(BuildError):
    """An OCI image layout cannot be read or written."""


class DiskFull(BuildError):
    """No space here for what has to be written."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"no space left on the disk that holds {path}",
            hint="ml.cleanup(images=True) removes what past builds left, or set MLOPSNB_CACHE_DIR to a larger disk",
        )


class UnsuitableBase(BuildError):
    """The base image cannot carry the environment."""


class BaseWithoutPython(UnsuitableBase):
    """No Python was found in the base image."""

    def __init__(self, reference: str, looked: str) -> None:
        super().__init__(
            f"the base image {reference} has no Python ({looked})",
            hint="give a base with Python, such as python:3.11-slim (base=… or MLOPSNB_BASE_IMAGE)",
        )


class WrongPython(UnsuitableBase):
    """The base image has another minor version of Python than the kernel."""

    def __init__(self, reference: str, found: str, wanted: str) -> None:
        super().__init__(
            f"the base image {reference} has Python {found}; the model was made with {wanted}",
            hint=f"give a base with Python {wanted}, such as python:{wanted}-slim (base=… or MLOPSNB_BASE_IMAGE)",
        )


class WrongPlatform(UnsuitableBase):
    """The base image is not for the platform asked for."""

    def __init__(self, reference: str, found: Sequence[str], wanted: str) -> None:
        super().__init__(
            f"the base image {reference} is not for {wanted}; it is for {', '.join(found) or 'an unknown platform'}",
            hint=f"give a base for {wanted}, or another platform=…",
        )


class Unresolvable(BuildError):
    """No set of versions satisfies what is required."""


class NoWheel(BuildError):
    """A package has no wheel for the platform, only sources that would need a compiler."""

    def __init__(self, package: str, platform: str, python: str, found: str = "") -> None:
        super().__init__(
            f"{package} has no wheel for {platform} and Python {python}"
            + (f"; found {found}" if found else ""),
            hint=f"pin a version that has one, or build the wheel once (pip wheel {package}) and name its directory "
            "in PIP_FIND_LINKS",
        )
        self.package = package


class IndexFailed(BuildError):
    """The index of packages cannot be reached, or refused."""


class Incomplete(BuildError):
    """The environment meant for the image cannot load the model, or answers otherwise than the notebook's."""


class TooLarge(BuildError):
    """The image is over its `max_size`."""


def disk_full(exc: OSError) -> bool:
    """Say whether *exc* means that a disk or the user's quota on it is full."""
    return exc.errno in (errno.ENOSPC, errno.EDQUOT)


def storing(path: Path | str, exc: OSError) -> BuildError:
    """Return what to raise for an *exc* that arose while *path* was written."""
    if disk_full(exc):
        return DiskFull(path)
    return BuildError(f"{path} cannot be written: {exc.strerror or os.strerror(exc.errno or 0)}")
