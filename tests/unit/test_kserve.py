"""What the Kubernetes target makes of a revision for KServe, and what it reads from KServe's status.

The InferenceServices are compared whole; `python tests/unit/test_kserve.py` writes them anew.
"""

import json
from dataclasses import replace

import kubernetes_validate
import pytest
from plain_revisions import DATA, FULL, PLAIN, VERSIONS

from mlopsnb import workloads
from mlopsnb.errors import UserError
from mlopsnb.targets.cluster_history import Entry, State
from mlopsnb.targets.kserve_manifests import inference_service
from mlopsnb.targets.kserve_seen import Served
from mlopsnb.targets.manifests import Traits

ALL = replace(FULL, env={**FULL.env, "PROTOCOL": "v2"})
CASES = {
    "kserve": inference_service("fraud", PLAIN, Traits()),
    "kserve-canary": inference_service("fraud", PLAIN, Traits(), canary=10, replicas=3),
    "kserve-full": inference_service("fraud", ALL, Traits(pull_secret="registry")),
}
SCALING = ("minReplicas", "maxReplicas", "canaryTrafficPercent")


@pytest.mark.parametrize("case", CASES)
def test_inference_services_are_as_they_were_written_down(case):
    assert CASES[case] == json.loads((DATA / f"{case}.json").read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_what_kserve_makes_pods_of_is_a_pod(case, version):
    predictor = CASES[case]["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in SCALING}
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fraud"}, "spec": pod}
    kubernetes_validate.validate(whole, version, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_knative_is_given_nothing_that_it_refuses(case):
    """The fields that https://knative.dev/docs/serving/configuration/feature-flags/ has off, or no flag for."""
    predictor = CASES[case]["spec"]["predictor"]
    refused = {"securityContext", "terminationGracePeriodSeconds", "topologySpreadConstraints", "affinity"}
    assert not refused & predictor.keys()
    [container] = predictor["containers"]
    assert not {"lifecycle", "startupProbe"} & container.keys()
    assert [port["containerPort"] for port in container["ports"]] == [8080]
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    assert container["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_share_alone_makes_no_other_revision():
    shares = [inference_service("fraud", PLAIN, Traits(), canary=share) for share in (None, 0, 10)]
    for each in shares:
        each["spec"]["predictor"].pop("canaryTrafficPercent", None)
    assert shares[0] == shares[1] == shares[2]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"platform": "knative"}, "platform must be one of kubernetes, kserve; found 'knative'"),
        ({"platform": "kserve", "expose": "ingress"}, "platform='kserve' takes no expose"),
        ({"platform": "kserve", "network_policy": True}, "platform='kserve' takes no network_policy"),
    ],
)
def test_what_does_not_go_with_kserve(asked, message):
    with pytest.raises(UserError, match=message):
        workloads.read(**asked)


def served(newest, states, *, predictor=None, **status):
    """A look at `fraud`: its revisions by number with their states, and what KServe says of it."""
    entries = {
        n: Entry(revision=replace(PLAIN, id=n, state=state), served_as=f"fraud-predictor-0000{n}")
        for n, state in states.items()
    }
    if predictor is not None:
        status["components"] = {"predictor": predictor}
    found = None
    if newest:
        revision = replace(PLAIN, id=newest)
        found = {
            **inference_service("fraud", revision, Traits()),
            "status": {"url": "http://f.ml.example", **status},
        }
    return Served(name="fraud", state=State(entries=entries), found=found)


def shares(**percents):
    return [{"revisionName": f"fraud-predictor-0000{k[1]}", "percent": p} for k, p in percents.items()]


def status(created, ready, **more):
    return {
        "latestCreatedRevision": f"fraud-predictor-0000{created}",
        "latestReadyRevision": f"fraud-predictor-0000{ready}",
        **more,
    }


TWO = {1: "running", 2: "running"}


def test_the_traffic_is_what_knative_has_routed():
    seen = served(2, TWO, predictor=status(2, 2, traffic=shares(r2=10, r1=90)))
    assert (seen.weights, seen.divides, seen.pinnable) == ({1: 90, 2: 10}, True, {1})
    assert seen.release().url == "http://f.ml.example"
    assert seen.release(inside=True).url == "http://f.ml.example"
    inside = served(
        1, {1: "running"}, predictor=status(1, 1, traffic=shares(r1=100)), address={"url": "http://f.ml.svc"}
    )
    assert inside.release(inside=True).url == "http://f.ml.svc"


def test_what_had_all_before_can_have_it_again():
    before = {"previousRolledoutRevision": "fraud-predictor-00001"}
    seen = served(2, TWO, predictor=status(2, 2, traffic=shares(r2=100), **before))
    assert (seen.weights, seen.pinnable, seen.beside(2)) == ({2: 100}, {1}, 1)
    assert not served(2, TWO, predictor=status(2, 2, traffic=shares(r2=100))).pinnable


def test_a_revision_that_is_not_ready_is_starting():
    seen = served(2, {1: "running", 2: "starting"}, predictor=status(2, 1, traffic=shares(r1=100)))
    assert [r.state for r in seen.release().revisions] == ["running", "starting"]
    assert (seen.has_ready("fraud-predictor-00002"), seen.has_ready("fraud-predictor-00001")) == (False, True)


def test_without_knative_the_newest_that_ran_has_it_all():
    assert served(2, TWO).weights == {2: 100}
    started = served(2, {1: "running", 2: "starting"})
    assert (started.weights, started.divides, started.has_ready("")) == ({1: 100}, False, False)
    ready = {"type": "Ready", "status": "True"}
    assert served(2, TWO, conditions=[ready]).has_ready("")


def test_what_is_gone_serves_nothing():
    gone = served(None, {1: "running", 2: "starting"}).release()
    assert ([r.state for r in gone.revisions], gone.weights, gone.url) == (["stopped", "failed"], {}, None)


def test_a_history_that_is_lost_is_read_from_the_inference_service():
    [found] = served(3, {}).release().revisions
    assert (found.id, found.source, found.image, found.workload.platform) == (
        3,
        PLAIN.source,
        PLAIN.image,
        "kserve",
    )


def test_conditions_are_told():
    wrong = {"type": "PredictorReady", "status": "False", "message": "no room"}
    assert served(1, {1: "starting"}, conditions=[wrong]).said == ": PredictorReady: no room"


if __name__ == "__main__":
    for name, made in CASES.items():
        (DATA / f"{name}.json").write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")
