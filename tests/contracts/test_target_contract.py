"""The contract of `Target`: one suite that every back end passes."""

import json
import shutil
import threading

import numpy as np
import pytest
from served_plans import WEIGHTS, make_package

from mlopsnb import manifest, plugins
from mlopsnb.client import Client
from mlopsnb.errors import DeployError, NotReady
from mlopsnb.records import Origin, Release, Revision, Workload
from mlopsnb.rollout import Forget, Shift, Start, Stop
from mlopsnb.targets.docker import Docker
from mlopsnb.targets.kubernetes import Kubernetes
from mlopsnb.targets.process import Process

TARGETS = {"docker": Docker, "kubernetes": Kubernetes, "process": Process}
PARAMS = [
    pytest.param("docker", marks=[pytest.mark.engine, pytest.mark.timeout(600)]),
    pytest.param("kubernetes", marks=[pytest.mark.engine, pytest.mark.cluster, pytest.mark.timeout(600)]),
    "process",
]
SECONDS = 120.0


def test_every_installed_target_is_tested():
    assert set(plugins.available("target")) >= set(TARGETS)
    assert {name for name, ep in plugins.available("target").items() if ep.dist.name == "mlopsnb"} == set(
        TARGETS
    )


class Packages:
    """Revisions for targets that run packages."""

    def __init__(self, artifacts, place):
        self.artifacts, self.place = artifacts, place

    def revision(self, number, model=0, **changes):
        """A revision that answers with the plain sign, or, of the model 1, with the opposite one."""
        artifact = self.artifacts[model]
        return Revision(
            id=number, source=f"models:/m/{number}", digest=artifact.digest, package=artifact.path, **changes
        )

    def broken(self, name, files):
        """A revision that has other *files* in its package."""
        package = self.place / name
        shutil.copytree(self.artifacts[0].path, package)
        for path, content in files.items():
            (package / path).write_bytes(content)
        return Revision(id=1, source="s", digest="d", package=package)


class Images(Packages):
    """Revisions for targets that run images."""

    def __init__(self, served):
        self.artifacts, self.served = served.packages, served

    def revision(self, number, model=0, **changes):
        return super().revision(number, model, image=self.served.images[model], **changes)

    def broken(self, name, files):
        return Revision(id=1, source="s", digest="d", image=self.served.image_with(name, files))


@pytest.fixture(params=PARAMS)
def kind(request):
    return request.param


@pytest.fixture
def made(kind, request, tmp_path):
    """What makes revisions of two models that answer differently."""
    if kind in ("docker", "kubernetes"):
        return Images(request.getfixturevalue("served"))
    return Packages(request.getfixturevalue("packages"), tmp_path)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    place = tmp_path_factory.mktemp("packages")
    return [manifest.artifact(make_package(place / f"{factor}", factor * WEIGHTS)) for factor in (1, -1)]


@pytest.fixture
def make(kind, request, tmp_path):
    if kind == "kubernetes":
        space = request.getfixturevalue("space")
        space("create", "secret", "generic", "token")
        yield lambda: Kubernetes(context=space.context, namespace=space.namespace)
        return
    made = []

    def build():
        made.append(TARGETS[kind](state_dir=tmp_path / "state"))
        return made[-1]

    yield build
    for name in build().names():
        with build().claim(name):
            build().apply(name, Forget(), timeout=SECONDS)


def answer(address, x=((1.0, 2.0, 3.0, 4.0),)):
    """The sign of what the model answers."""
    with Client(address, "m") as client:
        return float(np.sign(client.infer({"x": np.array(x, "float32")})["y"][0, 0]))


def test_what_was_never_there_is_an_empty_release(make, kind):
    target = make()
    assert target.observe("m") == Release(name="m", target=kind)
    assert list(target.names()) == []
    assert list(target.logs("m", 1)) == []


def share_or_refuse(target):
    """Revisions 1 and 2 get equal shares, and then 2 all again; or the target says that it cannot, and nothing changes."""
    if target.splits("m"):
        target.apply("m", Shift({1: 50, 2: 50}), timeout=SECONDS)
        assert dict(target.observe("m").weights) == {1: 50, 2: 50}
        target.apply("m", Shift({2: 100}), timeout=SECONDS)
    else:
        with pytest.raises(DeployError, match="it cannot split it"):
            target.apply("m", Shift({1: 50, 2: 50}), timeout=SECONDS)
    assert dict(target.observe("m").weights) == {2: 100}


