"""Servers of several processes: real workers, real kills, real signals."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import select
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

PATH = "/v2/models/affine/infer"
WAIT_SECONDS = 60


def until(condition):
    """Ask *condition* again and again until it is true; return what it returned."""
    end = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
    return found


def children(runtime):
    return psutil.Process(runtime.process.pid).children()


def serving(runtime):
    return runtime.get("/v2/models/affine").json()["parameters"]["workers"]


@pytest.fixture
def start(serve, make_package):
    """Start a server and wait until all its workers serve."""

    def begin(count, *options, package=None, **more):
        runtime = serve(package or make_package(), "--port", "0", "--workers", str(count), *options, **more)
        until(lambda: serving(runtime) == count)
        return runtime

    return begin


class Load(threading.Thread):
    """Asks over one kept connection after the other until told to stop; every answer is compared."""

    def __init__(self, runtime, body):
        super().__init__()
        self._runtime, self._body = runtime, json.dumps(body)
        self._stopped = threading.Event()
        self.right, self.failed, self.wrong, self.hung = 0, [], [], 0
        self.worker = ""

    def run(self):
        connection = self._runtime.connect()
        while not self._stopped.is_set():
            try:
                connection.request("POST", PATH, self._body)
                response = connection.getresponse()
                content = response.read()
            except TimeoutError:
                self.hung += 1
                connection.close()
            except (OSError, http.client.HTTPException) as exc:
                self.failed.append(repr(exc))
                connection.close()
            else:
                if response.status == 200 and json.loads(content)["outputs"][0]["data"] == [25.0]:
                    self.right += 1
                    self.worker = response.getheader("x-request-id")[:16]
                else:
                    self.wrong.append((response.status, content))
        connection.close()

    def wait_for(self, more):
        wanted = self.right + more
        until(lambda: self.right >= wanted)


@contextlib.contextmanager
def load(runtime, body, clients):
    threads = [Load(runtime, body) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread._stopped.set()
        for thread in threads:
            thread.join(WAIT_SECONDS)


def counter(text, name):
    """The value of the only series of *name* in Prometheus' text."""
    [value] = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return float(value)


def who(connection):
    """The worker that answers on *connection*, by the ids that it makes."""
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    response.read()
    return response.getheader("x-request-id")[:16]


def test_connections_are_spread_evenly(start):
    runtime = start(3)
    assert runtime.report["pid"] == runtime.process.pid
    assert len(children(runtime)) == 3
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(contextlib.closing(runtime.connect())) for _ in range(9)]
        assert sorted(Counter(map(who, connections)).values()) == [3, 3, 3]
    assert (runtime.stop(), runtime.errors) == (0, "")


def test_one_worker_is_the_process_itself(serve, make_package):
    runtime = serve(make_package(), "--port", "0", "--workers", "1")
    assert children(runtime) == []
    assert serving(runtime) == 1


def test_who_comes_first_does_not_keep_all_clients(serve, make_package, body):
    runtime = serve(make_package(), "--port", "0", "--workers", "2")
    with load(runtime, body(), 4) as clients:
        until(lambda: sorted(Counter(client.worker for client in clients).values()) == [2, 2])
    assert [(c.failed, c.wrong, c.hung) for c in clients] == [([], [], 0)] * 4


def test_metrics_are_those_of_all_and_outlive_a_worker(start, body):
    runtime = start(2)
    for _ in range(10):  # each over a connection of its own
        assert runtime.infer(body()).status == 200
    assert runtime.infer({}).status == 400

    def counts():
        text = runtime.get("/metrics").body.decode()
        codes = dict(re.findall(r'^mlopsnb_request_total{code="(\d+)".* (\S+)$', text, re.MULTILINE))
        return codes, counter(text, "mlopsnb_batch_size_sum"), counter(text, "mlopsnb_request_in_progress")

    assert [counts() for _ in range(4)] == [({"200": "10.0", "400": "1.0"}, 10.0, 0.0)] * 4
    text = runtime.get("/metrics").body.decode()
    processes = [psutil.Process(runtime.process.pid), *children(runtime)]
    descriptors = sum(p.num_fds() for p in processes)
    assert abs(counter(text, "process_open_fds") - descriptors) < 5
    assert counter(text, "process_resident_memory_bytes") > processes[1].memory_info().rss
    spent = counter(text, "process_cpu_seconds_total")
    processes[1].kill()
    until(lambda: serving(runtime) == 2 and not processes[1].is_running())
    assert [counts() for _ in range(4)] == [({"200": "10.0", "400": "1.0"}, 10.0, 0.0)] * 4
    assert counter(runtime.get("/metrics").body.decode(), "process_cpu_seconds_total") >= spent


