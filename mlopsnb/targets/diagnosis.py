"""From observed objects to a verdict: why a revision is not ready. Pure: it asks nobody and knows no clock.

A verdict is given as soon as the cluster knows, and says for how long the same has to be found before it is certain
(`Verdict.grace`), because some failures pass by themselves:

* At once: an image that its registry does not have or does not give, a name that is none, a secret, config map or
  service account that is not there, a container killed for its memory or by its own probe, a denial by policy or
  webhook, a command that cannot be run, a server that says that its model cannot be loaded.
* At the second time: a crash, an eviction; the first may have been chance.
* After seconds: no node has room (others may finish, or a node be added), the quota is full (stopped pods may still
  hold a part of it), a registry or a webhook does not answer, a started server is not ready.
* Never by itself: probes that fail while a server starts, a cluster that adds a node. It is told if the time is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.targets.admission import refused
from mlopsnb.targets.diagnosis_containers import (
    container_verdict,
    mount_verdict,
    quantity,
    requests_of,
    statuses,
)
from mlopsnb.targets.verdicts import (
    NEVER,
    Verdict,
    at,
    condition,
    events_of,
    labels,
    name_of,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlopsnb.targets.verdicts import Object, Observed

CROWDED = 15.0
"""Seconds for which pods of others may leave the room that a pod needs."""

NODE_BACK = 30.0
"""Seconds that a node may take to come back."""


def diagnose(observed: Observed) -> Verdict | None:
    """Return the most certain of what keeps the revision from being ready, or None if nothing does."""
    found = min(_findings(observed), key=lambda v: v.grace, default=None)
    late = condition(observed.deployment, "Progressing")
    if text(late, "reason") != "ProgressDeadlineExceeded" or (found and found.final):
        return found
    seconds = at(observed.deployment, "spec", "progressDeadlineSeconds")
    within = f" within {seconds} s" if isinstance(seconds, int) else ""
    return Verdict(
        kind="ProgressDeadlineExceeded",
        message=f"the deployment {name_of(observed.deployment)} made no progress{within}"
        + (f": {found.message}" if found else ""),
        hint=found.hint if found else "look at the log of its pods; a longer timeout= gives it more time",
        log=found.log if found else (),
    )


def _findings(observed: Observed) -> Iterator[Verdict]:
    for owner in (*observed.replica_sets, observed.deployment):
        failure = condition(owner, "ReplicaFailure")
        if failure.get("status") == "True":
            yield refused(text(failure, "message"))
    evicted: list[Object] = []
    for pod in observed.pods:
        if at(pod, "metadata", "deletionTimestamp") or condition(pod, "Ready").get("status") == "True":
            continue
        if text(pod, "status", "reason") == "Evicted":
            evicted.append(pod)
        else:
            yield from _pod_findings(observed, pod)
    if evicted:
        yield _evicted(evicted)


def _pod_findings(observed: Observed, pod: Object) -> Iterator[Verdict]:
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False" and text(scheduled, "reason") in ("Unschedulable", ""):
        yield _unschedulable(observed, pod, text(scheduled, "message"))
    if lost := _node(observed, pod):
        yield lost
        return
    for status in statuses(pod):
        if at(status, "ready") is not True and (verdict := container_verdict(observed, pod, status)):
            yield verdict
    if any(at(s, "state", "running") or at(s, "state", "terminated") for s in statuses(pod)):
        return
    for event in events_of(observed, pod, "FailedMount", "FailedAttachVolume")[-1:]:
        if verdict := mount_verdict(pod, text(event, "message")):
            yield verdict
    for event in events_of(observed, pod, "FailedCreatePodSandBox")[-1:]:
        yield Verdict(
            kind="FailedSandbox",
            message=f"the node cannot set up pod {name_of(pod)}: {text(event, 'message')[:500]}",
            hint="this is the cluster's network or its container engine: tell the administrator",
            grace=NODE_BACK,
        )


def _node(observed: Observed, pod: Object) -> Verdict | None:
    """Return what the pod's node did to it as a whole: it is lost, or it did not take the pod."""
    name, node, reason = name_of(pod), text(pod, "spec", "nodeName"), text(pod, "status", "reason")
    if reason in ("NodeLost", "NodeAffinity", "Shutdown", "NodeShutdown", "Terminated") or (
        text(pod, "status", "phase") == "Unknown" or events_of(observed, pod, "NodeNotReady")
    ):
        return Verdict(
            kind="NodeLost",
            message=f"the node {node or 'of the pod'} no longer answers, and pod {name} with it"
            f" {text(pod, 'status', 'message')}".rstrip(),
            hint="the cluster starts the pod elsewhere after some minutes; tell the administrator of the node",
            grace=NODE_BACK,
        )
    if text(pod, "status", "phase") == "Failed" and reason:
        return Verdict(
            kind="RejectedByNode",
            message=f"the node {node} did not take pod {name} ({reason}): {text(pod, 'status', 'message')}",
            hint="deploy with less, or ask the administrator what the node lacks",
            grace=NODE_BACK,
        )
    return None


