"""A client of image registries: what an image needs to be read, and to be sent, and no more.

Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md. Calls are safe from several threads
and share one pool of connections; each is retried as `wire` says.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from mlopsnb.errors import InvalidSettings
from mlopsnb.images import pulls
from mlopsnb.images.credentials import find
from mlopsnb.images.digests import digest_of
from mlopsnb.images.errors import (
    DigestMismatch,
    ManifestRejected,
    NotInRegistry,
    RegistryError,
    Unauthorized,
    storing,
)
from mlopsnb.images.references import parse_registry
from mlopsnb.images.tokens import Scopes, pull, push
from mlopsnb.images.uploads import Upload
from mlopsnb.images.wire import Answer, Wire, is_loopback, said
from mlopsnb.settings import settings

if TYPE_CHECKING:
    import httpx

    from mlopsnb.images.blobs import Source
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


_ACCEPTED = f"{OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST}, {DOCKER_INDEX}"
_REJECTIONS = (400, 404, 405, 406, 409, 412, 415, 422)
"""Statuses with which registries refuse a manifest or a mount for what it is, not for who asks or how often."""

_READ_LIMIT = 16_000_000
_MIRROR_PATIENCE = 10.0
_PAGES = 1000


def connect(host: str) -> Registry:
    """Return a client of *host* (`ghcr.io`, `127.0.0.1:5000`, `docker.io`) as settings and docker's configuration say.

    That is with the credentials known for it, over plain HTTP if it is on the loopback interface or among
    `insecure_registries`, and with its mirrors. Nothing is sent before the first call.
    """
    mirrors = [Mirror(_one(mirror, patience=_MIRROR_PATIENCE), space) for mirror, space in _mirrors(host)]
    return _one(host, mirrors=mirrors)


def _one(host: str, *, mirrors: Sequence[Mirror] = (), patience: float = 60.0) -> Registry:
    insecure = {name.strip() for name in settings().insecure_registries.split(",")}
    return Registry(
        host,
        credentials=partial(find, host),
        plain=host in insecure or is_loopback(host),
        mirrors=mirrors,
        patience=patience,
    )


def _mirrors(host: str) -> Iterator[tuple[str, str]]:
    for pair in filter(None, map(str.strip, settings().registry_mirrors.split(","))):
        origin, equals, mirror = pair.partition("=")
        if not (origin and equals and mirror):
            raise InvalidSettings(
                f"registry_mirrors: {pair!r} is not HOST=MIRROR, such as docker.io=mirror.gcr.io"
            )
        if origin == host:
            yield parse_registry(mirror)


class Mirror(NamedTuple):
    """A registry that has what another one has, under a namespace of its own if that is not empty."""

    registry: Registry
    namespace: str = ""


def _anonymous(repository: str) -> Credentials | None:
    return None


class Registry:
    """One registry.

    *credentials* gives those for a repository, and is asked when the registry first wants some. Every call raises
    `RegistryUnreachable` when there is no answer within *patience* seconds, `Unauthorized` when the registry says 401
    or 403, and `RegistryError` for what else it refuses. *mirrors* are asked first by `resolve`, `manifest`, `blob`,
    `read` and `fetch`, never by the others.
    """

    def __init__(
        self,
        host: str,
        *,
        credentials: Callable[[str], Credentials | None] = _anonymous,
        plain: bool = False,
        mirrors: Sequence[Mirror] = (),
        patience: float = 60.0,
    ) -> None:
        self.host = host
        self._mirrors = tuple(mirrors)
        self._wire = Wire(host, credentials=credentials, plain=plain, patience=patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for registry in (self, *(mirror.registry for mirror in self._mirrors)):
            registry._wire.close()

    def cancel(self) -> None:
        """End all calls under way with `Cancelled`, from any thread; uploads not yet done are deleted there."""
        for registry in (self, *(mirror.registry for mirror in self._mirrors)):
            registry._wire.cancel()

    def manifest(self, repository: str, ref: str) -> Manifest:
        """Return the manifest or index of a tag or digest, verified; `NotInRegistry` if there is none."""
        for mirror in self._mirrors:
            with contextlib.suppress(RegistryError):
                return mirror.registry.manifest(_join(mirror.namespace, repository), ref)
        answer = self._get("GET", f"{repository}/manifests/{ref}", repository, accept=_ACCEPTED)
        if answer.status == 404:
            raise NotInRegistry(self.host, f"image {_name(repository, ref)}")
        found = digest_of(answer.data)
        said = answer.headers.get("docker-content-digest", found)
        for wanted in (ref if ":" in ref else found, said if said.startswith("sha256:") else found):
            if wanted != found:
                raise DigestMismatch(
                    f"the registry {self.host}", f"the manifest of {repository}", wanted, found
                )
        return Manifest(answer.data, _media_type(answer), found)

    def resolve(self, repository: str, ref: str) -> str:
        """Return the digest that a tag to be read stands for, by one HEAD request; `NotInRegistry` if there is none."""
        for mirror in self._mirrors:
            with contextlib.suppress(RegistryError):
                return mirror.registry.resolve(_join(mirror.namespace, repository), ref)
        if (found := self._head(repository, ref)) is None:
            raise NotInRegistry(self.host, f"image {_name(repository, ref)}")
        return found

    def digest(self, repository: str, ref: str) -> str | None:
        """Return the digest of what this very registry has under a tag, by one HEAD request; None if it has nothing.

        None also if we are not allowed to see it: many registries say so of a repository that is still to be made.
        """
        try:
            return self._head(repository, ref)
        except Unauthorized:
            return None

    def has(self, repository: str, digest: str) -> bool:
        """Say whether the repository has the blob, by one HEAD request."""
        return self._has(repository, digest, pull(repository))

    def blob(self, repository: str, blob: Descriptor, *, on_bytes: OnBytes | None = None) -> Iterator[bytes]:
        """Yield a blob in order, going on where a connection broke off.

        `DigestMismatch` after the last piece if they were not the blob, so nothing of them may be used before the end.
        """
        return pulls.pieces(self._sources(repository), blob, on_bytes=on_bytes)

    def read(self, repository: str, blob: Descriptor) -> bytes:
        """Return a small blob, such as a configuration, verified; `RegistryError` if it is over 16 MB."""
        if blob.size > _READ_LIMIT:
            raise RegistryError(
                f"the blob {blob.digest} of {repository} has {blob.size} bytes, too many to be read whole"
            )
        return b"".join(self.blob(repository, blob))

    def fetch(
        self, repository: str, blob: Descriptor, into: Path, *, on_bytes: OnBytes | None = None
    ) -> None:
        """Write a blob to the file *into*, verified; there is no such file if that fails. `DiskFull` if it is so."""
        half = into.with_name(f".{into.name}.{secrets.token_hex(8)}")
        try:
            with half.open("xb") as file:
                for piece in self.blob(repository, blob, on_bytes=on_bytes):
                    file.write(piece)
            half.replace(into)
        except OSError as exc:
            raise storing(into, exc) from exc
        finally:
            half.unlink(missing_ok=True)

    def mount(self, repository: str, digest: str, from_repository: str) -> bool:
        """Give *repository* a blob that another one of this registry has; False if the registry does not do so."""
        answer = self._mount(repository, digest, from_repository)
        if answer is None or answer.status == 201:
            return answer is not None
        if location := answer.headers.get("location"):
            self._wire.forget(self._wire.follow(location, answer.url), push(repository))
        return False

    def upload(
        self,
        repository: str,
        blob: Descriptor,
        source: Source,
        *,
        from_repository: str = "",
        on_bytes: OnBytes | None = None,
    ) -> Arrival:
        """Bring a blob into *repository*: look, mount it from *from_repository* if given, else send it.

        `RegistryFull` if there is no room, `DigestMismatch` if what arrived is not the blob.
        """
        if self._has(repository, blob.digest, push(repository)):
            return "there"
        session = self._mount(repository, blob.digest, from_repository) if from_repository else None
        if session is not None and session.status == 201:
            return "mounted"
        Upload(self._wire, repository, blob, source, on_bytes=on_bytes).run(session)
        return "sent"

    def put_manifest(self, repository: str, ref: str, data: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest and return the digest; `ManifestRejected` if it is refused.

        With a `subject`, it becomes one of that one's referrers, by the fallback tag where the registry has no API.
        """
        digest = digest_of(data)
        answer = self._wire.call(
            "PUT",
            self._wire.url(f"{repository}/manifests/{ref}"),
            scopes=push(repository),
            doing=f"store the manifest of {_name(repository, ref)}",
            expect=(200, 201, 202, *_REJECTIONS),
            headers={"Content-Type": media_type},
            data=data,
        )
        if answer.status in _REJECTIONS:
            raise ManifestRejected(self.host, _name(repository, ref), said(answer))
        found = answer.headers.get("docker-content-digest", "")
        if found.startswith("sha256:") and found != digest:
            raise DigestMismatch(f"the registry {self.host}", "the manifest stored", digest, found)
        subject = json.loads(data).get("subject")
        if subject and "oci-subject" not in answer.headers:
            self._refer(repository, subject["digest"], data, media_type)
        return digest

    def tags(self, repository: str) -> tuple[str, ...]:
        """Return all tags of the repository, sorted; none if there is no such repository."""
        found = [
            tag
            for page in self._pages(f"{repository}/tags/list", repository)
            for tag in page.get("tags") or ()
        ]
        return tuple(sorted(set(found)))

    def referrers(
        self, repository: str, digest: str, artifact_type: str = ""
    ) -> tuple[Mapping[str, Any], ...]:
        """Return the descriptors of the manifests whose subject is *digest*, of one `artifactType` if given."""
        pages = list(self._pages(f"{repository}/referrers/{digest}", repository)) or [
            self._fallback(repository, digest)
        ]
        found = [descriptor for page in pages for descriptor in page.get("manifests") or ()]
        return tuple(d for d in found if not artifact_type or d.get("artifactType") == artifact_type)

    def _sources(self, repository: str) -> list[pulls.Source]:
        mirrors = [(m.registry._wire, _join(m.namespace, repository)) for m in self._mirrors]
        return [*mirrors, (self._wire, repository)]

    def _head(self, repository: str, ref: str) -> str | None:
        path = f"{repository}/manifests/{ref}"
        answer = self._get("HEAD", path, repository, accept=_ACCEPTED)
        if answer.status == 200 and (found := answer.headers.get("docker-content-digest")):
            return str(found)
        if answer.status == 200:
            answer = self._get("GET", path, repository, accept=_ACCEPTED)
        return None if answer.status == 404 else digest_of(answer.data)

    def _has(self, repository: str, digest: str, scopes: Scopes) -> bool:
        url = self._wire.url(f"{repository}/blobs/{digest}")
        doing = f"look for a blob in {repository}"
        return self._wire.call("HEAD", url, scopes=scopes, doing=doing, expect=(200, 404)).status == 200

    def _get(self, method: str, path: str | httpx.URL, repository: str, *, accept: str = "*/*") -> Answer:
        url = self._wire.url(path) if isinstance(path, str) else path
        return self._wire.call(
            method,
            url,
            scopes=pull(repository),
            doing=f"read {repository}",
            expect=(200, 404),
            headers={"Accept": accept},
        )

    def _mount(self, repository: str, digest: str, from_repository: str) -> Answer | None:
        """Ask for a mount; None if that is refused. An answer with 202 has opened an upload instead."""
        url = self._wire.url(f"{repository}/blobs/uploads/").copy_with(
            params={"mount": digest, "from": from_repository}
        )
        scopes = (*push(repository), *pull(from_repository))
        try:
            answer = self._wire.call(
                "POST",
                url,
                scopes=scopes,
                doing=f"mount a blob in {repository}",
                expect=(201, 202, *_REJECTIONS),
            )
        except Unauthorized:  # we may write here but not read there
            return None
        return answer if answer.status in (201, 202) else None

    def _pages(self, path: str, repository: str) -> Iterator[Mapping[str, Any]]:
        """Yield the pages of a list, as their `Link` headers chain them (RFC 8288); none if there is no such list."""
        url = self._wire.url(path)
        for _ in range(_PAGES):
            answer = self._get("GET", url, repository, accept=f"application/json, {OCI_INDEX}")
            if answer.status == 404:
                return
            yield _object(answer.data, self.host)
            following = re.search(r"<([^>]*)>\s*;[^,]*\brel=\"?next\"?", answer.headers.get("link", ""))
            if following is None:
                return
            url = self._wire.follow(following[1], answer.url)

    def _fallback(self, repository: str, digest: str) -> Mapping[str, Any]:
        """Return the index of referrers that clients keep where there is no API ("Referrers Tag Schema")."""
        answer = self._get(
            "GET", f"{repository}/manifests/{_fallback_tag(digest)}", repository, accept=OCI_INDEX
        )
        return {} if answer.status == 404 else _object(answer.data, self.host)

    def _refer(self, repository: str, subject: str, data: bytes, media_type: str) -> None:
        manifest = json.loads(data)
        own = {
            "mediaType": media_type,
            "digest": digest_of(data),
            "size": len(data),
            "artifactType": manifest.get("artifactType") or manifest.get("config", {}).get("mediaType"),
            "annotations": manifest.get("annotations"),
        }
        listed = list(self._fallback(repository, subject).get("manifests") or ())
        if any(descriptor.get("digest") == own["digest"] for descriptor in listed):
            return
        listed.append({key: value for key, value in own.items() if value})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        self.put_manifest(repository, _fallback_tag(subject), json.dumps(index).encode(), OCI_INDEX)


def _join(namespace: str, repository: str) -> str:
    return f"{namespace}/{repository}" if namespace else repository


def _name(repository: str, ref: str) -> str:
    return f"{repository}{'@' if ':' in ref else ':'}{ref}"


def _fallback_tag(digest: str) -> str:
    return digest.replace(":", "-", 1)


def _media_type(answer: Answer) -> str:
    """Return the manifest's media type; a registry that only keeps files does not know it."""
    given: str = answer.headers.get("content-type", "").partition(";")[0].strip()
    if given.startswith("application/vnd."):
        return given
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(answer.data).get("mediaType") or OCI_MANIFEST)
    return given


def _object(data: bytes, host: str) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as exc:
        raise RegistryError(f"the registry {host} answered with no JSON: {data[:40]!r}") from exc
    return found if isinstance(found, dict) else {}
