"""Every way in which a deployment fails, produced on a real cluster: what is said of it, before its time is over.

In the namespace of somebody who may edit there and not more, and where an administrator is needed in one of its own.
"""

from __future__ import annotations

import secrets
import socket
from concurrent.futures import ThreadPoolExecutor

import failing_deployments as failing
import pytest
from administrator import asking, forbidden, rules, space
from authority import Authority
from failing_deployments import Failing, deployment, web

from mlopsnb.errors import DeployError, NotReady
from mlopsnb.events import reporting_to
from mlopsnb.targets.cluster import Cluster
from mlopsnb.targets.watching import wait_ready

pytestmark = pytest.mark.cluster

SECONDS = 240


@pytest.fixture(scope="module")
def prefix():
    """What all names begin with."""
    return f"test-{secrets.token_hex(3)}"


def outcomes(cluster, cases, *, timeout=SECONDS):
    """Start the deployments side by side; return by name what waiting for each raised, and the events before."""
    names = [case.name for case in cases]
    try:
        for case in cases:
            cluster.apply(case.manifest)
        with ThreadPoolExecutor(len(names)) as pool:
            return dict(
                zip(names, pool.map(lambda name: outcome(cluster, name, timeout), names), strict=True)
            )
    finally:
        for name in names:
            cluster.delete("apps/v1", "Deployment", name)


def outcome(cluster, name, timeout):
    told = []
    with reporting_to(told.append):
        try:
            wait_ready(Cluster(cluster.context, cluster.namespace), name, timeout=timeout)
        except DeployError as exc:
            return exc, told
    return None, told


def check(case, found):
    error, told = found
    assert isinstance(error, NotReady), (error, told)
    assert error.reason == case.kind, error
    assert all(word in error.message for word in case.words), error
    assert case.hint in error.hint, error
    assert error.hint
    assert told[-1].message.startswith("0 of ")
    assert case.words[0] in told[-1].message  # it was shown as it was found, not at the end
    assert all(row.name.startswith(case.name) and not row.ready for row in told[-1].replicas)
    assert {(event.step, event.state) for event in told} == {("start", "progress")}


# ---------------------------------------------------------------------------------------------- with few rights
@pytest.fixture(scope="module")
def mine(cluster):
    """The cluster as somebody sees it who may edit in one namespace."""
    return Cluster(cluster.context)


@pytest.fixture(scope="module")
def some_secret(mine, prefix):
    name = f"{prefix}-some"
    mine.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"k": "v"}})
    yield name
    mine.delete("v1", "Secret", name)


@pytest.mark.parametrize("group", failing.GROUPS)
def test_a_failure_says_what_it_is(mine, some_secret, prefix, base_image, group):
    cases = [case for make in failing.GROUPS[group] for case in make(prefix, base_image)]
    found = outcomes(mine, cases)
    for case in cases:
        check(case, found[case.name])


def test_what_gets_ready_is_waited_for(mine, prefix, base_image):
    name = f"{prefix}-well"
    well = deployment(name, base_image, failing.SERVE, replicas=2)
    error, told = outcomes(mine, [Failing(manifest=well, kind="")])[name]
    assert error is None
    assert told[-1].message == "2 of 2 pods ready"
    assert [r.phase for r in told[-1].replicas] == ["ready", "ready"]


def test_time_is_over(mine, prefix, base_image):
    """Nothing is wrong with a server that takes long: then its pods are what there is to say."""
    name = f"{prefix}-slow"
    slow = deployment(name, base_image, readinessProbe=failing.probe("/", initialDelaySeconds=600))
    error, _ = outcomes(mine, [Failing(manifest=slow, kind="")], timeout=4)[name]
    assert error.reason == "Timeout"
    assert f"{name} was not ready after 4 s: 0 of 1 pod ready: {name}-" in error.message


def test_what_is_not_there_or_goes_away(mine, prefix, base_image):
    with pytest.raises(DeployError, match="is not there"):
        wait_ready(mine, f"{prefix}-none", timeout=5)
    name = f"{prefix}-going"
    mine.apply(deployment(name, base_image, readinessProbe=failing.probe("/", initialDelaySeconds=600)))

    def once_told(event):
        mine.delete("apps/v1", "Deployment", name)

    with reporting_to(once_told), pytest.raises(DeployError, match="was deleted while it started"):
        wait_ready(mine, name, timeout=SECONDS)


# ---------------------------------------------------------------------------------------------- registries on this machine
@pytest.fixture(scope="module")
def own_address(mine):
    """An address of this machine that is not the loopback, where the cluster runs on this machine."""
    if "//127.0.0.1:" not in mine.server:
        pytest.skip("the cluster does not run on this machine")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return probe.getsockname()[0]


def test_registries_that_say_no(mine, prefix, tmp_path, own_address):
    """One that wants credentials, one with a certificate of nobody's, and one without TLS."""

    def unauthorized(body):
        return 401, {"WWW-Authenticate": 'Basic realm="tests"'}, b'{"errors": [{"code": "UNAUTHORIZED"}]}'

    certificate, key = Authority(tmp_path, "ca").issue("registry")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    with web("0.0.0.0", unauthorized) as plain, web("0.0.0.0", unauthorized, certificate=both) as tls:
        cases = [
            Failing(
                manifest=deployment(f"{prefix}-{name}", f"{host}/x:1"),
                kind="ImagePullBackOff",
                words=(words,),
            )
            for name, host, words in (
                ("credentials", f"127.0.0.1:{plain}", f"127.0.0.1:{plain} wants credentials"),
                ("x509", f"{own_address}:{tls}", "the nodes do not trust the certificate"),
                ("http", f"{own_address}:{plain}", "speaks plain HTTP"),
            )
        ]
        found = outcomes(mine, cases)
    for case in cases:
        check(case, found[case.name])


# ---------------------------------------------------------------------------------------------- what an administrator sets
@pytest.fixture(scope="module")
def admin(admin_context, prefix):
    """The cluster as its administrator sees it, in a namespace of the tests."""
    with space(admin_context, prefix) as cluster:
        yield cluster


def test_what_the_administrator_forbids(admin, prefix, base_image, tmp_path, own_address):
    """A quota, a limit range, a webhook that denies, one that is not there, and one for Pod Security."""
    cases = forbidden(prefix, base_image)
    with rules(admin, prefix, tmp_path):
        found = outcomes(admin, cases)
    for case in cases:
        check(case, found[case.name])


def test_pod_security(admin, prefix, base_image):
    version = admin.request("GET", "/version")
    if int(version["minor"].rstrip("+")) < 25:
        pytest.skip(f"Kubernetes {version['gitVersion']} has no Pod Security admission")
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    content = "application/merge-patch+json"
    admin.request("PATCH", f"/api/v1/namespaces/{prefix}", body=labels, content=content)
    case = Failing(
        manifest=deployment(f"{prefix}-loose", base_image, **asking("10m", "64Mi")),
        kind="PodSecurity",
        words=("does not allow the pod", "allowPrivilegeEscalation"),
    )
    check(case, outcomes(admin, [case])[case.name])