def _evicted(pods: list[Object]) -> Verdict:
    """Explain evictions. A single pod is replaced, and that may do; several are a pattern."""
    why = text(pods[-1], "status", "message") or "the node does not say why"
    return Verdict(
        kind="Evicted",
        message=f"pod {name_of(pods[-1])} was evicted from its node"
        f"{f', as {len(pods) - 1} before it' if len(pods) > 1 else ''}: {why}",
        hint="say what the pod needs (memory=), so that it gets a node that has it and is among the last to be evicted",
        grace=0.0 if len(pods) > 1 else NEVER,
    )


# ---------------------------------------------------------------------------------------------- scheduling
def _unschedulable(observed: Observed, pod: Object, said: str) -> Verdict:
    grown = events_of(observed, pod, "TriggeredScaleUp", "NotTriggerScaleUp")
    growth = text(grown[-1], "reason") if grown else ""
    asked = ", ".join(f"{k} {v}" for k, v in sorted(requests_of(pod).items()))
    offered = _largest(observed, requests_of(pod))
    return Verdict(
        kind="Unschedulable",
        message=f"no node has room for pod {name_of(pod)}: {said or 'the scheduler does not say why'}"
        + (f" It asks for {asked}" if asked else "")
        + (f"; the largest node has {offered}." if offered else "." if asked else ""),
        hint=_room_hint(pod, said)
        + ("; the cluster is adding a node" if growth == "TriggeredScaleUp" else ""),
        grace={"TriggeredScaleUp": NEVER, "NotTriggerScaleUp": 0.0}.get(growth, CROWDED),
    )


def _largest(observed: Observed, asked: dict[str, str]) -> str:
    """Return the most that any one node has of each asked resource, or nothing if nodes may not be read."""
    if not observed.nodes:
        return ""
    have = {
        k: max((text(n, "status", "allocatable", k) for n in observed.nodes), key=quantity) for k in asked
    }
    return ", ".join(f"{k} {v or '0'}" for k, v in sorted(have.items()))


def _room_hint(pod: Object, said: str) -> str:
    wanted = labels(pod, "spec", "nodeSelector")
    if "persistentvolumeclaim" in said.lower():
        return "make the claim, or wait until its volume is there: kubectl get pvc"
    if "affinity" in said or "selector" in said:
        which = ", ".join(f"{k}={v}" for k, v in wanted.items()) or "what the pod's affinity wants"
        return f"no free node carries {which}: change node_selector=, or have a node labelled"
    if "taint" in said:
        return "the nodes are kept for others, or are not well: name their taint in tolerations="
    if "Insufficient" in said:
        lacking = sorted({word.strip(".,") for word in _after(said, "Insufficient ")})
        return f"ask for less {', '.join(lacking)}, or free some: fewer replicas, or a deployment that is not needed"
    if "Too many pods" in said:
        return "the nodes are full: delete a deployment that is not needed, or ask for another node"
    return "ask the administrator for a node that can take it"


def _after(said: str, word: str) -> list[str]:
    return [part.split()[0] for part in said.split(word)[1:] if part.split()]
