"""What the Kubernetes target makes of a revision, compared whole, and against the schemas of Kubernetes itself.

Each file under `data/manifests` holds the objects of one case; `python tests/unit/test_manifests.py` writes them anew.
"""

import json
from dataclasses import replace

import kubernetes_validate
import pytest
from plain_revisions import DATA, FULL, PLAIN, VERSIONS

from mlopsnb.images import plan
from mlopsnb.records import Workload
from mlopsnb.targets import manifests
from mlopsnb.targets.manifests import Traits


def exposed(expose, **more):
    return replace(PLAIN, workload=Workload(expose=expose, **more))


CASES = {
    "plain": (PLAIN, Traits()),
    "full": (FULL, Traits(pull_secret="registry")),
    "old": (
        replace(FULL, workload=replace(FULL.workload, expose="cluster")),
        Traits(autoscaling="autoscaling/v2beta2", disruption="policy/v1beta1", pull_policy="Never"),
    ),
    "nodeport": (replace(exposed("nodeport", replicas=3), port=8000), Traits()),
    "loadbalancer": (exposed("loadbalancer", network_policy=True), Traits()),
    "gateway": (exposed("gateway", host="fraud.example"), Traits(gateway="shared")),
}

NOT_THERE = {"HTTPRoute"}
"""Kinds that are no part of Kubernetes itself."""


def made(case):
    revision, traits = CASES[case]
    return manifests.manifests("fraud", revision, traits)


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_as_they_were_written_down(case):
    assert made(case) == json.loads((DATA / f"{case}.json").read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", ["full", "nodeport"])  # together they have every kind and field
def test_kubernetes_itself_takes_them(case, version):
    for each in made(case):
        if each["kind"] not in NOT_THERE:
            kubernetes_validate.validate(each, version, strict=True)


def test_the_serving_image_is_what_they_take_it_for():
    assert (manifests.HTTP_PORT, manifests.GRPC_PORT) == (plan.HTTP_PORT, plan.GRPC_PORT)
    assert f"/{plan.VENV}/bin/python" == manifests.PYTHON
    assert f"/{plan.WEIGHTS_MOUNT}" == manifests.WEIGHTS_MOUNT
    assert f"{manifests.USER}:{manifests.USER}" == plan.USER


@pytest.mark.parametrize("case", CASES)
def test_pods_pass_the_pod_security_standard_restricted(case):
    """Every control of https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    pod = made(case)[1]["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "ephemeralContainers"} & pod.keys()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {key for volume in pod["volumes"] for key in volume} == {"name", "emptyDir"}
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all("hostPort" not in port for port in container.get("ports", ()))


@pytest.mark.parametrize("case", CASES)
def test_every_port_has_a_name_and_its_protocol(case):
    _, deployment, service, *_ = made(case)
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    named = {port["name"] for port in container["ports"]}
    for port in (*container["ports"], *service["spec"]["ports"]):
        assert port["protocol"] == "TCP"
        assert port["name"] in named
    assert {port["targetPort"] for port in service["spec"]["ports"]} == named


def test_a_service_is_pinned_to_a_revision_or_takes_those_that_share():
    pinned, shared = (
        manifests.service("fraud", PLAIN, pinned=each)["spec"]["selector"] for each in (True, False)
    )
    main = manifests.deployment("fraud", PLAIN, Traits(), replicas=1)["spec"]["template"]["metadata"][
        "labels"
    ]
    apart = manifests.deployment("fraud", PLAIN, Traits(), replicas=1, pool="apart")
    apart_labels = apart["spec"]["template"]["metadata"]["labels"]
    assert pinned.items() <= main.items()
    assert shared.items() <= main.items()
    assert pinned.items() <= apart_labels.items()
    assert not shared.items() <= apart_labels.items()
    assert apart["spec"]["selector"]["matchLabels"].items() <= apart_labels.items()
    assert manifests.POOL not in apart["spec"]["selector"]["matchLabels"]


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        (DATA / f"{name}.json").write_text(json.dumps(made(name), indent=2, sort_keys=True) + "\n")
