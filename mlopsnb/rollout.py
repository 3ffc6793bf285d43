"""Rollout strategies: pure functions from what runs and what is wanted to a list of actions.

A strategy knows no target and a target knows no strategy. `deployment.execute` carries the actions out, and
a dry run prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlopsnb.records import Release, Revision


@dataclass(frozen=True, slots=True)
class Start:
    """Run the revision beside what serves; it gets no traffic yet."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class Check:
    """Go on only if the revision answers its golden example as the original model did."""

    revision_id: int


@dataclass(frozen=True, slots=True)
class Gate:
    """Go on only if the revision, under its share of the traffic, keeps *rule* for so many *seconds*."""

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


Action = Start | Check | Gate | Shift | Scale | Stop | Forget


def running(release: Release) -> tuple[Revision, ...]:
    """Return the revisions that are up, whether or not they get traffic."""
    return tuple(r for r in release.revisions if r.state in ("starting", "running"))


def serving(release: Release) -> Revision | None:
    """Return the revision with the most traffic, or None."""
    live = {r.id: r for r in running(release) if release.weights.get(r.id)}
    return live[max(live, key=release.weights.__getitem__)] if live else None


def next_id(release: Release) -> int:
    """Return the number that the next revision gets. Numbers are never used twice."""
    return max((r.id for r in release.revisions), default=0) + 1


def rolling(now: Release, new: Revision) -> Iterator[Action]:
    """New beside old, proved, then all traffic at once, then the old one drains."""
    yield Start(new)
    yield Check(new.id)
    yield Shift({new.id: 100})
    yield from (Stop(r.id) for r in running(now))


def restore(now: Release, before: Release) -> Iterator[Action]:
    """Undo, whatever happened in between: the traffic as it was, and nothing that was not there."""
    if not before.revisions:
        if now.revisions:
            yield Forget()
        return
    alive = {r.id for r in running(now)}
    kept = {r.id for r in running(before)} & alive
    if before.weights and before.weights != now.weights and set(before.weights) <= kept:
        yield Shift(before.weights)
    yield from (Stop(r, failed=True) for r in sorted(alive - kept))
