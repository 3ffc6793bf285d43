"""Waiting for pods while the API server forgets, forbids, goes away, or the person at the keyboard has had enough."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from tiny_cluster import TinyCluster

from mlopsnb.errors import DeployError, NotReady
from mlopsnb.events import Replica, reporting_to
from mlopsnb.targets import watching
from mlopsnb.targets.cluster import Cluster
from mlopsnb.targets.cluster_errors import ClusterUnreachable, Forbidden
from mlopsnb.targets.watching import wait_ready

NAME = "fraud-r1"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    tiny = TinyCluster(NAME)
    monkeypatch.setenv("KUBECONFIG", str(tiny.kubeconfig(tmp_path / "kubeconfig")))
    yield tiny
    tiny.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("mlopsnb-watch")]


def waited(tiny, *then, timeout=60):
    """Wait for the deployment; each event reported makes the next thing of *then* happen. Return the messages."""
    told, following = [], iter(then)

    def reporter(event):
        told.append(event)
        if act := next(following, None):
            act()

    with reporting_to(reporter):
        wait_ready(Cluster(), NAME, timeout=timeout)
    return told


def failing(uid="p", reason="ErrImageNeverPull"):
    state = {"name": "model", "image": "i", "ready": False, "state": {"waiting": {"reason": reason}}}
    return {
        "metadata": {"name": f"{NAME}-x", "uid": uid},
        "spec": {"containers": [{"name": "model"}]},
        "status": {
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [state],
        },
    }


def test_it_is_told_how_the_pods_are_until_they_are_ready(tiny):
    told = waited(tiny, tiny.get_ready)
    assert told[0].message == f"0 of 1 pod ready: {NAME}-x starting"
    assert told[0].replicas == (Replica(name=f"{NAME}-x", phase="starting"),)
    assert {(e.step, e.state) for e in told} == {("start", "progress")}


def test_a_version_that_is_too_old_is_listed_anew(tiny):
    tiny.old = {"pods", "deployments"}
    waited(tiny, tiny.get_ready)
    assert tiny.lists["deployments"] >= 2


def test_what_went_away_unseen_is_gone_after_the_next_list(tiny):
    """A pod that was deleted while nobody watched is none any more."""

    def away_and_back():
        tiny.stop()
        tiny.objects["pods"] = []
        tiny.start()

    then = {(f"{NAME}-x",): away_and_back, (): tiny.get_ready}

    def reporter(event):
        then.pop(tuple(r.name for r in event.replicas), lambda: None)()

    with reporting_to(reporter):
        wait_ready(Cluster(), NAME, timeout=60)
    assert not then


def test_an_api_server_that_restarts_is_waited_for(tiny):
    def back():
        tiny.start()
        tiny.get_ready()

    told = waited(tiny, tiny.stop, back)
    assert "the API server does not answer, waiting for it" in told[1].message


def test_an_api_server_that_stays_away_is_told(tiny, monkeypatch):
    monkeypatch.setattr(watching, "AWAY_SECONDS", 0.3)
    with pytest.raises(
        ClusterUnreachable, match=r"has been away for 0.3 s: .*(refused|reset|closed)"
    ) as caught:
        waited(tiny, tiny.stop)
    assert f"whether {NAME} is ready" in caught.value.hint
    tiny.start()


def test_it_works_without_the_right_to_read_events_and_replica_sets(tiny):
    tiny.forbidden = {"events", "replicasets"}
    waited(tiny, tiny.get_ready)


def test_without_events_that_is_said(tiny):
    tiny.forbidden = {"events"}
    with pytest.raises(NotReady, match="events, which may say why, may not be read"):
        waited(tiny, timeout=0.2)


@pytest.mark.parametrize("plural", ["pods", "deployments"])
def test_without_pods_the_right_is_named(tiny, plural):
    tiny.forbidden = {plural}
    with pytest.raises(Forbidden, match=f"may not list {plural} in namespace 'ml'"):
        waited(tiny)


def test_a_failure_ends_it_at_once(tiny):
    with pytest.raises(NotReady, match=f"{NAME} did not become ready: pod {NAME}-x needs i") as caught:
        waited(tiny, lambda: tiny.tell("pods", "MODIFIED", failing()))
    assert caught.value.reason == "ErrImageNeverPull"


def test_what_may_pass_is_told_and_waited_for(tiny):
    """The verdict is shown when it is found, and forgotten when it is no longer so."""
    away = failing(reason="ErrImagePull")
    told = waited(
        tiny,
        lambda: tiny.tell("pods", "MODIFIED", away),
        lambda: tiny.tell("pods", "MODIFIED", failing(reason="ContainerCreating")),
        tiny.get_ready,
    )
    assert "cannot pull its image; pod fraud-r1-x cannot pull i: the pull failed" in told[1].message
    assert told[2].message == f"0 of 1 pod ready: {NAME}-x creating its container"


def test_pods_that_end_count_no_longer(tiny):
    ending = failing()
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    told = waited(tiny, lambda: tiny.tell("pods", "MODIFIED", ending), tiny.get_ready)
    assert told[1].replicas == ()


def test_a_deployment_that_somebody_deletes_ends_it(tiny):
    [deployment] = tiny.objects["deployments"]
    with pytest.raises(DeployError, match="was deleted while it started"):
        waited(tiny, lambda: tiny.tell("deployments", "DELETED", deployment))


def test_an_interrupt_ends_it_at_once(tiny):
    began = time.monotonic()

    def interrupt():
        threading.Thread(target=os.kill, args=[os.getpid(), signal.SIGINT]).start()

    with pytest.raises(KeyboardInterrupt):
        waited(tiny, interrupt, timeout=300)
    assert time.monotonic() - began < 60
