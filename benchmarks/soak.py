"""Mixed load on a deployment for some minutes, while it is redeployed again and again and killed once.

    python benchmarks/soak.py [--minutes 1] [--clients 6] [--redeploy-every 12]

Two versions of a model take turns behind one name. Every answer says by header which version gave it, and is compared
with what that version's model computes. Prints wrong answers, failed requests, hung connections and the growth of the
servers' memory; ends with 1 if an answer was wrong, a request failed that no killed server excuses, or one hung.
Everything runs on the loopback interface and below a temporary directory, and is ended and removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

NAME = "soak"
FEATURES = 32
HANG_SECONDS = 10.0
TOLERANCE = 1e-4
_SETTLED_SECONDS = 4.0
"""How old a server is when its memory counts as what it starts from: loaded, warmed up, under load."""


@dataclass(slots=True)
class Tally:
    """What the clients saw. `failed` holds (start, end, what) of requests that got no answer of the right kind."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    answered: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: list[tuple[float, float, str]] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    draining: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """What each version answers, by its number, and the rows that the clients draw from."""

    models: Mapping[str, Callable[[np.ndarray], np.ndarray]]
    rows: np.ndarray
    input_name: str

    def body(self, x: np.ndarray) -> bytes:
        """Return the request for *x*."""
        tensor = {
            "name": self.input_name,
            "shape": list(x.shape),
            "datatype": "FP32",
            "data": x.ravel().tolist(),
        }
        return json.dumps({"inputs": [tensor]}).encode()


class Client(threading.Thread):
    """Sends requests of all kinds, one after the other, until told to stop. Never retries."""

    def __init__(
        self, number: int, port: int, reference: Reference, tally: Tally, stop: threading.Event
    ) -> None:
        super().__init__(name=f"client-{number}")
        self._random = random.Random(number)
        self._port, self._reference, self._tally, self._stopped = port, reference, tally, stop
        self._kept: http.client.HTTPConnection | None = None
        self._kinds: dict[str, Callable[[], str]] = {
            "one row": lambda: self._predict(1),
            "7 rows": lambda: self._predict(7),
            "300 rows": lambda: self._predict(300),
            "new connection": self._afresh,
            "in pieces": self._in_pieces,
            "bad input": self._bad,
            "metrics": self._metrics,
            "readiness": self._ready,
            "client that leaves": self._leave,
        }
        self._weights = (40, 20, 5, 10, 3, 8, 2, 7, 5)

    def run(self) -> None:
        while not self._stopped.is_set():
            (kind,) = self._random.choices(list(self._kinds), self._weights)
            start = time.monotonic()
            try:
                wrong = self._kinds[kind]()
            except TimeoutError:
                self._drop()
                with self._tally.lock:
                    self._tally.hung.append(f"{kind}: no answer in {HANG_SECONDS:g} s")
            except (OSError, http.client.HTTPException) as exc:
                self._drop()
                self._note_failure(start, f"{kind}: {type(exc).__name__}: {exc}")
            else:
                with self._tally.lock:
                    self._tally.answered[kind] += 1
                    if wrong:
                        self._tally.wrong.append(f"{kind}: {wrong}")
        self._drop()

    def _note_failure(self, start: float, what: str) -> None:
        with self._tally.lock:
            self._tally.failed.append((start, time.monotonic(), what))
        self._stopped.wait(0.05)  # while nothing listens, the clients must not spin

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _connection(self) -> http.client.HTTPConnection:
        if self._kept is None:
            self._kept = self._connect()
        return self._kept

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=HANG_SECONDS)
        connection.connect()
        assert connection.sock is not None
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _draw(self, rows: int) -> tuple[np.ndarray, bytes]:
        start = self._random.randrange(len(self._reference.rows) - rows)
        x = self._reference.rows[start : start + rows]
        return x, self._reference.body(x)

    def _predict(self, rows: int) -> str:
        x, body = self._draw(rows)
        return self._ask(self._connection(), x, body)

    def _afresh(self) -> str:
        x, body = self._draw(1)
        with contextlib.closing(self._connect()) as connection:
            return self._ask(connection, x, body)

    def _ask(self, connection: http.client.HTTPConnection, x: np.ndarray, body: bytes) -> str:
        connection.request("POST", _PATH, body, {"Content-Type": "application/json"})
        return self._compare(connection.getresponse(), x)

    def _in_pieces(self) -> str:
        x, body = self._draw(7)
        with contextlib.closing(self._connect()) as connection:
            connection.putrequest("POST", _PATH)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            third = len(body) // 3
            for piece in (body[:third], body[third : 2 * third], body[2 * third :]):
                connection.send(piece)
                self._stopped.wait(0.02)
            return self._compare(connection.getresponse(), x)

    def _compare(self, response: http.client.HTTPResponse, x: np.ndarray) -> str:
        content = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"status {response.status}: {content[:200]!r}")
        version = response.headers.get("x-model-version", "none")
        with self._tally.lock:
            self._tally.versions[version] += 1
        if version not in self._reference.models:
            return f"from the unknown version {version!r}"
        found = np.array(json.loads(content)["outputs"][0]["data"], dtype=np.float64)
        wanted = self._reference.models[version](x).ravel()
        if found.shape != wanted.shape:
            return f"{found.size} numbers instead of {wanted.size}"
        error = float(np.abs(found - wanted).max())
        return "" if error <= TOLERANCE else f"version {version} is {error:.3g} off"

    def _bad(self) -> str:
        connection = self._connection()
        connection.request("POST", _PATH, self._reference.body(self._reference.rows[:2, : FEATURES - 1]))
        response = connection.getresponse()
        content = response.read()
        right = response.status == 400 and b"expected shape" in content
        return "" if right else f"status {response.status} for a wrong shape: {content[:200]!r}"

    def _metrics(self) -> str:
        connection = self._connection()
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        content = response.read()
        return "" if response.status == 200 else f"status {response.status}: {content[:200]!r}"

    def _ready(self) -> str:
        """Ask a kept connection whether it is ready; a server that drains says no, and closes it."""
        connection = self._connection()
        connection.request("GET", "/v2/health/ready")
        response = connection.getresponse()
        content = response.read()
        if response.status == 503 and response.headers.get("connection") == "close":
            with self._tally.lock:
                self._tally.draining += 1
            return ""
        return "" if response.status == 200 else f"status {response.status}: {content[:200]!r}"

    def _leave(self) -> str:
        _, body = self._draw(7)
        with socket.create_connection(("127.0.0.1", self._port), timeout=HANG_SECONDS) as sock:
            sock.sendall(
                b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (_PATH.encode(), len(body))
            )
            sock.sendall(body[: self._random.randrange(len(body) + 1)])
        return ""


_PATH = f"/v2/models/{NAME}/infer"


class Memory(threading.Thread):
    """Samples the memory of every server below *state_dir*, twice a second."""

    def __init__(self, state_dir: Path, stop: threading.Event) -> None:
        super().__init__(name="memory")
        self._state_dir, self._stopped = state_dir, stop
        self.samples: dict[int, list[tuple[float, float]]] = {}

    def run(self) -> None:
        while not self._stopped.wait(0.5):
            for process in servers_below(self._state_dir):
                with contextlib.suppress(psutil.NoSuchProcess):
                    point = (time.monotonic(), process.memory_info().rss / 1e6)
                    self.samples.setdefault(process.pid, []).append(point)

    def summary(self) -> str:
        """Say how much each server grew from when it had settled to its last moment, and how they compare."""
        settled = {
            pid: [mb for when, mb in points if when - points[0][0] >= _SETTLED_SECONDS]
            for pid, points in self.samples.items()
        }
        spans = [mbs for mbs in settled.values() if len(mbs) > 1]
        if not spans:
            return "no server lived long enough to say"
        worst = max(spans, key=lambda mbs: mbs[-1] - mbs[0])
        return (
            f"{worst[-1] - worst[0]:+.1f} MB in the server that grew most (from {worst[0]:.0f} MB); "
            f"the first server ended at {spans[0][-1]:.0f} MB, the last at {spans[-1][-1]:.0f} MB; {len(spans)} servers"
        )


def servers_below(state_dir: Path, revision: int | None = None) -> list[psutil.Process]:
    """Return the server processes of this run; with *revision* that one's alone."""
    part = str(state_dir) if revision is None else f"{state_dir}/process/{NAME}/revisions/{revision}/"
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if "mlopsnb.serving" in line and part in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def _versions():
    """Export and log two models that answer differently; return their versions and what each computes."""
    import torch

    import mlopsnb

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(2000, FEATURES)).round(4).astype(np.float32)
    versions, computed, artifact = [], {}, None
    for seed in (1, 2):
        torch.manual_seed(seed)
        sizes = (FEATURES, 64), (64, 64), (64, 2)
        layers = [part for a, b in sizes for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        model = torch.nn.Sequential(*layers[:-1]).eval()
        artifact = mlopsnb.export(model, rows[:8])
        version = mlopsnb.log(artifact, name=NAME)
        versions.append(version)
        computed[version.uri.rpartition("/")[2]] = _numpy_forward(model)
    return versions, Reference(computed, rows, artifact.signature.inputs[0].name)


def _numpy_forward(model) -> Callable[[np.ndarray], np.ndarray]:
    """Return the network as plain numpy, so that the clients do not share torch's state."""
    weights = [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in model if hasattr(m, "weight")]

    def forward(x: np.ndarray) -> np.ndarray:
        for number, (weight, bias) in enumerate(weights):
            x = x @ weight + bias
            x = np.maximum(x, 0) if number < len(weights) - 1 else x
        return x

    return forward


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; return 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description="Soak test of a deployment under mixed load.")
    parser.add_argument("--minutes", type=float, default=1.0, help="of load (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=6, help="at the same time (default: %(default)s)")
    parser.add_argument(
        "--redeploy-every", type=float, default=12.0, metavar="SECONDS", help="(default: %(default)s)"
    )
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="mlopsnb-soak-") as name, _home(Path(name)) as state_dir:
            return _soak(args, state_dir)
    except KeyboardInterrupt:
        print("\ninterrupted; every server was ended", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _home(root: Path) -> Iterator[Path]:
    """Keep state, cache and MLflow's store below *root*; end the servers that are left when all is over."""
    state_dir = root / "state"
    os.environ["MLOPSNB_STATE_DIR"] = str(state_dir)
    os.environ["MLOPSNB_CACHE_DIR"] = str(root / "cache")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root / 'mlflow.db'}"
    with contextlib.chdir(root):  # MLflow keeps the files of such a store in ./mlruns
        try:
            yield state_dir
        finally:
            left = servers_below(state_dir)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5)


