"""A tiny package in a format of our own, installed by an entry point as third parties do, and real servers on it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from authority import Authority

from mlopsnb import manifest, profiles
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving.engine import Engine
from mlopsnb.serving.metrics import Metrics
from mlopsnb.serving.model import Model, Package
from mlopsnb.serving.tuning import Options, Plan

AFFINE = '''
"""y = scale * sum(x) + n. Some values of x make trouble, as the tests need it."""

import json
import os
from pathlib import Path

import numpy as np


class Affine:
    def load(self, path, signature):
        weights = json.loads((path / "weights.json").read_text())
        if "explode" in weights:
            raise RuntimeError(weights["explode"])
        broken = False

        def predict(inputs):
            nonlocal broken
            x, n = inputs["x"], inputs["n"]
            if weights.get("sturdy"):
                x = np.where(x == 13, 0, x)
            broken = broken or bool((x == 13).any())
            if broken:
                raise RuntimeError("the weights are gone")
            if (x == 666).any():
                raise ValueError("666 is not for me")
            if (x == 100).any() and not weights.get("sturdy"):
                Path(os.environ["AFFINE_GATE"]).read_bytes()  # a FIFO: waits until the test opens it
            y = (x.sum(axis=1) * weights["scale"] + n).astype(weights["dtype"])
            return {"y": y, "sign": np.array(["-" if v < 0 else "+" for v in y], dtype=object)}

        return predict
'''

ECHO = '''
"""What goes in as `a` comes out as `out_a`."""


class Echo:
    def load(self, path, signature):
        return lambda inputs: {f"out_{name}": array for name, array in inputs.items()}
'''

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=(None, 4), allow_nan=True),
        TensorSpec(name="n", dtype="int8", shape=(None,)),
    ),
    outputs=(
        TensorSpec(name="y", dtype="float32", shape=(None,)),
        TensorSpec(name="sign", dtype="str", shape=(None,)),
    ),
)


@pytest.fixture(scope="session")
def format_path(tmp_path_factory):
    """A directory for PYTHONPATH that holds the formats `affine` and `echo`."""
    site = tmp_path_factory.mktemp("site")
    (site / "affine_format.py").write_text(textwrap.dedent(AFFINE))
    (site / "echo_format.py").write_text(textwrap.dedent(ECHO))
    info = site / "affine_format-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: affine-format\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[mlopsnb.formats]\naffine = affine_format:Affine\necho = echo_format:Echo\n"
    )
    return site


@pytest.fixture
def make_package(tmp_path):
    """Write a package; keywords change the weights, `format` the name of its format."""

    def make(name="affine", *, format="affine", **weights):
        package = tmp_path / name
        (package / manifest.MODEL_DIR).mkdir(parents=True)
        weights = {"scale": 2.0, "dtype": "float32", **weights}
        (package / manifest.MODEL_DIR / "weights.json").write_text(json.dumps(weights))
        x = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
        n = np.array([0, 1, -60], dtype=np.int8)
        y = (x.sum(axis=1) * 2 + n).astype(np.float32)
        sign = np.array(["-" if v < 0 else "+" for v in y], dtype=object)
        manifest.write_example(package, {"x": x, "n": n}, {"y": y, "sign": sign})
        manifest.write(
            package,
            manifest.Manifest(format=format, signature=SIGNATURE, files=manifest.file_digests(package)),
        )
        return package

    return make


@pytest.fixture
def add_reference():
    """Put a reference profile into a package."""

    def add(package, profile):
        (package / profiles.FILE).write_text(profiles.to_json(profile))
        described = manifest.read(package)
        manifest.write(package, replace(described, files=manifest.file_digests(package)))
        return package

    return add


@pytest.fixture
def make_echo(tmp_path):
    """Write a package that answers named arrays as they are; keywords `features` and `nan` are of every input.

    The first axis is free, unless `shapes` says something else of an input.
    """

    def make(inputs, *, features=(), nan=True, shapes=None, name="echo"):
        package = tmp_path / name
        (package / manifest.MODEL_DIR).mkdir(parents=True)
        outputs = {f"out_{name}": array for name, array in inputs.items()}
        manifest.write_example(package, inputs, outputs)
        signature = Signature(
            inputs=tuple(_spec(k, a, features, nan, shapes) for k, a in inputs.items()),
            outputs=tuple(replace(_spec(k, a, (), nan, shapes), name=f"out_{k}") for k, a in inputs.items()),
        )
        manifest.write(
            package,
            manifest.Manifest(format="echo", signature=signature, files=manifest.file_digests(package)),
        )
        return package

    return make


def _spec(name, array, features, nan, shapes):
    return TensorSpec(
        name=name,
        dtype="str" if array.dtype == object else array.dtype.name,
        shape=(shapes or {}).get(name, (None, *array.shape[1:])),
        feature_names=tuple(features),
        allow_nan=nan and array.dtype.kind == "f",
    )


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = {k.lower(): v for k, v in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self):
        self.sock = connect_unix(self._path)
        self.sock.settimeout(30)


def connect_unix(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.chdir(path.parent):
        sock.connect(path.name)
    return sock


class Runtime:
    """One server process. `report` is what it wrote to its ready pipe."""

    def __init__(self, package, *options, env, logs, pass_fds=()):
        self._logs = logs
        read, write = os.pipe()
        with (logs / "out").open("wb") as out, (logs / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlopsnb.serving", package, "--ready-fd", str(write), *options],
                stdout=out,
                stderr=err,
                env=env,
                pass_fds=(write, *pass_fds),
            )
        os.close(write)
        with os.fdopen(read) as pipe:
            line = pipe.readline()
        self.report = json.loads(line) if line else None

    @property
    def port(self):
        return int(self.report["url"].rpartition(":")[2])

    @property
    def log_lines(self):
        return (self._logs / "out").read_text().splitlines()

    @property
    def errors(self):
        return (self._logs / "err").read_text()

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def request(self, method, path, body=None, headers=None):
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {})
            return Answer(connection.getresponse())

    def get(self, path):
        return self.request("GET", path)

    def samples(self, name):
        """The values in Prometheus' text, by series, of those that begin with *name*."""
        lines = [x for x in self.get("/metrics").body.decode().splitlines() if x.startswith(name)]
        return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}

    def infer(self, content, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.request("POST", "/v2/models/affine/infer", body, headers)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


@pytest.fixture(scope="session")
def environment(format_path):
    path = os.pathsep.join(filter(None, (str(format_path), os.environ.get("PYTHONPATH"))))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**inherited, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}


