"""The one place where a plan's actions are carried out. Decides nothing; whatever goes wrong, it restores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb import checking, rollout
from mlopsnb.errors import MlopsnbError
from mlopsnb.events import step, told_as
from mlopsnb.rollout import Action, Check, Forget, Gate, Route, Scale, Shift, Start, Stop

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlopsnb.background import Hold
    from mlopsnb.protocols import Target
    from mlopsnb.records import Release

_RESTORED = "what served before serves on"


def execute(hold: Hold, plan: Iterable[Action], *, timeout: float) -> None:
    """Carry out *plan* on what is held; on any exception, Ctrl-C included, restore what was there before, and raise it.

    A second failure, while restoring, is added to the first as a note; a second Ctrl-C leaves the restoring to the
    background, and raises `background.Detached`.
    """
    before = hold.backend.observe(hold.name)
    try:
        for action in plan:
            carry_out(hold.backend, hold.name, action, timeout)
    except BaseException as exc:
        cause = exc
        hold.finish(lambda: _restore(hold.backend, hold.name, before, cause, timeout), exc)
        raise


def carry_out(target: Target, name: str, action: Action, timeout: float) -> None:
    """Carry out one *action*, and report it."""
    match action:
        case Check(revision_id):
            with step("check") as log:
                log.result = checking.check(target, name, revision_id)
        case Start(revision):
            with step("start", f"revision {revision.id}") as log:
                target.apply(name, action, timeout=timeout)
                log.result = f"revision {revision.id} is ready"
        case Shift(weights):
            with step("route") as log:
                target.apply(name, action, timeout=timeout)
                log.result = _shares(target.observe(name), weights)
        case Route(revision_id, match):
            with step("route") as log:
                target.apply(name, action, timeout=timeout)
                log.result = f"{match} → revision {revision_id}"
        case Scale(_, replicas):
            with step("scale") as log:
                target.apply(name, action, timeout=timeout)
                log.result = f"{replicas} replica{'s' if replicas != 1 else ''}"
        case Gate(_, rule, seconds):
            from mlopsnb.monitoring import gates

            with step("gate", f"{rule or 'pause'}, for {seconds:g} s") as log:
                log.result = gates.hold(target, name, action)
        case Stop():
            target.apply(name, action, timeout=timeout)
        case Forget():
            with step("delete") as log:
                target.apply(name, action, timeout=timeout)
                log.result = f"{name} is gone"


def _shares(release: Release, wanted: Mapping[int, int]) -> str:
    """Say who gets the traffic, and where the target could not do exactly what was *wanted*."""
    if len(wanted) == 1:
        return f"{release.url} → revision {next(iter(wanted))}"
    told = ", ".join(f"revision {r} {share} %" for r, share in sorted(release.weights.items()))
    asked = ", ".join(f"{share} %" for _, share in sorted(wanted.items()))
    return (
        f"{release.url} → {told}{'' if release.weights == wanted else f' (of {asked} that were asked for)'}"
    )


def _restore(target: Target, name: str, before: Release, cause: BaseException, timeout: float) -> None:
    try:
        undo = tuple(rollout.restore(target.observe(name), before))
        if undo:
            with step("restore") as log, told_as("restore"):
                for action in undo:
                    target.apply(name, action, timeout=timeout)
                log.result = _RESTORED if before.weights else "nothing was left behind"
        left = target.observe(name).weights
    except Exception as second:  # noqa: BLE001
        cause.add_note(f"restoring what served before failed too: {second}")
    else:
        if left and isinstance(cause, MlopsnbError):
            how = (
                _RESTORED if set(left) <= set(before.weights) else "what served before has ended; serving now"
            )
            cause.add_note(f"{how}: revision {' and '.join(map(str, sorted(left)))} of {name!r}")
