"""What is said of an image beside it in its registry: a manifest whose `subject` is the image's.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlopsnb.images.digests import digest_of
from mlopsnb.images.plan import Descriptor
from mlopsnb.images.registry import OCI_MANIFEST

if TYPE_CHECKING:
    from mlopsnb.images.registry import Registry

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


def attach(
    registry: Registry,
    repository: str,
    subject: Descriptor,
    data: bytes,
    media_type: str,
    *,
    title: str,
    annotations: Mapping[str, str] | None = None,
) -> Descriptor:
    """Store *data* as an artifact of type *media_type* that refers to the manifest *subject*; return its manifest.

    *title* is the file's name for whoever downloads it. The same data gives the same artifact, once.
    """
    said, config = descriptor(data, media_type), descriptor(EMPTY, EMPTY_TYPE)
    registry.upload(repository, config, EMPTY)
    registry.upload(repository, said, data)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": media_type,
        "config": _json(config),
        "layers": [{**_json(said), "annotations": {"org.opencontainers.image.title": title}}],
        "subject": _json(subject),
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    made = descriptor(text, OCI_MANIFEST)
    registry.put_manifest(repository, made.digest, text, OCI_MANIFEST)
    return made


def read(registry: Registry, repository: str, subject: str, media_type: str) -> list[bytes]:
    """Return what was attached to the manifest of digest *subject* as *media_type*."""
    found = []
    for reference in registry.referrers(repository, subject, media_type):
        manifest = json.loads(registry.manifest(repository, reference["digest"]).data)
        layer = manifest["layers"][0]
        blob = Descriptor(media_type=layer["mediaType"], digest=layer["digest"], size=layer["size"])
        found.append(registry.read(repository, blob))
    return found


def descriptor(data: bytes, media_type: str) -> Descriptor:
    """Return what names *data* as a blob."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def _json(found: Descriptor) -> dict[str, object]:
    return {"mediaType": found.media_type, "digest": found.digest, "size": found.size}
