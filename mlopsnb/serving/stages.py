"""What may stand between the protocols and the engine: a cache of answers, a fallback. Composed once, at the start.

The engine is a stage like them, so that where nothing is asked for requests go to it straight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from mlopsnb.serving.batcher import Outputs, Watcher
    from mlopsnb.serving.engine import Engine
    from mlopsnb.tensors import Array

Header = tuple[bytes, bytes]
Done = Callable[[object, "Outputs | Exception"], None]
"""Told what came of a request, once. The first argument is the engine's job, if there was one."""


class Asker(Protocol):
    """The request, as far as stages look at it and write on it.

    `told` are headers for its answer; `degraded` says why the fallback answered. A `check` is no traffic.
    """

    told: tuple[Header, ...]
    degraded: str
    check: bool

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The request's headers, their names in lower case."""

    @property
    def span(self) -> Watcher | None:
        """Who is told of the calls of a model that are made for it."""


class Stage(Protocol):
    """Takes requests and answers them. A handle that it gives is for its own `cancel`."""

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""

    @property
    def waits(self) -> bool:
        """Whether a request may have to wait, so that it pays to see if its client is still there."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the model's metadata says of it."""

    def families(self, labels: Mapping[str, str]) -> Iterable[Metric]:
        """Return what it counts, for Prometheus."""

    def admit(self) -> None:
        """Raise `Overloaded` if nothing is taken in now."""

    def submit(
        self,
        asker: Asker,
        inputs: Mapping[str, Array],
        rows: int,
        done: Done,
        *,
        deadline: float | None,
        loop: asyncio.AbstractEventLoop,
        at_once: bool = False,
    ) -> object | None:
        """Answer as the engine does; return a handle, or None if it was answered already."""

    def cancel(self, handle: Any) -> None:
        """Forget a request that has not been answered."""


def compose(engine: Engine, *, cache_bytes: int | None, fallback: Engine | None) -> Stage:
    """Return *engine* behind the stages that are asked for. The cache holds what the model answered alone.

    Raises `ModelFailure` if the model's answers cannot be kept.
    """
    stage: Stage = engine
    if cache_bytes:
        from mlopsnb.serving.caching import Cached

        stage = Cached.around(engine, cache_bytes)
    if fallback is not None:
        from mlopsnb.serving.fallback import WithFallback

        stage = WithFallback(stage, fallback)
    return stage
