"""Real certificates, real handshakes."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest

from mlopsnb.serving.rpc.messages import SERVICE, message

TRITON_PYTHON = Path(__file__).parents[2] / ".venv" / "triton" / "bin" / "python"
INFER = "/v2/models/affine/infer"
DAY = datetime.timedelta(days=1)


@pytest.fixture
def options(authority):
    certificate, key = authority.issue("server")
    return ["--tls-certificate", certificate, "--tls-key", key]


@pytest.fixture
def secure(serve, make_package, options):
    return lambda *more, **kw: serve(make_package(**kw), "--port", "0", "--grpc-port", "0", *options, *more)


def trusting(authority, *, version=None, client=None):
    context = ssl.create_default_context(cafile=authority.path)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if client is not None:
        context.load_cert_chain(*client)
    return context


def serial(port, context):
    """Return the serial number of the certificate that is presented now."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as secured,
    ):
        return secured.getpeercert()["serialNumber"]


def ask(runtime, body, context):
    with contextlib.closing(
        http.client.HTTPSConnection("localhost", runtime.port, timeout=20, context=context)
    ) as connection:
        for _ in range(2):
            connection.request("POST", INFER, json.dumps(body))
            response = connection.getresponse()
            response.read()
        return response.status


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_predictions_over_tls(secure, authority, body, version):
    runtime = secure()
    assert runtime.report["url"] == f"https://127.0.0.1:{runtime.port}"
    assert ask(runtime, body(), trusting(authority, version=version)) == 200
    large = body([[1, 2, 3, 4]] * 20_000)
    assert ask(runtime, large, trusting(authority, version=version)) == 200
    assert runtime.stop() == 0
    assert runtime.errors == ""


def test_httpx_and_curl(secure, authority, body):
    runtime = secure()
    with httpx.Client(base_url=runtime.report["url"], verify=trusting(authority)) as client:
        answers = [client.post(INFER, json=body()).json()["outputs"][0]["data"] for _ in range(3)]
    assert answers == [[25.0]] * 3
    curl = [
        "curl",
        "--silent",
        "--show-error",
        "--cacert",
        authority.path,
        f"{runtime.report['url']}/healthz",
    ]
    assert json.loads(subprocess.run(curl, capture_output=True, check=True).stdout) == {"live": True}


@pytest.mark.triton
@pytest.mark.parametrize("how", ["http-binary", "http-json", "grpc-binary"])
def test_tritons_client(serve, make_echo, authority, options, tmp_path, how):
    array = np.array([[1.5, -2.0], [3.0, 4.25]], np.float32)
    runtime = serve(make_echo({"a": array}), "--port", "0", "--grpc-port", "0", *options)
    sent, came = tmp_path / "sent.npz", tmp_path / "came.npz"
    np.savez(sent, a=array)
    port = (runtime.report["grpc" if how == "grpc-binary" else "url"]).rpartition(":")[2]
    script = Path(__file__).with_name("triton_client.py")
    told = json.dumps({"outputs": None, "version": "", "ca": str(authority.path)})
    done = subprocess.run(
        [TRITON_PYTHON, script, how, f"localhost:{port}", "echo", sent, came, told],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ready"] == [True] * 2
    assert np.load(came)["out_a"].tolist() == array.tolist()


def test_plain_http_and_old_versions_do_not_get_in(secure, authority, body):
    runtime = secure()
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        runtime.get("/healthz")
    old = trusting(authority)
    with pytest.warns(DeprecationWarning, match=r"TLSv1_1 is deprecated"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        serial(runtime.port, old)
    assert ask(runtime, body(), trusting(authority)) == 200


def test_only_clients_of_the_ca_get_in(secure, authority, tmp_path, body):
    clients = type(authority)(tmp_path, "clients")
    runtime = secure("--tls-client-ca", clients.path)
    assert ask(runtime, body(), trusting(authority, client=clients.issue("alice"))) == 200
    for strange in (None, authority.issue("mallory")):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ask(runtime, body(), trusting(authority, client=strange))
    live = message("ServerLiveRequest")()
    certificate, key = clients.issue("bob")
    with channel(runtime, authority, certificate, key) as call:
        assert call("ServerLive", live).live
    with channel(runtime, authority) as call, pytest.raises(grpc.RpcError) as failed:
        call("ServerLive", live)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


@contextlib.contextmanager
def channel(runtime, authority, certificate=None, key=None):
    credentials = grpc.ssl_channel_credentials(
        authority.path.read_bytes(), key and key.read_bytes(), certificate and certificate.read_bytes()
    )
    port = runtime.report["grpc"].rpartition(":")[2]
    with grpc.secure_channel(f"localhost:{port}", credentials) as made:
        yield lambda method, content: made.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=message(f"{method}Response").FromString,
        )(content, timeout=20)


def test_an_answer_that_comes_early_does_not_stop_a_client_that_still_sends(secure, authority):
    runtime = secure("--max-body-bytes", "1000")
    length = 20 << 20
    with (
        socket.create_connection(("127.0.0.1", runtime.port), timeout=20) as sock,
        trusting(authority).wrap_socket(sock, server_hostname="localhost") as secured,
    ):
        secured.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b'"}'):
            answer += secured.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        for _ in range(length >> 16):
            secured.sendall(b" " * 65536)
    assert (runtime.stop(), runtime.errors) == (0, "")