def test_a_revision_starts_without_traffic_gets_it_and_gives_it_to_the_next(make, made):
    target = make()
    with target.claim("m"):
        target.apply("m", Start(made.revision(1)), timeout=SECONDS)
        started = target.observe("m")
        assert [(r.id, r.state) for r in started.revisions] == [(1, "running")]
        assert (started.url, dict(started.weights)) == (None, {})
        with target.reach("m", 1) as address:
            assert answer(address) == 1.0

        target.apply("m", Shift({1: 100}), timeout=SECONDS)
        first = target.observe("m")
        assert dict(first.weights) == {1: 100}
        assert answer(first.url) == 1.0

        target.apply("m", Start(made.revision(2, 1)), timeout=SECONDS)
        assert answer(target.observe("m").url) == 1.0
        target.apply("m", Shift({2: 100}), timeout=SECONDS)
        second = target.observe("m")
        assert second.url == first.url
        assert answer(second.url) == -1.0

        target.apply("m", Shift({1: 100}), timeout=SECONDS)  # and back, as a restore does
        assert answer(second.url) == 1.0
        target.apply("m", Shift({2: 100}), timeout=SECONDS)
        share_or_refuse(target)
        target.apply("m", Stop(1), timeout=SECONDS)
    again = make().observe("m")  # another instance, as after a kernel restart
    assert [(r.id, r.state) for r in again.revisions] == [(1, "stopped"), (2, "running")]
    assert answer(again.url) == -1.0
    assert list(make().names()) == ["m"]
    while not any("/infer" in line for line in make().logs("m", 2)):
        answer(again.url)  # lines are written some milliseconds later


def test_a_revision_that_cannot_start_says_why_and_runs_nothing(make, made):
    target = make()
    [weights] = (path for path in (made.artifacts[0].path / "model").iterdir() if path.suffix == ".onnx")
    bad = made.broken("broken", {f"model/{weights.name}": weights.read_bytes()[:-1]})
    with (
        target.claim("m"),
        pytest.raises(NotReady, match=r"(m-r1|revision 1 of 'm') .*: .*model/model.onnx was changed"),
    ):
        target.apply("m", Start(bad), timeout=SECONDS)
    release = target.observe("m")
    assert [r.state for r in release.revisions] == ["failed"]
    assert (release.url, dict(release.weights)) == (None, {})
    assert any("was changed" in line for line in target.logs("m", 1))


def test_a_package_that_no_format_can_load_says_which(make, made):
    target = make()
    data = json.loads((made.artifacts[0].path / manifest.FILE).read_text())
    odd = made.broken("odd", {manifest.FILE: json.dumps({**data, "format": "onxx"}).encode()})
    with (
        target.claim("m"),
        pytest.raises(NotReady, match=r"could not start.*: no format named 'onxx'"),
    ):
        target.apply("m", Start(odd), timeout=SECONDS)


def test_a_name_is_held_against_others_while_it_is_claimed(make):
    target = make()
    with target.claim("m"):
        with pytest.raises(DeployError, match="another deploy of 'm' is under way"):
            target.claim("m").__enter__()
        with make().claim("other"):
            pass
    with make().claim("m"):
        pass
    assert list(target.names()) == []


def test_of_many_claims_at_once_one_holds(make):
    held, refused, start = [], [], threading.Barrier(8)
    release = threading.Event()

    def claim():
        start.wait()
        try:
            with make().claim("m"):
                held.append(1)
                release.wait(SECONDS)
        except DeployError:
            refused.append(1)
            if len(refused) == 7:
                release.set()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(SECONDS)
    assert (len(held), len(refused)) == (1, 7)


def test_a_revision_is_reached_and_asked_before_it_has_traffic_and_remembered(make, made):
    target = make()
    workload = Workload(replicas=1, secrets=("token",), tolerations=({"key": "gpu"},), ttl=60)
    wanted = made.revision(1, workload=workload, origin=Origin(user="ada", commit="1a2b"), env={"A": "b"})
    with target.claim("m"):
        target.apply("m", Start(wanted), timeout=SECONDS)
        [found] = make().observe("m").revisions
        assert (found.workload, found.origin, found.env) == (wanted.workload, wanted.origin, wanted.env)
        with target.reach("m", 1) as address:
            assert answer(address) == 1.0
        told = target.ask("m", 1, "/metrics")
        assert len(told) == 1
        assert all(b"# TYPE" in body for body in told.values())
        assert target.ask("m", 1, "/no-such-page") == {}
        target.apply("m", Stop(1, failed=True), timeout=SECONDS)
    assert target.ask("m", 1, "/metrics") == {}
    with pytest.raises(DeployError, match="does not run"), target.reach("m", 1):
        pass


def test_forgetting_removes_all_and_can_be_done_twice(make, made, kind):
    target = make()
    with target.claim("m"):
        target.apply("m", Start(made.revision(1)), timeout=SECONDS)
        target.apply("m", Shift({1: 100}), timeout=SECONDS)
        url = target.observe("m").url
        target.apply("m", Forget(), timeout=SECONDS)
        target.apply("m", Forget(), timeout=SECONDS)
    assert target.observe("m") == Release(name="m", target=kind)
    with pytest.raises(DeployError, match="does not answer"):
        answer(url)


def test_a_taken_port_is_told_before_the_model_is_loaded(make, made, kind):
    import socket

    if kind == "kubernetes":
        pytest.skip("a Service has its ports for itself")
    target = make()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            target.claim("m"),
            pytest.raises(
                DeployError, match=f"port {port} of 127.0.0.1 cannot be used: Address already in use"
            ),
        ):
            target.apply("m", Start(made.revision(1, port=port)), timeout=SECONDS)
    with target.claim("m"):
        target.apply("m", Start(made.revision(2, port=port)), timeout=SECONDS)
        target.apply("m", Shift({2: 100}), timeout=SECONDS)
    assert target.observe("m").url == f"http://127.0.0.1:{port}"
