from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from mlopsnb import manifest
from mlopsnb.serving import __main__ as command

PATH = "/v2/models/affine/infer"


class Clients:
    """Threads that send requests one after the other, and count answers by model version, and failures."""

    def __init__(self, connect, body, *, keep_alive, threads, until_closed=False):
        self._connect, self._body, self._keep_alive = connect, json.dumps(body), keep_alive
        self._until_closed = until_closed
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self.versions = [Counter() for _ in range(threads)]
        self.failures = []
        self.threads = [threading.Thread(target=self._run, args=(c,)) for c in self.versions]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self.join()

    def join(self):
        for thread in self.threads:
            thread.join()

    def wait_for(self, version, count):
        """Wait until each thread had *count* answers of *version*."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.failures or all(c[version] >= count for c in self.versions), timeout=30
            )

    def _run(self, counts):
        connection = self._connect()
        while not self._stop.is_set():
            try:
                connection.request("POST", PATH, self._body)
                response = connection.getresponse()
                response.read()
                outcome = response.getheader("x-model-version") if response.status == 200 else response.status
                failure = response.status != 200
            except (OSError, http.client.HTTPException) as exc:
                failure, outcome, response = True, repr(exc), None
            with self._changed:
                counts[outcome] += 1
                if failure:
                    self.failures.append(outcome)
                self._changed.notify_all()
            if failure or (self._until_closed and response.getheader("connection") == "close"):
                break
            if not self._keep_alive:
                connection.close()
        connection.close()


def test_ready_is_told_once_and_says_where(served):
    assert served.report == {
        "ready": True,
        "url": f"http://127.0.0.1:{served.port}",
        "pid": served.process.pid,
    }
    assert served.stop() == 0


def test_unix_sockets_of_any_length_for_the_owner_alone(serve, make_package, tmp_path, unix_connection):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    uds, control = deep / "http.sock", deep / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead, contextlib.chdir(deep):
        dead.bind("http.sock")  # what a process that was killed leaves behind
    runtime = serve(make_package(), "--uds", uds, "--control", control)
    assert runtime.report == {"ready": True, "url": f"unix:{uds}", "pid": runtime.process.pid}
    assert [stat.S_IMODE(p.stat().st_mode) for p in (uds, control)] == [0o600, 0o600]
    with contextlib.closing(unix_connection(uds)) as connection:
        connection.request("GET", "/ready")
        assert connection.getresponse().status == 200
    assert runtime.stop() == 0
    assert not uds.exists()
    assert not control.exists()


def test_the_alive_descriptor_is_held_for_life(serve, make_package, tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runtime = serve(
            make_package(), "--port", "0", "--alive-fd", str(lock.fileno()), pass_fds=[lock.fileno()]
        )
    with (tmp_path / "lock").open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        runtime.stop()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def tamper(package):
    (package / manifest.MODEL_DIR / "weights.json").write_text("{}")


def raise_protocol(package):
    content = json.loads((package / manifest.FILE).read_text())
    (package / manifest.FILE).write_text(json.dumps({**content, "protocol": 99}))


def drop_example(package):
    (package / manifest.EXAMPLE_FILE).unlink()
    content = json.loads((package / manifest.FILE).read_text())
    del content["files"][manifest.EXAMPLE_FILE]
    (package / manifest.FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "weights", "code", "error", "hint"),
    [
        (
            lambda package: (package / manifest.FILE).unlink(),
            {},
            3,
            "{package} is no model package: it holds no model.json",
            "",
        ),
        (
            tamper,
            {},
            3,
            "{package} is damaged: model/weights.json was changed",
            "export or fetch the model again",
        ),
        (
            raise_protocol,
            {},
            3,
            "{package}/model.json has protocol 99; this mlopsnb reads 1",
            "export the model again, or install the mlopsnb that wrote it",
        ),
        (drop_example, {}, 3, "the golden example of {package} cannot be read: FileNotFoundError: ", ""),
        (None, {"format": "alien"}, 4, "no format named 'alien'; installed: affine, ", ""),
        (
            None,
            {"explode": "In the interpreter:\n  at line 3\nValueError: bad magic\n"},
            4,
            "the model cannot be loaded: ValueError: bad magic",
            "",
        ),
        (
            None,
            {"dtype": "float64"},
            4,
            "the model's outputs should be y float32, sign str; found y float64, sign str",
            "",
        ),
        (
            None,
            {"scale": "two"},
            4,
            "the model fails on its own example: ",
            "",
        ),
    ],
)
def test_a_package_that_cannot_be_served_ends_in_one_line(
    serve, make_package, spoil, weights, code, error, hint
):
    package = make_package(**weights)
    if spoil:
        spoil(package)
    runtime = serve(package, "--port", "0")
    assert runtime.process.wait(20) == code
    assert runtime.report["error"].startswith(error.format(package=package))
    assert {k: v for k, v in runtime.report.items() if k != "error"} == {"ready": False, "hint": hint}
    (line,) = runtime.errors.splitlines()
    assert line == f"mlopsnb.serving: error: {runtime.report['error']}" + (f" ({hint})" if hint else "")


def test_a_port_that_is_taken(serve, make_package):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        runtime = serve(make_package(), "--port", str(port))
        assert runtime.process.wait(20) == 5
    assert runtime.report == {
        "ready": False,
        "error": f"cannot listen on 127.0.0.1:{port}: Address already in use",
        "hint": "choose another port with --port, or 0 for any that is free",
    }
    assert len(runtime.errors.splitlines()) == 1


def test_a_unix_path_that_is_taken_or_no_socket(serve, make_package, tmp_path):
    package = make_package()
    first = serve(package, "--uds", tmp_path / "s")
    (tmp_path / "f").write_text("mine")
    for path in (tmp_path / "s", tmp_path / "f"):
        runtime = serve(package, "--uds", path)
        assert (runtime.process.wait(20), runtime.report["error"]) == (
            5,
            f"cannot listen on {path}: Address already in use",
        )
    assert (tmp_path / "f").read_text() == "mine"
    assert (tmp_path / "s").is_socket()
    assert first.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: PACKAGE"),
        (["p", "--name", "a/b"], "'a/b' has characters other than letters, digits, '.', '_' and '-'"),
        (["p", "--port", "70000"], "'70000' is no port; expected 0 to 65535"),
        (["p", "--port", "1", "--fd", "3"], "argument --fd: not allowed with argument --port"),
        (["p", "--ready-fd", "987"], "file descriptor 987 is not open"),
        (["p", "--drain-seconds", "-1"], "'-1' is no number of seconds"),
        (["p", "--max-body-bytes", "0"], "'0' is no number of bytes"),
        (["p", "--max-batch-size", "0"], "expected 1 or more, found 0"),
        (["p", "--preferred-batch-size", "4,x"], "'x' is no whole number"),
        (["p", "--instances", "-1"], "'-1' is no whole number"),
        (["p", "--batching", "on"], "argument --batching: invalid choice: 'on'"),
        (["p", "--request-timeout", "0"], "0 seconds are none"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_descriptor_that_is_no_bound_socket(serve, make_package):
    with socket.socket() as unbound, Path(os.devnull).open() as null:
        for fd, error in (
            (unbound.fileno(), f"file descriptor {unbound.fileno()} is no bound TCP socket"),
            (null.fileno(), f"file descriptor {null.fileno()} is no socket: Socket operation on non-socket"),
        ):
            runtime = serve(make_package(f"p{fd}"), "--fd", str(fd), pass_fds=[fd])
            assert (runtime.process.wait(20), runtime.report["error"]) == (5, error)


def test_an_inherited_socket_is_served(serve, make_package, body):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        runtime = serve(make_package(), "--fd", str(sock.fileno()), pass_fds=[sock.fileno()])
    assert runtime.infer(body()).status == 200


def wait_until_in_progress(connection):
    while True:
        connection.request("GET", "/metrics")
        if (
            b'request_in_progress{model_name="affine",model_version="1"} 1.0'
            in connection.getresponse().read()
        ):
            return


def wait_until_draining(connect):
    """Ask one connection after the other, all opened before, until one is told that the server is not ready."""
    for connection in connect:
        connection.request("GET", "/ready")
        response = connection.getresponse()
        response.read()
        if response.status == 503:
            return response.getheader("connection")
    raise AssertionError("the server never began to drain")


def test_a_request_in_flight_is_answered_before_the_end(serve, make_package, body, gate):
    runtime = serve(make_package(), "--port", "0", "--instances", "1", AFFINE_GATE=str(gate))
    with contextlib.ExitStack() as stack:
        slow, probe = (stack.enter_context(contextlib.closing(runtime.connect())) for _ in range(2))
        slow.request("POST", PATH, json.dumps(body([[100, 0, 0, 0]])))
        wait_until_in_progress(probe)  # the event loop is free while the model works
        runtime.process.terminate()
        assert wait_until_draining(iter(lambda: probe, None)) == "close"
        gate.write_bytes(b"")
        response = slow.getresponse()
        assert (response.status, response.getheader("connection")) == (200, "close")
        assert json.loads(response.read())["outputs"][0]["data"] == [205.0]
    assert runtime.process.wait(20) == 0
    assert runtime.errors == ""


def test_a_second_signal_ends_at_once(serve, make_package, body, gate):
    runtime = serve(make_package(), "--port", "0", "--instances", "1", AFFINE_GATE=str(gate))
    with contextlib.closing(runtime.connect()) as slow, contextlib.closing(runtime.connect()) as probe:
        slow.request("POST", PATH, json.dumps(body([[100, 0, 0, 0]])))
        wait_until_in_progress(probe)
        runtime.process.send_signal(signal.SIGINT)
        wait_until_draining(iter(lambda: probe, None))
        runtime.process.send_signal(signal.SIGINT)
        assert runtime.process.wait(20) == 128 + signal.SIGINT


def test_idle_connections_do_not_hold_the_end_up(serve, make_package):
    runtime = serve(make_package(), "--port", "0", "--drain-seconds", "0.3")
    with (
        contextlib.closing(runtime.connect()) as idle,
        socket.create_connection(("127.0.0.1", runtime.port)) as silent,
        socket.create_connection(("127.0.0.1", runtime.port)) as stuck,
    ):
        idle.request("GET", "/healthz")
        idle.getresponse().read()
        stuck.sendall(b"POST /v2/models/affine/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert runtime.stop() == 0
        assert (silent.recv(1), stuck.recv(1)) == (b"", b"")


@pytest.mark.parametrize(
    "options", [(), ("--instances", "2"), ("--batching", "off"), ("--max-queue-delay-ms", "3")]
)
def test_sigterm_under_load_fails_no_request(serve, make_package, body, options):
    runtime = serve(make_package(), "--port", "0", *options)
    clients = Clients(runtime.connect, body(), keep_alive=True, threads=4, until_closed=True)
    with clients:
        clients.wait_for("1", 20)
        runtime.process.terminate()
        clients.join()
    assert (clients.failures, runtime.process.wait(20), runtime.errors) == ([], 0, "")
    answered = sum(sum(counts.values()) for counts in clients.versions)
    assert len(runtime.log_lines) == answered  # not one line is lost either


@pytest.fixture
def without_uvloop(tmp_path, environment):
    """PYTHONPATH of a machine on which uvloop cannot be imported."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "uvloop.py").write_text("raise ImportError('not built for this platform')\n")
    return {"PYTHONPATH": f"{tmp_path / 'none'}:{environment['PYTHONPATH']}"}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_handover_under_load_fails_no_request(
    serve, make_package, body, control, tmp_path, without_uvloop, loop
):
    env = without_uvloop if loop == "asyncio" else {}
    package = make_package()
    old_control, new_control = tmp_path / "old.control", tmp_path / "new.control"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        options = ("--fd", str(sock.fileno()), "--control", old_control)
        old = serve(package, *options, pass_fds=[sock.fileno()], **env)
    new = serve(package, "--version", "2", "--uds", tmp_path / "new", "--control", new_control, **env)
    assert control(new_control, b"G") == (b"no", None)

    def connect():
        return http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    with (
        Clients(connect, body(), keep_alive=False, threads=2) as fresh,
        Clients(connect, body(), keep_alive=True, threads=2) as kept,
    ):
        for clients in (fresh, kept):
            clients.wait_for("1", 20)
        answer, fd = control(old_control, b"G")
        assert (answer, control(new_control, b"T", [fd])) == (b"ok", (b"ok", None))
        os.close(fd)
        assert control(old_control, b"R") == (b"ok", None)
        fresh.wait_for("2", 20)
        kept.wait_for("1", sum(kept.versions[0].values()) + 20)  # what is open stays where it is
        old.process.terminate()
        for clients in (fresh, kept):
            clients.wait_for("2", 50)
    assert (fresh.failures, kept.failures) == ([], [])
    assert (old.process.wait(20), old.errors, new.errors) == (0, "", "")
    assert new.stop() == 0


