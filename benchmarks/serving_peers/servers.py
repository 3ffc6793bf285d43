"""The servers: how each is set up, started and asked. One function a server, one table of all at the end.

Settings are the best that were found for each: workers, batching, logs of single requests off. Where a setting helps
at one concurrency and hurts at another there are two variants of one `family`, and the ratios take the better.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_peers import grpc_load
from serving_peers.cases import MODEL, Prepared

_HERE = Path(__file__).resolve().parent
OURS = ("httptools", "msgspec", "numpy", "orjson", "torch", "uvicorn", "uvloop")
"""The packages behind our server and the bare ones, whose versions are told in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to start one server for one case, and where to ask it. `setup` runs before, and is not timed."""

    argv: list[str]
    port: int
    path: str = f"/v2/models/{MODEL}/infer"
    env: Mapping[str, str] = field(default_factory=dict)
    setup: list[str] | None = None
    body: str = "v2"
    silent: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a server's function is given: the case, the interpreter of its environment, a folder of its own."""

    prepared: Prepared
    python: Path
    folder: Path
    batched: bool

    @property
    def grpc(self) -> bool:
        """Whether the case is asked over gRPC."""
        return self.prepared.case.protocol == "grpc"

    @property
    def workers(self) -> int:
        return 2 if self.prepared.case.heavy else 1

    def module(self, name: str, *args: object) -> list[str]:
        """Return the command that runs a launcher in this environment."""
        return [str(self.python), "-P", "-m", f"serving_peers.{name}", *map(str, args)]

    def tool(self, name: str) -> str:
        """Return the path of a console script of this environment."""
        return str(self.python.parent / name)

    @property
    def env(self) -> dict[str, str]:
        """What the launchers read, and one thread a worker in every numeric library."""
        return {**model_env(self.prepared), "BENCH_BATCH": str(int(self.batched))}


def model_env(prepared: Prepared) -> dict[str, str]:
    """Return what a launcher reads to load the model, and one thread in every numeric library."""
    case = prepared.case
    return {
        "BENCH_MODEL": str(prepared.script),
        "BENCH_INPUT": prepared.input_name,
        "BENCH_ROW": ",".join(map(str, case.row)),
        "BENCH_ROWS": str(case.rows),
        "BENCH_HEAVY": str(int(case.heavy)),
        "BENCH_BINARY": str(int(case.binary)),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(_HERE.parent),
    }


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _open_inference(place: Place, http_port: int, grpc_port: int, **how: Any) -> Command:
    """Return a command of a server that speaks the protocol both ways; it is asked as the case says."""
    if place.grpc:
        return Command(port=grpc_port, path=grpc_load.PATH, body="grpc", **how)
    return Command(port=http_port, body="binary" if place.prepared.case.binary else "v2", **how)


def _ours(place: Place, *options: str) -> Command:
    port, grpc_port = free_port(), free_port()
    command = [str(place.python), "-m", "mlopsnb.serving", str(place.prepared.package), "--name", MODEL]
    command += ["--port", str(port), *options]
    if place.grpc:
        command += ["--grpc-port", str(grpc_port)]
    env = {"PYTHONDONTWRITEBYTECODE": ""}  # installed packages, as the peers are, have their bytecode
    return _open_inference(place, port, grpc_port, argv=command, env=env, silent=True)


def _alone(place: Place) -> Command:
    return _ours(place, "--workers", "1")


def _asgi(place: Place) -> Command:
    port = free_port()
    return Command(argv=place.module("launch_asgi", port), port=port, path="/", env=place.env)


def _protocol(place: Place) -> Command:
    port = free_port()
    return Command(argv=place.module("launch_protocol", port), port=port, path="/", env=place.env)


def _mlserver(place: Place) -> Command:
    port, grpc_port = free_port(), free_port()
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_endpoint": None,
        "debug": False,
        "gzip_enabled": False,
        "parallel_workers": 2 if place.prepared.case.heavy else 0,
    }
    model = {"name": MODEL, "implementation": "serving_peers.launch_mlserver.Runtime"}
    if place.batched:
        model |= {"max_batch_size": 32, "max_batch_time": 0.001}
    (place.folder / "settings.json").write_text(json.dumps(settings))
    (place.folder / "model-settings.json").write_text(json.dumps(model))
    command = [place.tool("mlserver"), "start", str(place.folder)]
    return _open_inference(place, port, grpc_port, argv=command, env=place.env)


def _kserve(place: Place) -> Command:
    port, grpc_port = free_port(), free_port()
    command = place.module("launch_kserve", port, place.workers, grpc_port if place.grpc else 0)
    return _open_inference(place, port, grpc_port, argv=command, env=place.env)


def _litserve(place: Place) -> Command:
    port = free_port()
    return Command(argv=place.module("launch_litserve", port), port=port, path="/predict", env=place.env)


def _bentoml(place: Place) -> Command:
    port = free_port()
    command = [place.tool("bentoml"), "serve", "serving_peers.launch_bentoml:Service"]
    return Command(
        argv=[*command, "--host", "127.0.0.1", "--port", str(port)],
        port=port,
        path="/infer",
        env={**place.env, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder)},
    )


