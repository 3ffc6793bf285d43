"""Clients that are slow, many, or send what is no request, over real sockets."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import time
from collections import Counter

import psutil
import pytest

INFER = "/v2/models/affine/infer"
QUICK = ("--head-timeout", "0.5", "--body-timeout", "0.5", "--write-timeout", "0.5", "--idle-timeout", "0.5")
LANES = pytest.mark.parametrize("path", [INFER, f"{INFER}?slow", "/ready"])


@pytest.fixture
def quick(serve, make_package):
    return serve(make_package(), "--port", "0", *QUICK)


@pytest.fixture
def connect():
    with contextlib.ExitStack() as stack:

        def make(runtime, sent=b""):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", runtime.port), timeout=30))
            sock.sendall(sent)
            return sock

        yield make


def rest(sock):
    """Return all that comes until the server closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            found += data
    return found


def send(sock, data, times):
    for _ in range(times):
        sock.sendall(data)


def error(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.split(b"\r\n")
    assert re.search(rb"x-request-id: [0-9a-f]{32}\r", head)
    return int(head.split()[1]), json.loads(body)["error"]


def post(path, length, body=b""):
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode() + body


def test_five_hundred_slow_clients_stop_nobody_and_are_let_go(quick, connect, body):
    half = [b"", b"POST ", b"GET /ready HTTP/1.1\r\nhost: x\r\n", post(INFER, 1000, b"{"), post("/ready", 9)]
    slow = [connect(quick, half[n % len(half)]) for n in range(500)]
    begin = time.monotonic()
    for _ in range(20):
        assert quick.infer(body()).status == 200
    answers = [rest(sock) for sock in slow]
    assert time.monotonic() - begin < 15
    for n, answer in enumerate(answers):
        told = answer.split(b" ", 2)[1:2]
        assert told == {0: [], 4: [b"405"]}.get(n % len(half), [b"408"]), answer
    quick.stop()
    assert quick.errors == ""


def test_what_was_missing_is_told(quick, connect):
    assert error(rest(connect(quick, b"POST /v2"))) == (
        408,
        "the head of the request was not whole after 0.5 s",
    )
    for path in (INFER, f"{INFER}?slow"):
        assert error(rest(connect(quick, post(path, 10, b"{")))) == (
            408,
            "the body of the request came too slowly, 0.5 s and more",
        )
    quick.stop()
    told = [(line["path"], line["status"]) for line in map(json.loads, quick.log_lines)]
    assert told == [("", 408), (INFER, 408), (INFER, 499)]


def test_a_client_that_idles_is_let_go_without_a_word(quick, connect, body):
    content = json.dumps(body()).encode()
    sock = connect(quick, post(INFER, len(content), content))
    answer = rest(sock)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'"data":["+"]}]}')
    sock = connect(quick, b"\r\n" * 100)
    assert rest(sock) == b""


def test_a_client_that_goes_on_sending_is_given_time(serve, make_package, connect, body):
    runtime = serve(make_package(), "--port", "0", *QUICK)
    content = json.dumps(body()).encode() + b" " * 3000
    sock = connect(runtime, post(INFER, len(content)))
    begin = time.monotonic()
    sent = 0
    while sent < len(content):  # more than 500 bytes a second, for longer than half a second
        due = int((time.monotonic() - begin) * 1500)
        sock.sendall(content[sent:due])
        sent = max(sent, due)
        time.sleep(0.01)
    assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_does_not_read_is_let_go(quick, connect, body):
    content = json.dumps(body([[1, 2, 3, 4]] * 20_000)).encode()
    sock = connect(quick)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = post(INFER, len(content), content)
    sock.settimeout(10)
    with pytest.raises(ConnectionError):  # answers pile up until the server takes no more, and then it ends
        send(sock, request, 1000)
    assert quick.infer(body()).status == 200


@LANES
@pytest.mark.parametrize("piece", [1000, 100_000])
def test_heads_have_a_limit(served, connect, path, piece):
    sock = connect(served, f"POST {path} HTTP/1.1\r\nhost: x\r\na: ".encode())
    send(sock, b"x" * piece, 2000)
    assert error(rest(sock)) == (431, "the head of the request is larger than 65536 bytes")


def test_a_head_of_the_size_that_is_allowed(served, connect):
    start = b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    for size, status in ((60_000, b"200"), (66_000, b"431")):
        for pieces in (1, 3):
            data = start + b"a: " + b"x" * size + b"\r\n\r\n"
            sock = connect(served)
            for n in range(pieces):
                step = len(data) // pieces + 1
                sock.sendall(data[n * step : (n + 1) * step])
            assert rest(sock).split(b" ")[1] == status
    many = b"".join(b"h%d: x\r\n" % n for n in range(101))
    answer = error(rest(connect(served, start + many + b"\r\n")))
    assert answer == (431, "the request has 103 headers; at most 100 are taken")


