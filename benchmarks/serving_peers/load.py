"""The load: wrk, run once a measurement, with what it cost itself and what others took of the machine meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_SCRIPT = """
local file = io.open(os.getenv("WRK_BODY"), "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
for name, value in string.gmatch(os.getenv("WRK_HEADERS"), "([^:]+):([^\\n]+)\\n") do
  wrk.headers[name] = value
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests":%d,"micros":%d,"p50_us":%d,"p99_us":%d,"max_us":%d,' ..
    '"bad_status":%d,"socket_errors":%d,"timeouts":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    e.status, e.connect + e.read + e.write, e.timeout))
end
"""

_TIMEOUT_SECONDS = 10


class NoLoad(Exception):
    """wrk could not do its work; the message is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the load generator saw in one measurement. `wrk_cpu`, which is its own, and `foreign_cpu` are in cores."""

    concurrency: int
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    bad_status: int
    socket_errors: int
    timeouts: int
    cpu_us: float
    wrk_cpu: float
    foreign_cpu: float

    @property
    def rps(self) -> float:
        """Answers with a good status, a second."""
        return (self.requests - self.bad_status) / self.seconds

    @property
    def failed(self) -> int:
        return self.bad_status + self.socket_errors + self.timeouts


def find_wrk() -> str:
    """Return the path of wrk; raise `NoLoad` if it is not there."""
    path = shutil.which("wrk")
    if path is None:
        raise NoLoad("wrk is not on the PATH; on Debian: apt-get install wrk")
    return path


def measure(
    url: str, body: bytes, *, headers: Mapping[str, str], concurrency: int, seconds: float, server_cpu
) -> Load:
    """Send *body* to *url* over *concurrency* connections for *seconds*, each waiting for its answer.

    *server_cpu* returns the CPU seconds of the server so far.
    """
    with tempfile.TemporaryDirectory(prefix="wrk-") as name:
        script, data = Path(name, "load.lua"), Path(name, "body")
        script.write_text(_SCRIPT)
        data.write_bytes(body)
        command = [find_wrk(), "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s"]
        command += ["--timeout", f"{_TIMEOUT_SECONDS}s", "-s", str(script), url]
        busy, server, start = busy_seconds(), server_cpu(), time.perf_counter()
        told = "".join(f"{name}:{value}\n" for name, value in headers.items())
        text, wrk_seconds = run(command, {**os.environ, "WRK_BODY": str(data), "WRK_HEADERS": told})
        passed = time.perf_counter() - start
        busy, server = busy_seconds() - busy, server_cpu() - server
    found = [line for line in text.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise NoLoad(f"wrk said: {text.strip()[-300:]!r}")
    said = json.loads(found[0].removeprefix("RESULT "))
    return Load(
        concurrency=concurrency,
        requests=said["requests"],
        seconds=said["micros"] / 1e6,
        p50_ms=said["p50_us"] / 1e3,
        p99_ms=said["p99_us"] / 1e3,
        max_ms=said["max_us"] / 1e3,
        bad_status=said["bad_status"],
        socket_errors=said["socket_errors"],
        timeouts=said["timeouts"],
        cpu_us=server / max(1, said["requests"]) * 1e6,
        wrk_cpu=wrk_seconds / passed,
        foreign_cpu=max(0.0, busy - server - wrk_seconds) / passed,
    )


def run(command: list[str], env: dict[str, str]) -> tuple[str, float]:
    """Run *command* to its end; return what it said and the CPU seconds it took. Ends it if we are interrupted."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return text, used.ru_utime + used.ru_stime


def busy_seconds() -> float:
    """Return the CPU seconds that the whole machine has spent on anything."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq
