"""The builder that needs no engine, no root and no binary: it packs layers and brings them where the image is to be.

Layers are sent while others are packed. The manifest goes last, and with it the tag: until then nobody sees an image,
and whatever ends a build leaves packed layers in the cache for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.events import report_bytes, step
from mlopsnb.images.assembly import OCI_CONFIG, Assembled, assemble, descriptor, record
from mlopsnb.images.base import fetch_layer
from mlopsnb.images.blobs import Source, pieces
from mlopsnb.images.cache import Store
from mlopsnb.images.crew import Crew, Tally
from mlopsnb.images.layers import Packed, find, pack
from mlopsnb.images.plan import Descriptor, ImagePlan, Layer
from mlopsnb.images.references import parse, parse_registry
from mlopsnb.images.registry import Registry, connect
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from mlopsnb.images.image import Destination, Image
    from mlopsnb.images.plan import Base
    from mlopsnb.images.registry import OnBytes

_PIECE = 1 << 20


class Oci:
    """Builds images in this process, for any destination."""

    def build(self, plan: ImagePlan, to: Destination) -> Image:
        """Make the image and bring it to *to*; see `Builder.build`."""
        chosen = settings()
        store = Store(chosen.cache_dir / "images", limit=chosen.image_cache_bytes)
        deliver = {"registry": _push, "engine": _load, "layout": _write, "archive": _write}[to.place]
        with store.using():
            return deliver(plan, to, store)


def place_of(name: str, to: Destination) -> tuple[str, str]:
    """Return the host and the repository there of the image *name* that goes to the registry *to*."""
    host, namespace = parse_registry(to.registry)
    return host, f"{namespace}/{name}" if namespace else name


def _push(plan: ImagePlan, to: Destination, store: Store) -> Image:
    host, repository = place_of(plan.repository, to)
    with connect(host) as registry:
        made, sent = _there(plan, registry, repository, store), 0
        if made is None:
            made, sent = _sent(plan, registry, repository, store)
    name = f"{host}/{repository}"
    return record(
        plan,
        made,
        to,
        builder="oci",
        reference=f"{name}@{made.manifest.digest}",
        tagged=f"{name}:{plan.tag}",
        sent=sent,
    )


def _there(plan: ImagePlan, registry: Registry, repository: str, store: Store) -> Assembled | None:
    """Return the image if all its layers were packed before and the tag in the registry already stands for it."""
    known = [packed for layer in plan.layers if (packed := find(layer, store))]
    if len(known) < len(plan.layers):
        return None
    made = assemble(plan, [packed.layer for packed in known])
    if registry.digest(repository, plan.tag) != made.manifest.digest:
        return None
    with step("upload") as said:
        said.result = f"{repository}:{plan.tag} is there already"
    return made


def _sent(plan: ImagePlan, registry: Registry, repository: str, store: Store) -> tuple[Assembled, int]:
    """Pack and send what is new; return the image and how many bytes that were."""
    with Crew(registry.cancel) as crew:
        sender = _Sender(plan, registry, repository, store, crew)
        packed = _packed(plan, store, crew, sender)
        with step("upload", f"to {registry.host}/{repository}") as said:
            crew.check()
            crew.wait(sender.tasks, "upload", repository, sender.arrived)
            made = assemble(plan, [p.layer for p in packed])
            config = Descriptor(media_type=OCI_CONFIG, digest=made.id, size=len(made.config))
            sender.send(config, made.config)
            registry.put_manifest(repository, plan.tag, made.manifest.data, made.manifest.media_type)
            said.result = f"{_mb(sender.sent.done)} sent, the other layers were there"
    return made, sender.sent.done + len(made.manifest.data)


class _Sender:
    """Brings blobs into one repository, several at once."""

    def __init__(
        self, plan: ImagePlan, registry: Registry, repository: str, store: Store, crew: Crew
    ) -> None:
        self._base, self._store, self._crew = plan.base, store, crew
        self._registry, self._repository = registry, repository
        self.arrived, self.sent = Tally(), Tally()
        self.tasks: list[Future[None]] = [
            crew.start(crew.senders, self._send_base, blob) for blob in plan.base.layers
        ]

    def __call__(self, packed: Packed) -> None:
        """Send a layer when it is its turn."""
        blob = descriptor(packed.layer)
        self.tasks.append(self._crew.start(self._crew.senders, self.send, blob, packed.source))

    def send(self, blob: Descriptor, source: Source) -> None:
        """Send a blob, unless the repository has it."""
        self.arrived.expect(blob.size)
        arrival = self._registry.upload(self._repository, blob, source, on_bytes=self.arrived.add)
        (self.sent if arrival == "sent" else self.arrived).add(blob.size)

    def _send_base(self, blob: Descriptor) -> None:
        """Bring a layer of the base: by a mount if it comes from the same registry, else through the cache."""
        name = parse(self._base.reference)
        here = self._registry.has(self._repository, blob.digest) or (
            name.registry == self._registry.host
            and self._registry.mount(self._repository, blob.digest, name.repository)
        )
        if here:
            self.arrived.expect(blob.size)
            self.arrived.add(blob.size)
        else:
            self.send(blob, _base_layer(self._base, self._store, self._crew, blob))


def _base_layer(base: Base, store: Store, crew: Crew, blob: Descriptor) -> Path:
    def go_on(count: int) -> None:
        if crew.cancelled():
            raise KeyboardInterrupt

    return fetch_layer(base, blob, store, on_bytes=go_on)


def _packed(
    plan: ImagePlan, store: Store, crew: Crew, hand_on: Callable[[Packed], None] = lambda packed: None
) -> list[Packed]:
    """Pack the plan's layers, the largest first, and *hand on* each as soon as it is packed.

    Returns less than all if it was not packing that failed.
    """
    tally = Tally(sum(layer.size for layer in plan.layers))

    def work(layer: Layer) -> Packed:
        packed = pack(layer, store, crew.compressors, on_bytes=tally.add, cancelled=crew.cancelled)
        hand_on(packed)
        return packed

    with step("pack", f"{len(plan.layers)} layers") as said:
        order = sorted(plan.layers, key=lambda layer: -layer.size)
        tasks = {layer.key: crew.start(crew.packers, work, layer) for layer in order}
        if not crew.wait(tasks.values(), "pack", said.result, tally):
            said.result = "stopped"
            return []
        packed = [tasks[layer.key].result() for layer in plan.layers]
        said.result = f"{len(packed)} layers, {_mb(sum(p.layer.size for p in packed))}"
        return packed


def _write(plan: ImagePlan, to: Destination, store: Store) -> Image:
    from mlopsnb.images.layout import write_archive, write_directory

    path = to.path
    assert path is not None
    with Crew() as crew:
        files = {
            blob.digest: crew.start(crew.senders, _base_layer, plan.base, store, crew, blob)
            for blob in plan.base.layers
        }
        packed = _packed(plan, store, crew)
        with step("upload", f"to {path}") as said:
            crew.check()
            made = assemble(plan, [p.layer for p in packed])
            written = Tally(sum(layer.size for layer in made.layers))
            crew.wait(files.values(), "upload", "base image", written)
            blobs: dict[str, Source] = {digest: file.result() for digest, file in files.items()}
            blobs |= {p.layer.digest: p.source for p in packed} | {made.id: made.config}
            write = write_directory if to.place == "layout" else write_archive
            name = f"{plan.repository}:{plan.tag}"
            sent = write(path, made.manifest, blobs, name=name, on_bytes=_telling(str(path), written))
            said.result = f"{_mb(sent)} written"
    transport = "oci" if to.place == "layout" else "oci-archive"
    name = f"{transport}:{path}:{plan.tag}"
    return record(plan, made, to, builder="oci", reference=name, tagged=name, sent=sent)


def _load(plan: ImagePlan, to: Destination, store: Store) -> Image:
    from mlopsnb.images.engine import Engine, EngineLayer

    name = f"{plan.repository}:{plan.tag}"
    with Engine() as engine, Crew() as crew:
        packed = _packed(plan, store, crew)
        made = assemble(plan, [p.layer for p in packed])
        reads: list[Callable[[], Iterator[bytes]]] = [
            *(partial(_pieces_of_base, plan.base, store, crew, blob) for blob in plan.base.layers),
            *(partial(pieces, p.source) for p in packed),
        ]
        with step("upload", "into the container engine") as said:
            tally = Tally(sum(layer.size for layer in made.layers))
            layers = [
                EngineLayer(diff_id=layer.diff_id, size=layer.size, read=read)
                for layer, read in zip(made.layers, reads, strict=True)
            ]
            loaded = engine.load(made.config, layers, tag=name, on_bytes=_telling(name, tally))
            said.result = f"{_mb(loaded.sent)} loaded"
    return record(plan, made, to, builder="oci", reference=name, tagged=name, sent=loaded.sent)


def _pieces_of_base(base: Base, store: Store, crew: Crew, blob: Descriptor) -> Iterator[bytes]:
    yield from pieces(_base_layer(base, store, crew, blob))


def _telling(message: str, tally: Tally) -> OnBytes:
    """Return what reports bytes that this thread itself moves, some at a time."""
    told = 0

    def tell(count: int) -> None:
        nonlocal told
        tally.add(count)
        if tally.done - told >= _PIECE or tally.done == tally.total:
            told = tally.done
            report_bytes("upload", message, tally.done, tally.total)

    return tell


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