@pytest.mark.parametrize("endless", [b"a: b\r\n", b"x" * 65536])
def test_what_comes_behind_a_body_is_not_kept(served, connect, endless):
    memory = psutil.Process(served.process.pid).memory_info
    before = memory().rss
    sock = connect(
        served,
        f"POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{{\r\n0\r\na: ".encode(),
    )
    send(sock, endless * (65536 // len(endless)), 1000)
    assert error(rest(sock)) == (431, "the head of the request is larger than 65536 bytes")
    assert memory().rss - before < 20 << 20


EARLY = {
    "too large": (post(INFER, 20 << 20), 413),
    "too large, in the other lane": (post(f"{INFER}?slow", 20 << 20), 413),
    "grown too large": (
        f"POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode(),
        413,
    ),
    "no number": (post(INFER, "x"), 400),
}


@pytest.mark.parametrize("case", EARLY)
def test_an_answer_that_comes_early_does_not_stop_a_client_that_still_sends(served, connect, body, case):
    head, status = EARLY[case]
    sock = connect(served, head + b"8000\r\n" + b" " * 0x8000)
    answer = rest(sock)  # all of it, and that nothing follows, before the client has sent its body
    assert error(answer)[0] == status
    send(sock, b" " * 65536, 320)
    sock.close()
    assert served.infer(body()).status == 200
    assert served.stop() == 0
    assert served.errors == ""


def test_a_client_that_has_its_answer_cannot_send_for_ever(quick, connect):
    sock = connect(quick, post(INFER, 1 << 40))
    assert error(rest(sock))[0] == 413
    with pytest.raises(ConnectionError):
        send(sock, b" " * 65536, 1 << 24)


def test_a_body_in_tiny_pieces_takes_no_more_than_it_holds(serve, make_package, connect):
    runtime = serve(make_package(), "--port", "0")
    memory = psutil.Process(runtime.process.pid).memory_info
    before = memory().rss
    sock = connect(runtime, post(INFER, 1 << 20))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(1 << 18):
        sock.sendall(b"  ")
    assert memory().rss - before < 8 << 20


def test_no_more_connections_than_allowed(serve, make_package, connect, body, tmp_path, unix_connection):
    uds = tmp_path / "s"
    runtime = serve(make_package(), "--port", "0", "--uds", uds, "--max-connections", "5", "--workers", "1")
    inside = [connect(runtime, b"GET") for _ in range(5)]
    for _ in range(100):
        with contextlib.closing(connect(runtime)) as sock:
            answer = rest(sock)
        assert error(answer) == (503, "the server has 5 connections, its limit; try again in a second")
        assert b"retry-after: 1\r\n" in answer
    with contextlib.closing(unix_connection(uds)) as owner:
        owner.request("GET", "/ready")
        assert owner.getresponse().status == 200
    for sock in inside[:2]:
        sock.close()
    end = time.monotonic() + 10
    while not rest_of_ready(runtime):
        assert time.monotonic() < end
    assert runtime.stop() == 0
    assert runtime.errors == "there are 5 connections, the limit; more are turned away\n"


def test_workers_share_the_connections_that_were_asked_for(serve, make_package, connect):
    options = ("--max-connections", "5", "--workers", "2", "--head-timeout", "2")
    runtime = serve(make_package(), "--port", "0", *options)
    end = time.monotonic() + 30
    while runtime.get("/v2/models/affine").json()["parameters"]["workers"] != 2:
        assert time.monotonic() < end
    shared = Counter({b"503": 14, b"408": 6})
    found = Counter()
    while found != shared:  # a worker counts itself before the supervisor gives it connections
        assert time.monotonic() < end
        assert found[b"408"] <= shared[b"408"]
        many = [connect(runtime, b"GET") for _ in range(20)]
        found = Counter(rest(sock)[9:12] for sock in many)


def rest_of_ready(runtime):
    with socket.create_connection(("127.0.0.1", runtime.port), timeout=10) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return rest(sock).startswith(b"HTTP/1.1 200")


def test_the_limit_of_open_files_is_never_met(serve, make_package, connect, body):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # the server inherits it
    try:
        runtime = serve(make_package(), "--port", "0", "--head-timeout", "2", "--workers", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    many = [connect(runtime, b"GET") for _ in range(600)]
    answers = [rest(sock) for sock in many]
    assert {answer[9:12] for answer in answers} <= {b"408", b"503", b""}
    assert sum(answer[9:12] == b"408" for answer in answers) == 128
    assert runtime.infer(body()).status == 200
    assert runtime.stop() == 0
    assert runtime.errors == "there are 128 connections, the limit; more are turned away\n"


def test_more_connections_than_files_is_an_error_at_start(serve, make_package):
    runtime = serve(make_package(), "--port", "0", "--max-connections", "999999999")
    assert runtime.process.wait(20) == 2
    assert "is more than the" in runtime.errors


GARBAGE = {
    "no HTTP": b"\x00\x01\x02 hello\r\n\r\n",
    "no method": b"BREW / HTTP/1.1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "length and chunks": b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    "huge length": b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    "bad chunk": f"POST {INFER} HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".encode(),
    "a path that is none": b"GET \xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_request_is_told_so(served, connect, body, case):
    assert error(rest(connect(served, GARBAGE[case]))) == (400, "the request is not HTTP/1.1")
    assert served.infer(body()).status == 200
    served.stop()
    assert served.errors == ""


def test_we_are_no_proxy(served, connect):
    answer = rest(connect(served, b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n"))
    assert error(answer) == (400, "this server is no proxy")


def test_garbage_behind_a_request_does_not_take_its_place(serve, make_package, connect, body):
    runtime = serve(make_package(), "--port", "0", "--instances", "1")  # answers come a moment later
    content = json.dumps(body()).encode()
    for path in (INFER, f"{INFER}?slow"):
        answer = rest(connect(runtime, post(path, len(content), content) + b"\x00garbage\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"400" not in answer.partition(b"\r\n")[0]


UPGRADE = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


def test_we_stay_with_http_1_1(served, connect, body):
    get = f"GET /ready HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n".encode()
    last = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answers = rest(connect(served, get * 3 + last))
    assert answers.count(b"HTTP/1.1 200 OK") == 4
    content = json.dumps(body()).encode()
    sent = f"POST {INFER} HTTP/1.1\r\nhost: x\r\n{UPGRADE}content-length: {len(content)}\r\n\r\n".encode()
    assert error(rest(connect(served, sent + content))) == (
        400,
        "this server speaks HTTP/1.1 alone; send the request without upgrade",
    )
    served.stop()
    assert served.errors == ""
