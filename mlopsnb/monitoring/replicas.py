"""Ask the replicas of a deployment what they have counted, and compare it with the profile that they count on.

Knows targets by their protocol alone. What a replica says is checked before it is believed.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb import manifest, plugins, profiles
from mlopsnb.errors import DeployError, UserError
from mlopsnb.monitoring.live import compare_profile

if TYPE_CHECKING:
    from mlopsnb.monitoring.report import DriftReport
    from mlopsnb.profiles import DriftProfile, Snapshot
    from mlopsnb.protocols import Target, Tracker
    from mlopsnb.records import Revision

PAGE = "/profile"
PROTOCOL = 1
"""Of the answer at `PAGE`."""

_KEPT = 32
"""Profiles that are kept in memory: with them comes a whole model, and who watches asks again and again."""


def live_drift(
    target: Target, name: str, revision: Revision, *, seconds: float | None, threshold: float, q: float
) -> DriftReport:
    """Return the drift report of one *revision*: all its replicas, over the last *seconds* or all that they have kept.

    Raises `UserError` if the revision has no reference profile, `DeployError` if no replica answers.
    """
    profile = _profile(name, revision)
    answers = target.ask(name, revision.id, PAGE)
    if not answers:
        raise DeployError(
            f"no replica of {name!r}, revision {revision.id}, tells what it has counted",
            hint="see its logs; a server of an older mlopsnb does not count: deploy it again",
        )
    told = [_read(replica, body) for replica, body in answers.items()]
    first = time.time() - seconds if seconds is not None else 0.0
    snapshots: list[Snapshot] = []
    for document in told:
        if document["profile"] != profile.digest:
            why = "; ".join(map(str, document["notes"])) or "it counts on another profile"
            raise DeployError(f"{name!r} does not count for this reference: {why}", hint="deploy it again")
        read = [profiles.read_snapshot(window, profile) for window in document["windows"]]
        snapshots += [snapshot for snapshot in read if snapshot.end > first]
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


def _profile(name: str, revision: Revision) -> DriftProfile:
    """Return the profile in the revision's package, which is on this machine or where the model was logged."""
    if revision.package is not None:
        return _stated(name, revision, _stored(revision.package))
    if not revision.source.startswith(("models:/", "runs:/")):
        raise UserError(
            f"the package of {name!r}, revision {revision.id}, is only in its image",
            hint="deploy it from a model version: log it with its reference first",
        )
    return _stated(name, revision, _logged(revision.source, revision.digest))


def _stated(name: str, revision: Revision, profile: DriftProfile | None) -> DriftProfile:
    if profile is None:
        raise UserError(
            f"{name!r}, revision {revision.id}, has no reference to compare with",
            hint="deploy it with reference=X_train, the data that the model was trained on",
        )
    return profile


@lru_cache(maxsize=_KEPT)
def _logged(source: str, digest: str) -> DriftProfile | None:
    """Return the profile of the package *digest* that was logged as *source*, or None if it has none."""
    tracker: Tracker = plugins.create("tracker", "mlflow")
    with tempfile.TemporaryDirectory(prefix="mlopsnb-") as scratch:
        fetched = tracker.fetch(tracker.find(source), Path(scratch) / "package")
        if fetched.digest != digest:
            raise DeployError(
                f"what serves is not what {source} is: {digest}, logged {fetched.digest}",
                hint="name the MLflow server where it was logged: MLFLOW_TRACKING_URI",
            )
        return _stored(fetched.path)


def _stored(package: Path) -> DriftProfile | None:
    if profiles.FILE not in manifest.read(package).files:
        return None
    return profiles.from_json((package / profiles.FILE).read_bytes())
