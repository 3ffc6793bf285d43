"""Replicas on a cluster count each its own share of shifted traffic; one call adds them up and names what has moved."""

from __future__ import annotations

import json
import os
import threading
import time

import numpy as np
import pandas as pd
import pytest
from built_images import forget
from served_plans import make_model

import mlopsnb as ml
from mlopsnb.client import Client
from mlopsnb.monitoring.replicas import PAGE

pytestmark = [pytest.mark.engine, pytest.mark.cluster, pytest.mark.timeout(600)]
SECONDS = 200.0
REPLICAS = 3
ROWS = 200
COLUMNS = ["age", "income", "debt", "years"]


def people(rows, seed, shift=0.0):
    """The same evenly spread values in each column, in another order for each seed; *shift* is added to the ages.

    A column that is not shifted is exactly as before, whichever of the rows a replica gets: chance finds nothing in it.
    The outermost values lie inside the larger sample's own: of few rows, one at its very end is many in its tail.
    """
    spread = np.tile((np.arange(rows) + 0.5) / rows * 2 - 1, (len(COLUMNS), 1))
    frame = pd.DataFrame(np.random.default_rng(seed).permuted(spread, axis=1).T, columns=COLUMNS)
    frame["age"] += shift
    return frame.astype("float32")


@pytest.fixture
def dep(cluster, engine, monkeypatch, base_image, image_place):
    """A model with a reference in three pods, deployed by somebody who may edit in one namespace and not more.

    The cache is that of all tests with images of ONNX models, so only the model and its reference are new.
    """
    monkeypatch.setenv("MLOPSNB_CONTEXT", cluster.context)
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", base_image)
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(image_place))
    name = f"test-{os.urandom(3).hex()}"
    model = make_model(np.array([[0], [1], [1], [1]], "float32"))  # the age is of no account
    yield ml.deploy(
        model,
        name=name,
        example=people(10, seed=0),
        reference=people(3000, seed=0),
        target="kubernetes",
        replicas=REPLICAS,
    )
    chosen = f"--selector=mlopsnb.io/name={name}"
    cluster("delete", "deployments,services,configmaps,serviceaccounts,pdb", chosen, "--wait=false")
    cluster("delete", "pods", chosen, "--grace-period=1", "--wait=false")
    forget(engine, name)


def counted(dep):
    """Return how many rows each pod has counted, by its name; those that do not answer are left out."""
    pages = dep._target.ask(dep.name, dep.revision, PAGE)
    return {pod: sum(w["rows"] for w in json.loads(page)["windows"]) for pod, page in pages.items()}


def send_until_all_have_some(dep):
    """Send shifted rows, each time over a new connection and so to any of the pods; return how many."""
    before, sent, end = counted(dep), 0, time.monotonic() + SECONDS
    assert len(before) == REPLICAS
    while True:
        for seed in range(REPLICAS):
            with Client(dep.url, dep.name) as client:
                client.predict(people(ROWS, seed=sent + seed, shift=1.0))
        sent += REPLICAS * ROWS
        if all(rows > before[pod] for pod, rows in counted(dep).items()):
            return sent
        assert time.monotonic() < end


def kill_a_server(engine, dep):
    """End the server of one pod by SIGKILL and wait until the pod's next one answers. It is the engine's container."""
    pod = min(counted(dep))
    labels = [f"io.kubernetes.pod.name={pod}", "io.kubernetes.container.name=model"]
    [container] = engine.containers.list(filters={"label": labels})
    container.kill("SIGKILL")
    container.wait(timeout=SECONDS)
    end, never = time.monotonic() + SECONDS, threading.Event()
    while pod not in counted(dep):
        assert time.monotonic() < end
        never.wait(0.2)


def test_one_call_sees_what_three_replicas_were_asked_and_outlives_a_kill(dep, engine, monkeypatch):
    assert sum(counted(dep).values()) == 0  # the proof of the deploy is no traffic
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", "http://127.0.0.1:9"
    )  # what is compared with comes from the pods
    sent = send_until_all_have_some(dep)
    report = dep.drift()
    assert report.drifted == ("age",)
    assert report.current_rows == sent
    kill_a_server(engine, dep)
    # All was counted when the report was made, and lies in a file that outlives the server.
    again = dep.drift()
    assert (again.drifted, again.current_rows) == (("age",), sent)
