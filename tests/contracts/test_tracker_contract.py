"""What every tracker does, on its local default and on a server; then what only MLflow has."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlopsnb import flow, manifest, plugins
from mlopsnb.errors import TrackingError, UserError
from mlopsnb.monitoring import drift
from mlopsnb.records import ModelVersion
from mlopsnb.tracking.fingerprint import data_digest

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")

X = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")
READY_WITHIN = 90.0


def configure(patch, directory, url=None):
    """Make MLflow use its local default in *directory*, or the server at *url*."""
    patch.chdir(directory)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    if url is not None:
        patch.setenv("MLFLOW_TRACKING_URI", url)


@contextlib.contextmanager
def server(directory):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{directory}/server.db",
        "--artifacts-destination",
        f"{directory}/kept",
    ]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"{url}/health", process)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def wait_for(url, process):
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the server ended with {process.wait(0.2)}")
    pytest.fail(f"the server was not ready within {READY_WITHIN:g} s")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Give two packages of two formats."""
    tmp = tmp_path_factory.mktemp("artifacts")
    example = pd.DataFrame(X, columns=list("abcd"))
    return [
        flow.export(torch.nn.Linear(4, 2), example, format=name, into=tmp / name)
        for name in ("torchscript", "torch_export")
    ]


@pytest.fixture(scope="module", params=["local", "server"])
def place(request, tmp_path_factory):
    """Give a directory for a store that nobody else uses, and its URL if it is a server."""
    directory = tmp_path_factory.mktemp(request.param)
    with server(directory) if request.param == "server" else contextlib.nullcontext() as url:
        yield directory, url


@pytest.fixture
def store(home, place, monkeypatch):
    """Configure the store for one test."""
    directory, url = place
    configure(monkeypatch, directory, url)
    return url or f"sqlite:///{directory / 'mlflow.db'}"


@pytest.fixture(params=sorted(plugins.available("tracker")))
def tracker(request, store):
    return plugins.create("tracker", request.param)


@pytest.fixture
def name(request):
    """Give a name that is the test's own."""
    return request.node.name.removeprefix("test_").partition("[")[0].replace("_", "-")


def log(tracker, artifact, name, **given):
    nothing = {"metrics": {}, "params": {}, "tags": {}, "alias": None, "reference": None}
    return tracker.log(artifact, name=name, **(nothing | given))


def files(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


class TestEveryTracker:
    def test_a_package_comes_back_as_it_was_logged(self, tracker, artifacts, name, tmp_path, capfd):
        for number, artifact in enumerate(artifacts, start=1):
            version = log(tracker, artifact, name)
            assert (version.name, version.version, version.digest) == (name, number, artifact.digest)
            assert tracker.find(version.uri) == version
            into = tmp_path / artifact.format / "new"
            assert tracker.fetch(version, into) == replace(artifact, path=into)
            assert files(into) == files(artifact.path)
        assert capfd.readouterr() == ("", "")

    def test_versions_are_found_by_number_alias_and_age(self, tracker, artifacts, name):
        first = log(tracker, artifacts[0], name, alias="champion")
        second = log(tracker, artifacts[1], name, alias="challenger")
        found = {
            uri: tracker.find(f"models:/{name}{uri}").version
            for uri in ("", "/latest", "/1", "/2", "@champion", "@challenger")
        }
        assert found == {"": 2, "/latest": 2, "/1": 1, "/2": 2, "@champion": 1, "@challenger": 2}
        assert tracker.find(f"runs:/{first.run_id}/{name}") == first
        assert tracker.find(f"runs:/{second.run_id}") == second

    def test_an_alias_moves(self, tracker, artifacts, name):
        log(tracker, artifacts[0], name, alias="champion")
        second = log(tracker, artifacts[0], name, alias="champion")
        assert tracker.find(f"models:/{name}@champion").version == second.version

    def test_what_is_not_there_is_said_with_what_is(self, tracker, artifacts, name):
        log(tracker, artifacts[0], name, alias="champion")
        log(tracker, artifacts[0], name)
        with pytest.raises(TrackingError, match=f"is named '{name}s'; there are .*") as caught:
            tracker.find(f"models:/{name}s/1")
        assert caught.value.hint == f"did you mean {name!r}?"
        with pytest.raises(TrackingError, match="has no version 7; it has 1, 2"):
            tracker.find(f"models:/{name}/7")
        with pytest.raises(TrackingError, match="has no alias 'champon'; it has champion") as caught:
            tracker.find(f"models:/{name}@champon")
        assert caught.value.hint == "did you mean 'champion'?"
        with pytest.raises(TrackingError, match="there is no run 0123456789abcdef0123456789abcdef"):
            tracker.find("runs:/0123456789abcdef0123456789abcdef/model")

    @pytest.mark.parametrize(
        "uri", ["", "fraud", "models:/", "models:/a/b", "models:/a/1/b", "models:/a@", "runs:/"]
    )
    def test_what_is_no_address_is_the_users_mistake(self, tracker, uri):
        with pytest.raises(UserError, match="is no model address"):
            tracker.find(uri)

    def test_a_fetched_package_is_used_again_and_nothing_else_is_overwritten(
        self, tracker, artifacts, name, tmp_path
    ):
        version = log(tracker, artifacts[0], name)
        fetched = tracker.fetch(version, tmp_path / "there")
        assert tracker.fetch(version, tmp_path / "there") == fetched
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="is not empty"):
            tracker.fetch(version, tmp_path / "mine")
        assert files(tmp_path / "mine") == {"notes.txt": b"mine"}

    def test_a_package_that_is_not_the_one_logged_is_not_kept(self, tracker, artifacts, name, tmp_path):
        version = log(tracker, artifacts[0], name)
        with pytest.raises(TrackingError, match="is not what was logged"):
            tracker.fetch(replace(version, digest="sha256:other"), tmp_path / "there" / "new")
        assert list((tmp_path / "there").iterdir()) == []

    def test_a_damaged_package_is_not_logged(self, tracker, artifacts, name, tmp_path):
        version = log(tracker, artifacts[0], name)
        copy = tracker.fetch(version, tmp_path / "copy")
        (copy.path / "example.npz").write_bytes(b"")
        with pytest.raises(manifest.BadPackage, match=r"example\.npz was changed"):
            log(tracker, copy, name)
        assert tracker.find(f"models:/{name}") == version

    def test_tags_hold_lineage_and_what_the_caller_gave(self, tracker, artifacts, name, monkeypatch):
        monkeypatch.setenv("MLOPSNB_NOTEBOOK", "/home/jovyan/fraud.ipynb")
        version = log(tracker, artifacts[0], name, tags={"team": "risk", "mlopsnb.artifact_digest": "forged"})
        assert version.tags["team"] == "risk"
        assert version.tags["mlopsnb.artifact_digest"] == artifacts[0].digest
        assert version.tags["mlopsnb.notebook"] == "/home/jovyan/fraud.ipynb"
        assert {t for t in version.tags if t.startswith("mlopsnb.parity.")} >= {
            "mlopsnb.parity.max_abs_error"
        }

    def test_a_metric_that_is_no_number_is_the_users_mistake(self, tracker, artifacts, name):
        with pytest.raises(UserError, match="a metric is not a number"):
            log(tracker, artifacts[0], name, metrics={"accuracy": "high"})


