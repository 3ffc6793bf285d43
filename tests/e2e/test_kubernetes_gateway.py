"""A/B by header and shadow traffic: the objects that a Gateway is told by, on a real API server, with real pods behind.

No Gateway runs here, so no request takes these ways: what is checked is what is applied, kept and removed.
"""

import pytest
from custom_kinds import GATEWAY, HTTP_ROUTE, defined
from surroundings import Kubectl

import mlopsnb as ml
from mlopsnb.errors import DeployError
from mlopsnb.rollout import Route
from mlopsnb.targets.cluster import Cluster
from mlopsnb.targets.kubernetes import Kubernetes

pytestmark = [pytest.mark.engine, pytest.mark.cluster, pytest.mark.timeout(600)]
SECONDS = 200.0
API = "gateway.networking.k8s.io/v1"
HOW = {"name": "fraud", "target": "kubernetes", "expose": "gateway", "host": "fraud.example"}
SHARED = {
    "apiVersion": API,
    "kind": "Gateway",
    "metadata": {"name": "shared"},
    "spec": {"gatewayClassName": "tests", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
}


@pytest.fixture
def here(space, monkeypatch, base_image):
    """The cluster in a namespace of this test, in which deploys go."""
    monkeypatch.setenv("MLOPSNB_CONTEXT", space.context)
    monkeypatch.setenv("MLOPSNB_NAMESPACE", space.namespace)
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", base_image)
    return Cluster(space.context, space.namespace)


def backend(name, **more):
    return {"kind": "Service", "name": name, "port": 80, **more}


PATH = {"path": {"type": "PathPrefix", "value": "/"}}
ALL = {"matches": [PATH], "backendRefs": [backend("fraud", weight=1)]}


def rules(here):
    return here.get(API, "HTTPRoute", "fraud")["spec"]["rules"]


def test_without_the_gateway_api_its_crd_is_named_before_anything_is_built(here):
    if here.serves(API):
        pytest.skip("the cluster has the Gateway API")
    with pytest.raises(DeployError, match=r"no CRD httproutes\.gateway\.networking\.k8s\.io"):
        ml.deploy(object(), strategy="ab", match="header:X-Group=b", **HOW)


def test_by_header_then_as_shadow(here, admin_context, served):
    first, second = served.images
    with defined(Kubectl(admin_context), HTTP_ROUTE, GATEWAY):
        with pytest.raises(DeployError, match="needs one Gateway in namespace .* there are: none"):
            ml.deploy(object(), **HOW)
        here.create(SHARED)
        dep = ml.deploy(first, **HOW)
        assert (dep.url, rules(here)) == ("http://fraud.example", [ALL])

        ml.deploy(second, match="header:X-Group=b", **HOW)
        chosen = [{"type": "Exact", "name": "X-Group", "value": "b"}]
        own = {"matches": [{**PATH, "headers": chosen}], "backendRefs": [backend("fraud-r2", weight=1)]}
        assert rules(here) == [own, ALL]
        assert (dep.release.weights, dep.release.routes) == ({1: 100}, {2: "header:X-Group=b"})
        assert here.get("v1", "Service", "fraud-r2")["spec"]["selector"]["mlopsnb.io/revision"] == "2"
        with pytest.raises(ml.UserError, match="revision 2 has header:X-Group=b"):
            ml.deploy(first, strategy="shadow", **HOW)
        dep.rollback()
        assert (dep.release.weights, dep.release.routes, rules(here)) == ({1: 100}, {}, [ALL])
        assert here.get("v1", "Service", "fraud-r2") is None

        ml.deploy(second, strategy="shadow", **HOW)
        copied = {"type": "RequestMirror", "requestMirror": {"backendRef": backend("fraud-r3")}}
        assert rules(here) == [{**ALL, "filters": [copied]}]
        with pytest.raises(
            DeployError, match="sessionPersistence, which the Gateway API of this cluster lacks"
        ):
            Kubernetes().apply("fraud", Route(3, "session:20"), timeout=SECONDS)
        dep.promote()
        assert (dep.release.weights, dep.release.routes, rules(here)) == ({3: 100}, {}, [ALL])
        assert [(r.id, r.state) for r in dep.history()] == [(1, "stopped"), (2, "failed"), (3, "running")]
        dep.delete()
        assert here.list(API, "HTTPRoute") == []
