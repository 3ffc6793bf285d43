"""Pack layers before the builder asks for them: while the proof runs, or to know how large the image will be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlopsnb.events import report_bytes
from mlopsnb.images.assembly import base_layers
from mlopsnb.images.layers import pack

if TYPE_CHECKING:
    from mlopsnb.images.cache import Store
    from mlopsnb.images.image import ImageLayer
    from mlopsnb.images.plan import ImagePlan, Layer

_REPORT = 8 << 20


def pack_ahead(layers: Sequence[Layer], store: Store) -> list[ImageLayer]:
    """Pack *layers* into *store*, where the builder finds them, and return them as they will be stored."""
    total, done, told = sum(layer.size for layer in layers), 0, 0

    def on_bytes(count: int) -> None:
        nonlocal done, told
        done += count
        if done - told >= _REPORT:
            told = done
            report_bytes("pack", "", done, total)

    with ThreadPoolExecutor(os.cpu_count(), "mlopsnb-compress") as threads:
        return [pack(layer, store, threads, on_bytes=on_bytes).layer for layer in layers]


def measure(plan: ImagePlan, store: Store) -> list[ImageLayer]:
    """Return the layers of *plan* as they will be stored, bottom to top, the base's included."""
    return [*base_layers(plan.base), *pack_ahead(plan.layers, store)]
