"""What the dashboard's buttons may do, as data: which of it is possible, the question that comes first, and the act.

A question holds all that it asks about. The act is done only if the deployment is still as the question said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

from mlopsnb import plugins, rollout
from mlopsnb.deployment import Deployment
from mlopsnb.errors import UserError

if TYPE_CHECKING:
    from mlopsnb.notebook.dashboard.model import Key
    from mlopsnb.protocols import Target
    from mlopsnb.records import Release

Act = Literal["rollback", "promote", "scale", "delete"]

ACTS: dict[Act, str] = {
    "rollback": "Roll back",
    "promote": "Promote",
    "scale": "Scale",
    "delete": "Delete",
}
"""All acts, with the words on their buttons."""

REPLICAS = "replicas"
"""The field of a workload that a target must know to scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Shall *act* be done to the deployment *key*?

    `revisions` are those that it goes from and to, `replicas` how many copies there shall be; whichever it is about.
    """

    act: Act
    key: Key
    words: str
    revisions: tuple[int, ...] = ()
    replicas: int | None = None

    @property
    def title(self) -> str:
        """What is done, in a few words."""
        return f"{ACTS[self.act]} {self.key[1]} on {self.key[0]}"

    @property
    def yes(self) -> str:
        """The words on the button that does it."""
        return f"Yes, {ACTS[self.act].lower()} {self.key[1]}"


def question(act: Act, release: Release, *, scales: bool, replicas: int | None = None) -> Question | str:
    """Return what has to be confirmed before *act*, or in a few words why it is not possible now."""
    found = _about(act, release, scales=scales, replicas=replicas)
    if isinstance(found, str):
        return found
    words, revisions = found
    asked = f"{words} This is {release.name!r} on target {release.target!r}."
    return Question(
        act=act,
        key=(release.target, release.name),
        words=asked,
        revisions=revisions,
        replicas=replicas if act == "scale" else None,
    )


def _about(
    act: Act, release: Release, *, scales: bool, replicas: int | None
) -> tuple[str, tuple[int, ...]] | str:
    """Return the words of the question and the revisions it is about, or why it cannot be asked."""
    if not release.revisions:
        return "it is deleted"
    match act:
        case "rollback":
            return _rollback(release)
        case "promote":
            return _promote(release)
        case "scale":
            return _scale(release, scales=scales, replicas=replicas)
        case "delete":
            serving = rollout.serving(release)
            ends = f" Revision {serving.id} stops serving." if serving else ""
            return f"Delete it, with its history and its logs?{ends}", tuple(r.id for r in release.revisions)
        case _:
            assert_never(act)


def _rollback(release: Release) -> tuple[str, tuple[int, ...]] | str:
    if pair := rollout.trial(release):
        stable, canary = pair
        return f"End the canary, revision {canary.id}, and give revision {stable.id} all traffic?", (
            canary.id,
            stable.id,
        )
    present, old = rollout.latest(release), rollout.earlier(release)
    if present is None or old is None:
        return "there is no earlier revision"
    return f"Serve revision {old.id} ({old.source}) again in place of revision {present.id}?", (
        present.id,
        old.id,
    )


def _promote(release: Release) -> tuple[str, tuple[int, ...]] | str:
    pair = rollout.trial(release)
    if pair is None:
        return "no canary is under way"
    stable, canary = pair
    has = release.routes.get(canary.id) or f"{release.weights[canary.id]} %"
    return (
        f"Give revision {canary.id}, the canary, all traffic (now {has}) and stop revision {stable.id}?",
        (
            stable.id,
            canary.id,
        ),
    )


def _scale(release: Release, *, scales: bool, replicas: int | None) -> tuple[str, tuple[int, ...]] | str:
    serving = rollout.serving(release)
    if not scales:
        return f"the target {release.target!r} runs one replica"
    if rollout.trial(release):
        return "a canary is under way"
    if serving is None:
        return "nothing serves"
    if replicas is not None and replicas < 1:
        return "it takes a replica at least"
    now = serving.workload.replicas
    return f"Run revision {serving.id} in {replicas} replicas (now {now})?", (serving.id,)


def carry_out(asked: Question) -> None:
    """Do what *asked* is about, as long as that is how the deployment stands; else `UserError`, and nothing is done."""
    kind, name = asked.key
    target: Target = plugins.create("target", kind)
    now = question(
        asked.act, target.observe(name), scales=REPLICAS in target.takes(), replicas=asked.replicas
    )
    if isinstance(now, str) or now.revisions != asked.revisions:
        raise UserError(
            f"{name!r} has changed since it was asked; nothing was done", hint="look at it, and ask again"
        )
    deployment = Deployment(name, target, kind)
    match asked.act:
        case "rollback":
            deployment.rollback(to=asked.revisions[-1])
        case "promote":
            deployment.promote()
        case "scale":
            assert asked.replicas is not None
            deployment.scale(asked.replicas)
        case "delete":
            deployment.delete()
        case _:
            assert_never(asked.act)
