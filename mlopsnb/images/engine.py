"""A container engine, through docker-py: load an image into it, sending only layers it lacks, and read a base out.

Source: https://docs.docker.com/reference/api/engine/ and moby's `image/tarexport`, which takes a `docker save` archive
whose layers are left out if it has the chain of layers up to them (moby/moby#18727). That holds for the classic image
stores; the containerd one gets whole archives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from mlopsnb.images.registry import OnBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """A layer to be loaded; `read` yields it as it is stored (`size` bytes) and is called only if the engine lacks it."""

    diff_id: str
    size: int
    read: Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What `load` did: the image's id (`sha256:…` of its configuration) and the bytes of layers that were sent."""

    id: str
    sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineImage:
    """An image that an engine has; `config` is in the form of an OCI image configuration, without its history."""

    id: str
    platform: str
    config: Mapping[str, Any]
    repo_digests: tuple[str, ...]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The `sha256:…` of its unpacked layers, bottom to top."""
        return tuple(self.config["rootfs"]["diff_ids"])


class Engine:
    """The engine that `docker` would use: DOCKER_HOST, else the current docker context, else the local socket.

    Calls raise `EngineNotRunning`, `EngineForbidden`, or `EngineError` for what the engine refuses.
    """

    def __init__(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        raise NotImplementedError

    def image(self, reference: str) -> EngineImage | None:
        """Return what the engine has under a name or id; None if it has nothing."""
        raise NotImplementedError

    def chains(self) -> frozenset[tuple[str, ...]]:
        """Return the chains of layers it has: every beginning of every image's diff ids."""
        raise NotImplementedError

    def load(
        self, config: bytes, layers: Sequence[EngineLayer], *, tag: str, on_bytes: OnBytes | None = None
    ) -> Loaded:
        """Load an image as *tag* (`fraud:v3-1a2b3c4`): only the layers it lacks, or all if it does not take that.

        The tag is moved last, to a whole image; if loading fails or is interrupted, it names what it named before.
        """
        raise NotImplementedError

    def export(self, reference: str, into: Path, *, on_bytes: OnBytes | None = None) -> str:
        """Write an image of the engine as an OCI layout directory (see `layout.Layout`); return its manifest's digest.

        This is how a base that only the engine has is brought into an image that goes elsewhere.
        """
        raise NotImplementedError

    def remove(self, reference: str) -> None:
        """Remove a name; the image with it, if that was the last name and no container uses it."""
        raise NotImplementedError
