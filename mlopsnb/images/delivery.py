"""From an image that an engine has built to where it is to go, and the record of it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from mlopsnb import events
from mlopsnb.images import layout, registry
from mlopsnb.images.credentials import find
from mlopsnb.images.errors import (
    EngineError,
    ManifestRejected,
    RegistryError,
    RegistryFull,
    RegistryUnreachable,
    Unauthorized,
)
from mlopsnb.images.image import Destination, Image, ImageLayer
from mlopsnb.images.layers import TAR
from mlopsnb.images.references import parse_registry

if TYPE_CHECKING:
    from mlopsnb.images.engine import EngineImage
    from mlopsnb.images.engine_builds import BuildEngine
    from mlopsnb.images.plan import ImagePlan, Kind


def deliver(engine: BuildEngine, plan: ImagePlan, built: str, to: Destination, *, sent: int) -> Image:
    """Bring the image with the id *built* to its destination; *sent* bytes were needed to build it.

    If that fails, names in the engine mean what they meant before.
    """
    match to.place:
        case "engine":
            name = f"{plan.repository}:{plan.tag}"
            image = _record(engine, plan, built, to, tagged=name, sent=sent)
            engine.name(built, name)
            return image
        case "registry":
            return _pushed(engine, plan, built, to)
        case "layout" | "archive":
            return _written(engine, plan, built, to)
        case _:
            assert_never(to.place)


def _pushed(engine: BuildEngine, plan: ImagePlan, built: str, to: Destination) -> Image:
    host, namespace = parse_registry(to.registry)
    repository = "/".join(filter(None, (namespace, plan.repository)))
    name, tag = f"{host}/{repository}", plan.tag
    with events.step("upload", f"{name}:{tag}") as told, engine.naming(built, f"{name}:{tag}"):
        log = _PushLog()
        for message in engine.push(name, tag, find(host, repository)):
            log.read(message)
        if log.error or not log.digest:
            raise translated(host, f"push {name}:{tag}", log.error or "the engine told no digest")
        with registry.connect(host) as client:
            manifest = client.manifest(repository, log.digest)
        image = _record(engine, plan, built, to, tagged=f"{name}:{tag}", manifest=manifest, pushed=log.pushed)
        told.result = f"{image.reference} ({image.sent / 1e6:.1f} MB sent)"
    return image


def _written(engine: BuildEngine, plan: ImagePlan, built: str, to: Destination) -> Image:
    assert to.path is not None
    name = f"{plan.repository}:{plan.tag}"
    write = layout.write_directory if to.place == "layout" else layout.write_archive
    to.path.parent.mkdir(parents=True, exist_ok=True)
    with (
        events.step("upload", str(to.path)) as told,
        tempfile.TemporaryDirectory(prefix=".mlopsnb-", dir=to.path.parent) as place,
    ):
        here = Path(place) / "image"
        digest = engine.export(built, here)
        manifest = layout.Layout(here).manifest(digest)
        blobs = {f"sha256:{p.name}": p for p in (here / "blobs" / "sha256").iterdir()}
        del blobs[manifest.digest]
        written = write(to.path, manifest, blobs, name=name)
        told.result = f"{to.path} ({written / 1e6:.1f} MB)"
        transport = "oci" if to.place == "layout" else "oci-archive"
        return _record(
            engine,
            plan,
            built,
            to,
            tagged=f"{transport}:{to.path}:{plan.tag}",
            manifest=manifest,
            sent=written,
        )


class _PushLog:
    """What an engine tells while it pushes: `digest` of the manifest, beginnings of the diff ids `pushed`, an `error`."""

    def __init__(self) -> None:
        self.digest = self.error = ""
        self.pushed: set[str] = set()
        self._bytes: dict[str, tuple[int, int]] = {}

    def read(self, message: Mapping[str, Any]) -> None:
        """Take in one message, and report how many bytes are over."""
        layer = str(message.get("id", ""))
        if message.get("status") == "Pushed":
            self.pushed.add(layer)
        if progress := message.get("progressDetail"):
            done, total = int(progress.get("current", 0)), int(progress.get("total", 0))
            self._bytes[layer] = (min(done, total) if total else done, max(done, total))
            over, whole = (sum(column) for column in zip(*self._bytes.values(), strict=True))
            events.report_bytes("upload", "pushing", over, whole)
        self.digest = str((message.get("aux") or {}).get("Digest", "")) or self.digest
        self.error = str(message.get("error", "")) or self.error


_REASONS: Sequence[tuple[str, type[RegistryError]]] = (
    (r"unauthorized|denied|authentication required|no basic auth|forbidden|\b40[13]\b", Unauthorized),
    (r"no space left|quota|entity too large|\b(413|507)\b", RegistryFull),
    (r"manifest.*(invalid|unknown|rejected|unsupported)|tag.*immutable", ManifestRejected),
    (
        r"refused|no such host|time-?out|tls|x509|http response to https|unreachable|reset|eof",
        RegistryUnreachable,
    ),
)
"""How engines word what a registry told them, in lower case, and what that is."""


def translated(host: str, doing: str, said: str) -> RegistryError:
    """Return the error that an engine's words *said* stand for, after it has been told to do *doing*."""
    found = said[:300]
    kind = next((k for pattern, k in _REASONS if re.search(pattern, said.lower())), None)
    if kind is Unauthorized:
        credentials = find(host)
        return Unauthorized(host, doing, found, user=credentials.user if credentials else "")
    if kind is RegistryFull:
        return RegistryFull(host, "the image", found)
    if kind is ManifestRejected:
        return ManifestRejected(host, doing.removeprefix("push "), found)
    if kind is RegistryUnreachable:
        error = RegistryUnreachable(host, f"{found} (said by the container engine)")
        if "http response to https" in said.lower():
            error.hint = (
                "add it to insecure-registries of the engine's daemon.json, or build with builder='oci'"
            )
        return error
    return RegistryError(
        f"the engine could not {doing}: {found}", hint="builder='oci' pushes without the engine"
    )