@pytest.fixture
def serve(tmp_path, environment):
    """Start a server on a package; all are stopped at the end."""
    running = []

    def start(package, *options, pass_fds=(), **env):
        logs = tmp_path / f"logs-{len(running)}"
        logs.mkdir()
        runtime = Runtime(package, *options, env={**environment, **env}, logs=logs, pass_fds=pass_fds)
        running.append(runtime)
        return runtime

    yield start
    for runtime in running:
        runtime.stop()


@pytest.fixture
def served(serve, make_package):
    """A server on a good package, on a free port."""
    return serve(make_package(), "--port", "0", "--max-body-bytes", "10000")


@pytest.fixture
def body():
    """Make a request for rows of x; keywords replace parts of it."""

    def make(rows=((1, 2, 3, 4),), *, x=None, n=None, **top):
        tensor_x = {
            "name": "x",
            "shape": [len(rows), 4],
            "datatype": "FP32",
            "data": [v for r in rows for v in r],
            **(x or {}),
        }
        tensor_n = {
            "name": "n",
            "shape": [len(rows)],
            "datatype": "INT8",
            "data": [5] * len(rows),
            **(n or {}),
        }
        return {"inputs": [tensor_x, tensor_n], **top}

    return make


@pytest.fixture
def gate(tmp_path):
    """A FIFO: a model that was given it as AFFINE_GATE waits in a request for x = 100 until somebody writes to it."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


@pytest.fixture
def client(body):
    """Send a request on a connection of its own, leave it waiting, and return the connection."""
    with contextlib.ExitStack() as stack:

        def send(runtime, rows, path="/v2/models/affine/infer", headers=None):
            connection = stack.enter_context(contextlib.closing(runtime.connect()))
            connection.request("POST", path, json.dumps(body(rows)), headers or {})
            return connection

        yield send


@pytest.fixture(scope="session")
def build_engine():
    """Make an engine around a callable, as if it was loaded from a package; keywords replace parts of the plan."""
    plan = Plan(
        inline=True,
        instances=1,
        threads=0,
        joins=True,
        max_batch_size=8,
        inline_rows=100,
        row_seconds=0.5,
        forward_seconds=0.001,
    )

    def build(call, signature, golden, options=None, **changes):
        made = manifest.Manifest(format="none", signature=signature, files={})
        package = Package(path=Path(), manifest=made, golden=golden)
        chosen = replace(plan, **changes)
        return Engine(package, Model(package, call), chosen, options or Options(), Metrics("m", "1"))

    return build


@pytest.fixture
def signature():
    return SIGNATURE


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "ca")


@pytest.fixture
def unix_connection():
    return UnixConnection


@pytest.fixture
def control():
    """Send one command to a control socket; return the answer and the descriptor that came, if any."""

    def send(path: Path, command: bytes, fds=()):
        with contextlib.closing(connect_unix(path)) as sock:
            sock.settimeout(10)
            if fds:
                socket.send_fds(sock, [command], list(fds))
            else:
                sock.send(command)
            answer, received, _, _ = socket.recv_fds(sock, 16, 1)
        return answer, received[0] if received else None

    return send
