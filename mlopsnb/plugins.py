"""Find back ends by name. Built-ins and third parties come in by the same door: entry points."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mlopsnb.errors import UnknownBackend

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = Literal["builder", "format", "tracker", "target"]

BUILT_IN = {
    ("format", "onnx"): "mlopsnb.formats.onnx:Onnx",
    ("format", "savedmodel"): "mlopsnb.formats.savedmodel:SavedModel",
    ("format", "torch_export"): "mlopsnb.formats.torch_export:TorchExport",
    ("format", "torchscript"): "mlopsnb.formats.torchscript:TorchScript",
}
"""What our own entry points say of what a server needs. To ask every installed package would take it longer than ours."""


@cache
def available(kind: Kind) -> dict[str, EntryPoint]:
    """Map the names of the installed back ends of *kind* to entry points. Imports none of them."""
    from importlib.metadata import entry_points

    return {ep.name: ep for ep in sorted(entry_points(group=f"mlopsnb.{kind}s"), key=lambda ep: ep.name)}


def find(kind: Kind, name: str) -> EntryPoint:
    """Return the entry point of the back end *name*, or raise `UnknownBackend`. Imports nothing of it."""
    found = available(kind)
    if name not in found:
        raise UnknownBackend(kind, name, tuple(found))
    return found[name]


def create(kind: Kind, name: str, /, **options: object) -> Any:
    """Load the back end *name* and make one, or raise `UnknownBackend`."""
    if (kind, name) in BUILT_IN:
        module, _, attribute = BUILT_IN[kind, name].partition(":")
        return getattr(import_module(module), attribute)(**options)
    return find(kind, name).load()(**options)
