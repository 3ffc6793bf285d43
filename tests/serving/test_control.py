"""One step of the control socket's protocol, and who has gRPC's port while the public socket changes hands."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.serving import control as protocol
from mlopsnb.serving.rpc.messages import SERVICE, message


class Holder:
    """Has the sockets that it was given, the first in use; takes one if there is none."""

    def __init__(self, public=None):
        self.public = public
        self.released = 0

    def take(self, sock, done):
        taken = self.public is None
        if taken:
            self.public = sock
        else:
            sock.close()
        done(taken)

    def release(self):
        self.released += 1
        if self.public is not None:
            self.public.close()
        self.public = None


@contextlib.contextmanager
def listening():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def ask(holder, command, fds=()):
    """Send *command* through a real pair of sockets; return the answer and the descriptors that came with it."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(10)
        if command:
            socket.send_fds(ours, [command], list(fds))
        else:
            ours.shutdown(socket.SHUT_WR)
        protocol.converse(theirs, holder)
        answer, received, _, _ = socket.recv_fds(ours, 16, 4)
        assert theirs.fileno() == -1
    return answer, received


def test_a_socket_is_given_taken_and_released():
    with listening() as sock:
        old, new = Holder(sock.dup()), Holder()
        assert ask(new, b"G") == (b"no", [])
        answer, [fd] = ask(old, b"G")
        assert answer == b"ok"
        assert ask(new, b"T", [fd]) == (b"ok", [])
        assert os.path.sameopenfile(fd, new.public.fileno())
        os.close(fd)
        assert ask(old, b"R") == ask(old, b"R") == (b"ok", [])
        assert (old.public, old.released) == (None, 2)
        new.release()


def test_the_socket_that_it_has_is_taken_again_and_no_other():
    with listening() as sock, listening() as other:
        holder = Holder(sock.dup())
        assert ask(holder, b"T", [sock.fileno()]) == (b"ok", [])
        assert ask(holder, b"T", [other.fileno()]) == (b"no", [])
        assert os.path.sameopenfile(sock.fileno(), holder.public.fileno())
        holder.release()


def descriptors():
    return len(list(Path("/dev/fd").iterdir()))


@given(st.binary(max_size=1), st.integers(0, 3))
def test_no_command_leaves_a_descriptor_open(command, count):
    before = descriptors()
    with listening() as sock:
        holder = Holder()
        answer, received = ask(holder, command, [sock.fileno()] * count if command else ())
        expected = {b"": b"", b"R": b"ok", b"T": b"ok" if count == 1 else b"no"}
        assert (answer, received) == (expected.get(command, b"no"), [])
        holder.release()
    assert descriptors() == before


@pytest.fixture
def port():
    with listening() as sock:
        return sock.getsockname()[1]


def is_live(address):
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        live = channel.unary_unary(
            f"/{SERVICE}/ServerLive",
            request_serializer=message("ServerLiveRequest").SerializeToString,
            response_deserializer=message("ServerLiveResponse").FromString,
        )
        return live(message("ServerLiveRequest")(), timeout=20, wait_for_ready=True).live


def is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        return True  # just being closed
    return True


@pytest.mark.parametrize("workers", ["1", "2"])
def test_grpcs_port_comes_and_goes_with_the_public_socket(
    serve, make_package, control, tmp_path, port, workers
):
    options = ("--grpc-port", str(port), "--workers", workers)
    with listening() as sock:
        runtime = serve(make_package(), "--control", tmp_path / "c", "--uds", tmp_path / "u", *options)
        assert runtime.report["grpc"] == f"127.0.0.1:{port}"
        assert not is_open(port)
        for _ in range(2):
            assert control(tmp_path / "c", b"T", [sock.fileno()]) == (b"ok", None)
            assert is_live(runtime.report["grpc"])
            assert control(tmp_path / "c", b"R") == (b"ok", None)
            while is_open(port):
                assert runtime.process.poll() is None
    assert (runtime.stop(), runtime.errors) == (0, "")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_public_socket_is_not_taken_if_grpcs_port_is_anothers(
    serve, make_package, control, tmp_path, port, workers
):
    options = ("--grpc-port", str(port), "--workers", workers)
    with listening() as sock:
        runtime = serve(make_package(), "--control", tmp_path / "c", *options)
        with socket.create_server(("127.0.0.1", port)):
            assert control(tmp_path / "c", b"T", [sock.fileno()]) == (b"no", None)
            assert control(tmp_path / "c", b"G") == (b"no", None)
        assert f"cannot listen on 127.0.0.1:{port} for gRPC" in runtime.errors
        assert control(tmp_path / "c", b"T", [sock.fileno()]) == (b"ok", None)
        assert is_live(runtime.report["grpc"])
    assert runtime.stop() == 0


def test_a_grpc_port_that_is_handed_over_has_a_number(serve, make_package, tmp_path):
    runtime = serve(make_package(), "--control", tmp_path / "c", "--grpc-port", "0")
    assert runtime.process.wait(20) == 2
    assert "--grpc-port needs a number where the public socket is handed over" in runtime.errors


def test_strangers_do_not_share_grpcs_port(serve, make_package, tmp_path):
    first = serve(make_package("a"), "--port", "0", "--grpc-port", "0", "--control", tmp_path / "1")
    assert first.report["ready"], first.errors
    port = first.report["grpc"].rpartition(":")[2]
    second = serve(make_package("b"), "--port", "0", "--grpc-port", port, "--control", tmp_path / "2")
    assert second.process.wait(20) == 5
    assert f"cannot listen on 127.0.0.1:{port} for gRPC" in second.errors