def _soak(args: argparse.Namespace, state_dir: Path) -> int:
    import mlopsnb

    versions, reference = _versions()
    deployment = mlopsnb.deploy(versions[0], name=NAME)
    port = int(deployment.url.rpartition(":")[2])
    tally, stop = Tally(), threading.Event()
    memory = Memory(state_dir, stop)
    threads: list[threading.Thread] = [Client(n, port, reference, tally, stop) for n in range(args.clients)]
    threads.append(memory)
    started = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        outages, deploys = _disturb(deployment, versions, state_dir, args)
    finally:
        stop.set()
        for thread in threads:
            thread.join(HANG_SECONDS + 5)
        stuck = [thread.name for thread in threads if thread.is_alive()]
        deployment.delete()
    return _report(tally, outages, deploys, stuck, memory, time.monotonic() - started)


def _disturb(
    deployment, versions, state_dir: Path, args: argparse.Namespace
) -> tuple[list[tuple[float, float]], int]:
    """Redeploy in turn until the time is over, and kill the server once, half-way; return when nothing served."""
    import mlopsnb

    outages: list[tuple[float, float]] = []
    deploys = 0
    end = time.monotonic() + args.minutes * 60
    half = time.monotonic() + args.minutes * 30
    while (now := time.monotonic()) < end:
        killing = not outages and now >= half
        if not killing:
            pause = min(args.redeploy_every, end - now, half - now if not outages else end - now)
            time.sleep(max(0.0, pause))
            killing = not outages and time.monotonic() >= half
        down = time.monotonic()
        if killing:
            for process in servers_below(state_dir, deployment.revision):
                process.kill()
        if time.monotonic() < end:
            deploys += 1
            mlopsnb.deploy(versions[deploys % len(versions)], name=NAME)
            print(f"deploy {deploys}{' after a killed server' if killing else ''}", flush=True)
        if killing:
            outages.append((down, time.monotonic()))
    return outages, deploys


