"""The API server is killed in the middle of a rolling update, on a cluster that is the tests' own."""

import os
import threading

import pytest
from asking import load

import mlopsnb as ml
from mlopsnb.events import reporting_to

pytestmark = [pytest.mark.engine, pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.timeout(600)]
SECONDS = 200.0
AWAY_SECONDS = 2.0


# Python 3.11 leaves a socket to the garbage collector that is reset between its connection and its handshake, as they are here.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
def test_what_served_serves_on_and_the_update_ends_right(served, cluster, devcluster, monkeypatch):
    monkeypatch.setenv("MLOPSNB_CONTEXT", cluster.context)
    name = f"test-{os.urandom(3).hex()}"
    how = {"name": name, "target": "kubernetes", "expose": "nodeport"}
    dep = ml.deploy(served.images[0], **how)
    waiting, failed, told = threading.Event(), [], []

    def note(event):
        told.append(event.message)
        if event.step == "start" and event.replicas:
            waiting.set()

    def update():
        with reporting_to(note):
            try:
                ml.deploy(served.images[1], **how)
            except BaseException as exc:  # noqa: BLE001
                failed.append(exc)
            waiting.set()

    updating = threading.Thread(target=update)
    try:
        with load(dep.url, name) as (answers, failures):
            updating.start()
            assert waiting.wait(SECONDS)
            devcluster("kill", "apiserver")
            threading.Event().wait(AWAY_SECONDS)  # nobody listens for so long
            served_meanwhile = len(answers)
            devcluster("up")
            updating.join(SECONDS)
        assert failed == []
        assert failures == []
        assert served_meanwhile
        assert (answers[0], answers[-1]) == (1, -1)
        [found] = [d for d in ml.deployments(target="kubernetes") if d.name == name]
        assert (found.status, found.revision, found.release.weights) == ("ready", 2, {2: 100})
        assert [(r.id, r.state) for r in found.history()] == [(1, "stopped"), (2, "running")]
    finally:
        devcluster("up")
        dep.delete()
