from __future__ import annotations

import http.server
import socket
import threading
import time
import warnings

import pytest

from mlopsnb.errors import TrackingError, UserError
from mlopsnb.tracking import mlflow_seam
from mlopsnb.tracking.mlflow import MLflow
from mlopsnb.tracking.mlflow_seam import seam

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def answering(monkeypatch):
    """Serve one status to every request, and perhaps another to the health check."""
    servers = []

    def start(status, user="", health=None):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(health if health and self.path == "/health" else status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}127.0.0.1:{server.server_port}")
        return server.server_port

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def failure():
    started = time.monotonic()
    with pytest.raises(TrackingError) as caught, seam("looking"):
        pytest.fail("the block must not be entered")
    assert time.monotonic() - started < 7
    return caught.value


def test_a_server_that_is_down_is_known_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    error = failure()
    assert (
        error.message == f"the MLflow server at http://127.0.0.1:{port} does not answer: connection refused"
    )
    assert error.hint == "start it, or unset MLFLOW_TRACKING_URI to use the local store"


def test_a_server_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(mlflow_seam, "PROBE_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert failure().message.endswith("does not answer: nothing came in 0.2 s")


def test_a_host_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://no-such-host.invalid:5000")
    assert failure().message.endswith("does not answer: no host of that name")


@pytest.mark.parametrize(("status", "phrase"), [(401, "Unauthorized"), (403, "Forbidden")])
def test_a_server_that_refuses_says_where_credentials_come_from(answering, monkeypatch, status, phrase):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    port = answering(status, user="me:hunter2@")
    error = failure()
    assert error.message == f"the MLflow server at http://127.0.0.1:{port} refused: {status} {phrase}"
    assert "MLFLOW_TRACKING_TOKEN" in error.hint
    assert "hunter2" not in str(error)
    assert "s3cret" not in str(error)


def test_a_server_that_is_ill(answering):
    answering(503)
    assert failure().message.endswith("is not healthy: it answers 503")


@pytest.mark.parametrize("status", [200, 404])
def test_a_server_that_answers_is_there(answering, status):
    answering(status)
    with seam("looking") as module:
        assert module is mlflow


def test_the_registry_must_be_there_too(answering, monkeypatch):
    answering(200)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{port}")
    assert f"127.0.0.1:{port} does not answer" in failure().message


def test_a_store_that_is_no_file_is_known_at_once(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    assert failure().message == f"MLflow's local store {tmp_path / 'mlflow.db'} cannot be written"


def test_errors_of_mlflow_are_short_and_keep_their_cause():
    cause = mlflow.exceptions.MlflowException("first http://me:hunter2@host/x\nsecond")
    with pytest.raises(TrackingError) as caught, seam("looking"):
        raise cause
    assert caught.value.message == "looking failed: first http://host/x"
    assert caught.value.__cause__ is cause


def test_a_refusal_behind_an_open_health_check_is_a_refusal(answering):
    port = answering(401, health=200)
    with pytest.raises(TrackingError) as caught:
        MLflow().find("models:/fraud")
    assert caught.value.message == f"the MLflow server at http://127.0.0.1:{port} refused: 401 Unauthorized"


def test_our_own_errors_and_mistakes_pass():
    with pytest.raises(UserError), seam("looking"):
        raise UserError("no")
    with pytest.raises(TypeError), seam("looking"):
        raise TypeError("a bug")


def test_mlflow_is_silent_inside_and_as_it_was_after(capfd):
    logger = mlflow.tracking.fluent._logger
    eprint = mlflow.utils.logging_utils.eprint
    with seam("looking"):
        logger.warning("inside")
        eprint("inside")
        warnings.warn("inside", stacklevel=1)
    eprint("outside")
    assert capfd.readouterr().err == "outside\n"
    with pytest.raises(UserWarning):
        warnings.warn("outside", stacklevel=1)
