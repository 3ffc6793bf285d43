"""What a pod is about, in a few words: the row that people see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.events import Replica
from mlopsnb.targets.diagnosis_containers import statuses
from mlopsnb.targets.verdicts import at, condition, event_time, events_of, name_of, number, text

if TYPE_CHECKING:
    from mlopsnb.targets.verdicts import Object, Observed

_WAITS = {
    "ContainerCreating": "creating its container",
    "PodInitializing": "running its init containers",
    "ErrImagePull": "cannot pull its image",
    "ImagePullBackOff": "cannot pull its image",
}


def replica(pod: Object, observed: Observed) -> Replica:
    """Return the row of *pod*."""
    ready = condition(pod, "Ready").get("status") == "True"
    return Replica(name=name_of(pod), phase="ready" if ready else _phase(pod, observed), ready=ready)


def _phase(pod: Object, observed: Observed) -> str:
    if reason := text(pod, "status", "reason"):
        return reason
    if condition(pod, "PodScheduled").get("status") != "True":
        return "waits for a node"
    unready = next((s for s in statuses(pod) if at(s, "ready") is not True), None)
    if unready is None:
        return "starting"
    return _container_phase(unready, pod, observed) + _restarts(unready)


def _container_phase(status: Object, pod: Object, observed: Observed) -> str:
    if at(status, "state", "terminated"):
        return text(status, "state", "terminated", "reason") or "ended"
    if at(status, "state", "running"):
        return "starting" if at(status, "started") is False else "runs, not ready"
    reason = text(status, "state", "waiting", "reason")
    if reason in ("ContainerCreating", "PodInitializing") and _is_pulling(pod, observed):
        return "pulling image"
    return _WAITS.get(reason, reason or "starting")


def _restarts(status: Object) -> str:
    restarts = number(status, "restartCount")
    return f", restarted {restarts} time{'s' if restarts > 1 else ''}" if restarts else ""


def _is_pulling(pod: Object, observed: Observed) -> bool:
    told = events_of(observed, pod, "Pulling", "Pulled")
    return bool(told) and text(max(told, key=event_time), "reason") == "Pulling"
