"""The API server is killed in the middle of a rolling update, on a cluster that is the tests' own."""

import os
import threading

import numpy as np
import pytest

import mlopsnb as ml
from mlopsnb.client import Client
from mlopsnb.events import reporting_to

pytestmark = [pytest.mark.engine, pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.timeout(600)]
SECONDS = 200.0
X = np.ones((2, 4), "float32")
AWAY_SECONDS = 2.0


class Asking:
    """Asks the same all the time, each time over a new connection; keeps the signs that were answered, and what failed."""

    def __init__(self, url, name):
        self.answers, self.failures, self.ended = [], [], threading.Event()
        self.thread = threading.Thread(target=self._ask, args=(url, name))

    def _ask(self, url, name):
        while not self.ended.is_set():
            try:
                with Client(url, name) as client:
                    self.answers.append(float(np.sign(client.infer({"x": X})["y"][0, 0])))
            except Exception as exc:  # noqa: BLE001
                self.failures.append(exc)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.ended.set()
        self.thread.join(SECONDS)


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
        with Asking(dep.url, name) as asking:
            updating.start()
            assert waiting.wait(SECONDS)
            devcluster("kill", "apiserver")
            threading.Event().wait(AWAY_SECONDS)  # nobody listens for so long
            served_meanwhile = len(asking.answers)
            devcluster("up")
            updating.join(SECONDS)
        assert failed == []
        assert asking.failures == []
        assert served_meanwhile
        assert (asking.answers[0], asking.answers[-1]) == (1, -1)
        [found] = [d for d in ml.deployments(target="kubernetes") if d.name == name]
        assert (found.status, found.revision, found.release.weights) == ("ready", 2, {2: 100})
        assert [(r.id, r.state) for r in found.history()] == [(1, "stopped"), (2, "running")]
    finally:
        devcluster("up")
        dep.delete()
