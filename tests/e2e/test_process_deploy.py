"""The process target as a user meets it: real servers, real MLflow, real signals."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
import torch

import mlopsnb as ml
from mlopsnb.rollout import Check, Shift, Start, Stop

X = np.random.default_rng(0).normal(size=(20, 4))


class Net(torch.nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x) * self.factor


def servers(state_dir):
    """The server processes that run below *state_dir*."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if (
            "mlopsnb.serving" in line
            and str(state_dir) in line
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(process)
    return found


@pytest.fixture
def state(tmp_path):
    """Where this test's servers live; all of them are gone afterwards."""
    directory = ml.settings.settings().state_dir
    yield directory
    for deployment in ml.deployments(target="process"):
        deployment.delete()
    _, alive = psutil.wait_procs(servers(directory), timeout=10)
    assert not alive


def original(model, x=X):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.asarray(x, "float32"))).numpy()


def test_a_model_goes_the_whole_way_and_answers_as_the_original(state):
    model = Net()
    dep = ml.deploy(model, name="whole-way", example=X[:5], reference=X, metrics={"accuracy": 0.9})
    np.testing.assert_allclose(dep.predict(X), original(model), atol=1e-6)
    np.testing.assert_allclose(dep.predict(torch.from_numpy(X)), original(model), atol=1e-6)
    np.testing.assert_allclose(dep.predict(pd.DataFrame(X)), original(model), atol=1e-6)
    assert (dep.status, dep.revision, dep.model_version) == ("ready", 1, "models:/whole-way/1")
    answer = httpx.post(
        f"{dep.url}/v2/models/whole-way/infer",
        json={"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X[0].tolist()}]},
    )
    np.testing.assert_allclose(answer.json()["outputs"][0]["data"], original(model)[0], atol=1e-6)
    assert "mlopsnb_request_total" in httpx.get(f"{dep.url}/metrics").text
    while '"path":"/v2/models/whole-way/infer","status":200' not in dep.logs():
        dep.predict(X)  # lines are written some milliseconds later
    with pytest.raises(ml.UserError, match=r"input 'x': expected shape \[-1, 4\], found \[20, 3\]"):
        dep.predict(X[:, :3])


def test_an_onnx_model_goes_the_whole_way_and_loads_from_mlflow(state):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("onnxruntime")
    model = Net()
    deployment = ml.deploy(model, name="net", example=X, format="onnx")
    np.testing.assert_allclose(deployment.predict(X), original(model), rtol=1e-5, atol=1e-6)
    loaded = mlflow.pyfunc.load_model("models:/net/1")
    np.testing.assert_array_equal(loaded.predict(X), deployment.predict(X))
    needed = mlflow.pyfunc.get_model_dependencies("models:/net/1")
    lines = [line.partition("==")[0] for line in Path(needed).read_text().split()]
    assert "onnxruntime" in lines
    assert "torch" not in lines


def test_whatever_the_user_has_can_be_deployed(state, tmp_path):
    model = Net()
    artifact = ml.export(model, X[:5])
    assert ml.deploy(artifact, name="any").model_version == "models:/any/1"
    version = ml.log(artifact, name="any", alias="champion")
    assert ml.deploy(version).model_version == "models:/any/2"
    dep = ml.deploy("models:/any@champion", name="any")  # what runs already
    assert (dep.model_version, dep.revision) == ("models:/any/2", 2)
    np.testing.assert_allclose(dep.predict(X), original(model), atol=1e-6)
    with pytest.raises(ml.TrackingError, match="any"):
        ml.deploy("models:/any/9")
    assert ml.get("any").revision == 2


def hammer(url, path, body, stop, keep_alive, failures, answers):
    """Send one request after the other until told to stop; note every one that fails."""
    client = httpx.Client(base_url=url, trust_env=False)
    while not stop.is_set():
        try:
            if not keep_alive:
                client.close()
                client = httpx.Client(base_url=url, trust_env=False)
            answer = client.post(path, content=body)
            answer.raise_for_status()
            answers.append(answer.headers["x-model-version"])
        except httpx.HTTPError as exc:
            failures.append(repr(exc))
    client.close()


def test_redeploy_and_rollback_fail_no_request(state):
    first, second = Net(), Net(2.0)
    dep = ml.deploy(first, name="steady", example=X[:5])
    url = dep.url
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'
    stop, failures, answers = threading.Event(), [], []
    clients = [
        threading.Thread(
            target=hammer, args=(url, "/v2/models/steady/infer", body, stop, keep_alive, failures, answers)
        )
        for keep_alive in (True, True, False, False)
    ]
    for client in clients:
        client.start()
    try:
        again = ml.deploy(second, name="steady", example=X[:5])
        np.testing.assert_allclose(again.predict(X), original(second), atol=1e-6)
        again.rollback()
        np.testing.assert_allclose(again.predict(X), original(first), atol=1e-6)
    finally:
        stop.set()
        for client in clients:
            client.join(30)
    assert failures == []
    assert set(answers) == {"1", "2"}
    assert len(answers) > 100
    assert again.url == url
    assert [(r.state, r.note) for r in again.history()] == [
        ("stopped", ""),
        ("stopped", ""),
        ("running", "rollback to revision 1"),
    ]


def test_a_killed_worker_comes_back_and_its_number_outlives_a_rollback(state):
    first = Net()
    dep = ml.deploy(first, name="several", example=X[:5], workers=2)
    [supervisor] = [p for p in servers(state) if p.parent() not in servers(state)]

    def workers():
        return httpx.get(f"{dep.url}/v2/models/several").json()["parameters"]["workers"]

    while workers() < 2:
        pass
    killed = supervisor.children()[0]
    killed.kill()
    psutil.wait_procs([killed], timeout=10)
    np.testing.assert_allclose(dep.predict(X), original(first), atol=1e-6)
    while workers() < 2:
        pass
    ml.deploy(Net(2.0), name="several", example=X[:5])
    assert workers() == 1
    dep.rollback()
    np.testing.assert_allclose(dep.predict(X), original(first), atol=1e-6)
    while workers() < 2:
        pass


def test_without_a_revision_before_there_is_no_rollback(state):
    dep = ml.deploy(Net(), name="single", example=X[:5])
    with pytest.raises(ml.UserError, match="'single' has no revision to roll back to"):
        dep.rollback()
    assert dep.status == "ready"


def test_a_killed_server_is_seen_explained_and_replaced_on_the_same_port(state):
    dep = ml.deploy(Net(), name="killed", example=X[:5])
    url = dep.url
    while not dep.logs():  # its lines are written some milliseconds later
        dep.predict(X)
    [server] = servers(state)
    server.kill()
    psutil.wait_procs([server], timeout=10)
    assert (dep.status, dep.url) == ("stopped", None)
    with pytest.raises(
        ml.DeployError, match=r"nothing serves 'killed': revision 1 has ended\n  last lines of its log"
    ):
        dep.predict(X)
    assert ml.deploy(Net(), name="killed", example=X[:5]).url == url


def test_a_reused_process_number_deceives_nobody(state):
    dep = ml.deploy(Net(), name="stale", example=X[:5])
    [server] = servers(state)
    server.kill()
    psutil.wait_procs([server], timeout=10)
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (state / "process" / "stale" / "revisions" / "1" / "pid").write_text(str(bystander.pid))
        assert ml.get("stale").status == "stopped"
        dep.delete()
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")
    assert ml.deployments() == ()


def broken_start(tmp_path, body):
    """An environment in which the server fails as *body* says, before anything of ours runs."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(body))
    return {"PYTHONPATH": str(site)}


def test_a_server_that_dies_at_its_start_shows_its_last_lines_and_the_old_one_serves_on(state, tmp_path):
    model = Net()
    dep = ml.deploy(model, name="dies", example=X[:5])
    env = broken_start(tmp_path, "import os; print('libfoo.so.3 not found', flush=True); os._exit(1)")
    with pytest.raises(
        ml.NotReady, match="revision 2 of 'dies' ended while starting\n.*last lines.*\n.*libfoo"
    ) as caught:
        ml.deploy(Net(2.0), name="dies", example=X[:5], env=env)
    assert caught.value.__notes__ == ["what served before serves on: revision 1 of 'dies'"]
    np.testing.assert_allclose(dep.predict(X), original(model), atol=1e-6)
    assert [r.state for r in dep.history()] == ["running", "failed"]
    assert "libfoo.so.3" in dep.logs(revision=2)
    assert len(servers(state)) == 1
    assert (
        ml.deploy(Net(3.0), name="dies", example=X[:5]).rollback().history()[-1].note
        == "rollback to revision 1"
    )


def test_a_first_deploy_that_fails_leaves_nothing(state, tmp_path):
    env = broken_start(tmp_path, "raise SystemExit(9)")
    with pytest.raises(ml.NotReady, match="ended while starting"):
        ml.deploy(Net(), name="fails", example=X[:5], env=env)
    assert ml.deployments() == ()
    assert servers(state) == []
    assert list((state / "process").iterdir()) == []


def test_a_server_that_never_gets_ready_is_given_up(state, tmp_path):
    env = broken_start(tmp_path, "import signal; signal.pause()")
    with pytest.raises(ml.NotReady, match=r"was not ready after 0\.5 s"):
        ml.deploy(Net(), name="hangs", example=X[:5], env=env, timeout=0.5)
    assert servers(state) == []


INTERRUPTED = """
import sys
import numpy as np, torch
import mlopsnb as ml
from mlopsnb.events import reporting_to
artifact = ml.export(torch.nn.Linear(4, 3), np.ones((3, 4), "float32"))
def tell(event):
    print(event.step, event.state, event.message, flush=True)
try:
    with reporting_to(tell):
        ml.deploy(artifact, name="interrupted", env={"PYTHONPATH": sys.argv[1]})
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
"""


@pytest.mark.parametrize("before", [True, False], ids=["redeploy", "first"])
def test_ctrl_c_while_waiting_cancels_and_restores(before, state, tmp_path):
    model = Net()
    dep = ml.deploy(model, name="interrupted", example=X[:5]) if before else None
    site = broken_start(tmp_path, "import signal; signal.pause()")["PYTHONPATH"]
    client = subprocess.Popen([sys.executable, "-c", INTERRUPTED, site], stdout=subprocess.PIPE, text=True)
    for line in client.stdout:
        if line.startswith("start progress"):
            client.send_signal(signal.SIGINT)
            break
    said = client.communicate(timeout=60)[0]
    assert "start cancelled" in said
    assert "restore succeeded" in said or before
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    if dep:
        np.testing.assert_allclose(dep.predict(X), original(model), atol=1e-6)
        assert (len(servers(state)), dep.revision) == (1, 1)
    else:
        assert (servers(state), ml.deployments()) == ([], ())


def test_two_deploys_of_one_name_at_once(state, tmp_path):
    artifact = ml.export(Net(), X[:5])
    outcomes, start = [], threading.Barrier(2)

    def go():
        start.wait()
        try:
            outcomes.append(ml.deploy(artifact, name="twice").revision)
        except ml.DeployError as exc:
            outcomes.append(str(exc))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert "1" in map(str, outcomes)
    assert any(f"another deploy of 'twice' is under way (process {os.getpid()})" in str(o) for o in outcomes)
    assert ml.get("twice").status == "ready"


def test_a_port_is_used_kept_and_told_when_taken(state):
    dep = ml.deploy(Net(), name="ported", example=X[:5])
    taken = int(dep.url.rpartition(":")[2])
    with pytest.raises(
        ml.DeployError,
        match=f"port {taken} of 127.0.0.1 cannot be used: Address already in use\n.*another port",
    ):
        ml.deploy(Net(), name="other", example=X[:5], port=taken)
    assert [d.name for d in ml.deployments()] == ["ported"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_name_taken_by_another_user_is_told(state):
    dep = ml.deploy(Net(), name="theirs", example=X[:5])
    home = state / "process" / "theirs"
    os.chown(home, 65534, 65534)
    os.chown(home / "release.json", 65534, 65534)
    try:
        with pytest.raises(
            ml.DeployError, match=r"'theirs' is taken: it is deployed by user 'nobody' \(uid 65534\)"
        ):
            ml.deploy(Net(), name="theirs", example=X[:5])
        assert ml.deployments() == ()
        assert len(servers(state)) == 1
    finally:
        os.chown(home, 0, 0)
        os.chown(home / "release.json", 0, 0)
    assert dep.status == "ready"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(state):
    plan = ml.deploy(Net(), name="dry", dry_run=True)
    assert [type(a) for a in plan] == [Start, Check, Shift]
    assert plan[0].revision.source == "Net, not exported yet"
    assert ml.deployments() == ()
    ml.deploy(Net(), name="dry", example=X[:5])
    assert [type(a) for a in ml.deploy("models:/dry/1", name="dry", dry_run=True)] == [
        Start,
        Check,
        Shift,
        Stop,
    ]


def test_wrong_calls_say_what_is_right(state):
    with pytest.raises(ml.UserError, match="'My_Model' cannot name a deployment.*\n.*name='my-model'"):
        ml.deploy(Net(), name="My_Model", example=X)
    with pytest.raises(ml.UserError, match="7 cannot name a deployment"):
        ml.deploy(Net(), name=7, example=X)
    for port in (0, 65536, "80", True):
        with pytest.raises(ml.UserError, match="port must be a number from 1 to 65535"):
            ml.deploy(Net(), name="m", example=X, port=port)
    for workers in (0, 257, "auto", True):
        with pytest.raises(ml.UserError, match="workers must be a number from 1 to 256"):
            ml.deploy(Net(), name="m", example=X, workers=workers)
    for env in ({"A": 1}, {"A=B": "c"}):
        with pytest.raises(ml.UserError, match="cannot be an environment variable"):
            ml.deploy(Net(), name="m", example=X, env=env)
    with pytest.raises(ml.UserError, match="a deployment needs a name"):
        ml.deploy(Net(), example=X)
    with pytest.raises(ml.UserError, match="needs an example"):
        ml.deploy(Net(), name="m")
    with pytest.raises(
        ml.UnknownBackend, match="no target named 'proces'; installed: .*process\n.*did you mean 'process'"
    ):
        ml.deploy(Net(), name="m", example=X, target="proces")
    with pytest.raises(ml.UserError, match="no deployment named 'm' on target 'process'; there are: none"):
        ml.get("m")
    assert ml.deployments() == ()


def test_secrets_in_the_environment_stay_in_a_private_file(state):
    dep = ml.deploy(Net(), name="secret", example=X[:5], env={"API_TOKEN": "s3cr3t-value"})
    assert "s3cr3t-value" not in dep.logs() + repr(dep)
    assert (state / "process" / "secret" / "release.json").stat().st_mode & 0o077 == 0


class Tripled(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x.sum(dim=1), x.sum(dim=1), x.sum(dim=1)], dim=1)


def test_a_server_holds_nothing_of_the_shell_that_we_were_started_from(state):
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_inheritable(write, True)
    ml.deploy(Net(), name="own", example=X)
    os.close(write)
    assert os.read(read, 1) == b""  # the end: nobody has it
    os.close(read)


def test_a_cache_and_a_fallback_stay_with_the_revision(state, tmp_path):
    model, rows = Net(), X.astype("float32")
    spare = ml.export(Tripled(), rows[:5], into=tmp_path / "spare")
    dep = ml.deploy(model, name="both", example=rows[:5], cache_bytes=1_000_000, fallback=spare)
    shutil.rmtree(spare.path)  # the revision has its own

    def parameters():
        return httpx.get(f"{dep.url}/v2/models/both").json()["parameters"]

    def shown():
        told = parameters()
        return told.get("cache", {}).get("max_bytes"), told.get("fallback", {}).get("digest")

    assert shown() == (1_000_000, spare.digest)
    for _ in range(2):
        np.testing.assert_allclose(dep.predict(rows), original(model, rows), atol=1e-6)
    assert (
        'mlopsnb_cache_rows_total{model_name="both",model_version="1",result="hit"} 2'
        in httpx.get(f"{dep.url}/metrics").text
    )
    ml.deploy(dep.model_version, name="both")
    assert shown() == (None, None)
    dep.rollback()
    assert shown() == (1_000_000, spare.digest)
    assert (dep.status, dep.revision) == ("ready", 3)


def test_a_fallback_of_another_signature_is_not_deployed(state, tmp_path):
    spare = ml.export(Tripled(), X[:5, :2].astype("float32"), into=tmp_path / "spare")
    with pytest.raises(ml.NotReady, match=r"cannot be the fallback: input 'x' has the shape \[-1, 4\]"):
        ml.deploy(Net(), name="other", example=X[:5], fallback=spare)
    assert ml.deployments() == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_bytes": 0}, "cache_bytes must be a number above 0, found 0"),
        ({"cache_bytes": "1MB"}, "cache_bytes must be a number above 0, found '1MB'"),
        ({"fallback": Net()}, "the fallback must be an artifact, a model version or its URI, found Net"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises(ml.UserError, match=message):
        ml.deploy(Net(), name="none", example=X[:5], **options)
