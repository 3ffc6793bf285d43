"""The clients of the soak test: requests of all protocols, sizes and manners, each answer compared with the model's."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

NAME = "soak"
FEATURES = 32
HANG_SECONDS = 10.0
TOLERANCE = 1e-4
INFER = f"/v2/models/{NAME}/infer"
_LENGTH = "Inference-Header-Content-Length"


@dataclass(slots=True)
class Tally:
    """What the clients saw. `failed` holds (start, end, what) of requests that got no answer of the right kind.

    `closed` holds (last used, found) of kept connections that ended without a word between two requests.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    answered: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: list[tuple[float, float, str]] = field(default_factory=list)
    closed: list[tuple[float, float]] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    draining: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """What each version answers, by its number, and the rows that the clients draw from."""

    models: Mapping[str, Callable[[np.ndarray], np.ndarray]]
    rows: np.ndarray
    input_name: str

    def tensor(self, x: np.ndarray, **more: object) -> dict[str, object]:
        """Return *x* as the Open Inference Protocol has it, but for its values."""
        return {"name": self.input_name, "shape": list(x.shape), "datatype": "FP32", **more}

    def body(self, x: np.ndarray) -> bytes:
        """Return the request for *x*."""
        return json.dumps({"inputs": [self.tensor(x, data=x.ravel().tolist())]}).encode()

    def wrong(self, x: np.ndarray, version: str, found: object) -> str:
        """Say what is wrong with the numbers *found* for *x*; nothing if they are the model's."""
        if version not in self.models:
            return f"from the unknown version {version!r}"
        numbers = np.asarray(found, dtype=np.float64).ravel()
        wanted = self.models[version](x).ravel()
        if numbers.shape != wanted.shape:
            return f"{numbers.size} numbers instead of {wanted.size}"
        error = float(np.abs(numbers - wanted).max())
        return "" if error <= TOLERANCE else f"version {version} is {error:.3g} off"


