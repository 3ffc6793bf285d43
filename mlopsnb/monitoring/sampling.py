"""Ask the replicas of a deployment for what they count, again and again, and tell what came in between."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mlopsnb.monitoring.counting import Counts, Levels, Sample, Window, read

if TYPE_CHECKING:
    from mlopsnb.protocols import Target

PAGE = "/metrics"


class Sampler:
    """The counters of some *revisions* of *name* on *target*, from tick to tick.

    Replicas may come, go and start again meanwhile: what a replica counted before we first saw it is left out, unless
    it has started since the tick before.
    """

    def __init__(self, target: Target, name: str, revisions: Iterable[int]) -> None:
        self._target = target
        self._name = name
        self._last: dict[int, dict[str, Sample]] = {revision: {} for revision in revisions}
        self._asked: dict[int, float] = {}

    def follow(self, revisions: Iterable[int]) -> None:
        """Go on with these *revisions*; of those that are new, only what comes from now on is told."""
        self._last = {revision: self._last.get(revision, {}) for revision in revisions}
        self._asked = {revision: at for revision, at in self._asked.items() if revision in self._last}

    def tick(self) -> Mapping[int, Window]:
        """Ask all replicas; return what each revision counted since the tick before, nothing at the first."""
        windows = {}
        for revision, last in self._last.items():
            pages = self._target.ask(self._name, revision, PAGE)
            at, before = time.time(), self._asked.get(revision)
            found = {replica: read(page, at) for replica, page in pages.items()}
            if before is not None:
                windows[revision] = merged(found, last, before, at)
            last.update(found)
            self._asked[revision] = at
        return windows

    def replicas(self) -> Mapping[int, Mapping[str, Sample]]:
        """Return what each replica that was there at the last tick said then, by revision."""
        return {
            revision: {
                name: sample for name, sample in last.items() if sample.at == self._asked.get(revision)
            }
            for revision, last in self._last.items()
        }

    def totals(self) -> Mapping[int, Window]:
        """Return what each revision's replicas, as last seen, have counted since they started."""
        return {revision: since_start(last.values()) for revision, last in self._last.items()}


def merged(found: Mapping[str, Sample], last: Mapping[str, Sample], before: float, at: float) -> Window:
    """Return the traffic between two moments, summed over the replicas that were *found* at the second."""
    counts, levels = Counts(), Levels()
    for replica, sample in found.items():
        older = last.get(replica)
        new = older is None and sample.started > before
        counts += sample.counts if new else sample.since(older)
        levels += sample.levels
    return Window(at=at, seconds=at - before, counts=counts, levels=levels)


def since_start(samples: Iterable[Sample]) -> Window:
    """Return all that *samples* have counted, over the time since the first of their processes started."""
    samples = list(samples)
    at = max((s.at for s in samples), default=0.0)
    started = min((s.started or s.at for s in samples), default=0.0)
    return Window(
        at=at,
        seconds=max(at - started, 0.0),
        counts=sum((s.counts for s in samples), Counts()),
        levels=sum((s.levels for s in samples), Levels()),
    )
