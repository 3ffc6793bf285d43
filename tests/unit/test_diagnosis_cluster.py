"""Verdicts on nodes, admission and deadlines; pods in a few words; and objects of which parts are missing or wrong."""

from __future__ import annotations

from copy import deepcopy as copy_of
from functools import reduce

import pytest
from broken_objects import DAEMON, RUNNING, UNREADY, event, pod, terminated, unschedulable, verdict, waiting
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopsnb.events import Replica
from mlopsnb.targets.admission import refused
from mlopsnb.targets.diagnosis import diagnose
from mlopsnb.targets.diagnosis_containers import next_limit, quantity
from mlopsnb.targets.pod_phases import replica
from mlopsnb.targets.verdicts import NEVER, Observed, Verdict

# ---------------------------------------------------------------------------------------------- nodes
SCHEDULED = {
    "0/3 nodes are available: 3 Insufficient cpu.": "ask for less cpu, or free some: fewer replicas, or a deployment"
    " that is not needed",
    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.": "ask for less nvidia.com/gpu, or free some: fewer"
    " replicas, or a deployment that is not needed",
    "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity.": "no free node carries pool=gpu: change"
    " node_selector=, or have a node labelled",
    "0/1 nodes are available: 1 node(s) had taint {a: b}, that the pod didn't tolerate.": "the nodes are kept for"
    " others, or are not well: name their taint in tolerations=",
    '0/1 nodes are available: 1 persistentvolumeclaim "d" not found.': "make the claim, or wait until its volume is"
    " there: kubectl get pvc",
}


@pytest.mark.parametrize("said", SCHEDULED)
def test_what_was_asked_and_what_there_is(said):
    asks = {"resources": {"requests": {"cpu": "64"}, "limits": {"memory": "1Gi"}}}
    found = unschedulable(said, container=asks, nodeSelector={"pool": "gpu"})
    nodes = [
        {"status": {"allocatable": {"cpu": c, "memory": m}}} for c, m in (("8", "1Gi"), ("4000m", "2Gi"))
    ]
    assert verdict(found, nodes=nodes) == Verdict(
        kind="Unschedulable",
        message=f"no node has room for pod fraud-r4-x: {said} It asks for cpu 64, memory 1Gi;"
        " the largest node has cpu 8, memory 2Gi.",
        hint=SCHEDULED[said],
        grace=15,
    )


def test_an_autoscaler_changes_what_is_certain():
    full = unschedulable("0/3 nodes are available: 3 Insufficient cpu.")
    assert verdict(full, event("TriggeredScaleUp", "pool 3->4")).grace == NEVER
    assert verdict(full, event("NotTriggerScaleUp", "pod didn't trigger scale-up")).final


def test_evictions_lost_nodes_and_rejections():
    gone = pod(status={"phase": "Failed", "reason": "Evicted", "message": "low on resource: memory."})
    assert verdict(gone).grace == NEVER
    both = diagnose(Observed(pods=[gone, gone]))
    assert (both.kind, both.final) == ("Evicted", True)
    assert "low on resource: memory" in both.message
    assert verdict(pod(RUNNING), event("NodeNotReady", "Node is not ready")).kind == "NodeLost"
    refused_there = verdict(
        pod(status={"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have cpu"})
    )
    assert (refused_there.kind, refused_there.grace) == ("RejectedByNode", 30)


@pytest.mark.parametrize(
    ("said", "grace"),
    [
        ('MountVolume.SetUp failed for volume "v" : secret "s3" not found', 0),
        ('MountVolume.SetUp failed for volume "v" : references non-existent secret key: k', 0),
        ('MountVolume.SetUp failed for volume "v" : object "ml"/"s3" not registered', None),
        ("Unable to attach or mount volumes: timed out waiting for the condition", 60),
    ],
)
def test_volumes(said, grace):
    found = verdict(pod(waiting("ContainerCreating")), event("FailedMount", said))
    assert (found and (found.kind, found.grace)) == (grace if grace is None else ("FailedMount", grace))