def test_a_killed_worker_takes_its_own_requests_with_it_and_comes_back(start, body):
    runtime = start(3)
    with load(runtime, body(), 6) as clients:
        for kills in (1, 2):
            before = children(runtime)
            for client in clients:
                client.wait_for(10)
            before[0].kill()
            until(lambda before=before: before[0] not in children(runtime) and serving(runtime) == 3)
            for client in clients:
                client.wait_for(20)
            assert (
                sum(len(c.failed) for c in clients) <= 3 * kills
            )  # of six, even if they were not quite even
    assert [(c.wrong, c.hung) for c in clients] == [([], 0)] * 6
    lines = runtime.errors.splitlines()
    assert [
        bool(
            re.fullmatch(
                r"worker \d \(process \d+\) was ended by SIGKILL; another takes its place( in .* s)?", x
            )
        )
        for x in lines
    ] == [True, True], lines
    assert runtime.stop() == 0


def test_connections_wait_for_the_next_worker_when_all_are_dead(start, body):
    runtime = start(2)
    for worker in children(runtime):
        worker.kill()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: runtime.infer(body()).status, range(8)))
    assert answers == [200] * 8


def test_a_worker_that_stands_still_gets_one_client_at_most(start):
    runtime = start(2)
    stopped, _ = children(runtime)
    stopped.suspend()
    with contextlib.ExitStack() as stack:
        stack.callback(stopped.resume)
        connections = [stack.enter_context(contextlib.closing(runtime.connect())) for _ in range(8)]
        waiting = []
        for connection in connections:
            connection.connect()
            connection.request("GET", "/healthz")
            waiting.append(connection)
            while len(waiting) > 1:  # whoever has the worker that runs is answered, be it late
                ready = select.select([c.sock for c in waiting], [], [], 60)[0]
                assert ready
                for answered in [c for c in waiting if c.sock in ready]:
                    assert answered.getresponse().status == 200
                    waiting.remove(answered)
        assert not select.select([waiting[0].sock], [], [], 1)[0]
        stopped.resume()
        assert waiting[0].getresponse().status == 200


@pytest.mark.parametrize("to", ["supervisor", "everybody", "interrupt"])
def test_the_end_under_load_fails_no_request(start, body, to):
    runtime = start(2)
    closed = []

    def ask():
        """Ask until told that the connection is closed; return the answers."""
        with contextlib.closing(runtime.connect()) as connection:
            answers = 0
            while True:
                connection.request("POST", PATH, json.dumps(body()))
                response = connection.getresponse()
                assert (response.status, json.loads(response.read())["outputs"][0]["data"]) == (200, [25.0])
                answers += 1
                if answers == 20:
                    closed.append(connection)
                if response.getheader("connection") == "close":
                    return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        until(lambda: len(closed) == 4)
        everybody = [psutil.Process(runtime.process.pid), *children(runtime)]
        for process in everybody if to != "supervisor" else everybody[:1]:
            process.send_signal(signal.SIGINT if to == "interrupt" else signal.SIGTERM)
        if to == "interrupt":  # idle connections are closed at once; here that may be between two requests
            for future in asking:
                future.exception(WAIT_SECONDS)
        else:
            assert sum(f.result(WAIT_SECONDS) for f in asking) == len(predictions(runtime))
    assert (runtime.process.wait(WAIT_SECONDS), runtime.errors) == (0, "")
    assert psutil.wait_procs(everybody[1:], timeout=10)[1] == []


def predictions(runtime):
    runtime.process.wait(WAIT_SECONDS)
    lines = map(json.loads, runtime.log_lines)
    return [line for line in lines if line["path"] == PATH]


