"""Rollout strategies: pure functions from what runs and what is wanted to a list of actions.

A strategy knows no target and a target knows no strategy. `executing.execute` carries the actions out, and
a dry run prints them. Whatever the strategy: a revision gets traffic only when it is ready and has answered its example,
and one that had traffic stops only when it has none any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlopsnb.records import Release, Revision


@dataclass(frozen=True, slots=True)
class Start:
    """Run the revision beside what serves; it gets no traffic yet, and need not have all its replicas yet."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class Check:
    """Go on only if the revision answers its golden example as the original model did."""

    revision_id: int


@dataclass(frozen=True, slots=True)
class Gate:
    """Go on only if the revision, under its share of the traffic, keeps *rule* for so many *seconds*.

    An empty rule is always kept: the traffic stays as it is for the time.
    """

    revision_id: int
    rule: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Shift:
    """Give the traffic to these revisions, in percent. What gets more is made ready first, then what gets less shrinks."""

    weights: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Scale:
    """Run the revision in so many replicas."""

    revision_id: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Let the revision end what it has in flight, then end it. It stays in the history."""

    revision_id: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """Stop all revisions and remove the name, its history and its files."""


@dataclass(frozen=True, slots=True)
class Route:
    """Send to the revision what *match* says (see `matching`) of the traffic, which stays with who has it."""

    revision_id: int
    match: str


Action = Start | Check | Gate | Shift | Route | Scale | Stop | Forget


def running(release: Release) -> tuple[Revision, ...]:
    """Return the revisions that are up, whether or not they get traffic."""
    return tuple(r for r in release.revisions if r.state in ("starting", "running"))


def serving(release: Release) -> Revision | None:
    """Return the revision with the most traffic, or None."""
    live = {r.id: r for r in running(release) if release.weights.get(r.id)}
    return live[max(live, key=release.weights.__getitem__)] if live else None


def latest(release: Release) -> Revision | None:
    """Return the revision that serves; if none does, the last one that did."""
    served = [r for r in release.revisions if r.state != "failed"] or list(release.revisions)
    return serving(release) or (served[-1] if served else None)


def earlier(release: Release) -> Revision | None:
    """Return the revision that served before the present one and can serve again, or None."""
    present = latest(release)
    before = [r for r in release.revisions if r.state != "failed" and present and r.id < present.id]
    return before[-1] if before else None


def version(revision: Revision) -> str:
    """Return what clients see as the model's version: that of `models:/fraud/3`, or the revision's number."""
    tail = revision.source.rpartition("/")[2]
    return tail if revision.source.startswith("models:/") and tail else str(revision.id)


def next_id(release: Release) -> int:
    """Return the number that the next revision gets. Numbers are never used twice."""
    return max((r.id for r in release.revisions), default=0) + 1


def trial(release: Release) -> tuple[Revision, Revision] | None:
    """Return the stable revision and the canary if the traffic is split between them, else None.

    The canary is the newest revision with traffic, however much it has, and whether that is a share, what a rule sends
    it, or a copy; the stable one has most of the rest.
    """
    live = [r for r in running(release) if release.weights.get(r.id) or r.id in release.routes]
    if len(live) < 2:
        return None
    *others, canary = sorted(live, key=lambda r: r.id)
    return max(others, key=lambda r: release.weights.get(r.id, 0)), canary


def rolling(now: Release, new: Revision, *, gate: str = "", pause: float = 0.0) -> Iterator[Action]:
    """New beside old, proved, then all traffic at once; the old one drains, with a gate only after that."""
    yield Start(new)
    yield Check(new.id)
    yield from _switch(now, new, gate, pause)


def blue_green(now: Release, new: Revision, *, gate: str = "", pause: float = 0.0) -> Iterator[Action]:
    """New beside old, in all its replicas before it is proved; then the switch, with the old one warm for *pause* seconds."""
    yield Start(new)
    if new.workload.replicas > 1:
        yield Scale(new.id, new.workload.replicas)
    yield Check(new.id)
    yield from _switch(now, new, gate, pause)


def _switch(now: Release, new: Revision, gate: str, pause: float) -> Iterator[Action]:
    yield Shift({new.id: 100})
    if serving(now) and (gate or pause):  # a first deploy has no traffic to be judged by
        yield Gate(new.id, gate, pause)
    yield from (Stop(r.id) for r in running(now))


def canary(
    now: Release,
    new: Revision,
    *,
    steps: Sequence[int] = (10, 50),
    gate: str = "",
    pause: float | None = 30.0,
) -> Iterator[Action]:
    """New beside old, proved, then its share of the traffic in *steps* (percent), each held for *pause* seconds.

    Without a *pause* it stays at the first share until somebody promotes it or rolls it back. With nothing to stand
    beside it is a rolling deploy.
    """
    stable = serving(now)
    if stable is None:
        yield from rolling(now, new)
        return
    yield Start(new)
    yield Check(new.id)
    for share in steps:
        yield Shift({stable.id: 100 - share, new.id: share})
        if pause is None:
            return
        yield Gate(new.id, gate, pause)
    yield from _switch(now, new, "", 0.0)


def beside(now: Release, new: Revision, *, match: str) -> Iterator[Action]:
    """New beside old, proved, then what *match* says of the traffic, until somebody promotes it or rolls it back.

    With nothing to stand beside it is a rolling deploy.
    """
    if serving(now) is None:
        yield from rolling(now, new)
        return
    yield Start(new)
    yield Check(new.id)
    yield Route(new.id, match)


def promote(now: Release) -> Iterator[Action]:
    """Give the canary all traffic and stop the others; nothing if there is none."""
    if pair := trial(now):
        yield Shift({pair[1].id: 100})
        yield from (Stop(r.id) for r in running(now) if r.id != pair[1].id)


def abandon(now: Release) -> Iterator[Action]:
    """Give the stable revision all traffic and stop the canary; nothing if there is none."""
    if pair := trial(now):
        yield Shift({pair[0].id: 100})
        yield Stop(pair[1].id, failed=True)


_OWN = ("digest", "image", "env", "workload", "cache_bytes", "capture", "mask", "workers")


def unchanged(now: Release, new: Revision) -> Revision | None:
    """Return the revision that has all traffic if *new* would be the same again, else None.

    A fallback is always a change: what it holds is not noted.
    """
    current = serving(now)
    if current is None or not new.digest or now.weights.get(current.id) != 100:
        return None
    if current.fallback or new.fallback or any(getattr(current, n) != getattr(new, n) for n in _OWN):
        return None
    if new.port is not None and now.url is not None and not now.url.endswith(f":{new.port}"):
        return None
    grpc_kept = current.grpc_port == new.grpc_port or (new.grpc_port == 0 and current.grpc_port)
    return current if grpc_kept else None


def restore(now: Release, before: Release) -> Iterator[Action]:
    """Undo, whatever happened in between: traffic and replicas as they were, and nothing that was not there.

    If what had traffic has ended meanwhile, what has it now keeps it: something serves rather than nothing.
    """
    if not before.revisions:
        if now.revisions:
            yield Forget()
        return
    alive = {r.id: r for r in running(now)}
    kept = {r.id: r for r in running(before) if r.id in alive}
    weights = _whole({k: w for k, w in before.weights.items() if k in kept})
    routes = {n: match for n, match in before.routes.items() if n in kept}
    if weights and (weights != now.weights or routes != now.routes):
        yield Shift(weights)
        yield from (Route(n, match) for n, match in routes.items())
    for number, revision in kept.items():
        if revision.workload.replicas != alive[number].workload.replicas:
            yield Scale(number, revision.workload.replicas)
    needed = set() if weights or not before.weights else set(now.weights)
    yield from (Stop(r, failed=True) for r in sorted(alive.keys() - kept.keys() - needed))


def _whole(weights: Mapping[int, int]) -> dict[int, int]:
    """Return *weights* of which some may be missing; what they lack of 100 percent goes to the largest."""
    whole = {k: w for k, w in weights.items() if w}
    if whole:
        largest = max(whole, key=whole.__getitem__)
        whole[largest] += 100 - sum(whole.values())
    return whole
