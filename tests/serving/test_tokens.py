from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import grpc
import pytest

from mlopsnb.serving.errors import BadSecret
from mlopsnb.serving.rpc.messages import SERVICE, message
from mlopsnb.serving.tokens import Tokens

PAGES = ["/", "/docs", "/openapi.json"]
OPEN = ["/healthz", "/ready", "/v2/health/live", "/v2/health/ready", "/ping", "/health", *PAGES]
CLOSED = [
    "/metrics",
    "/version",
    "/v2",
    "/v2/models/affine",
    "/v2/models/affine/ready",
    "/v1/models/affine",
    "/nothing",
]
PREDICTIONS = {
    "/v2/models/affine/infer": {"error"},
    "/v2/models/affine/infer?query": {"error"},
    "/v1/models/affine:predict": {"error"},
    "/invocations": {"error_code", "message"},
}


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def write(path, text, mode=0o600):
    """Put *text* at *path* at one blow, as a mounted secret changes."""
    new = path.with_name("new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)
    return path


@pytest.fixture
def token_file(tmp_path):
    return write(tmp_path / "tokens", "# two teams\nfirst-token\n\n  second-token=\n")


@pytest.fixture
def guarded(serve, make_package, token_file):
    return serve(
        make_package(),
        "--port",
        "0",
        "--grpc-port",
        "0",
        "--token-file",
        token_file,
        "--max-body-bytes",
        "100000",
    )


def test_the_pages_say_that_a_token_is_needed_and_show_no_example(guarded):
    told = guarded.get("/openapi.json").json()
    infer = told["paths"]["/v2/models/affine/infer"]["post"]
    examples = infer["requestBody"]["content"]["application/json"]["examples"].values()
    assert [e["value"]["inputs"][0]["data"] for e in examples] == [[0.0, 0.0, 0.0, 0.0]]
    assert infer["security"]
    assert "401" in infer["responses"]
    assert "security" not in told["paths"]["/ready"]["get"]


def test_probes_are_open_and_nothing_else(guarded, body):
    assert {path: guarded.get(path).status for path in OPEN} == dict.fromkeys(OPEN, 200)
    for path in CLOSED:
        answer = guarded.get(path)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), path
    assert guarded.request("GET", "/v2/models/affine", headers=bearer("first-token")).status == 200
    assert guarded.request("GET", "/nothing", headers=bearer("first-token")).status == 404


@pytest.mark.parametrize(
    "headers", [{}, bearer("first-toke"), bearer(""), {"authorization": "Basic first-token"}]
)
def test_without_a_token_there_is_a_401_in_the_form_of_the_protocol(guarded, body, headers):
    for path, keys in PREDICTIONS.items():
        answer = guarded.request(
            "POST", path, json.dumps(body()), {"content-type": "application/json", **headers}
        )
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json().keys() == keys
        assert "token of this server is needed" in answer.body.decode()


@pytest.mark.parametrize("token", ["first-token", "second-token="])
def test_each_token_lets_in_by_both_lanes(guarded, body, token):
    for path in ("", "?query"):
        answer = guarded.request("POST", f"/v2/models/affine/infer{path}", json.dumps(body()), bearer(token))
        assert answer.status == 200
        answer = guarded.request(
            "POST",
            f"/v2/models/affine/infer{path}",
            json.dumps(body()),
            {"authorization": f"bearer  {token}"},
        )
        assert answer.status == 200


def test_an_unknown_client_keeps_its_connection_but_its_body_is_not_read(guarded, body):
    with contextlib.closing(guarded.connect()) as connection:
        for _ in range(3):
            connection.request("POST", "/v2/models/affine/infer", b"x" * 100000)
            response = connection.getresponse()
            assert (response.status, response.getheader("connection")) == (401, None)
            response.read()
        connection.request("POST", "/v2/models/affine/infer", json.dumps(body()), bearer("first-token"))
        assert connection.getresponse().status == 200


@pytest.mark.parametrize("path", ["/v2/models/affine/infer", "/v2/models/affine/infer?query"])
@pytest.mark.parametrize("length", ["content-length: 100000000000", "transfer-encoding: chunked"])
def test_a_large_body_is_refused_before_it_is_sent(guarded, path, length):
    with contextlib.closing(guarded.connect()) as connection:
        connection.connect()
        connection.sock.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n".encode())
        with connection.sock.makefile("rb") as answer:
            lines = answer.read().split(b"\r\n")  # to the end: the server closes
        assert lines[0] == b"HTTP/1.1 401 Unauthorized"
        assert b"connection: close" in lines


