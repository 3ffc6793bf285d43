"""The docker target as a user meets it: a real engine, real images, real load."""

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import grpc
import httpx
import numpy as np
import pytest
from open_loops import Load
from served_plans import BODY, WEIGHTS, make_package

import mlopsnb as ml
from mlopsnb import manifest
from mlopsnb.targets.docker import Docker
from mlopsnb.targets.docker_engine import Daemon

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

X = np.ones((2, 4), "float32")


def parts(engine, name):
    """All that the engine has of a deployment."""
    wanted = {"label": [f"mlopsnb.name={name}", f"mlopsnb.owner={Docker()._owner}"]}
    found = engine.api.containers(all=True, filters=wanted)
    return found, engine.api.networks(filters=wanted), engine.api.volumes(filters=wanted)["Volumes"] or []


def replicas(engine, name):
    return [
        c
        for c in parts(engine, name)[0]
        if c["Labels"]["mlopsnb.role"] == "replica" and c["State"] == "running"
    ]


def test_the_whole_life_of_a_deployment_fails_no_request(place, served, engine):
    first, second = served.images
    dep = ml.deploy(first, name="life", replicas=2, cpu="1500m", memory="512Mi", env={"COLOUR": "blue"})
    url = dep.url
    np.testing.assert_allclose(dep.predict(X), X @ WEIGHTS)
    assert (dep.status, dep.revision) == ("ready", 1)
    for container in replicas(engine, "life"):
        found = engine.api.inspect_container(container["Id"])
        host = found["HostConfig"]
        assert (host["NanoCpus"], host["Memory"], host["ReadonlyRootfs"]) == (1_500_000_000, 512 << 20, True)
        assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
        assert (found["Config"]["User"], host["PortBindings"] or None) == ("65532:65532", None)
        assert "COLOUR=blue" in found["Config"]["Env"]
        assert "blue" not in json.dumps(found["Config"]["Labels"])
    with Load(f"{url}/v2/models/life/infer", BODY, rate=40) as load:
        ml.deploy(second, name="life", replicas=2)
        np.testing.assert_allclose(dep.predict(X), -X @ WEIGHTS)
        engine.api.stop(replicas(engine, "life")[0]["Id"])
        dep.scale(1)
        assert len(replicas(engine, "life")) == 1
        ml.get("life", target="docker").rollback(to=1)
        np.testing.assert_allclose(dep.predict(X), X @ WEIGHTS)
    report = load.report()
    assert report.failures == {}
    assert set(report.versions) == {"1", "2", "3"}
    assert dep.url == url
    assert [(r.state, r.workload.replicas, r.note) for r in dep.history()] == [
        ("stopped", 2, ""),
        ("stopped", 1, ""),
        ("running", 2, "rollback to revision 1"),
    ]
    assert "/infer" in dep.logs()
    dep.delete()
    assert parts(engine, "life") == ([], [], [])
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_a_model_is_built_and_found_again_by_another_kernel(place, engine, tmp_path):
    artifact = manifest.artifact(make_package(tmp_path / "package"))
    rows = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    built = ml.deploy(artifact, name="built", reference=rows)
    assert built.model_version == "models:/built/1"
    assert built.history()[0].origin.user
    again = ml.deploy("models:/built/1", name="built")
    assert again.revision == 1  # nothing has changed
    code = """
        import mlopsnb as ml
        dep = ml.get("built")
        print(dep.url, dep.status, dep.predict([[1.0, 1.0, 1.0, 1.0]]).tolist())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == f"{built.url} ready [[12.0, 16.0]]", done.stderr
    built.predict(rows)
    counted = built.drift().current_rows
    assert counted >= len(rows)
    [container] = replicas(engine, "built")
    engine.api.restart(container["Id"])
    built.predict(X)  # the gateway waits for it
    assert built.drift().current_rows >= counted + len(X)


def test_a_rollback_to_an_image_that_is_gone_says_so_and_what_serves_stays(place, served, engine):
    same = (served.packages[0].path / manifest.FILE).read_bytes()
    old = served.image_with("gone", {manifest.FILE: same})
    dep = ml.deploy(old, name="gone")
    ml.deploy(served.images[1], name="gone")
    for container in parts(engine, "gone")[0]:  # as a prune does
        if container["Labels"].get("mlopsnb.revision") == "1":
            engine.api.wait(container["Id"])
            engine.api.remove_container(container["Id"])
    engine.api.remove_image(old, force=True)
    with pytest.raises(ml.DeployError, match="image") as caught:
        dep.rollback()
    assert old in str(caught.value)
    assert any("what served before serves on: revision 2" in note for note in caught.value.__notes__)
    np.testing.assert_allclose(dep.predict(X), -X @ WEIGHTS)
    assert (dep.status, dep.revision) == ("ready", 2)


def test_ctrl_c_in_the_middle_leaves_the_old_one_serving(place, served, engine):
    dep = ml.deploy(served.images[0], name="stays")
    code = """
        import signal, sys
        import mlopsnb as ml
        from mlopsnb import events

        def tell(event):
            if event.step == "start" and event.state == "progress":
                signal.raise_signal(signal.SIGINT)

        with events.reporting_to(tell):
            ml.deploy(sys.argv[1], name="stays")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), served.images[1]],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    np.testing.assert_allclose(dep.predict(X), X @ WEIGHTS)
    assert [r.state for r in dep.history()] == ["running", "failed"]
    assert len(replicas(engine, "stays")) == 1


