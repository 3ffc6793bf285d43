"""A rolling update where the cluster has room for one replica more and not for all of both revisions."""

import pytest
from asking import load, until

import mlopsnb as ml
from mlopsnb.events import reporting_to

pytestmark = [pytest.mark.engine, pytest.mark.cluster, pytest.mark.timeout(600)]
QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "three-pods"},
    "spec": {"hard": {"pods": "3"}},
}


def test_replicas_change_one_by_one_and_not_a_request_fails(space, served, monkeypatch, base_image):
    monkeypatch.setenv("MLOPSNB_CONTEXT", space.context)
    monkeypatch.setenv("MLOPSNB_NAMESPACE", space.namespace)
    how = {"name": "full", "target": "kubernetes", "replicas": 2, "expose": "nodeport"}
    dep = ml.deploy(served.images[0], **how)
    space("apply", "--filename=-", stdin=QUOTA)
    told = []
    with load(dep.url, "full") as (answers, failures), reporting_to(told.append):
        ml.deploy(served.images[1], **how)
        until(lambda: answers[-1] == -1)
    assert failures == []
    assert any("revision 1 gives a replica to 2" in event.message for event in told)
    assert (dep.release.weights, dep.status) == ({2: 100}, "ready")
    assert [(r.state, r.workload.replicas) for r in dep.history()] == [("stopped", 2), ("running", 2)]