class Client(threading.Thread):
    """Sends requests of all kinds, one after the other, until told to stop. Never retries.

    Before it uses a kept connection again, it looks whether that was closed meanwhile, as HTTP clients do.

    It asks the servers on *ports* by turns, and *grpc*, the last of them, by gRPC. With *pause* it takes a rest of so
    many seconds, on average, after each request.
    """

    def __init__(
        self,
        number: int,
        ports: tuple[int, ...],
        grpc: str,
        reference: Reference,
        tally: Tally,
        stop: threading.Event,
        pause: float,
    ) -> None:
        super().__init__(name=f"client-{number}")
        self._random = random.Random(number)
        self._ports, self._port = ports, ports[0]
        self._grpc, self._call = grpc, None
        self._reference, self._tally, self._stopped, self._pause = reference, tally, stop, pause
        self._kept: dict[int, http.client.HTTPConnection] = {}
        self._used: dict[int, float] = {}
        self._kinds: dict[str, tuple[int, Callable[[], str]]] = {
            "one row": (30, lambda: self._v2(1)),
            "7 rows": (15, lambda: self._v2(7)),
            "300 rows": (4, lambda: self._v2(300)),
            "binary, 1 row": (8, lambda: self._binary(1)),
            "binary, 300 rows": (3, lambda: self._binary(300)),
            "TensorFlow Serving": (8, lambda: self._by_rows(f"/v1/models/{NAME}:predict", "instances")),
            "MLflow": (8, lambda: self._by_rows("/invocations", "inputs")),
            "gRPC": (8, self._by_grpc),
            "new connection": (8, self._afresh),
            "in pieces": (2, self._in_pieces),
            "wrong shape": (3, self._bad),
            "malformed": (4, self._malformed),
            "metrics": (1, self._metrics),
            "readiness": (4, self._ready),
            "client that leaves": (4, self._leave),
        }

    def run(self) -> None:
        kinds, weights = list(self._kinds), [weight for weight, _ in self._kinds.values()]
        while not self._stopped.is_set():
            (kind,) = self._random.choices(kinds, weights)
            self._port = self._random.choice(self._ports)
            self._one(kind)
            if self._pause:
                self._stopped.wait(self._random.uniform(0, 2 * self._pause))
        for port in self._ports:
            self._drop(port)

    def _one(self, kind: str) -> None:
        start = time.monotonic()
        try:
            wrong = self._kinds[kind][1]()
        except TimeoutError:
            self._drop(self._port)
            with self._tally.lock:
                self._tally.hung.append(f"{kind}: no answer in {HANG_SECONDS:g} s")
        except (OSError, http.client.HTTPException) as exc:
            self._drop(self._port)
            with self._tally.lock:
                self._tally.failed.append((start, time.monotonic(), f"{kind}: {type(exc).__name__}: {exc}"))
            self._stopped.wait(0.05)  # while nothing listens, the clients must not spin
        else:
            with self._tally.lock:
                self._tally.answered[kind] += 1
                if wrong:
                    self._tally.wrong.append(f"{kind}: {wrong}")

    def _drop(self, port: int) -> None:
        if port in self._kept:
            self._kept.pop(port).close()

    def _connection(self) -> http.client.HTTPConnection:
        now = time.monotonic()
        kept = self._kept.get(self._port)
        if kept is not None and kept.sock is not None and select.select([kept.sock], [], [], 0)[0]:
            self._drop(self._port)
            with self._tally.lock:
                self._tally.closed.append((self._used[self._port], now))
        if self._port not in self._kept:
            self._kept[self._port] = self._connect()
        self._used[self._port] = now
        return self._kept[self._port]

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=HANG_SECONDS)
        connection.connect()
        assert connection.sock is not None
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _draw(self, rows: int) -> np.ndarray:
        start = self._random.randrange(len(self._reference.rows) - rows)
        return self._reference.rows[start : start + rows]

    def _ask(
        self, connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        return _good(connection.getresponse())

    def _compare(self, x: np.ndarray, response: http.client.HTTPResponse, found: object) -> str:
        version = response.headers.get("x-model-version", "none")
        with self._tally.lock:
            self._tally.versions[version] += 1
        return self._reference.wrong(x, version, found)

    # ------------------------------------------------------------------------------------------ right requests
    def _v2(self, rows: int) -> str:
        x = self._draw(rows)
        response, content = self._ask(self._connection(), INFER, self._reference.body(x), {})
        return self._compare(x, response, json.loads(content)["outputs"][0]["data"])

    def _binary(self, rows: int) -> str:
        x = self._draw(rows)
        raw = x.tobytes()
        tensor = self._reference.tensor(x, parameters={"binary_data_size": len(raw)})
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        response, content = self._ask(self._connection(), INFER, head + raw, {_LENGTH: str(len(head))})
        length = int(response.headers[_LENGTH])
        size = json.loads(content[:length])["outputs"][0]["parameters"]["binary_data_size"]
        assert size == len(content) - length
        return self._compare(x, response, np.frombuffer(content[length:], np.float32))

    def _by_rows(self, path: str, key: str) -> str:
        x = self._draw(7)
        response, content = self._ask(self._connection(), path, json.dumps({key: x.tolist()}).encode(), {})
        return self._compare(x, response, json.loads(content)["predictions"])

    def _by_grpc(self) -> str:
        import grpc

        from mlopsnb.serving.rpc.messages import SERVICE, message

        self._port = self._ports[-1]
        if self._call is None:
            self._call = grpc.insecure_channel(self._grpc).unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=message("ModelInferRequest").SerializeToString,
                response_deserializer=message("ModelInferResponse").FromString,
            )
        x = self._draw(self._random.choice((1, 7, 300)))
        request = message("ModelInferRequest")(model_name=NAME, raw_input_contents=[x.tobytes()])
        request.inputs.add(name=self._reference.input_name, datatype="FP32", shape=x.shape)
        try:
            answer = self._call(request, timeout=HANG_SECONDS)
        except grpc.RpcError as exc:
            if exc.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from exc
            raise ConnectionError(f"{exc.code().name}: {exc.details()}") from exc
        return self._reference.wrong(
            x, answer.model_version, np.frombuffer(answer.raw_output_contents[0], np.float32)
        )

    def _afresh(self) -> str:
        x = self._draw(1)
        with contextlib.closing(self._connect()) as connection:
            response, content = self._ask(connection, INFER, self._reference.body(x), {})
            return self._compare(x, response, json.loads(content)["outputs"][0]["data"])

    def _in_pieces(self) -> str:
        x = self._draw(7)
        body = self._reference.body(x)
        with contextlib.closing(self._connect()) as connection:
            connection.putrequest("POST", INFER)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            third = len(body) // 3
            for piece in (body[:third], body[third : 2 * third], body[2 * third :]):
                connection.send(piece)
                self._stopped.wait(0.02)
            response, content = _good(connection.getresponse())
            return self._compare(x, response, json.loads(content)["outputs"][0]["data"])

    # ------------------------------------------------------------------------------------------ others
    def _bad(self) -> str:
        status, content = self._plain("POST", INFER, self._reference.body(self._draw(2)[:, : FEATURES - 1]))
        right = status == 400 and b"expected shape" in content
        return "" if right else f"status {status} for a wrong shape: {content[:200]!r}"

    def _malformed(self) -> str:
        """Send what is no request; the connection lives on, and the answer says what was expected."""
        good = self._reference.body(self._draw(1))
        path, body, wanted = self._random.choice(
            [
                (INFER, good[: self._random.randrange(len(good))], 400),
                (INFER, b"\xff" + good, 400),
                (INFER, b"[" * 2000, 400),
                (INFER, good.replace(b"FP32", b"FP99"), 400),
                (INFER, good.replace(b'"inputs"', b'"input"'), 400),
                (f"/v1/models/{NAME}:predict", b'{"instances": 5}', 400),
                ("/invocations", b'{"inputs": {}}', 400),
                ("/v2/models/other/infer", good, 404),
                ("/healthz", good, 405),
            ]
        )
        status, content = self._plain("POST", path, body)
        right = status == wanted and b"error" in content
        return "" if right else f"status {status} instead of {wanted} for {body[:60]!r}: {content[:200]!r}"

    def _plain(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = self._connection()
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status == 503 and response.headers.get("connection") == "close":
            with self._tally.lock:
                self._tally.draining += 1
        return response.status, content

    def _metrics(self) -> str:
        status, content = self._plain("GET", "/metrics")
        return "" if status == 200 else f"status {status}: {content[:200]!r}"

    def _ready(self) -> str:
        """Ask a kept connection whether it is ready; a server that drains says no, and closes it."""
        status, content = self._plain("GET", "/v2/health/ready")
        return "" if status in (200, 503) else f"status {status}: {content[:200]!r}"

    def _leave(self) -> str:
        body = self._reference.body(self._draw(7))
        with socket.create_connection(("127.0.0.1", self._port), timeout=HANG_SECONDS) as sock:
            sock.sendall(
                b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
            )
            sock.sendall(body[: self._random.randrange(len(body) + 1)])
        return ""


def _good(response: http.client.HTTPResponse) -> tuple[http.client.HTTPResponse, bytes]:
    content = response.read()
    if response.status != 200:
        raise http.client.HTTPException(f"status {response.status}: {content[:200]!r}")
    return response, content
