"""Deploying through KServe: its objects on a real API server, with a stand-in for its controller that makes the pods.

What is checked is what we write, read and do; what KServe and Knative do with it is theirs.
"""

import json

import numpy as np
import pytest
from custom_kinds import INFERENCE_SERVICE, defined
from surroundings import Kubectl
from tiny_kserve import TinyKServe

import mlopsnb as ml
from mlopsnb.errors import DeployError, UserError
from mlopsnb.records import Revision, Workload
from mlopsnb.rollout import Scale, Shift, Start, Stop
from mlopsnb.targets.cluster_errors import Forbidden
from mlopsnb.targets.kubernetes import Kubernetes

pytestmark = [pytest.mark.engine, pytest.mark.cluster, pytest.mark.timeout(600)]
SECONDS = 200.0
X = np.ones((2, 4), "float32")
KSERVE = {"target": "kubernetes", "platform": "kserve"}


@pytest.fixture(scope="module")
def crd(admin_context):
    with defined(Kubectl(admin_context), INFERENCE_SERVICE):
        yield


@pytest.fixture
def here(space, monkeypatch, base_image):
    """kubectl in a namespace of this test, in which deploys go."""
    monkeypatch.setenv("MLOPSNB_CONTEXT", space.context)
    monkeypatch.setenv("MLOPSNB_NAMESPACE", space.namespace)
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", base_image)
    return space


def service(here, name):
    return json.loads(here("get", "inferenceservice", name, "--output=json"))


def sign(deployment):
    return float(np.sign(deployment.predict(X)[0, 0]))


def test_without_kserve_the_crd_is_named_before_anything_is_built(here):
    if "inferenceservices.serving.kserve.io" in here("get", "crd", "--output=name"):
        pytest.skip("the cluster has KServe")
    with pytest.raises(DeployError, match=r"no CRD inferenceservices\.serving\.kserve\.io") as caught:
        ml.deploy(object(), name="fraud", **KSERVE)
    assert "install KServe" in caught.value.hint


def test_who_may_not_make_them_is_told(crd, cluster, served):
    if cluster.context != "data-scientist":
        pytest.skip("there is no context of somebody with few rights")
    target = Kubernetes(context=cluster.context)
    revision = Revision(
        id=1, source="s", digest="d", image=served.images[0], workload=Workload(platform="kserve")
    )
    with pytest.raises(
        Forbidden, match=r"may not create inferenceservices\.serving\.kserve\.io in namespace 'ml'"
    ):
        target.apply("kserve-test", Start(revision), timeout=SECONDS)
    assert target.observe("kserve-test").revisions == ()


def test_deploy_canary_promote_rollback_scale_delete(crd, here, served):
    first, second = served.images
    with TinyKServe(here.context, here.namespace):
        dep = ml.deploy(first, name="fraud", **KSERVE)
        assert (dep.status, dep.revision, sign(dep)) == ("ready", 1, 1)
        assert dep.url == service(here, "fraud")["status"]["url"]
        assert "/infer" in dep.logs()

        ml.deploy(second, name="fraud", canary=25, **KSERVE)
        assert dep.release.weights == {1: 75, 2: 25}
        assert service(here, "fraud")["spec"]["predictor"]["canaryTrafficPercent"] == 25
        dep.rollback()
        assert (dep.release.weights, sign(dep)) == ({1: 100}, 1)
        assert "canaryTrafficPercent" not in service(here, "fraud")["spec"]["predictor"]

        ml.deploy(second, name="fraud", canary=25, **KSERVE)
        dep.promote()
        assert (dep.release.weights, sign(dep)) == ({3: 100}, -1)
        dep.scale(2)
        assert service(here, "fraud")["spec"]["predictor"]["minReplicas"] == 2
        assert [(r.id, r.state) for r in dep.history()] == [(1, "stopped"), (2, "failed"), (3, "running")]

        with pytest.raises(UserError, match="'fraud' is deployed with platform='kserve'"):
            ml.deploy(first, name="fraud", target="kubernetes")
        dep.rollback(to=1)
        assert (dep.revision, sign(dep)) == (4, 1)
        dep.delete()
    assert dep.status == "deleted"
    assert (
        here("get", "inferenceservices,configmaps", "--selector=mlopsnb.io/name=fraud", "--output=name") == ""
    )


def test_what_cannot_start_leaves_what_served(crd, here, served):
    target = Kubernetes()
    work = Workload(platform="kserve")

    def revision(number, image):
        return Revision(id=number, source=f"models:/m/{number}", digest="d", image=image, workload=work)

    (weights,) = (p for p in (served.packages[0].path / "model").iterdir() if p.suffix == ".onnx")
    bad = served.image_with("cut", {f"model/{weights.name}": weights.read_bytes()[:-1]})
    with TinyKServe(here.context, here.namespace), target.claim("m"):
        target.apply("m", Start(revision(1, served.images[0])), timeout=SECONDS)
        target.apply("m", Shift({1: 100}), timeout=SECONDS)
        with pytest.raises(DeployError, match="was changed"):
            target.apply("m", Start(revision(2, bad)), timeout=SECONDS)
        after = target.observe("m")
        assert (after.weights, [r.state for r in after.revisions]) == ({1: 100}, ["running", "failed"])
        assert any("was changed" in line for line in target.logs("m", 2))
        stored = service(here, "m")
        assert stored["metadata"]["labels"]["mlopsnb.io/revision"] == "1"


def test_without_knative_kserve_gives_no_shares(crd, here, served):
    target, work = Kubernetes(), Workload(platform="kserve")
    revisions = [
        Revision(id=n, source=f"models:/m/{n}", digest="d", image=image, workload=work)
        for n, image in enumerate(served.images, 1)
    ]
    with TinyKServe(here.context, here.namespace, knative=False), target.claim("m"):
        target.apply("m", Start(revisions[0]), timeout=SECONDS)
        target.apply("m", Shift({1: 100}), timeout=SECONDS)
        assert not target.splits("m")
        with pytest.raises(UserError, match="gives all traffic of 'm' to one revision"):
            ml.deploy(served.images[1], name="m", canary=10, **KSERVE)
        target.apply("m", Start(revisions[1]), timeout=SECONDS)
        assert target.observe("m").weights == {2: 100}
        with pytest.raises(DeployError, match="gives all traffic to one revision"):
            target.apply("m", Shift({1: 50, 2: 50}), timeout=SECONDS)
        target.apply("m", Shift({1: 100}), timeout=SECONDS)  # and back, as a restore does
        assert target.observe("m").weights == {1: 100}
        target.apply("m", Stop(2, failed=True), timeout=SECONDS)
        target.apply("m", Scale(1, 2), timeout=SECONDS)
    assert [(r.id, r.state) for r in target.observe("m").revisions] == [(1, "running"), (2, "failed")]
