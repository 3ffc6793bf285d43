"""From packed layers to an image: its configuration, its manifest, its record. Pure.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/{config,manifest}.md. All JSON is canonical and nothing
says when or where, so equal plans give equal digests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlopsnb.images.digests import digest_of
from mlopsnb.images.image import Destination, Image, ImageLayer
from mlopsnb.images.plan import Descriptor
from mlopsnb.images.registry import OCI_MANIFEST, Manifest

if TYPE_CHECKING:
    from mlopsnb.images.plan import Base, ImagePlan

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_EPOCH = "1970-01-01T00:00:00Z"
_BASE = ("org.opencontainers.image.base.name", "org.opencontainers.image.base.digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """An image as it is stored: its configuration and manifest, and all its layers, the base's first."""

    config: bytes
    manifest: Manifest
    layers: tuple[ImageLayer, ...]

    @property
    def id(self) -> str:
        """The `sha256:…` digest of the configuration."""
        return digest_of(self.config)


def assemble(plan: ImagePlan, packed: Sequence[ImageLayer]) -> Assembled:
    """Put the image together from *packed*, the plan's layers in their order."""
    layers = (*base_layers(plan.base), *packed)
    config = _canonical(_config(plan, layers))
    manifest = _canonical(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": la.media_type, "digest": la.digest, "size": la.size} for la in layers],
            "annotations": {key: plan.labels[key] for key in _BASE if key in plan.labels},
        }
    )
    return Assembled(
        config=config, manifest=Manifest(manifest, OCI_MANIFEST, digest_of(manifest)), layers=layers
    )


def descriptor(layer: ImageLayer) -> Descriptor:
    """Return what a registry calls the layer."""
    return Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)


def record(
    plan: ImagePlan,
    assembled: Assembled,
    to: Destination,
    *,
    builder: str,
    reference: str,
    tagged: str,
    sent: int,
) -> Image:
    """Return the record of an image that was brought to its destination."""
    return Image(
        reference=reference,
        tagged=tagged,
        digest=assembled.manifest.digest,
        id=assembled.id,
        destination=to,
        builder=builder,
        platform=plan.base.platform,
        base=plan.base.pinned,
        layers=assembled.layers,
        lock=plan.lock,
        package_digest=plan.package_digest,
        labels=plan.config["Labels"],
        sent=sent,
    )


def base_layers(base: Base) -> list[ImageLayer]:
    """Return the layers that come with *base*; how large they are unpacked is not known."""
    diff_ids = base.config["rootfs"]["diff_ids"]
    return [
        ImageLayer(
            kind="base",
            name=base.reference.partition("@")[0],
            digest=layer.digest,
            diff_id=diff_id,
            size=layer.size,
            unpacked=0,
            media_type=layer.media_type,
        )
        for layer, diff_id in zip(base.layers, diff_ids, strict=True)
    ]


def _config(plan: ImagePlan, layers: Sequence[ImageLayer]) -> dict[str, Any]:
    theirs = plan.base.config
    platform = {key: theirs[key] for key in ("architecture", "os", "variant") if theirs.get(key)}
    ours = [
        {"created": _EPOCH, "created_by": "mlopsnb", "comment": layer.name}
        for layer in layers
        if layer.kind != "base"
    ]
    return {
        **platform,
        "created": _EPOCH,
        "config": plan.config,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [*_history(plan.base), *ours],
    }


def _history(base: Base) -> list[dict[str, Any]]:
    """Return the base's history, or one line a layer if that does not fit its layers: engines refuse such an image."""
    told = list(base.config.get("history") or ())
    if sum(not line.get("empty_layer") for line in told) == len(base.layers):
        return told
    return [{"created": _EPOCH, "comment": base.reference.partition("@")[0]} for _ in base.layers]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