# ---------------------------------------------------------------------------------------------- admission
REFUSALS = {
    'pods "x-" is forbidden: error looking up service account ml/fraud: serviceaccount "fraud" not found': (
        "ServiceAccountNotFound",
        "the service account fraud is not there in the namespace ml",
        0,
    ),
    'pods "x" is forbidden: exceeded quota: q, requested: limits.memory=1Gi,pods=1, used: limits.memory=2Gi,pods=3,'
    " limited: limits.memory=2Gi,pods=3": (
        "QuotaExceeded",
        (
            "the quota q is used up: asked for limits.memory=1Gi,pods=1, used are limits.memory=2Gi,pods=3 of"
            " limits.memory=2Gi,pods=3"
        ),
        10,
    ),
    'pods "x" is forbidden: failed quota: q: must specify limits.cpu,limits.memory': (
        "QuotaExceeded",
        "the quota q wants pods to say their limits.cpu,limits.memory",
        0,
    ),
    'pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false': (
        "PodSecurity",
        (
            'the Pod Security level "restricted:latest" of the namespace does not allow the pod:'
            " allowPrivilegeEscalation != false"
        ),
        0,
    ),
    'admission webhook "signed.example.com" denied the request: the image is not signed': (
        "WebhookDenied",
        'the admission webhook "signed.example.com" denied the pod: the image is not signed',
        0,
    ),
    'admission webhook "a.example.com" denied the request without explanation': (
        "WebhookDenied",
        'the admission webhook "a.example.com" denied the pod: it gives no reason',
        0,
    ),
    'Internal error occurred: failed calling webhook "a.example.com": Post "https://a/": connection refused': (
        "WebhookDenied",
        (
            'the admission webhook "a.example.com", without which the cluster takes no pod, does not answer:'
            ' Post "https://a/": connection refused'
        ),
        10,
    ),
    'pods "x" is forbidden: [maximum memory usage per Container is 1Gi, but limit is 2Gi]': (
        "LimitRange",
        (
            "a limit range of the namespace does not allow the pod: maximum memory usage per Container is 1Gi,"
            " but limit is 2Gi"
        ),
        0,
    ),
    'pods "x" is forbidden: unable to create new content in namespace ml because it is being terminated': (
        "FailedCreate",
        "the namespace ml is being deleted",
        0,
    ),
    "the moon is full": ("FailedCreate", "the cluster does not take the pod: the moon is full", 0),
}


@pytest.mark.parametrize("said", REFUSALS)
def test_refusals(said):
    found = refused(said)
    assert (found.kind, found.message, found.grace) == REFUSALS[said]
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": said}
    for where in ("deployment", "replica_sets"):
        owner = {"status": {"conditions": [failure]}}
        assert diagnose(Observed(**{where: owner if where == "deployment" else [owner]})) == found


def test_the_deadline_says_what_kept_it():
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    deployment = {
        "metadata": {"name": "fraud-r4"},
        "spec": {"progressDeadlineSeconds": 90},
        "status": {"conditions": [late]},
    }
    alone = diagnose(Observed(deployment=deployment))
    assert (alone.kind, alone.final) == ("ProgressDeadlineExceeded", True)
    assert alone.message == "the deployment fraud-r4 made no progress within 90 s"
    said = event("Unhealthy", "Readiness probe failed: dial tcp: connect: connection refused")
    found = verdict(pod(RUNNING, started=True), said, deployment=deployment)
    assert found.message == (
        "the deployment fraud-r4 made no progress within 90 s: pod fraud-r4-x runs but its readiness probe fails:"
        " dial tcp: connect: connection refused"
    )
    assert verdict(pod(waiting("ErrImageNeverPull")), deployment=deployment).kind == "ErrImageNeverPull"