def test_the_certificate_is_rotated_without_a_restart(secure, authority, options, body):
    runtime = secure("--workers", "1")
    context = trusting(authority)
    first = serial(runtime.port, context)
    with contextlib.closing(
        http.client.HTTPSConnection("localhost", runtime.port, timeout=20, context=context)
    ) as connection:
        connection.request("GET", "/ready")
        connection.getresponse().read()
        options[3].write_text("spoiled")  # a key alone, which cannot be used: what holds stays
        end = time.monotonic() + 10
        while "the certificate stays as it was" not in runtime.errors:
            assert time.monotonic() < end
        assert serial(runtime.port, context) == first
        authority.issue("server")
        while (second := serial(runtime.port, context)) == first:
            assert time.monotonic() < end
        connection.request("GET", "/ready")  # what is open stays open
        assert connection.getresponse().status == 200
    port = int(runtime.report["grpc"].rpartition(":")[2])
    alpn = trusting(authority)
    alpn.set_alpn_protocols(["h2"])
    assert serial(port, alpn) == second
    assert "the TLS files were read again" in runtime.errors


def presented(runtime, authority):
    """Return which worker answers a new client, and the serial number that it presents."""
    context = trusting(authority)
    with contextlib.closing(
        http.client.HTTPSConnection("localhost", runtime.port, timeout=20, context=context)
    ) as connection:
        connection.request("GET", "/healthz")
        found = connection.sock.getpeercert()["serialNumber"]
        response = connection.getresponse()
        assert response.status == 200
        return response.getheader("x-request-id")[:16], found


def test_each_of_several_workers_follows_the_certificate(secure, authority, options, body):
    runtime = secure("--workers", "2")
    end = time.monotonic() + 60

    def presented_by_both():
        """Return the last serial number of each worker, as soon as there are two."""
        found = {}
        while len(found) < 2:
            assert time.monotonic() < end
            found.update([presented(runtime, authority)])
        return found

    before = presented_by_both()
    [first] = set(before.values())
    assert ask(runtime, body(), trusting(authority)) == 200
    options[3].write_text("spoiled")
    while runtime.errors.count("the certificate stays as it was") < 2:
        assert time.monotonic() < end
    assert presented_by_both() == before
    authority.issue("server")
    while first in (after := presented_by_both()).values():
        assert time.monotonic() < end
    assert after.keys() == before.keys()
    [second] = set(after.values())
    psutil.Process(runtime.process.pid).children()[0].kill()
    while (third := presented_by_both()).keys() == before.keys():
        assert time.monotonic() < end
    assert set(third.values()) == {second}
    assert ask(runtime, body(), trusting(authority)) == 200
    assert runtime.stop() == 0


def other_key(certificate, key, authority):
    key.write_bytes(authority.issue("other")[1].read_bytes())


