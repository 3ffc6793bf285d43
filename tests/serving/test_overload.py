from __future__ import annotations

import json
import re

import pytest

PATHS = ["/v2/models/affine/infer", "/v2/models/affine/infer?not=plain"]
SLOW, QUICK = [[100, 0, 0, 0]], [[1, 0, 0, 0]]


@pytest.fixture
def busy(serve, make_package, gate):
    """A server with one instance, which the first slow request keeps until the gate opens."""

    def start(*options):
        return serve(make_package(), "--port", "0", "--instances", "1", *options, AFFINE_GATE=str(gate))

    return start


def metric(runtime, name):
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", runtime.get("/metrics").body.decode(), re.MULTILINE)
    return float(found[1])


def wait_for(runtime, name, value):
    while metric(runtime, name) != value:
        pass


def keep_busy(runtime, client):
    slow = client(runtime, SLOW)
    wait_for(runtime, "mlopsnb_request_in_progress", 1)
    wait_for(runtime, "mlopsnb_queue_rows", 0)
    return slow


@pytest.mark.parametrize("path", PATHS)
def test_beyond_the_queue_requests_are_told_to_come_back(busy, gate, client, path):
    runtime = busy("--max-queue-rows", "3")
    slow = keep_busy(runtime, client)
    waiting = [client(runtime, QUICK * 2, path), client(runtime, QUICK, path)]
    wait_for(runtime, "mlopsnb_queue_rows", 3)
    refused = client(runtime, QUICK, path).getresponse()
    assert (refused.status, refused.getheader("retry-after")) == (503, "1")
    assert json.loads(refused.read()) == {"error": "the server is overloaded; try again in 1 s"}
    assert runtime.get("/ready").status == 200
    gate.write_bytes(b"")
    assert [c.getresponse().status for c in (slow, *waiting)] == [200, 200, 200]
    assert client(runtime, QUICK, path).getresponse().status == 200


@pytest.mark.parametrize("path", PATHS)
def test_a_deadline_is_kept_while_the_model_is_busy(busy, gate, client, path):
    runtime = busy("--request-timeout", "20")
    slow = keep_busy(runtime, client)
    late = client(runtime, QUICK, path, {"x-request-timeout": "0.05"}).getresponse()
    assert late.status == 504
    assert re.fullmatch(
        r"the deadline passed after 0\.0\d+ s in the queue; the model was not called",
        json.loads(late.read())["error"],
    )
    gate.write_bytes(b"")
    assert slow.getresponse().status == 200
    assert metric(runtime, "mlopsnb_batch_size_sum") == 1


def test_the_setting_is_the_most_that_a_request_may_ask_for(busy, gate, client):
    runtime = busy("--request-timeout", "0.05")
    slow = keep_busy(runtime, client)
    assert client(runtime, QUICK, headers={"x-request-timeout": "9"}).getresponse().status == 504
    gate.write_bytes(b"")
    assert slow.getresponse().status == 200


@pytest.mark.parametrize("asked", ["soon", "-1", "0", "1e9", "nan", ""])
def test_a_timeout_that_is_none(served, body, asked):
    answer = served.infer(body(), {"x-request-timeout": asked})
    assert (answer.status, answer.json()) == (
        400,
        {"error": f"the header x-request-timeout should be seconds above 0, found {asked!r}"},
    )


@pytest.mark.parametrize("path", PATHS)
def test_requests_whose_client_has_gone_are_not_run(busy, gate, client, path):
    runtime = busy()
    slow = keep_busy(runtime, client)
    gone = [client(runtime, QUICK, path) for _ in range(5)]
    kept = client(runtime, QUICK * 2, path)
    wait_for(runtime, "mlopsnb_queue_rows", 7)
    for connection in gone:
        connection.close()
    wait_for(runtime, "mlopsnb_queue_rows", 2)
    gate.write_bytes(b"")
    assert [c.getresponse().status for c in (slow, kept)] == [200, 200]
    assert metric(runtime, "mlopsnb_batch_size_sum") == 3
    assert metric(runtime, "mlopsnb_request_in_progress") == 0
    runtime.stop()
    assert sum(json.loads(line)["status"] == 499 for line in runtime.log_lines) == 5
    assert runtime.errors == ""


def test_what_waits_is_answered_before_the_end(busy, gate, client):
    runtime = busy()
    slow = keep_busy(runtime, client)
    waiting = [client(runtime, QUICK) for _ in range(10)]
    wait_for(runtime, "mlopsnb_queue_rows", 10)
    runtime.process.terminate()
    gate.write_bytes(b"")
    answers = [c.getresponse() for c in (slow, *waiting)]
    assert [(a.status, a.getheader("connection")) for a in answers] == [(200, "close")] * 11
    assert runtime.process.wait(20) == 0
    assert len([line for line in runtime.log_lines if '"POST"' in line]) == 11


def test_times_and_sizes_are_counted(busy, gate, client):
    runtime = busy()
    slow = keep_busy(runtime, client)
    waiting = [client(runtime, QUICK * 3) for _ in range(4)]
    wait_for(runtime, "mlopsnb_queue_rows", 12)
    gate.write_bytes(b"")
    for connection in (slow, *waiting):
        connection.getresponse().read()
    names = ("mlopsnb_batch_size_count", "mlopsnb_batch_size_sum", "mlopsnb_queue_seconds_count")
    assert [metric(runtime, name) for name in names] == [2, 13, 5]
    assert metric(runtime, "mlopsnb_queue_seconds_sum") > 0
