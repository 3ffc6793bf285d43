"""What diagnosis takes and gives: the objects of one revision as the API server's JSON has them, and a verdict.

The objects come from servers of any version and may be partial: whatever is read from them is read through `at`,
`items` and `text`, which find nothing where nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CrashLoopBackOff",
    "OOMKilled",
    "StartError",
    "CreateContainerConfigError",
    "CreateContainerError",
    "FailedMount",
    "FailedSandbox",
    "Unschedulable",
    "StartupFailed",
    "LivenessFailed",
    "ReadinessFailed",
    "QuotaExceeded",
    "WebhookDenied",
    "PodSecurity",
    "LimitRange",
    "ServiceAccountNotFound",
    "FailedCreate",
    "Evicted",
    "NodeLost",
    "RejectedByNode",
    "ProgressDeadlineExceeded",
]
"""What kept a revision from being ready, in Kubernetes' own words where it has one."""

NEVER = math.inf
"""The grace of what is no failure by itself: it is told if the time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a revision is not ready: what happened and what was found (`message`), and what to do (`hint`).

    `grace` is for how many seconds the same kind has to be found before it is certain, because until then it may
    pass by itself. `usual` is what belongs to every start: it is told only if the time is over. `log` are the last lines
    of the container that it is about, if it has died.
    """

    kind: Kind
    message: str
    hint: str
    grace: float = 0.0
    usual: bool = False
    log: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        """Say whether waiting on is of no use."""
        return self.grace == 0

    @property
    def told(self) -> str:
        """The message with the log lines below it."""
        lines = "".join(f"\n    {line}" for line in self.log)
        return f"{self.message}\n  last lines of its log:{lines}" if lines else self.message


Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The objects of one revision. `logs` are the last lines of containers that died, by pod and container.

    `events` are None where they may not be read; `nodes` are empty where those may not.
    """

    deployment: Object | None = None
    replica_sets: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    events: Sequence[Object] | None = ()
    nodes: Sequence[Object] = ()
    logs: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)


def at(found: object, *keys: str) -> object:
    """Return what is in *found* under the path *keys*, or None."""
    for key in keys:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found


def text(found: object, *keys: str) -> str:
    """Return the text under the path *keys*, or an empty one."""
    value = at(found, *keys)
    return value if isinstance(value, str) else ""


def number(found: object, *keys: str) -> int:
    """Return the whole number under the path *keys*, or 0."""
    value = at(found, *keys)
    return value if isinstance(value, int) else 0


def items(found: object, *keys: str) -> list[Object]:
    """Return the objects in the list under the path *keys*; none if there is no list."""
    value = at(found, *keys)
    return [i for i in value if isinstance(i, Mapping)] if isinstance(value, Sequence) else []


def labels(found: object, *keys: str) -> dict[str, str]:
    """Return the mapping of texts under the path *keys*."""
    value = at(found, *keys)
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, Mapping) else {}


def name_of(found: object) -> str:
    """Return the object's name."""
    return text(found, "metadata", "name")


def condition(found: object, kind: str) -> Object:
    """Return the condition of that type in the object's status, or an empty one."""
    return next((c for c in items(found, "status", "conditions") if c.get("type") == kind), {})


def events_of(observed: Observed, pod: Object, *reasons: str) -> list[Object]:
    """Return the events about *pod* that have one of *reasons*, oldest first."""
    uid = text(pod, "metadata", "uid")
    mine = [
        e
        for e in observed.events or ()
        if text(e, "reason") in reasons
        and text(e, "involvedObject", "name") == name_of(pod)
        and text(e, "involvedObject", "uid") in ("", uid)
    ]
    return sorted(mine, key=event_time)


def event_time(event: Object) -> str:
    """Return when *event* was last seen, as the server writes it: texts that sort as times do."""
    return (
        text(event, "lastTimestamp")
        or text(event, "eventTime")
        or text(event, "metadata", "creationTimestamp")
    )
