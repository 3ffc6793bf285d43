"""Bytes for people, the budget of an image, and what can be done about its size. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mlopsnb.errors import UserError
from mlopsnb.images.errors import TooLarge

if TYPE_CHECKING:
    from mlopsnb.images.image import ImageLayer
    from mlopsnb.images.lock import Lock

UNITS = ("B", "kB", "MB", "GB")
"""Decimal, as registries and disks count."""

HEAVIEST = 5
"""Layers that are named when an image is too large."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]i?)?B?", re.IGNORECASE)
_LARGE_BASE = 120_000_000
_LARGE_FRAMEWORK = 100_000_000


def size_text(size: int) -> str:
    """Return a number of bytes: `812 B`, `3.4 MB`."""
    amount = float(size)
    for unit in UNITS:
        if amount < 999.5 or unit == UNITS[-1]:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("the last unit takes every size")


def moved_text(done: int, total: int | None) -> str:
    """Return how many bytes have gone, of how many: `312 of 640 MB`."""
    if total is None:
        return size_text(done)
    amount, unit = size_text(max(done, total)).split()
    digits = 1 if "." in amount else 0
    return f"{done / 1000 ** UNITS.index(unit):.{digits}f} of {amount} {unit}"


def read_size(size: int | str) -> int:
    """Read a number of bytes: a number, or text such as `900MB` (10^6) or `1.5 GiB` (2^30); `UserError` otherwise."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    if isinstance(size, str) and (found := _SIZE.fullmatch(size.strip())):
        unit = (found[2] or "").lower()
        step = 1024 if unit.endswith("i") else 1000
        count = int(float(found[1]) * step ** " kmg".index(unit[:1] or " "))
        if count > 0:
            return count
    raise UserError(f"{size!r} is no size", hint='give bytes, or text such as "900MB" or "1.5GB"')


def heaviest(layers: Iterable[ImageLayer], most: int = HEAVIEST) -> list[ImageLayer]:
    """Return the *most* largest layers as they are stored, the largest first."""
    return sorted(layers, key=lambda layer: (-layer.size, layer.name))[:most]


def check_budget(layers: Sequence[ImageLayer], lock: Lock, budget: int) -> None:
    """Raise `TooLarge`, with the heaviest *layers* and what to do about them, if they are over *budget* bytes."""
    size = sum(layer.size for layer in layers)
    if size <= budget:
        return
    width = max(len(size_text(layer.size)) for layer in layers)
    lines = [f"{size_text(layer.size):>{width}}  {layer.name}" for layer in heaviest(layers)]
    raise TooLarge(
        f"the image has {size_text(size)} compressed, over its budget of {size_text(budget)}; the heaviest layers:\n"
        + "\n".join(f"    {line}" for line in lines),
        hint="; ".join(advice(layers, lock)) or "raise max_size",
    )


def advice(layers: Sequence[ImageLayer], lock: Lock) -> list[str]:
    """Return what would make an image smaller, what saves most first; nothing if there is nothing to say."""
    said = _framework_advice(lock, layers)
    base = sum(layer.size for layer in layers if layer.kind == "base")
    if base > _LARGE_BASE:
        said.append(f"the base has {size_text(base)}: python:{lock.python}-slim as base= has about 50 MB")
    return said


def _framework_advice(lock: Lock, layers: Sequence[ImageLayer]) -> list[str]:
    versions = {p.name: p.version for p in lock.packages}
    if any(name.startswith("nvidia-") for name in versions) or "+cu" in versions.get("torch", ""):
        return ['the CUDA libraries are of use on a GPU only: accelerator="cpu" leaves them out']
    if "tensorflow" in versions:
        return ["tensorflow brings what only training and GPUs need: install tensorflow-cpu instead"]
    large = [
        layer for layer in layers if layer.kind in ("wheel", "dependencies") and layer.size > _LARGE_FRAMEWORK
    ]
    for name in ("torch", "tensorflow-cpu"):
        if name in versions and any(layer.name.startswith(name) for layer in large):
            return [f'format="onnx" serves the same model without {name}, if it can be exported so']
    return []