def _mlflow(place: Place) -> Command:
    port = free_port()
    model = place.folder / "model"
    command = [place.tool("mlflow"), "models", "serve", "--model-uri", str(model), "--env-manager", "local"]
    env = {
        **place.env,
        "MLFLOW_TRACKING_URI": f"sqlite:///{place.folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{place.python.parent}:/usr/bin:/bin",
    }
    return Command(
        argv=[*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        port=port,
        path="/invocations",
        body="mlflow",
        env={**env, "UVICORN_ACCESS_LOG": "false"},
        setup=place.module("launch_mlflow", model),
    )


_TRITON_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input [ {{ name: "{input}" data_type: TYPE_FP32 dims: [ {dims} ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {output} ] }} ]
instance_group [ {{ count: {count} kind: KIND_CPU }} ]
{batching}
"""


def _triton(place: Place) -> Command:
    server = _triton_root(place.python)
    repository = place.folder / "models"
    version = repository / MODEL / "1"
    version.mkdir(parents=True)
    shutil.copy(_HERE / "launch_triton.py", version / "model.py")
    (version / _HERE.name).mkdir()  # Triton's Python looks beside the model and in its own environment alone
    shutil.copy(_HERE / "launch_common.py", version / _HERE.name)
    prepared = place.prepared
    config = _TRITON_CONFIG.format(
        name=MODEL,
        max_batch_size=max(32, prepared.case.rows),
        input=prepared.input_name,
        dims=", ".join(map(str, prepared.case.row)),
        output=prepared.output_size,
        count=place.workers,
        batching="dynamic_batching { }" if place.batched else "",
    )
    (repository / MODEL / "config.pbtxt").write_text(config)
    port, grpc_port = free_port(), free_port()
    packages = server.parents[1]
    libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    env = {
        **place.env,
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": f"{place.python.parent}:/usr/bin:/bin",
    }
    command = [str(server / "bin" / "tritonserver"), "--model-repository", str(repository)]
    command += [
        "--backend-directory",
        str(_triton_backends(server, place.folder)),
        "--allow-metrics",
        "false",
    ]
    command += ["--http-address", "127.0.0.1", "--http-port", str(port)]
    command += ["--grpc-address", "127.0.0.1", "--grpc-port", str(grpc_port)]
    command += ["--allow-grpc", str(place.grpc).lower(), "--allow-http", str(not place.grpc).lower()]
    return _open_inference(place, port, grpc_port, argv=command, env=env)


def _triton_backends(server: Path, folder: Path) -> Path:
    """Put the Python back end together with its stub for this Python, as pytriton does before it starts the server."""
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copy(stub / "triton_python_backend_stub", backends / "python")
    return backends


def _triton_root(python: Path) -> Path:
    """Return where pytriton's wheel keeps the server."""
    return next((python.parent.parent / "lib").glob("python3*/site-packages/pytriton/tritonserver"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One line of the table. Without `environment` it runs in ours."""

    name: str
    family: str
    make: Callable[[Place], Command]
    environment: str | None = None
    batched: bool = False
    cases: tuple[str, ...] = ("mlp", "conv", "table")

    def command(self, prepared: Prepared, python: Path | None, folder: Path) -> Command:
        """Return how to start this server for one case; writes its settings into *folder*."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        interpreter = python or Path(sys.executable)
        return self.make(Place(prepared=prepared, python=interpreter, folder=folder, batched=self.batched))


def _peer(name: str, make: Callable[[Place], Command], *, batched: tuple[str, ...], single: tuple[str, ...]):
    both = set(batched) & set(single)
    for cases, on in ((single, False), (batched, True)):
        if cases:
            label = f"{name}, batching" if on and both else name
            yield Server(name=label, family=name, make=make, environment=name, batched=on, cases=cases)


_LIGHT, _ROWS, _RAW, _GRPC = ("mlp", "conv"), ("table",), ("table-binary",), ("mlp-grpc",)
_ALL = (*_LIGHT, *_ROWS)
SERVERS = (
    Server(name="mlopsnb", family="mlopsnb", make=_ours, cases=(*_ALL, *_RAW, *_GRPC)),
    Server(name="mlopsnb, 1 worker", family="mlopsnb", make=_alone, cases=(*_LIGHT, *_GRPC)),
    Server(name="bare loop", family="bare loop", make=_asgi),
    Server(name="bare loop, batching", family="bare loop", make=_asgi, batched=True, cases=("mlp",)),
    Server(name="ceiling", family="ceiling", make=_protocol),
    Server(name="ceiling, batching", family="ceiling", make=_protocol, batched=True, cases=("mlp",)),
    *_peer("triton", _triton, single=(*_ALL, *_RAW, *_GRPC), batched=(*_LIGHT, *_GRPC)),
    *_peer("mlserver", _mlserver, single=(*_ALL, *_GRPC), batched=()),
    *_peer("kserve", _kserve, single=(*_ALL, *_RAW, *_GRPC), batched=()),
    *_peer("litserve", _litserve, single=_ROWS, batched=_LIGHT),
    *_peer("bentoml", _bentoml, single=_ROWS, batched=_LIGHT),
    *_peer("mlflow", _mlflow, single=_ALL, batched=()),
)
FAMILIES = tuple(dict.fromkeys(s.family for s in SERVERS))