def _report(
    tally: Tally,
    outages: Sequence[tuple[float, float]],
    deploys: int,
    stuck: Sequence[str],
    memory: Memory,
    seconds: float,
) -> int:
    def excused(start: float, end: float) -> bool:
        return any(start <= up and end >= down for down, up in outages)

    unexcused = [what for start, end, what in tally.failed if not excused(start, end)]
    total = sum(tally.answered.values())
    print(
        f"{seconds:.0f} s, {total:,} requests answered ({total / seconds:,.0f} a second), {deploys} redeploys"
    )
    print("  kinds:", ", ".join(f"{kind} {count:,}" for kind, count in sorted(tally.answered.items())))
    print(
        "  versions:", ", ".join(f"{version}: {count:,}" for version, count in sorted(tally.versions.items()))
    )
    down = sum(up - start for start, up in outages)
    print(f"wrong answers: {_told(tally.wrong)}")
    print(f"failed requests: {_told(unexcused)}")
    print(
        f"  and {len(tally.failed) - len(unexcused)} in the {down:.1f} s between the kill and the deploy after it"
    )
    print(f"hung connections: {_told([*tally.hung, *(f'{name} did not end' for name in stuck)])}")
    print(f"told that the server drains, on a kept connection: {tally.draining}")
    print(f"RSS growth: {memory.summary()}")
    return 1 if tally.wrong or unexcused or tally.hung or stuck else 0


def _told(what: Sequence[str]) -> str:
    common = Counter(what).most_common(5)
    return str(len(what)) + "".join(f"\n    {count} times: {text}" for text, count in common)


if __name__ == "__main__":
    sys.exit(main())