def test_workers_end_with_a_supervisor_that_was_killed(serve, make_package, tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runtime = serve(
            make_package(),
            *("--port", "0", "--workers", "2", "--alive-fd", str(lock.fileno())),
            pass_fds=[lock.fileno()],
        )
    until(lambda: serving(runtime) == 2)
    left = children(runtime)
    runtime.process.kill()
    assert psutil.wait_procs(left, timeout=30)[1] == []
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_second_signal_ends_all_at_once(start, body, tmp_path):
    os.mkfifo(tmp_path / "gate")
    runtime = start(2, "--instances", "1", AFFINE_GATE=str(tmp_path / "gate"))
    left = children(runtime)
    with contextlib.closing(runtime.connect()) as slow:
        slow.request("POST", PATH, json.dumps(body([[100, 0, 0, 0]])))
        with (tmp_path / "gate").open("wb"):  # opens when the model reads: the call is in work
            runtime.process.terminate()
            until(lambda: refused(runtime))
            runtime.process.terminate()
            assert runtime.process.wait(20) == 128 + signal.SIGTERM
    assert psutil.wait_procs(left, timeout=10)[1] == []


def refused(runtime):
    try:
        runtime.get("/healthz")
    except OSError:
        return True
    return False


def test_workers_that_die_again_and_again_are_given_up(start, make_package):
    package = make_package()
    runtime = start(2, package=package)
    shutil.rmtree(package)
    for worker in children(runtime):
        worker.kill()
    assert runtime.process.wait(WAIT_SECONDS) == 4
    last = runtime.errors.splitlines()[-1]
    assert last.startswith("mlopsnb.serving: error: the workers die again and again, ")
    assert last.endswith("ended with code 3 (the lines above may say why)")


def test_a_worker_whose_model_broke_is_replaced(start, body):
    runtime = start(2)
    assert runtime.infer(body([[13, 0, 0, 0]])).status == 500
    until(lambda: "another takes its place" in runtime.errors)
    until(lambda: serving(runtime) == 2)
    assert [runtime.infer(body()).status for _ in range(4)] == [200] * 4


def test_a_worker_that_is_killed_while_it_loads_is_told(serve, make_package, tmp_path, environment):
    site = tmp_path / "dies"
    site.mkdir()
    (site / "affine_format.py").write_text(
        "import os, signal\nclass Affine:\n    def load(self, path, signature): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    runtime = serve(
        make_package(), "--port", "0", "--workers", "2", PYTHONPATH=f"{site}:{environment['PYTHONPATH']}"
    )
    assert runtime.process.wait(20) == 4
    assert runtime.report == {
        "ready": False,
        "error": "the process was ended by SIGKILL while it loaded the model",
        "hint": "",
    }


def test_the_port_changes_hands_between_servers_of_several_workers(
    start, serve, make_package, body, control, tmp_path
):
    package = make_package()
    old = start(2, "--control", tmp_path / "a", package=package)
    new = serve(
        package, "--version", "2", "--workers", "2", "--uds", tmp_path / "u", "--control", tmp_path / "b"
    )
    with load(old, body(), 4) as clients:
        for client in clients:
            client.wait_for(10)
        answer, fd = control(tmp_path / "a", b"G")
        assert (answer, control(tmp_path / "b", b"T", [fd])) == (b"ok", (b"ok", None))
        os.close(fd)
        assert control(tmp_path / "a", b"R") == (b"ok", None)
        old.process.terminate()
        assert old.process.wait(WAIT_SECONDS) == 0
        for client in clients:
            client.wait_for(20)
        assert old.get("/healthz").headers["x-model-version"] == "2"
    assert [(c.failed, c.wrong, c.hung) for c in clients] == [([], [], 0)] * 4
    assert (new.stop(), old.errors, new.errors) == (0, "", "")


def test_grpc_has_one_port_for_all_workers(start):
    import grpc

    from mlopsnb.serving.rpc.messages import SERVICE, message

    runtime = start(2, "--grpc-port", "0")
    seen = set()

    def ask():
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        with grpc.insecure_channel(runtime.report["grpc"], options=options) as channel:
            infer = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=message("ModelInferRequest").SerializeToString,
                response_deserializer=message("ModelInferResponse").FromString,
            )
            request = message("ModelInferRequest")(model_name="affine")
            for name, datatype, shape in (("x", "FP32", [1, 4]), ("n", "INT8", [1])):
                request.inputs.add(name=name, datatype=datatype, shape=shape)
            request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
            request.inputs[1].contents.int_contents.extend([5])
            found = infer(request, timeout=30, wait_for_ready=True)
            assert list(found.outputs[0].contents.fp32_contents) == [25.0]

    def both():
        ask()
        lines = [json.loads(line) for line in runtime.log_lines]
        seen.update(line["request_id"][:16] for line in lines if line["method"] == "gRPC")
        return len(seen) == 2

    until(both)
    assert runtime.stop() == 0


def test_clients_are_accepted_again_when_there_are_descriptors_again(start, body):
    runtime = start(2)
    most = psutil.Process(runtime.process.pid)
    limits = most.rlimit(psutil.RLIMIT_NOFILE)
    most.rlimit(psutil.RLIMIT_NOFILE, (most.num_fds(), limits[1]))
    with contextlib.closing(runtime.connect()) as waiting:
        waiting.request("POST", PATH, json.dumps(body()))
        until(lambda: "no connection can be accepted now" in runtime.errors)
        most.rlimit(psutil.RLIMIT_NOFILE, limits)
        assert waiting.getresponse().status == 200


def test_what_others_count_is_summed_too(start, body):
    runtime = start(2, "--cache-bytes", "1MB")
    for _ in range(6):
        assert runtime.infer(body()).status == 200

    def rows():
        text = runtime.get("/metrics").body.decode()
        found = dict(re.findall(r"^mlopsnb_cache_rows_total{.*result=\"(\w+)\"} (\S+)$", text, re.MULTILINE))
        return {result: float(count) for result, count in found.items()}

    until(lambda: sum(rows().values()) == 6)
    found = rows()
    for worker in children(runtime):
        worker.kill()
        until(lambda worker=worker: not worker.is_running() and serving(runtime) == 2)
    assert rows() == found
    shown = runtime.get("/v2/models/affine").json()["parameters"]["cache"]["max_bytes"]
    assert shown == 500_000  # of each; together they have what was asked for


def test_the_log_file_has_what_all_of_them_say(start, body, tmp_path):
    path = tmp_path / "log"
    runtime = start(2, "--log-file", path)
    for _ in range(6):
        assert runtime.infer(body()).status == 200
    until(lambda: path.read_text().count(f'"path":"{PATH}"') == 6)
    children(runtime)[0].kill()
    until(lambda: serving(runtime) == 2 and "was ended by SIGKILL" in path.read_text())
    assert runtime.stop() == 0
    assert all(line.startswith(("{", "worker ")) for line in path.read_text().splitlines())
