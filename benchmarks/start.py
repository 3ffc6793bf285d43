"""How long our server takes to be ready, and what memory it then holds, beside what no server can do without.

    python benchmarks/start.py [RUNS]

For a small MLP, as a TorchScript and as an ONNX package: `import torch` or `import onnxruntime` in a bare interpreter,
the bare loop (`serving_peers/launch_protocol.py`) with the same model, and `python -m mlopsnb.serving`, one process as
the others are. Each server is up when it has given its first good answer; memory is the proportional set size after 200
more. The processes take turns, so that a slow moment hits all alike. The medians of the runs (by default 5) are printed,
and the ratios: to the import, and to the bare loop.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from serving_peers import cases, processes

RUNS = 5
REQUESTS = 200
READY_SECONDS = 0.4
MEMORY_RATIO = 1.15
"""What an ONNX package should take at most, on a machine that does nothing else; memory beside the bare loop's."""

HERE = Path(__file__).parent
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
"""Installed packages have their bytecode; a working copy gets it from the run that is not counted."""

FRAMEWORKS = {"torchscript": "torch", "onnx": "onnxruntime"}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds from the start of the process until it is up, its CPU seconds until then, and its memory in MB."""

    seconds: float
    cpu_seconds: float
    pss_mb: float


def imported(module: str) -> Cost:
    """Return what it costs to start Python and import *module*."""
    code = f"import {module}; print(*[line for line in open('/proc/self/smaps_rollup') if line.startswith('Pss:')])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu, int(said.split()[1]) * 1024 / 1e6)


def served(command: list[str], port: int, env: dict[str, str], body: bytes, log: Path) -> Cost:
    """Return what it costs to start *command*, which then answers *body* on *port*."""
    url = f"http://127.0.0.1:{port}/v2/models/{cases.MODEL}/infer"
    with processes.running(command, env=env, cwd=HERE, log=log, silent=True) as server:
        seconds = server.wait_ready(url, body, pause=0.002)
        cpu = server.cpu_seconds()
        for _ in range(REQUESTS):
            processes.post(url, body)
        return Cost(seconds, cpu, server.pss_mb())


def free_port() -> int:
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def packages(root: Path) -> dict[str, tuple[Path, Path, bytes]]:
    """Make the packages below *root*; return for each format the package, the bare loop's file, and a request."""
    import mlopsnb

    case = cases.CASES["mlp"]
    prepared = cases.prepare(case, root / "torchscript")
    into = root / "onnx" / "package"
    into.parent.mkdir()
    mlopsnb.export(cases.network(case).eval(), prepared.inputs[0], format="onnx", into=into)
    body = cases.v2_body(prepared, 0)
    return {
        "torchscript": (prepared.package, prepared.script, body),
        "onnx": (into, into / "model" / "model.onnx", body),
    }


def measure(runs: int, root: Path) -> dict[tuple[str, str], Cost]:
    """Return the median cost of each case of each format."""
    made = packages(root)
    found: dict[tuple[str, str], list[Cost]] = {}
    for number in range(1 + runs):
        if number == 1:
            found.clear()
        for fmt, (package, file, body) in made.items():
            env = {
                "BENCH_MODEL": str(file),
                "BENCH_ROW": "32",
                "BENCH_BATCH": "1",
                "BENCH_HEAVY": "0",
                **COMPILED,
            }
            paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
            bare, ours = free_port(), free_port()
            loop = [sys.executable, "serving_peers/launch_protocol.py", str(bare)]
            server = [
                sys.executable,
                "-m",
                "mlopsnb.serving",
                str(package),
                "--name",
                cases.MODEL,
                "--workers",
                "1",
            ]
            log = root / "log"
            found.setdefault((fmt, "import"), []).append(imported(FRAMEWORKS[fmt]))
            found.setdefault((fmt, "bare"), []).append(
                served(loop, bare, {**env, "PYTHONPATH": paths}, body, log)
            )
            found.setdefault((fmt, "ours"), []).append(
                served([*server, "--port", str(ours)], ours, COMPILED, body, log)
            )
    return {
        key: Cost(*map(statistics.median, zip(*map(astuple, costs), strict=True)))
        for key, costs in found.items()
    }


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    with tempfile.TemporaryDirectory() as root:
        found = measure(runs, Path(root))
    print(f"medians of {runs} runs, Python {sys.version.split()[0]}, load average {os.getloadavg()[0]:.1f}")
    print(f"{'':32}{'up, s':>10}{'CPU, s':>10}{'PSS, MB':>10}")
    for fmt, framework in FRAMEWORKS.items():
        names = {"import": f"import {framework}", "bare": f"bare loop, {fmt}", "ours": f"mlopsnb, {fmt}"}
        for kind, name in names.items():
            cost = found[fmt, kind]
            print(f"{name:32}{cost.seconds:10.3f}{cost.cpu_seconds:10.3f}{cost.pss_mb:10.1f}")
        for kind in ("import", "bare"):
            ratios = [
                a / b for a, b in zip(astuple(found[fmt, "ours"]), astuple(found[fmt, kind]), strict=True)
            ]
            print(f"{'  ours / ' + names[kind]:32}" + "".join(f"{ratio:10.2f}" for ratio in ratios))
    ours, bare = found["onnx", "ours"], found["onnx", "bare"]
    for told, value, bound in (
        ("ONNX is up, s", ours.seconds, READY_SECONDS),
        ("ONNX's memory / bare loop's", ours.pss_mb / bare.pss_mb, MEMORY_RATIO),
    ):
        print(f"target: {told} {value:.2f} <= {bound:g}: {'met' if value <= bound else 'NOT met'}")


if __name__ == "__main__":
    main()
