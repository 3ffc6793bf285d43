"""Find back ends by name. Built-ins and third parties come in by the same door: entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from mlopsnb.errors import UnknownBackend

Kind = Literal["format", "tracker", "target"]


@cache
def available(kind: Kind) -> dict[str, EntryPoint]:
    """Map the names of the installed back ends of *kind* to entry points. Imports none of them."""
    return {ep.name: ep for ep in sorted(entry_points(group=f"mlopsnb.{kind}s"), key=lambda ep: ep.name)}


def create(kind: Kind, name: str, /, **options: object) -> Any:
    """Load the back end *name* and make one, or raise `UnknownBackend`."""
    found = available(kind)
    if name not in found:
        raise UnknownBackend(kind, name, tuple(found))
    return found[name].load()(**options)
