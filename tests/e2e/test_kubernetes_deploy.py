"""Deploying to a cluster as somebody who may edit in one namespace and not more."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import yaml
from asking import load, sign, until
from cutter import Cutter

import mlopsnb as ml
from mlopsnb.errors import DeployError
from mlopsnb.events import reporting_to
from mlopsnb.records import Revision, Workload
from mlopsnb.rollout import Scale, Shift, Start, Stop
from mlopsnb.targets import cluster_claims
from mlopsnb.targets.cluster_claims import Claim
from mlopsnb.targets.cluster_errors import Forbidden, NotAuthenticated, Rejected
from mlopsnb.targets.cluster_history import KEEP_REVISIONS, Entry, History
from mlopsnb.targets.kubernetes import Kubernetes

pytestmark = [pytest.mark.engine, pytest.mark.cluster, pytest.mark.timeout(600)]
SECONDS = 200.0
X = np.ones((2, 4), "float32")
KINDS = "deployments,services,configmaps,serviceaccounts,hpa,pdb,networkpolicies,ingresses"


@pytest.fixture
def name(cluster, monkeypatch, base_image):
    """A name of this test alone, in the namespace of somebody who may only work there; nothing of it is left."""
    monkeypatch.setenv("MLOPSNB_CONTEXT", cluster.context)
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", base_image)
    name = f"test-{os.urandom(3).hex()}"
    yield name
    chosen = f"--selector=mlopsnb.io/name={name}"
    cluster("delete", KINDS, chosen, "--wait=false")
    cluster("delete", "pods", chosen, "--grace-period=1", "--wait=false")


@pytest.fixture
def revision(served):
    """A function that makes a revision of one of two models, which answer with opposite signs."""

    def make(number, model=0, **changes):
        digest, image = served.packages[model].digest, served.images[model]
        return Revision(id=number, source=f"models:/m/{number}", digest=digest, image=image, **changes)

    return make


def in_another_process(code, *words, **options):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *words], **options)


ROLLBACK = """
    import sys
    import mlopsnb as ml
    print(ml.get(sys.argv[1], target="kubernetes").rollback().revision)
