"""A client of image registries: what an image needs to be read, and to be sent, and no more.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md. Calls are safe from several threads
and share one pool of connections; each is retried as `wire` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from mlopsnb.images.credentials import Credentials
    from mlopsnb.images.plan import Descriptor

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"

OnBytes = Callable[[int], None]
"""Called with how many more bytes went over; negative for those that have to go again."""

Arrival = Literal["there", "mounted", "sent"]
"""How a blob came to be in its repository: it was there, was mounted from another one, or was sent."""


class Manifest(NamedTuple):
    """A manifest or index as the registry gave it, its media type and `sha256:…` digest."""

    data: bytes
    media_type: str
    digest: str


def connect(host: str) -> Registry:
    """Return a client of *host* (`ghcr.io`, `127.0.0.1:5000`, `docker.io`) as settings and docker's configuration say.

    That is with the credentials known for it, over plain HTTP if it is on the loopback interface or among
    `insecure_registries`, and with its mirrors. Nothing is sent before the first call.
    """
    raise NotImplementedError


class Registry:
    """One registry.

    Every call raises `RegistryUnreachable` when there is no answer within *patience* seconds, `Unauthorized` when the
    registry says 401 or 403, and `RegistryError` for what else it refuses. *mirrors* are asked first by `manifest`,
    `blob`, `read` and `fetch`, never by the others.
    """

    def __init__(
        self,
        host: str,
        *,
        credentials: Credentials | None = None,
        plain: bool = False,
        mirrors: Sequence[Registry] = (),
        patience: float = 60.0,
    ) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        raise NotImplementedError

    def cancel(self) -> None:
        """End all calls under way with `Cancelled`, from any thread; uploads not yet done are deleted there."""
        raise NotImplementedError

    def manifest(self, repository: str, ref: str) -> Manifest:
        """Return the manifest or index of a tag or digest, verified; `NotInRegistry` if there is none."""
        raise NotImplementedError

    def digest(self, repository: str, ref: str) -> str | None:
        """Return the digest of a manifest by one HEAD request; None if there is none."""
        raise NotImplementedError

    def has(self, repository: str, digest: str) -> bool:
        """Say whether the repository has the blob, by one HEAD request."""
        raise NotImplementedError

    def blob(self, repository: str, blob: Descriptor, *, on_bytes: OnBytes | None = None) -> Iterator[bytes]:
        """Yield a blob in order, going on where a connection broke off.

        `DigestMismatch` after the last piece if they were not the blob, so nothing of them may be used before the end.
        """
        raise NotImplementedError

    def read(self, repository: str, blob: Descriptor) -> bytes:
        """Return a small blob, such as a configuration, verified; `RegistryError` if it is over 16 MB."""
        raise NotImplementedError

    def fetch(
        self, repository: str, blob: Descriptor, into: Path, *, on_bytes: OnBytes | None = None
    ) -> None:
        """Write a blob to the file *into*, verified; there is no such file if that fails. `DiskFull` if it is so."""
        raise NotImplementedError

    def mount(self, repository: str, digest: str, from_repository: str) -> bool:
        """Give *repository* a blob that another one of this registry has; False if the registry does not do so."""
        raise NotImplementedError

    def upload(
        self,
        repository: str,
        blob: Descriptor,
        source: Path | bytes,
        *,
        from_repository: str = "",
        on_bytes: OnBytes | None = None,
    ) -> Arrival:
        """Bring a blob into *repository*: look, mount it from *from_repository* if given, else send it.

        `RegistryFull` if there is no room, `DigestMismatch` if what arrived is not the blob.
        """
        raise NotImplementedError

    def put_manifest(self, repository: str, ref: str, data: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest and return the digest; `ManifestRejected` if it is refused.

        With a `subject`, it becomes one of that one's referrers, by the fallback tag where the registry has no API.
        """
        raise NotImplementedError

    def tags(self, repository: str) -> tuple[str, ...]:
        """Return all tags of the repository, sorted; none if there is no such repository."""
        raise NotImplementedError

    def referrers(
        self, repository: str, digest: str, artifact_type: str = ""
    ) -> tuple[Mapping[str, Any], ...]:
        """Return the descriptors of the manifests whose subject is *digest*, of one `artifactType` if given."""
        raise NotImplementedError