def run_of(version):
    return mlflow.MlflowClient().get_run(version.run_id)


@pytest.fixture
def mlflow_tracker(store):
    return plugins.create("tracker", "mlflow")


class TestMLflow:
    def test_a_drift_report_is_logged_to_the_run_of_a_version(self, mlflow_tracker, artifacts, name):
        version = log(mlflow_tracker, artifacts[0], name)
        rows = np.random.default_rng(0).normal(size=(100, 2))
        report = drift(rows, rows + np.array([0, 2]))
        report.log_to(version)
        assert run_of(version).data.metrics == {
            "drift.features": 1.0,
            "drift.effect.feature_0": 0.0,
            "drift.effect.feature_1": pytest.approx(report.find("feature_1").effect),
        }
        kept = mlflow.MlflowClient().list_artifacts(version.run_id, "drift")
        assert {f.path for f in kept} == {"drift/report.html", "drift/report.json"}
        with pytest.raises(TrackingError, match="the report was not logged to run nowhere"):
            report.log_to(replace(version, run_id="nowhere"))
        with pytest.raises(UserError, match="has no run to log to"):
            report.log_to(replace(version, run_id=""))

    def test_a_run_of_its_own_is_finished_and_says_all(self, mlflow_tracker, artifacts, name, store, capfd):
        reference = pd.DataFrame(X, columns=list("abcd"))
        version = log(
            mlflow_tracker,
            artifacts[0],
            name,
            metrics={"accuracy": np.float32(0.5)},
            params={"depth": 3},
            tags={"team": "risk"},
            reference=reference,
        )
        assert capfd.readouterr() == ("", "")
        run = run_of(version)
        assert (run.info.run_name, run.info.status) == (name, "FINISHED")
        assert run.info.end_time >= run.info.start_time
        assert run.data.metrics == {"accuracy": 0.5}
        assert run.data.params == {"depth": "3"}
        assert version.tags.items() <= run.data.tags.items()
        (used,) = run.inputs.dataset_inputs
        assert {t.key: t.value for t in used.tags} == {"mlflow.data.context": "reference"}
        assert data_digest(reference) == version.tags["mlopsnb.data_digest"]
        assert data_digest(reference).removeprefix("sha256:").startswith(used.dataset.digest)
        assert mlflow.MlflowClient().list_artifacts(version.run_id) == []
        assert version.tracking_uri == store

    def test_an_active_run_is_used_and_stays_open(self, mlflow_tracker, artifacts, name):
        with mlflow.start_run() as active:
            version = log(mlflow_tracker, artifacts[0], name, metrics={"accuracy": 1.0})
            assert version.run_id == active.info.run_id
            assert mlflow.active_run().info.run_id == active.info.run_id
            assert run_of(version).info.status == "RUNNING"
            mlflow.log_metric("later", 2.0)
        assert run_of(version).data.metrics == {"accuracy": 1.0, "later": 2.0}

    def test_several_models_of_one_run_are_told_apart_by_name(self, mlflow_tracker, artifacts):
        with mlflow.start_run():
            one, two = (log(mlflow_tracker, artifacts[0], f"part.{n}") for n in "ab")
        assert mlflow_tracker.find(f"runs:/{one.run_id}/part-a") == one
        assert mlflow_tracker.find(f"runs:/{one.run_id}/part-b") == two

    @pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_mlflow_loads_it_by_its_address(self, mlflow_tracker, artifacts, name):
        for artifact in artifacts:
            version = log(mlflow_tracker, artifact, name)
            found = mlflow.pyfunc.load_model(version.uri).predict(X)
            inputs, outputs = manifest.read_example(artifact.path)
            np.testing.assert_array_equal(inputs["input"], X)
            np.testing.assert_allclose(found, outputs["output"], rtol=1e-4, atol=1e-6)

    def test_the_lock_lies_beside_the_model(self, mlflow_tracker, artifacts, name, tmp_path):
        version = log(mlflow_tracker, artifacts[0], name)
        mlflow.artifacts.download_artifacts(f"{version.uri}/environment.lock", dst_path=str(tmp_path))
        lock = (tmp_path / "environment.lock").read_bytes()
        assert version.tags["mlopsnb.environment_digest"] == f"sha256:{hashlib.sha256(lock).hexdigest()}"
        lines = lock.decode().splitlines()
        assert f"torch=={torch.__version__}" in lines
        assert f"mlflow=={mlflow.__version__}" in lines

    def test_a_model_of_somebody_else_is_found_but_not_fetched(self, mlflow_tracker, name, tmp_path):
        client = mlflow.MlflowClient()
        client.create_registered_model(name)
        model_id = foreign_model(client)
        client.create_model_version(name, source=f"models:/{model_id}", model_id=model_id)
        version = mlflow_tracker.find(f"models:/{name}")
        assert version.digest == ""
        with pytest.raises(TrackingError, match="was not logged by mlopsnb"):
            mlflow_tracker.fetch(version, tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_a_model_without_versions_and_a_run_without_models(self, mlflow_tracker, name):
        mlflow.MlflowClient().create_registered_model(name)
        with pytest.raises(TrackingError, match="has no versions"):
            mlflow_tracker.find(f"models:/{name}")
        with mlflow.start_run() as run:
            pass
        with pytest.raises(TrackingError, match="has no registered model"):
            mlflow_tracker.find(f"runs:/{run.info.run_id}")

    def test_a_refused_alias_leaves_no_version(self, mlflow_tracker, artifacts, name):
        with pytest.raises(TrackingError, match=f"^logging '{name}' failed: .*alias"):
            log(mlflow_tracker, artifacts[0], name, alias="v1")
        assert mlflow.MlflowClient().search_model_versions(f"name='{name}'") == []

    def test_a_name_that_mlflow_refuses_leaves_a_failed_run(self, mlflow_tracker, artifacts):
        with pytest.raises(TrackingError, match=r"^logging 'a/b' failed: .*name"):
            log(mlflow_tracker, artifacts[0], "a/b")
        (last,) = mlflow.MlflowClient().search_runs(["0"], max_results=1)
        assert (last.info.run_name, last.info.status) == ("a/b", "FAILED")


def foreign_model(client):
    model = client.create_logged_model("0", name="foreign")
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


@pytest.fixture
def fresh(home, monkeypatch):
    """Configure MLflow's local default in a directory where it has never been used."""
    directory = home / "fresh"
    directory.mkdir()
    configure(monkeypatch, directory)
    return directory


def test_a_failed_upload_registers_nothing(artifacts, fresh):
    (fresh / "mlruns").write_text("where MLflow would keep files there is a file")
    with pytest.raises(TrackingError, match=r"^logging 'fraud' failed: .*mlruns"):
        log(plugins.create("tracker", "mlflow"), artifacts[0], "fraud")
    client = mlflow.MlflowClient()
    assert list(client.search_registered_models()) == []
    assert [(r.info.run_name, r.info.status) for r in client.search_runs(["0"])] == [("fraud", "FAILED")]


def test_a_server_that_is_down_is_said_before_anything_else(artifacts, fresh, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tracker = plugins.create("tracker", "mlflow")
    version = ModelVersion(name="fraud", version=1, uri="models:/fraud/1", digest="sha256:0")
    steps = {
        "log": lambda: log(tracker, artifacts[0], "fraud"),
        "find": lambda: tracker.find("models:/fraud"),
        "fetch": lambda: tracker.fetch(version, fresh / "new"),
    }
    for step in steps.values():
        with pytest.raises(TrackingError, match="does not answer: connection refused"):
            step()
    assert list(fresh.iterdir()) == []


def test_the_first_use_says_nothing_and_makes_a_store_that_lasts(artifacts, fresh):
    script = (
        "import pathlib, sys; from mlopsnb import flow, manifest\n"
        "flow.log(manifest.artifact(pathlib.Path(sys.argv[1])), name='fraud')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, artifacts[1].path], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert plugins.create("tracker", "mlflow").find("models:/fraud").version == 1
