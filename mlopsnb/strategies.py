"""From what a user says of a rollout to the strategy that plans it; all that can be wrong is told before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlopsnb import durations, matching, rollout
from mlopsnb.errors import UserError, nearest
from mlopsnb.events import step
from mlopsnb.monitoring import rules

if TYPE_CHECKING:
    from mlopsnb.protocols import Target
    from mlopsnb.records import Release, Revision
    from mlopsnb.rollout import Action

NAMES = ("rolling", "canary", "blue-green", "ab", "shadow")
PAUSE = 30.0
"""Seconds that a gate watches if nobody says how long."""

_FIRST = (10,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A strategy and its parameters. `pause` None leaves a canary at its first share, and holds nothing else back.

    `match` says which requests a revision gets that stands beside the one with the traffic; see `matching`.
    """

    name: str = "rolling"
    match: str = ""
    steps: tuple[int, ...] = ()
    gate: str = ""
    pause: float | None = None

    @property
    def note(self) -> str:
        """Return what the history says of it; nothing for a plain rolling deploy."""
        said = [self.name] if self.name != "rolling" else []
        if self.steps:
            said.append(", ".join(f"{share} %" for share in self.steps))
        if self.name == "ab":
            said.append(self.match)
        return "; ".join(filter(None, [" ".join(said), f"gate {self.gate}" if self.gate else ""]))

    def plan(self, now: Release, new: Revision) -> Iterator[Action]:
        """Decide what to do, from what runs now. Touches nothing."""
        if self.name == "canary":
            return rollout.canary(now, new, steps=self.steps, gate=self.gate, pause=self.pause)
        if self.match:
            return rollout.beside(now, new, match=self.match)
        plan = rollout.rolling if self.name == "rolling" else rollout.blue_green
        return plan(now, new, gate=self.gate, pause=self.pause or 0.0)

    def check(self, target: Target, name: str, kind: str, *, expose: str = "cluster") -> None:
        """Raise `UserError` if *target*, which is of this *kind*, cannot do it, or if a canary is under way already."""
        if self.name in ("rolling", "blue-green"):
            return
        if self.match and expose != "gateway":
            raise UserError(
                f"strategy={self.name!r} needs what reads requests before they are sent on; target {kind!r} has none",
                hint="a Gateway of a cluster does: target='kubernetes' with expose='gateway'",
            )
        if not target.splits(name):
            raise UserError(
                f"target {kind!r} gives all traffic of {name!r} to one revision; it cannot run a canary beside it",
                hint="a gate after the switch works there: gate=… with strategy='rolling' or 'blue-green'",
            )
        now = target.observe(name)
        if pair := rollout.trial(now):
            raise UserError(
                f"a canary of {name!r} is under way: revision {pair[1].id} has "
                f"{now.routes.get(pair[1].id) or f'{now.weights[pair[1].id]} %'}",
                hint="promote() or rollback() it first",
            )


def choose(
    *,
    strategy: str | None,
    canary: object = None,
    match: object = None,
    gate: str | None = None,
    pause: object = None,
) -> Strategy:
    """Read the parameters of `deploy`; `UserError` for what does not fit together."""
    name = strategy or ("ab" if match is not None else "rolling" if canary is None else "canary")
    if name not in NAMES:
        raise UserError(
            f"no strategy named {name!r}; there are {', '.join(NAMES)}", hint=nearest(str(name), NAMES)
        )
    if canary is not None and name != "canary":
        raise UserError(
            f"canary={canary!r} does not go with strategy {name!r}", hint="leave strategy out, or canary"
        )
    chosen = _match(name, match)
    if chosen and (gate or pause is not None):
        raise UserError(
            f"strategy {name!r} takes no gate and no pause: it stays until promote() or rollback()",
            hint="metrics() tells how both do",
        )
    rule = str(rules.parse(gate)) if gate else ""
    held = None if pause is None else durations.seconds(pause, of="pause")
    if rule and not held:
        if held is not None:
            raise UserError("a gate needs time to watch the traffic, found pause=0", hint="pause='30s'")
        held = PAUSE
    steps = _steps(_FIRST if canary is None else canary) if name == "canary" else ()
    if len(steps) > 1 and held is None:
        raise UserError(
            f"canary={canary!r} goes on by itself, and has neither a gate nor a pause between its steps",
            hint=f"pause='30s' or a gate; or canary={steps[0]}, which stays there until promote() or rollback()",
        )
    return Strategy(name=name, match=chosen, steps=steps, gate=rule, pause=held)


def _match(name: str, given: object) -> str:
    """Return which requests the revision gets; nothing for strategies by shares."""
    if name == "shadow" and given is None:
        return matching.SHADOW
    if name != "ab":
        if given is not None:
            raise UserError(
                f"match={given!r} does not go with strategy {name!r}", hint="leave strategy out, or match"
            )
        return ""
    if given is None or given == matching.SHADOW:
        raise UserError("strategy='ab' has to know which requests are for the new one", hint=matching.HINT)
    matching.parse(given)
    return str(given)


def _steps(given: Any) -> tuple[int, ...]:
    """Return the shares in percent; takes a number, numbers, or text as `10,50`."""
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        steps = tuple(int(str(part).strip().removesuffix("%")) for part in parts)
    except ValueError:
        steps = ()
    if not steps or any(not 0 < share < 100 for share in steps) or list(steps) != sorted(set(steps)):
        raise UserError(
            f"canary must be shares in percent that grow, from 1 to 99, found {given!r}",
            hint="for example canary=(10, 50)",
        )
    return steps


def keep(now: Release, new: Revision, *, named: bool) -> bool:
    """Say, as an event too, that what runs is the same as *new* already.

    A model version that was *named* is more than what it holds: another one of the same content is a change.
    """
    same = rollout.unchanged(now, new)
    if same is None or (named and same.source != new.source):
        return False
    with step("check") as log:
        log.result = f"nothing changed: revision {same.id} serves this already ({same.source}); force=True deploys it again"
    return True
