"""Canaries as a user meets them: two images share real load, one is promoted, one is turned away by its gate."""

import numpy as np
import pytest
from open_loops import Load
from served_plans import BODY, WEIGHTS

import mlopsnb as ml

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

X = np.ones((2, 4), "float32")


def counted(dep, revision):
    """The requests that a revision has answered so far."""
    found = {r.revision: r.total.counts.requests for r in dep.metrics(0).revisions}
    return found[revision]


def test_a_canary_shares_the_load_is_promoted_and_the_next_is_turned_away(place, served):
    first, second = served.images
    dep = ml.deploy(first, name="shared")
    with Load(f"{dep.url}/v2/models/shared/infer", BODY, rate=20) as load:
        ml.deploy(second, name="shared", canary=30)
        assert dict(dep.release.weights) == {1: 70, 2: 30}
        with pytest.raises(ml.UserError, match="a canary of 'shared' is under way: revision 2 has 30 %"):
            ml.deploy(first, name="shared", canary=10)
        with pytest.raises(ml.UserError, match="which has its share by its replicas"):
            dep.scale(2)
        while min(counted(dep, 1), counted(dep, 2)) < 5:
            pass
        traffic = dep.metrics(1)
        assert [(r.revision, r.role, r.share) for r in traffic.revisions] == [
            (1, "stable", 70),
            (2, "canary", 30),
        ]

        dep.promote()
        assert dict(dep.release.weights) == {2: 100}
        np.testing.assert_allclose(dep.predict(X), -X @ WEIGHTS)

        with pytest.raises(
            ml.GateRejected, match=r"revision 3 did not pass its gate: p50_ms is .*; revision 2 in"
        ) as caught:
            ml.deploy(first, name="shared", canary=(30, 60), gate="p50_ms<0.0001 and requests>=5", pause="5s")
        assert caught.value.__notes__ == ["what served before serves on: revision 2 of 'shared'"]
        assert dict(dep.release.weights) == {2: 100}
    assert load.report().failures == {}
    states = [(r.id, r.state) for r in dep.history()]
    assert states == [(1, "stopped"), (2, "running"), (3, "failed")]
    assert [r.note for r in dep.history()][1:3] == [
        "canary 30 %",
        "canary 30 %, 60 %; gate p50_ms < 0.0001 and requests >= 5.0",
    ]