BAD = {
    "no certificate": (lambda c, k, a: c.unlink(), "server.crt cannot be read: No such file or directory"),
    "no key": (lambda c, k, a: k.unlink(), "server.key cannot be read: No such file or directory"),
    "not PEM": (lambda c, k, a: c.write_text("x"), "the TLS certificate {c} is no certificate in PEM: "),
    "key not PEM": (lambda c, k, a: k.write_text("x"), "the TLS key {k} is no key in PEM: "),
    "swapped": (lambda c, k, a: c.write_bytes(k.read_bytes()), "is no certificate in PEM: "),
    "of another": (other_key, "the TLS key {k} does not belong to the certificate {c}"),
    "expired": (
        lambda c, k, a: a.issue("server", begin=-2 * DAY, end=-DAY),
        "the TLS certificate {c} would be refused: certificate has expired",
    ),
    "too early": (
        lambda c, k, a: a.issue("server", begin=DAY, end=2 * DAY),
        "the TLS certificate {c} would be refused: certificate is not yet valid",
    ),
    "encrypted": (
        lambda c, k, a: a.issue("server", password=b"x"),
        "the TLS key {k} is encrypted (decrypt it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_used_are_told_at_start(secure, authority, options, case):
    certificate, key = options[1], options[3]
    spoil, told = BAD[case]
    spoil(certificate, key, authority)
    runtime = secure()
    assert (runtime.process.wait(30), runtime.report["ready"]) == (6, False)
    assert told.format(c=certificate, k=key) in runtime.errors
    assert len(runtime.errors.splitlines()) == 1


@pytest.mark.parametrize("missing", ["certificate", "key"])
def test_half_of_the_options_is_none(serve, make_package, options, missing):
    given = options[2:] if missing == "certificate" else options[:2]
    runtime = serve(make_package(), "--port", "0", *given)
    assert runtime.process.wait(30) == 2
    assert "--tls-certificate and --tls-key go together" in runtime.errors


def test_clients_that_do_not_shake_hands_are_let_go(secure, authority, body):
    runtime = secure("--head-timeout", "0.5")
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", runtime.port), timeout=20))
            for _ in range(50)
        ]
        silent[0].sendall(b"\x16\x03\x01")
        assert ask(runtime, body(), trusting(authority)) == 200
        assert {sock.recv(1) for sock in silent} == {b""}
    assert runtime.stop() == 0
    assert runtime.errors == ""


def test_the_public_socket_goes_to_the_next_process(
    serve, make_package, authority, options, control, tmp_path, body
):
    """Clients with new connections each time see no failure while the socket changes hands."""
    first = serve(
        make_package("a"), "--port", "0", "--name", "affine", "--control", tmp_path / "a.sock", *options
    )
    serve(make_package("b"), "--name", "affine", "--version", "2", "--control", tmp_path / "b.sock", *options)
    context = trusting(authority)
    seen, stop = [], threading.Event()

    def clients():
        while not stop.is_set():
            with contextlib.closing(
                http.client.HTTPSConnection("localhost", first.port, timeout=20, context=context)
            ) as connection:
                connection.request("POST", INFER, json.dumps(body()))
                response = connection.getresponse()
                response.read()
                seen.append(response.getheader("x-model-version"))

    thread = threading.Thread(target=clients)
    thread.start()
    try:
        end = time.monotonic() + 20
        while not seen:
            assert time.monotonic() < end
            assert thread.is_alive()
        answer, fd = control(tmp_path / "a.sock", b"G")
        assert answer == b"ok"
        with socket.socket(fileno=fd):
            assert control(tmp_path / "b.sock", b"T", [fd])[0] == b"ok"
        assert control(tmp_path / "a.sock", b"R")[0] == b"ok"
        first.process.terminate()
        assert first.process.wait(20) == 0
        end = time.monotonic() + 20
        while seen[-1:] != ["2"]:
            assert time.monotonic() < end
            assert thread.is_alive()
    finally:
        stop.set()
        thread.join()
    assert set(seen) == {"1", "2"}