def test_connections_in_the_queue_outlive_a_release(serve, make_package, body, control, tmp_path):
    package = make_package()
    runtimes = [
        serve(package, "--port", "0", "--control", tmp_path / "a"),
        serve(package, "--version", "2", "--control", tmp_path / "b"),
    ]
    _, fd = control(tmp_path / "a", b"G")
    assert control(tmp_path / "a", b"R") == (b"ok", None)
    with contextlib.closing(runtimes[0].connect()) as waiting:
        waiting.request("POST", PATH, json.dumps(body()))  # nobody accepts now
        assert control(tmp_path / "b", b"T", [fd]) == (b"ok", None)
        os.close(fd)
        assert waiting.getresponse().getheader("x-model-version") == "2"


def test_commands_that_cannot_be_carried_out(serve, make_package, control, tmp_path):
    path = tmp_path / "c"
    runtime = serve(make_package(), "--port", "0", "--control", path)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket() as unbound,
        Path(os.devnull).open() as null,
    ):
        assert control(path, b"T", [other.fileno()]) == (b"no", None)  # it has one already
        assert control(path, b"R") == control(path, b"R") == (b"ok", None)
        assert control(path, b"G") == (b"no", None)
        for fd in (unbound.fileno(), null.fileno()):
            assert control(path, b"T", [fd]) == (b"no", None)
        assert control(path, b"T") == control(path, b"?") == (b"no", None)
        assert control(path, b"T", [other.fileno()]) == (b"ok", None)
        with http_connection(other) as connection:
            connection.request("GET", "/ready")
            assert connection.getresponse().status == 200
    assert runtime.stop() == 0
    unbound_line, null_line = runtime.errors.splitlines()
    assert unbound_line.endswith("is no bound TCP socket")
    assert null_line.endswith("is no socket: Socket operation on non-socket")


def http_connection(sock):
    return contextlib.closing(http.client.HTTPConnection(*sock.getsockname(), timeout=30))


def test_a_missing_package_names_its_extra(make_package, tmp_path, environment):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "sitecustomize.py").write_text("import sys; sys.modules['uvicorn'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "mlopsnb.serving", make_package()],
        env={**environment, "PYTHONPATH": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        4,
        "mlopsnb.serving: error: 'uvicorn' is not installed (pip install 'mlopsnb[serving]')\n",
    )