"""


def test_the_whole_way_and_not_a_request_fails(name, served, cluster):
    first, second = served.images
    made = ml.deploy(first, name=name, target="kubernetes", replicas=2)
    assert np.sign(made.predict(X)[0, 0]) == 1
    assert (made.status, made.revision) == ("ready", 1)
    assert made.url.startswith("http://127.0.0.1:")

    told = []
    with reporting_to(told.append):
        again = ml.deploy(first, name=name, target="kubernetes", replicas=2)
    assert again.revision == 1
    assert any("nothing changed" in event.message for event in told)

    with load(made.url, name) as (answers, failures):
        ml.deploy(second, name=name, target="kubernetes", replicas=2)
        until(lambda: answers[-1] == -1)
        rollback = in_another_process(ROLLBACK, name, stdout=subprocess.PIPE, text=True)
        said, _ = rollback.communicate(timeout=SECONDS)
        assert (said.strip(), rollback.returncode) == ("3", 0)
        until(lambda: answers[-1] == 1)
        [pod, _] = cluster(
            "get", "pods", f"--selector=mlopsnb.io/name={name},mlopsnb.io/revision=3", "--output=name"
        ).split()
        cluster("delete", pod, "--wait=false")
        count = len(answers)
        until(lambda: len(answers) > count + 50)
        made.scale(1)
        count = len(answers)
        until(lambda: len(answers) > count + 50)
    assert failures == []
    assert [(r.id, r.state, r.note) for r in made.history()] == [
        (1, "stopped", ""),
        (2, "stopped", ""),
        (3, "running", "rollback to revision 1"),
    ]
    assert "/infer" in made.logs()
    made.delete()
    assert made.status == "deleted"
    chosen = f"--selector=mlopsnb.io/name={name}"
    assert cluster("get", KINDS, chosen, "--output=name") == ""
    cluster("wait", "pods", chosen, "--for=delete", "--timeout=200s")


def test_revisions_share_the_traffic_by_their_replicas(name, revision):
    target = Kubernetes()
    work = Workload(replicas=2)
    with target.claim(name):
        target.apply(name, Start(revision(1, workload=work)), timeout=SECONDS)
        target.apply(name, Shift({1: 100}), timeout=SECONDS)
        target.apply(name, Start(revision(2, 1, workload=work)), timeout=SECONDS)
        target.apply(name, Shift({1: 90, 2: 10}), timeout=SECONDS)
        shared = target.observe(name)
        assert shared.weights == {1: 50, 2: 50}  # one of two replicas each: there are no finer shares
        assert {sign(shared.url, name) for _ in range(30)} == {1, -1}
        target.apply(name, Start(revision(3, workload=work)), timeout=SECONDS)
        assert target.observe(name).weights == shared.weights  # it has no traffic before it is given some
        target.apply(name, Stop(3, failed=True), timeout=SECONDS)
        target.apply(name, Shift({2: 100}), timeout=SECONDS)
        assert {sign(shared.url, name) for _ in range(10)} == {-1}
        target.apply(name, Stop(1), timeout=SECONDS)
    after = target.observe(name)
    assert [(r.id, r.state) for r in after.revisions] == [(1, "stopped"), (2, "running"), (3, "failed")]


def test_what_goes_with_the_traffic_follows_it(name, revision, cluster):
    target = Kubernetes()
    work = Workload(
        min_replicas=1, max_replicas=3, cpu=0.05, network_policy=True, expose="ingress", host="a.example"
    )

    def there(kind):
        return cluster("get", kind, f"--selector=mlopsnb.io/name={name}", "--output=name").split()

    with target.claim(name):
        target.apply(name, Start(revision(1, workload=work)), timeout=SECONDS)
        target.apply(name, Shift({1: 100}), timeout=SECONDS)
        scaler = json.loads(cluster("get", "hpa", name, "--output=json"))
        assert scaler["spec"]["scaleTargetRef"]["name"] == f"{name}-r1"
        # What the autoscaler's controller reads of the Deployment; the figures are the metrics server's.
        cluster_now = target._cluster
        scale = cluster_now.request("GET", f"{cluster_now.path('apps/v1', 'Deployment', f'{name}-r1')}/scale")
        assert scale["status"]["selector"] == f"mlopsnb.io/name={name},mlopsnb.io/revision=1"
        pod = json.loads(cluster("get", "deployment", f"{name}-r1", "--output=json"))["spec"]["template"][
            "spec"
        ]
        assert pod["containers"][0]["resources"]["requests"]["cpu"] == "50m"
        assert len(there("networkpolicies,ingresses")) == 2
        with pytest.raises(DeployError, match="scaled by the cluster, between 1 and 3 replicas"):
            target.apply(name, Scale(1, 2), timeout=SECONDS)
        plain = Workload(replicas=2, expose="nodeport")
        target.apply(name, Start(revision(2, 1, workload=plain)), timeout=SECONDS)
        target.apply(name, Shift({2: 100}), timeout=SECONDS)
        assert there("hpa,networkpolicies,ingresses") == []
        assert len(there("pdb")) == 1
        url = target.observe(name).url
    port = cluster("get", "service", name, "--output=jsonpath={.spec.ports[0].nodePort}")
    assert url.endswith(f":{port}")
    assert not url.startswith("http://127.")


def test_a_missing_right_is_named_before_anything_is_done(cluster, admin_context):
    if cluster.context == admin_context:
        pytest.skip("there is no context of somebody with few rights")
    with pytest.raises(Forbidden, match="may not create deployments.apps in namespace 'default'") as caught:
        Kubernetes(context=cluster.context, namespace="default").delivery()
    assert "--clusterrole=edit" in caught.value.hint


def test_a_namespace_that_is_not_there_is_named(admin_context):
    target = Kubernetes(context=admin_context, namespace="no-such-namespace")
    with pytest.raises(Rejected, match="there is no namespace 'no-such-namespace'"), target.claim("m"):
        pass


@pytest.fixture
def changed_config(cluster, tmp_path):
    """A function that has the kubeconfig of this test changed by a function, and only of this test."""
    with pytest.MonkeyPatch.context() as patch:

        def change(how):
            config = yaml.safe_load(cluster("config", "view", "--minify", "--raw", "--flatten"))
            how(config)
            path = tmp_path / "kubeconfig"
            path.write_text(yaml.safe_dump(config))
            patch.setenv("KUBECONFIG", str(path))

        yield change


def test_credentials_that_have_expired_are_told(cluster, changed_config):
    changed_config(lambda config: config["users"][0].update(user={"token": "expired"}))
    with pytest.raises(
        NotAuthenticated, match=f"context '{cluster.context}' does not accept your credentials"
    ):
        Kubernetes(context=cluster.context).names()


def test_a_hold_expires_if_its_holder_has_died_and_a_lost_one_stops_the_loser(name, monkeypatch):
    target = Kubernetes()
    with target.claim(name), pytest.raises(DeployError, match=r"under way \(.* on .*, process \d+, since 20"):
        Claim(target._cluster, name)._take()
    monkeypatch.setattr(cluster_claims, "RENEWED_SECONDS", 0.1)
    died = Claim(target._cluster, name)
    died._take()
    monkeypatch.setattr(cluster_claims, "EXPIRES_SECONDS", -1.0)
    with target.claim(name):
        lost = threading.Thread(target=died._renew)
        lost.start()
        lost.join(SECONDS)
        with pytest.raises(DeployError, match="the hold on .* was lost"):
            died.check()
        died._release()  # what it does not have, it does not give away
        target.apply(name, Stop(1), timeout=SECONDS)


def test_a_history_is_bounded_and_loses_nothing_to_who_writes_at_the_same_time(name, revision):
    histories = [History(Kubernetes()._cluster, name) for _ in range(4)]

    def write(history, numbers):
        for number in numbers:
            history.update(lambda s, n=number: s.with_entry(Entry(revision=revision(n))))

    threads = [
        threading.Thread(target=write, args=(history, range(1 + k, 13, 4)))
        for k, history in enumerate(histories)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    kept = histories[0].read().entries
    assert len(kept) == KEEP_REVISIONS
    assert kept.keys() >= set(range(13 - KEEP_REVISIONS + 3, 13))
    assert all(entry.revision == revision(number) for number, entry in kept.items())
    histories[0].update(lambda s: s.with_revision(12, state="failed"))
    assert Kubernetes().observe(name).revisions[-1].state == "failed"


def test_the_api_server_may_restart_in_the_middle(name, revision, changed_config, cluster):
    where = cluster("config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}")
    host = where.removeprefix("https://")
    with Cutter(host) as front:
        changed_config(lambda config: config["clusters"][0]["cluster"].update(server=f"https://{front.host}"))
        target, began = Kubernetes(context=cluster.context), threading.Event()
        failed = []

        def start():
            with reporting_to(lambda event: began.set()):
                try:
                    target.apply(name, Start(revision(1)), timeout=SECONDS)
                    target.apply(name, Shift({1: 100}), timeout=SECONDS)
                except BaseException as exc:  # noqa: BLE001
                    failed.append(exc)

        thread = threading.Thread(target=start)
        thread.start()
        assert began.wait(SECONDS)
    threading.Event().wait(1.5)  # nobody listens for so long
    with Cutter(host, own=int(front.host.rpartition(":")[2])):
        thread.join(SECONDS)
        assert failed == []
        assert sign(target.observe(name).url, name) == 1


DIES = """
    import pickle, sys
    from mlopsnb.events import reporting_to
    from mlopsnb.rollout import Start
    from mlopsnb.targets.kubernetes import Kubernetes

    target, name = Kubernetes(), sys.argv[1]
    with reporting_to(lambda event: print("begun", flush=True)), target.claim(name):
        target.apply(name, Start(pickle.loads(bytes.fromhex(sys.argv[2]))), timeout=200)
        sys.stdin.read()
