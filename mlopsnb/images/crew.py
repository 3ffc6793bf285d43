"""Threads that work for one build: they report what they move, and end with it, however it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

from mlopsnb.events import Step, report_bytes

T = TypeVar("T")

_REPORT_SECONDS = 0.1
_CONNECTIONS = 6
"""Blobs that are sent at the same time; registries take so many connections gladly."""


class Tally:
    """Bytes that several threads move."""

    def __init__(self, total: int = 0) -> None:
        self.total, self.done = total, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count *count* more bytes as moved; less, if they have to go again."""
        with self._lock:
            self.done += count

    def expect(self, count: int) -> None:
        """Count *count* more bytes as still to come."""
        with self._lock:
            self.total += count


class Crew:
    """The threads of one build: `packers` read layers, `compressors` work for them, `senders` wait for the network.

    Leaving the block waits for all. If that is by an exception, an interrupt included, what waits does not start and
    the rest is called off: `cancelled` says so, and *stop* ends what waits for an answer.
    """

    def __init__(self, stop: Callable[[], None] = lambda: None) -> None:
        cores = max(
            1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self.senders = ThreadPoolExecutor(_CONNECTIONS, "mlopsnb-send")
        self.packers = ThreadPoolExecutor(min(cores, 4), "mlopsnb-pack")
        self.compressors = ThreadPoolExecutor(min(cores, 16), "mlopsnb-compress")
        self._stop = stop
        self._cancelled = threading.Event()
        self._failed: list[BaseException] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is not None:
            self._cancelled.set()
            self._stop()
        for pool in (self.packers, self.senders, self.compressors):
            pool.shutdown(wait=True, cancel_futures=exc is not None)

    def cancelled(self) -> bool:
        """Say whether the work was called off."""
        return self._cancelled.is_set()

    def start(self, pool: Executor, work: Callable[..., T], *args: Any) -> Future[T]:
        """Let a thread of *pool* do *work*."""
        task = pool.submit(work, *args)
        task.add_done_callback(self._note)
        return task

    def _note(self, task: Future[Any]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._failed.append(exc)

    def wait(self, tasks: Collection[Future[Any]], step: Step, message: str, tally: Tally) -> bool:
        """Wait for *tasks* and report *tally* as bytes of *step*.

        As soon as any work of the crew fails, raise what failed if it is one of *tasks*, else return False.
        """
        left = set(tasks)
        while left and not self._failed:
            _, left = wait(left, timeout=_REPORT_SECONDS, return_when=FIRST_COMPLETED)
            report_bytes(step, message, min(tally.done, tally.total), tally.total)
        for task in tasks:
            if task.done():
                task.result()
        return not self._failed

    def check(self) -> None:
        """Raise what failed first, if anything did."""
        if self._failed:
            raise self._failed[0]
