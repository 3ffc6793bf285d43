"""Import optional packages late, and say which extra brings them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from mlopsnb.errors import MissingExtra


def need(module: str, *, extra: str) -> Any:
    """Import *module*, or raise `MissingExtra` naming the *extra* to install.

    Typed as `Any`: the packages behind extras have no types that hold across their versions.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name != module.partition(".")[0]:
            raise  # the package is there; something inside it is broken
        raise MissingExtra(module, extra) from exc


def loaded(module: str) -> Any:
    """Return *module* if somebody has imported it already, else None.

    A model cannot exist unless its framework was imported, so a format that
    finds nothing here need not import anything to say no.
    """
    return sys.modules.get(module)
