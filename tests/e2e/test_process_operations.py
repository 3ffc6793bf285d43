"""Operating a deployment: gates on real traffic, figures under real load, going back, and what changes nothing."""

import threading
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch

import mlopsnb as ml
from mlopsnb.events import reporting_to
from mlopsnb.rollout import Gate, Stop

X = np.arange(4).reshape(4, 1)


class Net(torch.nn.Module):
    """Looks rows up in a table; one with too few of them fails on what clients send, though not on the example."""

    def __init__(self, factor=1.0, rows=100):
        super().__init__()
        self.table = torch.nn.Embedding(rows, 1)
        with torch.no_grad():
            self.table.weight[:, 0] = factor * torch.arange(rows)

    def forward(self, x):
        return self.table(x[:, 0])


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Three models: two good ones, and one that fails on the rows that clients send."""
    nets = {"one": Net(), "two": Net(2.0), "bad": Net(3.0, rows=10)}
    return {
        name: ml.export(net, X, into=tmp_path_factory.mktemp("artifacts") / name)
        for name, net in nets.items()
    }


@contextmanager
def load(url, name):
    """Send one request after the other meanwhile; yields the list of status codes, which grows."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [50]}]}
    codes, stop = [], threading.Event()

    def send():
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            while not stop.is_set():
                codes.append(client.post(f"/v2/models/{name}/infer", json=body).status_code)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield codes
    finally:
        stop.set()
        sender.join(60)


def test_a_deployment_is_operated(artifacts, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    monkeypatch.setenv("MLOPSNB_NOTEBOOK", "fraud.ipynb")
    dep = ml.deploy(artifacts["one"], name="ops")
    nothing_changes(dep, artifacts["one"])
    refused(dep, artifacts["two"])
    with load(dep.url, "ops") as codes:
        figures_under_load(dep, codes)
        a_good_model_passes_its_gate(dep, artifacts["two"])
        a_bad_model_is_turned_away(dep, artifacts["bad"], codes)
    assert set(codes) == {200, 422}
    dep.rollback(to=1)
    np.testing.assert_array_equal(dep.predict(X), X[:, :1])
    assert [(r.state, r.note) for r in dep.history()] == [
        ("stopped", ""),
        ("stopped", "blue-green; gate error_rate < 0.01 and requests >= 1.0"),
        ("failed", "gate error_rate < 0.01 and requests >= 1.0"),
        ("running", "rollback to revision 1"),
    ]
    assert {(r.origin.user, r.origin.notebook) for r in dep.history()} == {("ada", "fraud.ipynb")}
    for to, message in (
        (4, "revision 4 of 'ops' serves already"),
        (3, "revision 3 of 'ops' failed; it can go back to: 1, 2"),
        (9, "'ops' has no revision 9; it can go back to: 1, 2"),
    ):
        with pytest.raises(ml.UserError, match=message):
            dep.rollback(to=to)


def nothing_changes(dep, artifact):
    said = []
    with reporting_to(said.append):
        assert ml.deploy(artifact, name="ops").revision == 1
        assert ml.deploy("models:/ops/1", name="ops").revision == 1
        assert dep.scale(1).revision == 1
    assert len(dep.history()) == 1
    told = [e.message for e in said if e.message.startswith("nothing changed")]
    assert told == [
        *["nothing changed: revision 1 serves this already (models:/ops/1); force=True deploys it again"] * 2,
        "nothing changed: revision 1 has 1 replica",
    ]


def refused(dep, artifact):
    """What this target cannot do is told before anything starts."""
    with pytest.raises(
        ml.UserError, match="'process' gives all traffic of 'ops' to one revision.*\n.*gate="
    ) as caught:
        ml.deploy(artifact, name="ops", canary=10)
    assert not getattr(caught.value, "__notes__", ())
    with pytest.raises(ml.UserError, match="no canary of 'ops' is under way"):
        dep.promote()
    with pytest.raises(ml.DeployError, match="runs one replica"):
        dep.scale(2)
    with pytest.raises(ml.UserError, match="replicas must be a number above 0"):
        dep.scale(0)
    plan = ml.deploy("models:/ops/1", name="ops", gate="qps>1", pause="5m", dry_run=True)
    assert [type(a).__name__ for a in plan] == ["Start", "Check", "Shift", "Gate", "Stop"]
    assert plan[3:] == (Gate(2, "qps > 1.0", 300.0), Stop(1))
    assert len(dep.history()) == 1


def figures_under_load(dep, codes):
    shown = []
    while len(codes) < 5:
        pass
    with reporting_to(lambda e: shown.append(e.shown)):
        traffic = dep.metrics(seconds=3)
    figures = traffic.figures()
    [revision] = traffic.revisions
    assert figures["requests"] == revision.window.counts.requests > 0
    assert figures["qps"] == pytest.approx(figures["requests"] / revision.window.seconds)
    assert figures["error_rate"] == 0
    assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
    assert figures["batch_rows"] == 1
    assert figures["cpu_cores"] > 0
    assert figures["memory_mb"] > 10
    assert figures["replicas"] == 1
    # One more may be on its way; the proof with the golden example is not among them.
    assert figures["requests"] < revision.total.counts.requests <= len(codes) + 1
    assert len(revision.points) >= 2
    assert "requests a second" in str(traffic)
    assert traffic._repr_html_().count("<svg") >= 8
    assert next(s for s in shown if s is not None).revisions[0].points
    assert dep.metrics(0).revisions[0].window is None
    with pytest.raises(ml.DeployError, match="nothing is known of revision 7; there are: 1"):
        traffic.figures(7)


RULE = "error_rate<0.01 and requests>=1"


def a_good_model_passes_its_gate(dep, artifact):
    said = []
    with reporting_to(said.append):
        ml.deploy(artifact, name="ops", strategy="blue-green", gate=RULE, pause=3)
    assert dep.revision == 2
    gate = [e for e in said if e.step == "gate"]
    assert [e.state for e in gate if e.state != "progress"] == ["started", "succeeded"]
    assert gate[-1].message.startswith("revision 2: error_rate 0.00%, ")


def a_bad_model_is_turned_away(dep, artifact, codes):
    with pytest.raises(
        ml.GateRejected, match="revision 3 did not pass its gate: error_rate is 100"
    ) as caught:
        ml.deploy(artifact, name="ops", gate=RULE, pause="10m")
    assert "; revision 2 in " in caught.value.message
    assert caught.value.__notes__ == ["what served before serves on: revision 2 of 'ops'"]
    np.testing.assert_array_equal(dep.predict(X + 50), 2 * (X + 50)[:, :1])
    assert dep.revision == 2
