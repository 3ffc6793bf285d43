"""Flood a real server with what is almost a request: python tests/fuzz/flood.py [COUNT] [SEED]. Ends with 0 if it held.

Four in five are requests whose body is a mutation of a good one, on connections that stay open; one in five is HTTP
that is itself mutated. One in fifty is good, and must be answered right. No answer may be a fault of the server, no
connection may hang, and memory must not grow.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import grpc
import numpy as np
import psutil
import targets

from mlopsnb import manifest
from mlopsnb.serving import v2
from mlopsnb.serving.rpc.messages import SERVICE, message

BODIES, HEADS = 64, 256
PATIENCE = 30.0
MEMORY_MAY_GROW = 64 << 20
FORMAT = """
import numpy as np

class Sum:
    def load(self, path, signature):
        return lambda inputs: {"y": inputs["x"].sum(axis=1).astype(np.float32)}
"""
X, N = np.array([[1.5, 2.0]], np.float32), np.array([[3]])
ANSWER = [3.5]
JSON = {"content-type": "application/json"}
GOOD = [
    ("/v2/models/m/infer", {}, v2.encode_request({"x": X, "n": N})),
    ("/v2/models/m/infer?slow", {}, v2.encode_request({"x": X, "n": N}, id="7")),
    ("/v1/models/m:predict", {}, b'{"instances": [{"x": [1.5, 2.0], "n": [3]}]}'),
    ("/v1/models/m:predict", {}, b'{"inputs": {"x": [[1.5, 2.0]], "n": [[3]]}}'),
    ("/invocations", JSON, b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1.5, 2.0, 3]]}}'),
    ("/invocations", {"content-type": "text/csv"}, b"a,b,c\n1.5,2.0,3\n"),
]
MANY = {"x": targets.MANY, "n": np.arange(2000).reshape(2000, 1)}
COLUMNS = json.dumps({"inputs": {name: array.tolist() for name, array in MANY.items()}}).encode()
LARGE = [
    ("/v2/models/m/infer", v2.encode_request(MANY)),
    ("/v1/models/m:predict", COLUMNS),
    ("/invocations", COLUMNS),
]
BINARY = v2.encode_binary_request({"x": X, "n": N})
HTTP_WORDS = (
    *(
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b" ",
        b":",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"POST ",
        b"GET ",
        b"\x00",
        b"\xff",
        b"0\r\n\r\n",
    ),
    *(b"content-length: 0\r\n", b"content-length: -1\r\n", b"content-length: 99999999999999999999\r\n"),
    *(
        b"transfer-encoding: chunked\r\n",
        b"expect: 100-continue\r\n",
        b"connection: close\r\n",
        b"ffffffff\r\n",
        b"1;x=y\r\n",
    ),
    *(
        b"connection: upgrade\r\nupgrade: h2c\r\n",
        b"x-request-id: " + b"i" * 200 + b"\r\n",
        b"x-request-timeout: 1e9\r\n",
    ),
    *(
        b"GET /ready HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
        b"h: " + b"v" * 70_000 + b"\r\n",
    ),
    *(
        b"inference-header-content-length: 9\r\n",
        b"content-encoding: gzip\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
)
CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
}
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def package(directory: Path) -> Path:
    """Write a model package, and its format where it is found as one of another package's."""
    info = directory / "sum_format-1.dist-info"
    info.mkdir()
    (directory / "sum_format.py").write_text(FORMAT)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sum-format\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mlopsnb.formats]\nsum = sum_format:Sum\n")
    made = directory / "m"
    (made / manifest.MODEL_DIR).mkdir(parents=True)
    (made / manifest.MODEL_DIR / "empty").touch()
    manifest.write_example(made, {"x": X, "n": N}, {"y": np.array(ANSWER, np.float32)})
    files = manifest.file_digests(made)
    manifest.write(made, manifest.Manifest(format="sum", signature=targets.FRAME, files=files))
    return made


def serve(directory: Path) -> tuple[subprocess.Popen[bytes], dict]:
    read, write = os.pipe()
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    options = ["--port=0", "--grpc-port=0", f"--ready-fd={write}", "--max-body-bytes=100000"]
    timeouts = [f"--{part}-timeout=1" for part in ("head", "body", "write", "idle")]
    with (directory / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlopsnb.serving", package(directory), *options, *timeouts],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=err,
            pass_fds=[write],
        )
    os.close(write)
    with os.fdopen(read) as pipe:
        return process, json.loads(pipe.readline())


