from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import re
import socket
import textwrap

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mlopsnb import plugins
from mlopsnb.serving import fastlane
from mlopsnb.serving.app import App
from mlopsnb.serving.engine import Engine

INFER = "/v2/models/affine/infer"


def text(method, path, headers, body, version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


class Raw:
    """A connection on which bytes are sent and whole answers read, as they are but for the date."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self.sock.makefile("rb")

    def close(self):
        self._file.close()
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def read(self):
        """Return one answer; empty at the end of the connection."""
        head = b""
        while line := self._file.readline():
            head += line
            if line == b"\r\n":
                break
        length = re.search(rb"content-length: (\d+)", head)
        body = self._file.read(int(length[1])) if length else b""
        return re.sub(rb"date: [^\r]*", b"date: now", head) + body

    def ended(self):
        return self._file.read() == b""


@pytest.fixture
def connect(served):
    with contextlib.ExitStack() as stack:

        def make():
            return stack.enter_context(contextlib.closing(Raw(served.port)))

        yield make


def bodies(body):
    good = json.dumps(body()).encode()
    return {
        "good": (good, {}),
        "rows": (json.dumps(body([[1, 2, 3, 4]] * 50, id="x")).encode(), {}),
        "no rows": (json.dumps(body([])).encode(), {}),
        "one output": (json.dumps(body(outputs=[{"name": "sign"}])).encode(), {}),
        "empty": (b"", {}),
        "not JSON": (b"{", {}),
        "wrong shape": (json.dumps(body(x={"shape": [4]})).encode(), {}),
        "rejected": (json.dumps(body([[666, 0, 0, 0]])).encode(), {}),
        "unknown output": (json.dumps(body(outputs=[{"name": "z"}])).encode(), {}),
        "gzip": (good, {"content-encoding": "gzip"}),
        "binary": (good, {"inference-header-content-length": str(len(good))}),
        "bad binary": (good, {"inference-header-content-length": "x"}),
        "timeout": (good, {"x-request-timeout": "3.5"}),
        "bad timeout": (good, {"x-request-timeout": "soon"}),
        "upper case": (good, {"CONTENT-TYPE": "application/json", "X-Request-ID": "R"}),
        "closing": (good, {"connection": "close"}),
        "too large": (b" " * 10001, {}),
    }


def test_both_lanes_answer_the_same_byte_for_byte(connect, body):
    for name, (content, headers) in bodies(body).items():
        for version in ("1.1", "1.0"):
            answers = []
            for path in (INFER, f"{INFER}?a=1"):  # with a query it is no plain request
                raw = connect()
                sent = {"host": "x", "x-request-id": "1", "content-length": len(content), **headers}
                raw.send(text("POST", path, sent, content, version))
                answer = raw.read()
                closes = b"connection: close" in answer
                answers.append((answer, closes, closes and raw.ended()))
            assert answers[0] == answers[1], name
            assert answers[0][0].startswith(b"HTTP/1.1 "), name


def test_the_metrics_and_the_log_know_no_lanes(served, body):
    for content, headers in bodies(body).values():
        for path in (INFER, f"{INFER}?a=1"):
            served.request("POST", path, content, headers)
    served.request("GET", INFER)
    found = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in served.get("/metrics").body.decode().splitlines()
        if line.startswith("mlopsnb_request_total")
    }
    assert all(count % 2 == 0 for count in found.values())
    assert sum(found.values()) == 2 * len(bodies(body))
    served.stop()
    lines = [json.loads(line) for line in served.log_lines][: 2 * len(bodies(body))]
    told = [(line["method"], line["path"], line["status"], line["rows"]) for line in lines]
    assert told[::2] == told[1::2]
    assert served.errors == ""


def test_requests_that_come_one_behind_the_other_are_answered_in_order(connect, body):
    raw = connect()
    content = json.dumps(body([[1, 0, 0, 0]])).encode()
    parts = []
    for number in range(6):
        method, path = [("POST", INFER), ("GET", "/ready"), ("POST", f"{INFER}?slow")][number % 3]
        sent = {"host": "x", "x-request-id": f"n{number}"}
        parts.append(
            text(method, path, {**sent, "content-length": len(content)}, content)
            if method == "POST"
            else text(method, path, sent, b"")
        )
    raw.send(b"".join(parts))
    answers = [raw.read() for _ in parts]
    assert [re.search(rb"x-request-id: (\S+)", a)[1] for a in answers] == [b"n%d" % n for n in range(6)]
    assert all(a.startswith(b"HTTP/1.1 200 OK") for a in answers)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_may_come_in_any_pieces(connect, body, size):
    raw = connect()
    content = json.dumps(body()).encode()
    data = text("POST", INFER, {"host": "x", "x-request-id": "1", "content-length": len(content)}, content)
    for _ in range(2):
        for start in range(0, len(data), size):
            raw.send(data[start : start + size])
        answer = raw.read()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] == [25.0]


def test_what_is_not_plain_is_answered_all_the_same(connect, body):
    content = json.dumps(body()).encode()
    raw = connect()
    raw.send(
        text("POST", INFER, {"host": "x", "expect": "100-continue", "content-length": len(content)}, b"")
    )
    assert raw.read() == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.send(content)
    assert raw.read().startswith(b"HTTP/1.1 200 OK")
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    raw.send(text("POST", INFER, {"host": "x", "transfer-encoding": "chunked"}, chunked))
    assert raw.read().startswith(b"HTTP/1.1 200 OK")


def test_a_request_without_any_id_is_given_one_that_nobody_else_has(connect, body):
    raw = connect()
    content = json.dumps(body()).encode()
    ids = set()
    for _ in range(3):
        raw.send(text("POST", INFER, {"host": "x", "content-length": len(content)}, content))
        ids.add(re.search(rb"x-request-id: ([0-9a-f]{32})\r\n", raw.read())[1])
    assert len(ids) == 3


def test_a_client_that_leaves_in_the_middle_is_logged(served, body):
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(text("POST", INFER, {"host": "x", "content-length": 100}, b"{"))
    while b'code="499"' not in served.get("/metrics").body:
        pass
    served.stop()
    assert [json.loads(line)["path"] for line in served.log_lines if '"status":499' in line] == [INFER]


def test_uvicorn_is_built_as_the_fast_lane_knows_it():
    assert fastlane.surprises() == []
    tree = ast.parse(textwrap.dedent(inspect.getsource(RequestResponseCycle.__init__)))
    state = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    shared = {"disconnected", "keep_alive", "message_event", "more_body", "response_complete"}
    assert {f"self.{name}" for name in shared} <= state
    assert shared <= set(dir(fastlane.Exchange))


@pytest.fixture
def app(make_package, format_path, monkeypatch):
    monkeypatch.syspath_prepend(format_path)
    plugins.available.cache_clear()  # other tests of this process may have looked already
    engine = Engine.load(make_package())
    yield App(engine, name="affine", version="1", max_body_bytes=1000, log=io.BytesIO())
    engine.close()
    plugins.available.cache_clear()


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written = []

    def write(self, data):
        self.written.append(data)

    def is_closing(self):
        return False

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


def test_a_client_that_does_not_read_its_answers_is_held_back(app, body):
    config = uvicorn.Config(app, interface="asgi3", ws="none", lifespan="off", log_config=None)

    async def run():
        connection = fastlane.protocol(app)(config=config, server_state=ServerState(), app_state={})
        wire = Wire()
        connection.connection_made(wire)
        content = json.dumps(body()).encode()
        data = text("POST", INFER, {"host": "x", "content-length": len(content)}, content)
        lanes = []
        for full in (False, True, True):
            (connection.pause_writing if full else connection.resume_writing)()
            connection.data_received(data)
            lanes.append((type(connection.cycle), connection.flow.read_paused))
        assert len(wire.written) == 1
        connection.resume_writing()
        await asyncio.gather(*connection.tasks)
        while len(wire.written) < 5:  # each ASGI answer is written as head and body
            await asyncio.sleep(0)
        return lanes

    assert asyncio.run(run()) == [
        (fastlane.Exchange, False),
        (RequestResponseCycle, False),
        (RequestResponseCycle, True),
    ]


@pytest.mark.parametrize("then", ["", INFER, f"{INFER}?a=1"])
def test_behind_a_known_head_the_body_may_be_cut_anywhere(app, body, then):
    config = uvicorn.Config(app, interface="asgi3", ws="none", lifespan="off", log_config=None)
    content = json.dumps(body([[1, 0, 0, 0]])).encode()
    data = text("POST", INFER, {"host": "x", "content-length": len(content)}, content)
    more = text("POST", then, {"host": "x", "content-length": len(content)}, content) if then else b""

    async def answers(pieces):
        connection = fastlane.protocol(app)(config=config, server_state=ServerState(), app_state={})
        wire = Wire()
        connection.connection_made(wire)
        connection.data_received(data)
        for piece in pieces:
            connection.data_received(piece)
        while b"".join(wire.written).count(b'"outputs"') < 2 + bool(more):
            await asyncio.sleep(0)
        assert (connection.phase, len(connection.heads), connection._missing) == (fastlane.IDLE, 1, 0)
        return re.sub(rb"x-request-id: [^\r]*", b"", b"".join(wire.written))

    async def run():
        wanted = await answers([data, *([more] if more else [])])
        head = data.index(b"\r\n\r\n") + 4
        for cut in range(head, len(data + more)):
            whole = data + more
            assert await answers([whole[:cut], whole[cut:]]) == wanted, cut
        tiny = (whole[place : place + 1] for place in range(head, len(whole)))
        assert await answers([whole[:head], *tiny]) == wanted

    asyncio.run(run())


def test_a_body_in_tiny_pieces_takes_hardly_more_than_its_size(app, body):
    head = fastlane.Head(INFER, app.predictions[INFER], {}, 100_000, True)
    exchange = fastlane.Exchange(head, ())
    for number in range(100_000):
        exchange.gather(bytes([number % 256]))
    assert len(exchange.body) < 30
    assert exchange.whole() == bytes(number % 256 for number in range(100_000))


def test_with_a_uvicorn_built_otherwise_there_is_no_fast_lane(app, monkeypatch, caplog):
    assert issubclass(fastlane.protocol(app), fastlane.FastLane)
    monkeypatch.delattr(httptools_impl, "STATUS_LINE")
    assert fastlane.protocol(app) is HttpToolsProtocol
    monkeypatch.undo()
    monkeypatch.delattr(HttpToolsProtocol, "on_body")
    assert fastlane.surprises() == ["HttpToolsProtocol.on_body"]
    assert "no fast lane" in caplog.text


def test_a_new_question_to_the_cycle_is_noticed(monkeypatch):
    source = inspect.getsource(httptools_impl).replace("self.cycle.more_body = False", "self.cycle.news()")
    monkeypatch.setattr(fastlane.inspect, "getsource", lambda _: source)
    assert fastlane.surprises() == ["self.cycle.news"]
