"""The gateway as a process: real sockets before and behind it."""

import collections
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.serving.gateway import Routes


class Upstream:
    """A server that answers each line with its name, or does what *behave* does with the connection."""

    def __init__(self, name, behave=None):
        self.name, self.behave = name, behave
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.open.append(connection)
                threading.Thread(target=self.behave or self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(self.name.encode() + b" " + line)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.open:
            connection.close()


class Gateway:
    def __init__(self, place):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.place = place
        self.start()

    def start(self):
        command = [
            sys.executable,
            "-m",
            "mlopsnb.serving.gateway",
            "--port",
            str(self.port),
            "--state",
            self.place,
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while "listening" not in (line := self.process.stderr.readline()):
            assert line, "the gateway has ended"

    def route(self, *routes):
        """Tell the routes, as (weight, servers), and wait until they are taken."""
        told = {
            "routes": [{"weight": w, "servers": [f"127.0.0.1:{s}" for s in servers]} for w, servers in routes]
        }
        self.tell(json.dumps(told))

    def tell(self, text):
        (self.place / "incoming.json").write_text(text)
        self.process.send_signal(signal.SIGHUP)
        while (self.place / "incoming.json").exists():
            pass

    def end(self):
        self.process.terminate()
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def gateway(tmp_path):
    made = Gateway(tmp_path)
    yield made
    made.end()


@pytest.fixture
def upstream():
    made = []

    def make(name, behave=None):
        made.append(Upstream(name, behave))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(gateway, text="x"):
    with socket.create_connection(("127.0.0.1", gateway.port), 60) as line:
        line.sendall(text.encode() + b"\n")
        return line.makefile("rb").readline().decode().strip()


def test_connections_go_by_weight_and_evenly_within(gateway, upstream):
    a, b, c = (upstream(name) for name in "abc")
    gateway.route((75, [a.port, b.port]), (25, [c.port]))
    counted = collections.Counter(ask(gateway).split()[0] for _ in range(40))
    assert counted["c"] == 10
    assert {counted["a"], counted["b"]} == {15}
    gateway.route((100, [c.port]))
    assert {ask(gateway) for _ in range(5)} == {"c x"}


def test_open_connections_stay_where_they_are(gateway, upstream):
    a, b = upstream("a"), upstream("b")
    gateway.route((1, [a.port]))
    with socket.create_connection(("127.0.0.1", gateway.port), 60) as line, line.makefile("rb") as answers:
        line.sendall(b"1\n")
        assert answers.readline() == b"a 1\n"
        gateway.route((1, [b.port]))
        line.sendall(b"2\n")
        assert answers.readline() == b"a 2\n"
        assert ask(gateway) == "b x"


def test_who_does_not_listen_is_passed_over(gateway, upstream):
    a, gone = upstream("a"), upstream("gone")
    gone.close()
    gateway.route((99, [gone.port]), (1, [gone.port, a.port]))
    assert {ask(gateway) for _ in range(10)} == {"a x"}


def test_a_request_without_an_answer_goes_to_another_server(gateway, upstream):
    def hang_up(connection):
        connection.recv(1)
        connection.close()

    bad, good = upstream("bad", hang_up), upstream("good")
    gateway.route((1, [bad.port, good.port]))
    assert {ask(gateway) for _ in range(6)} == {"good x"}
    gateway.route((1, [bad.port]))
    assert ask(gateway) == ""
    assert len(bad.open) <= 6 + 3  # a request that ends its server ends three at most


def test_clients_wait_for_a_server(gateway, upstream):
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(ask(gateway)))
    waiting.start()
    a = upstream("a")
    gateway.route((1, [a.port]))
    waiting.join(60)
    assert answers == ["a x"]


def test_a_lot_goes_both_ways_and_ends_are_passed_on(gateway, upstream):
    def echo(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    gateway.route((1, [upstream("e", echo).port]))
    sent = b"0123456789abcdef" * (1 << 18)
    with socket.create_connection(("127.0.0.1", gateway.port), 60) as line:
        threading.Thread(
            target=lambda: (line.sendall(sent), line.shutdown(socket.SHUT_WR)), daemon=True
        ).start()
        with line.makefile("rb") as answer:
            assert answer.read() == sent


def test_a_restart_goes_by_what_was_told_last_and_bad_routes_change_nothing(gateway, upstream):
    a = upstream("a")
    gateway.route((1, [a.port]))
    gateway.tell('{"routes": [{"weight": "much", "servers": []}]}')
    assert (gateway.place / "refused.json").exists()
    gateway.process.kill()
    gateway.process.communicate()
    gateway.start()
    assert ask(gateway) == "a x"
    assert gateway.end() == 0


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_every_route_gets_exactly_its_share(weights):
    data = {"routes": [{"weight": w, "servers": [f"s{n}:80"]} for n, w in enumerate(weights)]}
    routes = Routes.read(data, Routes())
    counted = collections.Counter(routes.next().host for _ in range(sum(weights)))
    assert [counted[f"s{n}"] for n in range(len(weights))] == weights


def test_imports_nothing_that_an_image_has_not():
    code = "import sys, mlopsnb.serving.gateway; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert {"numpy", "uvicorn", "orjson"}.isdisjoint(done.stdout.split())