def framed(path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def outcome(body: bytes) -> object:
    """Return the one output's values in an answer of any of the protocols."""
    content = json.loads(body)
    found = content.get("outputs", content.get("predictions"))
    return found[0]["data"] if isinstance(found[0], dict) else found


class Flood:
    """What is sent to *port*, and what has come of it."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.random = Random(seed)
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.sent = 0

    def body(self) -> tuple[bytes, bool]:
        """Return a request and whether it is good."""
        random = self.random
        if random.random() < 0.15:
            body, length = BINARY
            mutated = targets.mutated(body, targets.JSON_WORDS, random)
            length = random.choice((length, length, len(mutated), mutated.rfind(b"}") + 1, 0, 10**17))
            return framed(
                GOOD[0][0], {"inference-header-content-length": str(length)}, mutated[:99_000]
            ), False
        if random.random() < 0.05:
            path, body = random.choice(LARGE)
            return framed(path, JSON, targets.mutated(body, targets.JSON_WORDS, random)[:100_500]), False
        path, headers, body = random.choice(GOOD)
        if random.random() < 0.02:
            return framed(path, headers, body), True
        words = targets.TARGETS[random.choice(("v2", "mlflow-json", "mlflow-csv"))].words
        return framed(path, headers, targets.mutated(body, words, random)[:100_500]), False

    def head(self) -> bytes:
        """Return what is hardly HTTP: one or more requests, mutated."""
        whole = b"".join(framed(*self.random.choice(GOOD)) for _ in range(self.random.choice((1, 1, 2, 5))))
        if self.random.random() < 0.3:
            chunks = b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
            whole = b"POST /invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunks
        return targets.mutated(whole, HTTP_WORDS, self.random)

    def told(self, status: int, request: bytes) -> None:
        self.statuses[status] += 1
        if status >= 500:
            self.faults.append(f"{status} for {request[:2000]!r}")

    async def send_bodies(self, count: int) -> None:
        """Send *count* requests on one connection after the other, as they come to be closed."""
        while count > 0:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                open_ = True
                while open_ and count > 0:
                    count -= 1
                    request, good = self.body()
                    open_ = await asyncio.wait_for(self._one(reader, writer, request, good), PATIENCE)
            except TimeoutError:
                self.faults.append(f"no answer to {request[:2000]!r}")
            except (ConnectionError, asyncio.IncompleteReadError):
                self.statuses[0] += 1
                if good:
                    self.faults.append("a good request had no answer")
            finally:
                writer.close()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, good: bool
    ) -> bool:
        """Send a request and take its answer; say whether the connection goes on."""
        self.sent += 1
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1]))
        status = int(STATUS.match(head)[1])
        self.told(status, request)
        if status != 200:
            assert json.loads(body), body
        if good and (status != 200 or outcome(body) != ANSWER):
            self.faults.append(f"a good request was answered {status}: {body[:500]!r}")
        return b"connection: close" not in head

    async def send_heads(self, count: int) -> None:
        """Send *count* pieces of garbage, each on a connection of its own, which the server has to end."""
        for _ in range(count):
            request = self.head()
            self.sent += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            answer = b""
            try:
                writer.write(request)
                answer = await asyncio.wait_for(reader.read(), PATIENCE)
            except TimeoutError:
                self.faults.append(f"left open after {request[:2000]!r}")
            except ConnectionError:
                pass
            finally:
                writer.close()
            for status in map(int, STATUS.findall(answer)):
                self.told(status, request)
            if not answer:
                self.statuses[0] += 1

    async def send_calls(self, count: int, address: str) -> None:
        """Send *count* messages by gRPC, one in fifty good."""
        good = v2_message()
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            for _ in range(count):
                fair = self.random.random() < 0.02
                mutated = targets.mutated(good, targets.TARGETS["grpc"].words, self.random)
                self.sent += 1
                try:
                    await call(good if fair else mutated, timeout=PATIENCE)
                    status = 200
                except grpc.aio.AioRpcError as exc:
                    status = CODES.get(exc.code(), 500)
                    if status == 500:
                        self.faults.append(f"{exc.code()}: {exc.details()} for {len(mutated)} bytes")
                self.told(status, mutated)
                if fair and status != 200:
                    self.faults.append("a good call failed")

    async def run(self, count: int, address: str) -> None:
        bodies, heads, calls = count * 3 // 4 // BODIES, count // 5 // HEADS, count // 20
        await asyncio.gather(
            *(self.send_bodies(bodies) for _ in range(BODIES)),
            *(self.send_heads(heads) for _ in range(HEADS)),
            self.send_calls(calls, address),
        )


def v2_message() -> bytes:
    request = message("ModelInferRequest")(model_name="m")
    for name, array, datatype, field in (
        ("x", X, "FP32", "fp32_contents"),
        ("n", N, "INT64", "int64_contents"),
    ):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        getattr(tensor.contents, field).extend(array.ravel().tolist())
    return request.SerializeToString()


def last_words(flood: Flood) -> None:
    """Ask once more by every protocol."""

    async def ask(path: str, headers: dict[str, str], body: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", flood.port)
        await asyncio.wait_for(flood._one(reader, writer, framed(path, headers, body), True), PATIENCE)
        writer.close()

    for path, headers, body in GOOD:
        asyncio.run(ask(path, headers, body))


def main() -> int:
    count, seed = map(int, [*sys.argv[1:], *("200000", "1")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        process, report = serve(directory)
        try:
            flood = Flood(int(report["url"].rpartition(":")[2]), seed)
            memory = psutil.Process(process.pid).memory_info
            asyncio.run(flood.run(max(count // 10, 4000), report["grpc"]))
            before, begin = memory().rss, time.monotonic()
            asyncio.run(flood.run(count, report["grpc"]))
            seconds, grown = time.monotonic() - begin, memory().rss - before
            last_words(flood)
            alive = process.poll() is None
        finally:
            process.terminate()
            code = process.wait(30)
        errors = (directory / "err").read_text()
    if grown > MEMORY_MAY_GROW:
        flood.faults.append(f"memory grew by {grown >> 20} MiB")
    if not alive or code or errors:
        flood.faults.append(f"alive {alive}, exit code {code}, on stderr: {errors[:4000]}")
    told = ", ".join(f"{n} times {status or 'no answer'}" for status, n in sorted(flood.statuses.items()))
    print(f"{flood.sent} sent, the last {count} in {seconds:.0f} s; {told}; memory {grown / 2**20:+.1f} MiB")
    for fault in flood.faults[:20]:
        print("FAULT:", fault)
    return 1 if flood.faults else 0


if __name__ == "__main__":
    sys.exit(main())