"""


def test_when_a_kernel_dies_what_served_serves_on_and_the_next_deploy_clears_up(name, revision, monkeypatch):
    import pickle

    from mlopsnb import background, rollout
    from mlopsnb.executing import execute

    target = Kubernetes()
    with target.claim(name):
        target.apply(name, Start(revision(1)), timeout=SECONDS)
        target.apply(name, Shift({1: 100}), timeout=SECONDS)
    words = (name, pickle.dumps(revision(2, 1)).hex())
    with in_another_process(DIES, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kernel:
        assert kernel.stdout.readline()
        kernel.send_signal(signal.SIGKILL)
    left = target.observe(name)
    assert (left.weights, [r.id for r in left.revisions]) == ({1: 100}, [1, 2])
    assert sign(left.url, name) == 1
    with pytest.raises(DeployError, match="another deploy of .* is under way"):
        target.claim(name).__enter__()
    monkeypatch.setattr(cluster_claims, "EXPIRES_SECONDS", -1.0)
    with background.hold(target, background.key("kubernetes", name)) as hold:
        execute(hold, rollout.rolling(left, revision(3, 1)), timeout=SECONDS)
    after = target.observe(name)
    assert [(r.id, r.state) for r in after.revisions] == [(1, "stopped"), (2, "stopped"), (3, "running")]
    assert sign(after.url, name) == -1
