"""One request on its way, whichever protocol it came by, and whether it is the proof of a deploy or traffic."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mlopsnb.serving import tracecontext

if TYPE_CHECKING:
    from mlopsnb.serving.tracing import RequestSpan
    from mlopsnb.tensors import Array

CHECK_HEADER = "x-mlopsnb-check"
"""Says that a request is the proof of a deploy, no traffic. Believed only of the golden example itself."""

_CHECK = CHECK_HEADER.encode()
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_OUR_IDS = map(f"{os.urandom(8).hex()}{{:016x}}".format, itertools.count())


class Call(msgspec.Struct):
    """One request on its way. `rows` is known once the body was decoded, and so is whether it is a `check`.

    `told` are headers that go with its answer beside those of every answer; `degraded` says why the fallback
    answered, if it did. `trace` is the trace that it belongs to, if it does; `span` what we record of it there.
    """

    method: str
    path: str
    headers: dict[bytes, bytes]
    request_id: str
    started: float = msgspec.field(default_factory=time.perf_counter)
    rows: int | None = None
    check: bool = False
    told: tuple[tuple[bytes, bytes], ...] = ()
    degraded: str = ""
    trace: tracecontext.Trace | None = None
    span: RequestSpan | None = None

    @property
    def seconds(self) -> float:
        """How long it has been on its way."""
        return time.perf_counter() - self.started


def begin(method: str, path: str, headers: dict[bytes, bytes], fields: Iterable[tuple[bytes, bytes]]) -> Call:
    """Return a request that has just come. *fields* are the headers as sent, of which *headers* has one a name."""
    given = headers.get(b"x-request-id")
    sane = given is not None and _SANE_ID.fullmatch(given)
    call = Call(method, path, headers, sane.group().decode() if sane else next(_OUR_IDS))
    if b"traceparent" in headers:
        call.trace = tracecontext.accept(fields)
    return call


def is_check(
    headers: Mapping[bytes, bytes], inputs: Mapping[str, Array], golden: Mapping[str, Array]
) -> bool:
    """Say whether a request proves a deploy: its *headers* say so, and its *inputs* are the *golden* example to the bit.

    So nobody can send rows of their own past what is counted.
    """
    return (
        _CHECK in headers
        and inputs.keys() == golden.keys()
        and all(_identical(array, golden[name]) for name, array in inputs.items())
    )


def _identical(one: Array, other: Array) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
