"""gRPC's side of the load: single calls, and h2load with one call after the other on each of its connections.

A call's body is the encoded `ModelInferRequest`, its tensors as raw bytes. h2load knows HTTP/2 and not gRPC: it posts
the same bytes again and again, and a call that failed is told from its missing bytes. So it costs little of the
machine, as wrk does.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from serving_peers.load import Load, NoLoad, busy_seconds, run

PATH = "/inference.GRPCInferenceService/ModelInfer"
_FRAME = 5  # gRPC puts a byte that tells of compression and the length before each message
_BUSY = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")


def find_h2load() -> str:
    """Return the path of h2load; raise `NoLoad` if it is not there."""
    path = shutil.which("h2load")
    if path is None:
        raise NoLoad("h2load is not on the PATH; on Debian: apt-get install nghttp2-client")
    return path


def ask(url: str, body: bytes, *, timeout: float = 30) -> tuple[int, bytes]:
    """Make one call over a connection of its own; return the HTTP status that is like its own, and the answer."""
    import grpc

    parts = urlsplit(url)
    with grpc.insecure_channel(parts.netloc) as channel:
        try:
            answer: bytes = channel.unary_unary(parts.path)(body, timeout=timeout)
        except grpc.RpcError as exc:
            code = exc.code().name
            if code == "UNAVAILABLE" and "failed to connect" in (exc.details() or "").lower():
                raise ConnectionError(exc.details()) from exc
            return 503 if code in _BUSY else 500, f"{code}: {exc.details()}".encode()
    return 200, answer


def measure(url: str, body: bytes, *, concurrency: int, seconds: float, server_cpu) -> Load:
    """Make calls with *body* on *concurrency* connections for *seconds*, each waiting for its answer.

    *server_cpu* returns the CPU seconds of the server so far.
    """
    _, answer = ask(url, body)
    with tempfile.TemporaryDirectory(prefix="h2load-") as name:
        data, log = Path(name, "body"), Path(name, "log")
        data.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
        command = [find_h2load(), "-t1", f"-c{concurrency}", "-m1", f"-D{max(1, round(seconds))}"]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        command += [f"--log-file={log}", "-d", str(data), url]
        busy, server, start = busy_seconds(), server_cpu(), time.perf_counter()
        text, h2load_seconds = run(command, dict(os.environ))
        passed = time.perf_counter() - start
        busy, server = busy_seconds() - busy, server_cpu() - server
        took = np.loadtxt(log, dtype=np.int64, ndmin=2)[:, 2] if log.exists() and log.stat().st_size else []
    requests = _number(r"requests: .*?(\d+) done", text)
    answered = _number(r"\((\d+)\) data", text) // (_FRAME + len(answer))
    if not len(took):
        raise NoLoad(f"h2load said: {text.strip()[-300:]!r}")
    p50, p99, longest = np.percentile(took, (50, 99, 100)) / 1e3
    return Load(
        concurrency=concurrency,
        requests=requests,
        seconds=seconds,
        p50_ms=float(p50),
        p99_ms=float(p99),
        max_ms=float(longest),
        bad_status=requests - answered,
        socket_errors=_number(r"(\d+) errored", text),
        timeouts=_number(r"(\d+) timeout", text),
        cpu_us=server / max(1, requests) * 1e6,
        wrk_cpu=h2load_seconds / passed,
        foreign_cpu=max(0.0, busy - server - h2load_seconds) / passed,
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise NoLoad(f"h2load said: {text.strip()[-300:]!r}")
    return int(found[1])