def _record(
    engine: BuildEngine,
    plan: ImagePlan,
    built: str,
    to: Destination,
    *,
    tagged: str,
    manifest: registry.Manifest | None = None,
    pushed: set[str] | None = None,
    sent: int = 0,
) -> Image:
    image = engine.image(built)
    if image is None:
        raise EngineError(
            f"the engine lost the image {built}", hint="something else removes its images; build again"
        )
    layers = _layers(plan, image, engine.sizes(built), manifest)
    if pushed is not None:
        sent = sum(
            x.size for x in layers if any(x.diff_id.removeprefix("sha256:").startswith(p) for p in pushed)
        )
    digest = manifest.digest if manifest else image.id
    return Image(
        reference=f"{tagged.rpartition(':')[0]}@{digest}" if to.place == "registry" else tagged,
        tagged=tagged,
        digest=digest,
        id=image.id,
        destination=to,
        builder="docker",
        platform=image.platform,
        base=plan.base.pinned,
        layers=layers,
        lock=plan.lock,
        package_digest=plan.package_digest,
        labels=dict(image.config.get("config", {}).get("Labels") or {}),
        sent=sent,
    )


def _layers(
    plan: ImagePlan,
    image: EngineImage,
    history: Sequence[tuple[str, int]],
    manifest: registry.Manifest | None,
) -> tuple[ImageLayer, ...]:
    """Return the image's layers. The last ones are the plan's, in its order; one `COPY` made each of them."""
    ours = len(plan.layers)
    below = len(image.diff_ids) - ours
    of_base = len(plan.base.config["rootfs"]["diff_ids"])
    copies = [n for n, (how, _) in enumerate(history) if "COPY" in how][-ours:]
    earlier = [size for how, size in history[: copies[0]] if size] if copies else []
    if len(earlier) != below:  # some of its layers are empty, or were made without being told of
        earlier = [sum(earlier), *[0] * (below - 1)]
    unpacked = [*earlier, *(history[n][1] for n in copies)]
    stored = json.loads(manifest.data)["layers"] if manifest else [{}] * len(image.diff_ids)
    names: list[tuple[Kind | Literal["base"], str]] = [("base", plan.base.reference)] * of_base
    names += [("base", "Dockerfile steps")] * (below - of_base)
    names += [(layer.kind, layer.name) for layer in plan.layers]
    return tuple(
        ImageLayer(
            kind=kind,
            name=name,
            digest=blob.get("digest", diff_id),
            diff_id=diff_id,
            size=blob.get("size", size),
            unpacked=size,
            media_type=blob.get("mediaType", TAR),
        )
        for (kind, name), diff_id, size, blob in zip(
            names,
            image.diff_ids,
            unpacked,
            stored,
            strict=True,
        )
    )