# ---------------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize(
    ("found", "phase"),
    [
        (unschedulable("0/1"), "waits for a node"),
        (pod(waiting("ContainerCreating")), "creating its container"),
        (pod(RUNNING), "starting"),
        (pod(RUNNING, started=True), "runs, not ready"),
        (pod(terminated(137, "OOMKilled"), restarts=1), "OOMKilled, restarted 1 time"),
        (pod(waiting("CrashLoopBackOff"), restarts=2), "CrashLoopBackOff, restarted 2 times"),
        ({}, "waits for a node"),
    ],
)
def test_a_pod_in_a_few_words(found, phase):
    row = replica(found, Observed())
    assert (row.phase, row.ready) == (phase, False)


def test_pulling_is_known_from_events():
    creating = pod(waiting("ContainerCreating"))
    pulling = event("Pulling", "x")
    pulled = event("Pulled", "x", at="2026-01-01T00:01:00Z")
    assert replica(creating, Observed(events=[pulling])) == Replica(name="fraud-r4-x", phase="pulling image")
    assert replica(creating, Observed(events=[pulling, pulled])).phase == "creating its container"


# ---------------------------------------------------------------------------------------------- whatever comes
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WHOLE = (
    pod(waiting("ErrImagePull", f"{DAEMON}x509: y"), last=terminated(137), restarts=2),
    pod(terminated(3, "OOMKilled"), container={"resources": {"limits": {"memory": "1Gi"}}, "startupProbe": {}}),
    unschedulable("0/1 nodes are available: 1 Insufficient cpu.", nodeSelector={"a": "b"}),
    pod(waiting("CreateContainerConfigError", 'secret "x" not found'), last=terminated(1, "StartError")),
    event("Unhealthy", "Readiness probe failed: x"),
    event("Killing", "Container model failed liveness probe, will be restarted"),
    event("FailedMount", 'secret "x" not found'),
    event("TriggeredScaleUp", "x"),
    {"status": {"allocatable": {"cpu": "4", "memory": "8Gi"}, "conditions": [UNREADY]}},
    {"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q"}]}},
    {"metadata": {"name": "d"}, "status": {"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]}},
)  # fmt: skip


def places(found, path=()):
    """Every place inside an object, as the keys that lead there."""
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(found, path, value):
    """A copy of an object with *value* in a place, or with nothing there; the object itself if that place has gone."""
    copy = copy_of(found)
    try:
        holder = reduce(lambda inner, key: inner[key], path[:-1], copy)
        if value is None:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value
    except (KeyError, IndexError, TypeError):
        return found
    return copy


@st.composite
def damaged(draw):
    """A real object with parts left out or replaced by anything."""
    found = draw(st.sampled_from(WHOLE))
    for place in draw(st.lists(st.sampled_from(list(places(found))), max_size=4)):
        found = changed(found, place, draw(st.none() | JUNK))
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(damaged(), max_size=4), st.lists(damaged(), max_size=4) | st.none(), damaged())
def test_no_object_is_too_broken(objects, events, deployment):
    found = diagnose(
        Observed(
            deployment=deployment if isinstance(deployment, dict) else None,
            replica_sets=objects,
            pods=objects,
            events=events,
            nodes=objects,
        )
    )
    assert found is None or (found.message and found.hint and found.grace >= 0)
    for each in objects:
        assert replica(each, Observed(events=events)).phase


@given(st.text(max_size=200))
def test_any_refusal_has_words(said):
    assert refused(said).message
    assert refused(said).hint


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("512Mi", 2**29),
        ("1G", 1e9),
        ("0.5", 0.5),
        ("250m", 0.25),
        ("1e3", 1000),
        ("", 0),
        ("much", 0),
        ("1Zi", 0),
    ],
)
def test_quantities(written, means):
    assert quantity(written) == pytest.approx(means)


@given(st.integers(1, 2**44))
def test_the_next_limit_is_at_least_twice_the_last(size):
    assert 2 * size <= quantity(next_limit(size)) <= max(4 * size, 2**20)
