"""Live rows counted by real servers: every way in, several processes, kills and restarts."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from dataclasses import replace

import grpc
import numpy as np
import psutil
import pytest

from mlopsnb import manifest, profiles
from mlopsnb.profiles import DriftProfile, Feature
from mlopsnb.serving import v2, windows
from mlopsnb.serving.calls import CHECK_HEADER
from mlopsnb.serving.rpc.messages import SERVICE, message

WAIT_SECONDS = 60
PATH = "/v2/models/affine/infer"
EDGES = (0.0, 10.0)


def numeric(name, tensor, column=None, role="input"):
    return Feature(
        name=name, tensor=tensor, column=column, role=role, edges=EDGES, counts=(1, 1, 1), low=0.0, high=10.0
    )


PROFILE = DriftProfile(
    rows=3,
    features=(
        *(numeric(f"x{i}", "x", i) for i in range(4)),
        numeric("y", "y", role="output"),
        Feature(name="sign", kind="category", role="output", tensor="sign", levels=("+",), counts=(3, 0, 0)),
    ),
)


@pytest.fixture
def with_reference(make_package, add_reference):
    return lambda: add_reference(make_package(), PROFILE)


def until(condition):
    end = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
    return found


def counted(runtime):
    """What the server has counted, over all windows; None before there is anything."""
    answer = runtime.get("/profile")
    assert answer.status == 200
    snapshots = [profiles.read_snapshot(one, PROFILE) for one in answer.json()["windows"]]
    return profiles.merge(snapshots) if snapshots else None


def rows(runtime):
    found = counted(runtime)
    return found.rows if found else 0


def of(snapshot, name):
    [index] = [i for i, feature in enumerate(PROFILE.features) if feature.name == name]
    return snapshot.cells[PROFILE.places[index]].tolist()


def ask_grpc(address):
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=message("ModelInferRequest").SerializeToString,
            response_deserializer=message("ModelInferResponse").FromString,
        )
        request = message("ModelInferRequest")(model_name="affine")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend(
            [1, 2, 3, 40]
        )
        request.inputs.add(name="n", datatype="INT8", shape=[1]).contents.int_contents.extend([5])
        call(request, timeout=30)


@pytest.mark.parametrize("cache", [(), ("--cache-bytes", "1MB")])
def test_every_way_in_is_counted(serve, with_reference, body, cache):
    runtime = serve(with_reference(), "--port", "0", "--workers", "1", "--grpc-port", "0", *cache)
    row, table = [1, 2, 3, 40], {"x": [[1, 2, 3, 40]], "n": [5]}
    assert runtime.get("/profile").json()["windows"] == []
    for path in (PATH, f"{PATH}?past=the-fast-lane"):
        assert runtime.request("POST", path, json.dumps(body([row]))).status == 200
    arrays = {"x": np.array([row], np.float32), "n": np.array([5], np.int8)}
    raw, length = v2.encode_binary_request(arrays)
    assert runtime.infer(raw, {"inference-header-content-length": str(length)}).status == 200
    for path in ("/v1/models/affine:predict", "/invocations"):
        headers = {"content-type": "application/json"}
        assert runtime.request("POST", path, json.dumps({"inputs": table}), headers).status == 200
    ask_grpc(runtime.report["grpc"])
    found = counted(runtime)
    assert found.rows == 6
    assert of(found, "x0") == [0, 6, 0, 0, 0]
    assert of(found, "x3") == [0, 0, 6, 0, 0]
    assert of(found, "y") == [0, 0, 6, 0, 0]
    assert of(found, "sign") == [6, 0, 0, 0, 0]
    if cache:
        assert runtime.samples("mlopsnb_cache_rows_total{").popitem()
        assert sum(runtime.samples("mlopsnb_model_seconds_count").values()) < 6


def test_the_proof_of_a_deploy_is_no_traffic_and_nobody_hides_rows_behind_it(serve, with_reference, body):
    package = with_reference()
    golden, _ = manifest.read_example(package)
    runtime = serve(package, "--port", "0", "--workers", "1")
    marked = {CHECK_HEADER: "golden"}
    raw, length = v2.encode_binary_request(golden)
    binary = {"inference-header-content-length": str(length)}
    assert runtime.infer(raw, binary | marked).status == 200
    as_json = {"content-type": "application/json", **marked}
    for path in (PATH, f"{PATH}?past=the-fast-lane"):
        assert runtime.request("POST", path, v2.encode_request(golden), as_json).status == 200
    assert runtime.get("/profile").json()["windows"] == []
    assert [*runtime.samples("mlopsnb_check_total").values()] == [3]
    counts = ("mlopsnb_request_total", "mlopsnb_request_duration_seconds_count", "mlopsnb_batch_size_count")
    assert [sum(runtime.samples(name).values()) for name in counts] == [0, 0, 0]
    assert sum(runtime.samples("mlopsnb_queue_seconds_count").values()) == 0
    assert sum(runtime.samples("mlopsnb_request_in_progress").values()) == 0
    # The example without the header, and other rows with it, are traffic.
    assert runtime.infer(raw, binary).status == 200
    assert runtime.infer(body([[1, 2, 3, 40]]), marked).status == 200
    assert rows(runtime) == len(golden["x"]) + 1
    assert [sum(runtime.samples(name).values()) for name in counts] == [2, 2, 2]
    assert runtime.stop() == 0
    predictions = [line for line in map(json.loads, runtime.log_lines) if line["path"].endswith("/infer")]
    assert [line.get("check", False) for line in predictions] == [True, True, True, False, False]


def test_the_reference_is_told_to_who_compares(serve, with_reference):
    runtime = serve(with_reference(), "--port", "0", "--workers", "1")
    told = profiles.from_json(runtime.get("/profile/reference").body)
    assert (told, told.digest) == (PROFILE, runtime.get("/profile").json()["profile"])


def test_what_failed_is_not_counted_and_what_cannot_be_is_named(serve, with_reference, body):
    runtime = serve(with_reference(), "--port", "0", "--workers", "1")
    assert runtime.infer(body([[1, 2, 3, 4], [666, 0, 0, 0]])).status == 422
    assert runtime.infer({}).status == 400
    assert runtime.infer(body([[-1, None, 3, 4]])).status == 200
    answer = runtime.get("/profile").json()
    del answer["windows"]
    assert answer == {
        "protocol": 1,
        "model": "affine",
        "version": "1",
        "profile": PROFILE.digest,
        "window_seconds": 300,
        "kept_seconds": 86400,
        "saved": False,
        "unsaved_seconds": 1.0,
        "uncounted": [{"role": "input", "name": "n", "why": "the reference has no such input"}],
        "notes": [],
    }
    found = counted(runtime)
    assert (of(found, "x0"), of(found, "x1"), of(found, "y")) == (
        [1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0],
    )
    assert runtime.samples('mlopsnb_feature_values_total{feature="x0"') == {
        f'mlopsnb_feature_values_total{{feature="x0",kind="{kind}",model_name="affine",model_version="1",role="input"}}': n
        for kind, n in (("expected", 0), ("tail", 1), ("missing", 0))
    }


def test_a_package_without_a_reference_says_so(served, body):
    assert served.infer(body()).status == 200
    assert served.get("/profile").json() == {
        "protocol": 1,
        "model": "affine",
        "version": "1",
        "profile": None,
        "uncounted": [],
        "notes": [
            "the package has no reference profile; log the model with reference= to have its live data counted"
        ],
        "windows": [],
    }
    assert served.samples("mlopsnb_feature") == {}
    assert served.get("/profile/reference").json() is None


def test_a_newer_profile_keeps_no_server_from_serving(serve, make_package, add_reference, body):
    package = add_reference(make_package(), replace(PROFILE, protocol=99))
    runtime = serve(package, "--port", "0", "--workers", "1")
    assert runtime.infer(body()).status == 200
    [note] = runtime.get("/profile").json()["notes"]
    assert "the profile has protocol 99" in note
    assert "live rows are not counted: the profile has protocol 99" in runtime.errors


@pytest.mark.parametrize("saved", [False, True])
def test_workers_are_one_server(serve, with_reference, body, tmp_path, saved):
    options = ("--profile-dir", tmp_path / "counts") if saved else ()
    runtime = serve(with_reference(), "--port", "0", "--workers", "2", "--grpc-port", "0", *options)
    until(lambda: runtime.get("/v2/models/affine").json()["parameters"]["workers"] == 2)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(contextlib.closing(runtime.connect())) for _ in range(4)]
        for connection in connections:  # of two workers
            for _ in range(5):
                connection.request("POST", PATH, json.dumps(body([[1, 2, 3, 40]] * 3)))
                assert connection.getresponse().read()
        until(lambda: rows(runtime) == 60)
        answers = set()
        for connection in connections:
            connection.request("GET", "/profile")
            answers.add(json.dumps(json.loads(connection.getresponse().read())["windows"]))
    assert len(answers) == 1
    worker = psutil.Process(runtime.process.pid).children()[0]
    worker.kill()
    until(lambda: not worker.is_running() and len(psutil.Process(runtime.process.pid).children()) == 2)
    until(lambda: runtime.get("/v2/models/affine").json()["parameters"]["workers"] == 2)
    for _ in range(4):
        assert runtime.infer(body()).status == 200
    until(lambda: rows(runtime) == 64)
    until(lambda: sum(runtime.samples('mlopsnb_feature_values_total{feature="x3"').values()) == 64)
    assert runtime.stop() == 0


def test_what_was_counted_outlives_a_kill(serve, with_reference, body, tmp_path):
    package, options = (
        with_reference(),
        ("--port", "0", "--workers", "1", "--profile-dir", tmp_path / "counts"),
    )
    runtime = serve(package, *options)
    for _ in range(20):
        assert runtime.infer(body([[1, 2, 3, 40]] * 100)).status == 200
    file = tmp_path / "counts" / windows.FILE
    until(lambda: saved_rows(file) == 2000)  # within a second, asked by nobody
    runtime.process.send_signal(signal.SIGKILL)
    runtime.process.wait()
    again = serve(package, *options)
    assert rows(again) == 2000
    assert again.infer(body()).status == 200
    assert again.stop() == 0
    last = serve(package, *options, "--workers", "2")  # drained: nothing was lost
    assert rows(last) == 2001
    assert last.get("/profile").json()["saved"] is True


def saved_rows(file):
    layout = windows.Layout(**json.loads(file.read_bytes()[:4096].rstrip(b"\0")))
    snapshots, _ = windows._read(file, layout, time.time)
    return sum(s.rows for s in snapshots)


def test_a_directory_that_cannot_be_written_is_no_fault(serve, with_reference, body, tmp_path):
    place = tmp_path / "counts"
    place.write_text("a file")
    runtime = serve(with_reference(), "--port", "0", "--workers", "1", "--profile-dir", place)
    assert runtime.infer(body()).status == 200
    answer = runtime.get("/profile").json()
    assert answer["saved"] is False
    [note] = answer["notes"]
    assert note.startswith(f"the counters end with the server: {place} cannot be used: ")
    assert note in runtime.errors
    assert rows(runtime) == 1


def test_the_profile_needs_a_token_where_one_is_asked_for(serve, with_reference, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("a-long-enough-token-of-the-test\n")
    tokens.chmod(0o600)
    runtime = serve(with_reference(), "--port", "0", "--workers", "1", "--token-file", tokens)
    assert [runtime.get(path).status for path in ("/profile", "/profile/reference")] == [401, 401]
