"""Objects of a revision that does not get ready, as API servers write them."""

from __future__ import annotations

from mlopsnb.targets.diagnosis import diagnose
from mlopsnb.targets.verdicts import Observed

IMAGE = "reg.example:5000/fraud:v3"
DAEMON = "rpc error: code = Unknown desc = Error response from daemon: "
UNREADY = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}


def pod(state=None, *, last=None, restarts=0, started=False, container=None, status=None, **spec):
    """Return a scheduled pod `fraud-r4-x` with one container `model` in *state*."""
    spoken = {
        "name": "model",
        "image": IMAGE,
        "ready": False,
        "started": started,
        "restartCount": restarts,
        "state": state or {},
        "lastState": last or {},
    }
    return {
        "metadata": {"name": "fraud-r4-x", "namespace": "ml", "uid": "u1"},
        "spec": {"containers": [{"name": "model", "image": IMAGE, **(container or {})}], **spec},
        "status": {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True"}, dict(UNREADY)],
            "containerStatuses": [spoken],
            **(status or {}),
        },
    }


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


def terminated(code, reason="Error", message=""):
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def event(reason, message, *, at="2026-01-01T00:00:00Z"):
    about = {"kind": "Pod", "name": "fraud-r4-x", "uid": "u1", "fieldPath": "spec.containers{model}"}
    return {"reason": reason, "message": message, "involvedObject": about, "lastTimestamp": at}


def verdict(found, *events, log=(), **more):
    logs = {("fraud-r4-x", "model"): log} if log else {}
    return diagnose(Observed(pods=[found], events=events, logs=logs, **more))


RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def unschedulable(message, **spec):
    lacks = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(status={"conditions": [lacks], "containerStatuses": []}, **spec)
