"""What a build made: the record of an image, found again by its digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlopsnb.images.environment.diff import Diff
    from mlopsnb.images.lock import Lock
    from mlopsnb.images.plan import Kind

Place = Literal["registry", "engine", "layout", "archive"]
"""Where an image lies: a registry, a container engine, an OCI layout directory, or a tar of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where an image is to go.

    `registry` is a host, with a namespace if there is one (`ghcr.io/team`), for the place `registry`; `path` is for
    `layout` and `archive`.
    """

    place: Place
    registry: str = ""
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLayer:
    """One layer as it was packed; sizes in bytes, `size` compressed. `base` says that it came with the base."""

    kind: Kind | Literal["base"]
    name: str
    digest: str
    diff_id: str
    size: int
    unpacked: int
    media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image.

    `reference` names it by digest where the place allows (`ghcr.io/team/fraud@sha256:…`), so what is deployed is what
    was built; `tagged` is the same by its tag, for people. `digest` is that of the manifest, `id` that of the
    configuration, by which an engine knows it. `sent` are the bytes that this build had to send. `weights` names the
    image that holds the weights which this one does not, if there is one.
    """

    reference: str
    tagged: str
    digest: str
    id: str
    destination: Destination
    builder: str
    platform: str
    base: str
    layers: tuple[ImageLayer, ...]
    lock: Lock
    package_digest: str
    labels: Mapping[str, str] = field(default_factory=dict)
    sent: int = 0
    weights: str = ""

    def sbom(self) -> dict[str, Any]:
        """Return the bill of materials, as CycloneDX 1.6 has it in JSON; in a registry it lies beside the image."""
        from mlopsnb.images.sbom import bill

        return bill(
            name=self.labels.get("org.opencontainers.image.title", "image"),
            tag=self.tagged.rpartition(":")[2],
            base=self.labels.get("org.opencontainers.image.base.name", self.base),
            base_digest=self.labels.get("org.opencontainers.image.base.digest", ""),
            lock=self.lock,
        )

    @property
    def size(self) -> int:
        """Bytes of all layers as they are stored and sent, the base's included."""
        return sum(layer.size for layer in self.layers)

    def diff(self) -> Diff:
        """Return where the packages of this image differ from those of the notebook as it is now."""
        from mlopsnb.images.environment.diff import diff

        return diff(self.lock)
