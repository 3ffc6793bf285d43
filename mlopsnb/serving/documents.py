"""Large JSON documents, read by simdjson, which puts numbers into an array without making objects of them.

simdjson is imported with the first such document: most models never get one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

LARGE_BYTES = 16_384
"""From here on a document of simdjson is worth its start."""

KEEP_BYTES = 1 << 20
"""A parser that has read more than this is given up, as it keeps all the memory that it took."""

NUMBERS = {
    "float": ("d", np.dtype("float64")),
    "int": ("i", np.dtype("int64")),
    "uint": ("u", np.dtype("uint64")),
}
"""What simdjson calls the numbers of a dtype and gives them as, by the dtype's name without its size."""

_OTHERWISE = (AttributeError, TypeError, KeyError, RuntimeError, ValueError, ArithmeticError)
"""What is raised by text that is no JSON, and where a document is not as its reader takes it to be."""

_Read = TypeVar("_Read")


def kind(dtype: str) -> str:
    """Return the name of *dtype* without its size."""
    return dtype.rstrip("0123456789")


class Documents:
    """Reads one document at a time."""

    def __init__(self) -> None:
        self._parser: Any = None

    def read(self, body: bytes, found: Callable[[Any], _Read | None]) -> _Read | None:
        """Return what *found* makes of the document in *body*; None if that is no JSON, or not as *found* takes it."""
        if self._parser is None:
            from simdjson import Parser

            self._parser = Parser()
        document = None
        try:
            document = self._parser.parse(body)
            with np.errstate(over="raise"):  # a number beyond the range of the dtype
                return found(document)
        except _OTHERWISE:
            return None
        finally:
            del document  # the parser must not be used again while it lives
            if len(body) > KEEP_BYTES:
                self._parser = None