def test_metrics_and_log_tell_of_401_and_never_of_tokens(guarded, body):
    for token in ("wrong-token", "first-token"):
        guarded.infer(body(), bearer(token))
    counted = guarded.request("GET", "/metrics", headers=bearer("first-token")).body.decode()
    assert 'code="401"' in counted
    assert Path(f"/proc/{guarded.process.pid}/cmdline").read_bytes().find(b"first-token") == -1
    guarded.stop()
    assert [json.loads(line)["status"] for line in guarded.log_lines if "infer" in line] == [401, 200]
    assert "-token" not in "".join(guarded.log_lines) + guarded.errors + counted


def test_a_head_that_is_known_does_not_outlive_its_token(guarded, body, token_file):
    with contextlib.closing(guarded.connect()) as connection:

        def status():
            connection.request("POST", "/v2/models/affine/infer", json.dumps(body()), bearer("first-token"))
            response = connection.getresponse()
            response.read()
            return response.status

        assert [status() for _ in range(3)] == [200] * 3
        write(token_file, "second-token=\n")
        end = time.monotonic() + 10
        while status() != 401:
            assert time.monotonic() < end


def status_until(runtime, token, wanted):
    """Ask until the status is *wanted*."""
    end = time.monotonic() + 10
    while (found := runtime.request("GET", "/v2", headers=bearer(token)).status) != wanted:
        assert time.monotonic() < end, found


def test_tokens_are_rotated_without_a_restart(guarded, token_file):
    status_until(guarded, "first-token", 200)
    write(token_file, "third-token\n")
    status_until(guarded, "third-token", 200)
    status_until(guarded, "first-token", 401)
    write(token_file, "open-token\n", 0o644)  # cannot be used: what holds stays
    write(token_file.with_name("other"), "fourth-token\n")
    status_until(guarded, "third-token", 200)
    token_file.unlink()
    token_file.symlink_to("other")
    status_until(guarded, "fourth-token", 200)
    write(token_file, "# nobody\n")
    status_until(guarded, "fourth-token", 401)
    guarded.stop()
    assert "the token file was read again; it holds 1" in guarded.errors
    assert "-token" not in guarded.errors


BAD = {
    "missing": (lambda path: path.unlink(), "cannot be read: No such file or directory"),
    "empty": (lambda path: write(path, ""), "holds no token (write one token a line into it)"),
    "comments": (lambda path: write(path, "# x\n\n"), "holds no token (write one token a line into it)"),
    "two words": (lambda path: write(path, "# a\nhush hush\n"), "is no bearer token"),
    "for everybody": (lambda path: path.chmod(0o644), "can be read by everybody (mode 0644)"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_told_at_start(serve, make_package, token_file, case):
    spoil, message_ = BAD[case]
    spoil(token_file)
    runtime = serve(make_package(), "--port", "0", "--token-file", token_file)
    assert (runtime.process.wait(30), runtime.report["ready"]) == (6, False)
    assert message_ in runtime.errors
    assert len(runtime.errors.splitlines()) == 1
    assert "hush" not in runtime.errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_that_we_may_not_read(token_file):
    token_file.chmod(0)
    with pytest.raises(BadSecret, match="cannot be read: Permission denied"):
        Tokens(token_file)


@pytest.fixture
def grpc_call(guarded):
    with grpc.insecure_channel(guarded.report["grpc"]) as channel:

        def call(method, content, token=None):
            ask = channel.unary_unary(
                f"/{SERVICE}/{method}",
                request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
                response_deserializer=message(f"{method}Response").FromString,
            )
            return ask(content, timeout=20, metadata=[("authorization", f"Bearer {token}")] if token else [])

        yield call


def test_grpc_asks_for_tokens_too(guarded, grpc_call):
    assert grpc_call("ServerLive", message("ServerLiveRequest")()).live
    assert grpc_call("ServerReady", message("ServerReadyRequest")()).ready
    name = message("ModelMetadataRequest")(name="affine")
    assert grpc_call("ModelMetadata", name, "first-token").name == "affine"
    for token in (None, "wrong-token"):
        for method, content in (
            ("ModelMetadata", name),
            ("ModelInfer", b"\xff" * 90000),
            ("ModelInfer", b"x" * 10**7),
        ):
            with pytest.raises(grpc.RpcError) as failed:
                grpc_call(method, content, token)
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert (
                failed.value.details()
                == "a bearer token of this server is needed, in the header authorization"
            )
    assert 'code="401"' in guarded.request("GET", "/metrics", headers=bearer("first-token")).body.decode()
