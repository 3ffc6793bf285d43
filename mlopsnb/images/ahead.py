"""Pack layers before the builder asks for them, and send them: while packages are looked for, while the model is proved.

Nothing is certain then but the bytes of these layers. What no image refers to is nothing to anybody, and registries
remove it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlopsnb.images.assembly import base_layers, descriptor
from mlopsnb.images.crew import Crew, Tally
from mlopsnb.images.layers import Packed, pack

if TYPE_CHECKING:
    from mlopsnb.images.cache import Store
    from mlopsnb.images.image import ImageLayer
    from mlopsnb.images.plan import ImagePlan, Layer
    from mlopsnb.images.registry import Registry


class Ahead:
    """Packs the layers that it is given, in threads, and sends them to *repository* if there is a *registry*.

    Leaving the block by an exception calls off what is under way.
    """

    def __init__(self, store: Store, registry: Registry | None = None, repository: str = "") -> None:
        self._store, self._registry, self._repository = store, registry, repository
        self._crew = Crew(registry.cancel if registry else lambda: None)
        self._packing, self._sent = Tally(), Tally()
        self._tasks: list[Future[Packed]] = []
        self._sending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._crew.__exit__(kind, exc, trace)
        finally:
            if self._registry:
                self._registry.close()

    def take(self, layers: Sequence[Layer]) -> None:
        """Begin with *layers*; raise what went wrong with those of before, if anything did."""
        self._crew.check()
        self._packing.expect(sum(layer.size for layer in layers))
        self._tasks += [self._crew.start(self._crew.packers, self._pack, layer) for layer in layers]

    def _pack(self, layer: Layer) -> Packed:
        crew = self._crew
        packed = pack(
            layer, self._store, crew.compressors, on_bytes=self._packing.add, cancelled=crew.cancelled
        )
        if self._registry:
            self._sending.append(crew.start(crew.senders, self._send, self._registry, packed))
        return packed

    def _send(self, registry: Registry, packed: Packed) -> None:
        if registry.upload(self._repository, descriptor(packed.layer), packed.source) == "sent":
            self._sent.add(packed.layer.size)

    def result(self) -> tuple[list[ImageLayer], int]:
        """Wait for all; return the layers, as they will be stored, and how many bytes were sent."""
        self._crew.wait(self._tasks, "pack", "", self._packing)
        self._crew.wait(self._sending, "upload", self._repository, self._sent)
        self._crew.check()
        return [task.result().layer for task in self._tasks], self._sent.done


def measure(plan: ImagePlan, store: Store) -> list[ImageLayer]:
    """Return the layers of *plan* as they will be stored, bottom to top, the base's included."""
    with Ahead(store) as ahead:
        ahead.take(plan.layers)
        return [*base_layers(plan.base), *ahead.result()[0]]