def kill(engine, container):
    """End a container's process as a crash does; the engine does not take that for somebody's wish."""
    os.kill(engine.api.inspect_container(container["Id"])["State"]["Pid"], signal.SIGKILL)


def test_what_crashes_is_started_again_and_an_engine_elsewhere_is_reached_through_itself(
    place, served, engine, monkeypatch
):
    dep = ml.deploy(served.images[0], name="crash")
    [container] = replicas(engine, "crash")
    kill(engine, container)
    np.testing.assert_allclose(dep.predict(X), X @ WEIGHTS)  # it waits in the gateway
    assert [r.state for r in dep.history()] == ["running"]
    with monkeypatch.context() as patch:
        patch.setattr(Daemon, "is_here", False)
        far = ml.get("crash", target="docker")
        assert (far.status, far.release.revisions[0].address) == ("ready", "")
    [gateway] = [c for c in parts(engine, "crash")[0] if c["Labels"]["mlopsnb.role"] == "http"]
    kill(engine, gateway)
    while True:
        with contextlib.suppress(httpx.TransportError):
            assert httpx.get(f"{dep.url}/v2/health/ready", trust_env=False).status_code == 200
            break


def test_ports_of_grpc_and_of_another_number(place, served, engine):
    dep = ml.deploy(served.images[0], name="ports", grpc_port=0)
    old, told = dep.url, dep.grpc
    with grpc.insecure_channel(told) as channel:
        grpc.channel_ready_future(channel).result(60)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ml.deploy(served.images[1], name="ports", port=port)
    assert (dep.url, dep.grpc) == (f"http://127.0.0.1:{port}", told)
    np.testing.assert_allclose(dep.predict(X), -X @ WEIGHTS)
    with pytest.raises(httpx.ConnectError):
        httpx.get(old, trust_env=False)
    assert len(parts(engine, "ports")[2]) == 2


def test_too_little_memory_is_told_with_the_limit(place, served, engine):
    with pytest.raises(ml.NotReady, match="ran out of memory while starting: its limit is 24 MiB"):
        ml.deploy(served.images[0], name="small", memory="24Mi")
    assert parts(engine, "small") == ([], [], [])


def test_what_does_not_go(place, served):
    with pytest.raises(ml.UserError, match="target 'docker' knows no secrets"):
        ml.deploy(served.images[0], name="no", secrets=["token"])
    with pytest.raises(ml.UserError, match="target 'process' runs packages, not images"):
        ml.deploy(ml.build(served.packages[0].path, name="no", load="engine"), name="no", target="process")
    with pytest.raises(ml.BuildError):
        ml.deploy("127.0.0.1:9/nothing:v1", name="no")


def test_without_an_engine_it_is_said_where_one_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(ml.DeployError, match=f"no container engine answers at unix://{tmp_path}/docker.sock"):
        ml.deploy("fraud:v1", name="no", target="docker")
    gc.collect()
