"""Ask the replicas of a deployment what they have counted, and on which profile, and compare the two.

Knows targets by their protocol alone, and needs neither the package nor where it was logged. What a replica says is
checked before it is believed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlopsnb import profiles
from mlopsnb.errors import DeployError, UserError
from mlopsnb.monitoring.live import compare_profile

if TYPE_CHECKING:
    from mlopsnb.monitoring.report import DriftReport
    from mlopsnb.profiles import DriftProfile, Snapshot
    from mlopsnb.protocols import Target

PAGE, REFERENCE_PAGE = "/profile", "/profile/reference"
PROTOCOL = 1
"""Of the answer at `PAGE`."""

_MOST_KEPT = 32
_kept: dict[str, DriftProfile] = {}
"""Profiles by their digests: who watches asks again and again, and a profile never changes."""


def live_drift(
    target: Target, name: str, revision_id: int, *, seconds: float | None, threshold: float, q: float
) -> DriftReport:
    """Return the drift report of one revision: all its replicas, over the last *seconds* or all that they have kept.

    Raises `UserError` if the revision has no reference profile, `DeployError` if no replica answers.
    """
    answers = target.ask(name, revision_id, PAGE)
    if not answers:
        raise DeployError(
            f"no replica of {name!r}, revision {revision_id}, tells what it has counted",
            hint="see its logs; a server of an older mlopsnb does not count: deploy it again",
        )
    told = [_read(replica, body) for replica, body in answers.items()]
    profile = _profile(target, name, revision_id, told)
    first = time.time() - seconds if seconds is not None else 0.0
    read = [profiles.read_snapshot(window, profile) for one in told for window in one["windows"]]
    snapshots: list[Snapshot] = [snapshot for snapshot in read if snapshot.end > first]
    uncounted = {(part["role"], part["name"]): part["why"] for one in told for part in one["uncounted"]}
    return compare_profile(profile, snapshots, threshold=threshold, q=q, uncounted=uncounted)


def _read(replica: str, body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
        if document["protocol"] != PROTOCOL:
            raise ValueError(f"protocol {document['protocol']!r}, this mlopsnb reads {PROTOCOL}")
        return {key: document[key] for key in ("profile", "notes", "windows", "uncounted")}
    except (KeyError, TypeError, ValueError) as exc:
        raise DeployError(f"replica {replica} tells no counters: {exc!r}", hint="deploy it again") from exc


def _profile(target: Target, name: str, revision_id: int, told: Sequence[Mapping[str, Any]]) -> DriftProfile:
    """Return the profile that all replicas count on, as one of them tells it."""
    digests = {one["profile"] for one in told}
    if None in digests:
        notes = {str(note) for one in told for note in one["notes"]}
        raise UserError(
            f"{name!r}, revision {revision_id}, has no reference to compare with: {'; '.join(sorted(notes))}",
            hint="deploy it with reference=X_train, the data that the model was trained on",
        )
    if len(digests) > 1:
        raise DeployError(
            f"the replicas of {name!r}, revision {revision_id}, count on {len(digests)} references",
            hint="deploy it again",
        )
    [digest] = digests
    if digest not in _kept:
        bodies = target.ask(name, revision_id, REFERENCE_PAGE).values()
        found = {profile.digest: profile for profile in map(profiles.from_json, bodies)}
        if digest not in found:
            raise DeployError(
                f"no replica of {name!r}, revision {revision_id}, tells the reference that it counts on",
                hint="a server of an older mlopsnb does not: deploy it again",
            )
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[digest] = found[digest]
    return _kept[digest]
