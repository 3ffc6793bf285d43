"""Our server against the peers, a bare loop and the ceiling, in one run on one machine.

    python benchmarks/serving.py [--quick] [--servers mlopsnb triton …] [--models mlp conv table table-binary mlp-grpc]

Rounds are outermost and the servers take turns within a round, so that a slow moment of the machine hits all of them
alike; the medians over the rounds count. Every server's answers are compared with the model's before it is measured,
and again after. See benchmarks/README.md for how the numbers are to be read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving_peers import cases, forward, grpc_load, load, processes, report, servers, targets, venvs
from serving_peers.cases import CASES, Prepared
from serving_peers.load import Load, NoLoad, find_wrk
from serving_peers.processes import CannotServe, Running, running
from serving_peers.report import Failure, Measurement
from serving_peers.servers import FAMILIES, SERVERS, Command, Server

if TYPE_CHECKING:
    from serving_peers.forward import Limit

CONCURRENCIES = (1, 8, 64)
_REFUSED_SECONDS = 20
_WARM_UP = 8
_BODIES = {
    "v2": cases.v2_body,
    "binary": cases.binary_body,
    "mlflow": cases.mlflow_body,
    "grpc": cases.grpc_body,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code: 1 if a server could not be measured."""
    args = _parser().parse_args(argv)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # an exit like any other: what was started is ended
    try:
        find_wrk()
        if any(CASES[c].protocol == "grpc" for c in args.models):
            grpc_load.find_h2load()
        return _compare(args)
    except NoLoad as exc:
        print(f"serving.py: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; every server was ended", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare model servers under the same load.")
    add = parser.add_argument
    add(
        "--servers",
        nargs="+",
        choices=FAMILIES,
        default=list(FAMILIES),
        metavar="NAME",
        help=", ".join(FAMILIES),
    )
    add("--models", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    add("--seconds", type=float, default=2.0, help="of each measurement, whole ones (default: %(default)s)")
    add("--repeat", type=int, default=3, help="rounds; medians need 3 (default: %(default)s)")
    add("--quick", action="store_true", help="one round of 1 s: whether all works, not how fast")
    add(
        "--venvs",
        type=Path,
        default=_cache(),
        help="where the peers' environments are (default: %(default)s)",
    )
    add("--out", type=Path, default=Path("build/serving"), help="where the results go (default: %(default)s)")
    return parser


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlopsnb" / "benchmarks"


def _compare(args: argparse.Namespace) -> int:
    seconds, rounds = (1.0, 1) if args.quick else (args.seconds, args.repeat)
    chosen = [s for s in SERVERS if s.family in args.servers]
    measurements: list[Measurement] = []
    failures: list[Failure] = []
    limits: list[Limit] = []
    about = _about(seconds, rounds)
    pythons = _install(chosen, args.venvs, failures, args.models, about)
    with tempfile.TemporaryDirectory(prefix="mlopsnb-serving-") as name:
        prepared = [cases.prepare(CASES[c], Path(name) / c) for c in args.models]
        about["forward_ms"] = {p.case.name: round(p.forward_ms, 4) for p in prepared}
        try:
            for number, case, server in _turns(rounds, prepared, chosen):
                if server is None:
                    limits.append(_alone(case, number))
                elif server.environment is None or server.environment in pythons:
                    python = pythons.get(server.environment or "")
                    _turn(server, case, python, Path(name), number, seconds, measurements, failures, args.out)
        finally:  # what was measured before an interruption is kept
            about["load_average_end"] = os.getloadavg()
            _write(args.out, about, measurements, failures, limits)
    return 1 if failures else 0


def _turns(
    rounds: int, prepared: Sequence[Prepared], chosen: Sequence[Server]
) -> Iterator[tuple[int, Prepared, Server | None]]:
    """Return what is measured, in order; no server: the model alone."""
    for number in range(1, rounds + 1):
        for case in prepared:
            if forward.counts(case.case):
                yield number, case, None
            for server in chosen:
                if case.case.name in server.cases:
                    yield number, case, server


def _alone(case: Prepared, number: int) -> Limit:
    limit = forward.limit(case, number)
    print(
        f"round {number}, {case.case.name}, the model alone: {limit.rows_per_second:,.0f} rows a second "
        f"({limit.instances} at a time, {limit.rows} rows a call)",
        flush=True,
    )
    return limit


def _install(
    chosen: Sequence[Server],
    directory: Path,
    failures: list[Failure],
    models: Sequence[str],
    about: dict[str, Any],
) -> dict[str, Path]:
    """Make the peers' environments before anything is measured; return the interpreters of those that worked."""
    found: dict[str, Path] = {}
    for name in dict.fromkeys(s.environment for s in chosen if s.environment):
        environment = venvs.ENVIRONMENTS[name]
        try:
            found[name] = venvs.python_of(environment, directory)
            about["versions"][name] = venvs.versions(found[name], environment.packages)
            if environment.note:
                about["notes"].append(f"{name}: {environment.note}")
        except venvs.CannotInstall as exc:
            print(f"{name}: cannot be installed: {exc}", flush=True)
            mine = [s for s in chosen if s.environment == name]
            failures += [
                Failure(server=s.name, case=c, round=0, reason=f"cannot be installed: {exc}")
                for s in mine
                for c in s.cases
                if c in models
            ]
    return found


def _turn(
    server: Server,
    case: Prepared,
    python: Path | None,
    scratch: Path,
    number: int,
    seconds: float,
    found: list[Measurement],
    failures: list[Failure],
    out: Path,
) -> None:
    label = f"round {number}, {case.case.name}, {server.name}"
    folder = scratch / "server"
    try:
        one = _measure(server, case, python, folder, number, seconds)
    except (CannotServe, NoLoad, OSError, StopIteration) as exc:
        reason = " ".join((str(exc) or repr(exc)).split()) + _keep_log(
            folder / "server.log", out, server, case
        )
        failures.append(Failure(server=server.name, case=case.case.name, round=number, reason=reason))
        print(f"{label}: NOT MEASURED: {reason}", flush=True)
        return
    found.append(one)
    told = ", ".join(f"c={x.concurrency} {x.rps:,.0f} rps P99 {x.p99_ms:.2f} ms" for x in one.loads)
    print(f"{label}: ready {one.ready_seconds:.1f} s, {told}", flush=True)


def _keep_log(log: Path, out: Path, server: Server, case: Prepared) -> str:
    """Keep what a server said that could not be measured; return where."""
    if not log.exists():
        return ""
    kept = out / f"{server.name.replace(', ', '-').replace(' ', '-')}-{case.case.name}.log"
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(log, kept)
    return f" (log: {kept.name})"


def _measure(
    server: Server, case: Prepared, python: Path | None, folder: Path, number: int, seconds: float
) -> Measurement:
    command = server.command(case, python, folder)
    _set_up(command, folder)
    bodies = case.bodies.get(command.body)
    if bodies is None:
        encode = _BODIES[command.body]
        bodies = case.bodies[command.body] = [encode(case, i) for i in range(cases.CHECKED_INPUTS)]
    average = os.getloadavg()
    with running(
        command.argv, env=dict(command.env), cwd=folder, log=folder / "server.log", silent=command.silent
    ) as process:
        ready = process.wait_ready(command.url, bodies[0], ask=_ask(case))
        process.wait_started()
        _check(command, case, bodies)
        _load(command, case, bodies[0], _WARM_UP, 1, process)
        loads = tuple(_load(command, case, bodies[0], c, seconds, process) for c in CONCURRENCIES)
        _check(command, case, bodies)
        memory = process.pss_mb()
    return Measurement(
        server=server.name,
        family=server.family,
        case=case.case.name,
        round=number,
        ready_seconds=ready,
        pss_mb=memory,
        loads=loads,
        load_average=average,
    )


def _ask(case: Prepared) -> processes.Ask:
    """Return what sends one request of *case*."""
    if case.case.protocol == "grpc":
        return grpc_load.ask
    return partial(processes.post, headers=cases.headers(case))


def _set_up(command: Command, folder: Path) -> None:
    if command.setup is None:
        return
    done = subprocess.run(
        command.setup,
        env={**os.environ, **command.env},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotServe(f"its preparation ended with {done.returncode}: {done.stderr.strip()[-400:]}")


def _check(command: Command, case: Prepared, bodies: Sequence[bytes]) -> None:
    """Send all *bodies* at once, each different, twice; raise `CannotServe` unless each gets its own right answer.

    A server may refuse for a while what is too much for it; that is no wrong answer, and shows under load as failed.
    """

    def wrong(index: int) -> str:
        end = time.monotonic() + _REFUSED_SECONDS
        status, answer = _asked(command, case, bodies[index])
        while status in (429, 503) and time.monotonic() < end:
            time.sleep(0.1)
            status, answer = _asked(command, case, bodies[index])
        return cases.right(case, index, answer) if status == 200 else f"status {status}: {answer[:200]!r}"

    with ThreadPoolExecutor(len(bodies)) as pool:
        found = [what for what in pool.map(wrong, [*range(len(bodies))] * 2) if what]
    if found:
        raise CannotServe(
            f"{len(found)} of {2 * len(bodies)} answers are not the model's; the first: {found[0]}"
        )


def _asked(command: Command, case: Prepared, body: bytes) -> tuple[int, bytes]:
    try:
        return _ask(case)(command.url, body)
    except OSError as exc:
        return 0, f"{type(exc).__name__}: {exc}".encode()


def _load(
    command: Command, case: Prepared, body: bytes, concurrency: int, seconds: float, process: Running
) -> Load:
    common = {"concurrency": concurrency, "seconds": seconds, "server_cpu": process.cpu_seconds}
    if case.case.protocol == "grpc":
        return grpc_load.measure(command.url, body, **common)
    return load.measure(command.url, body, headers=cases.headers(case), **common)


def _about(seconds: float, rounds: int) -> dict[str, Any]:
    def said(*command: str) -> str:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
            )
        except OSError:
            return "unknown"
        return (done.stdout or done.stderr).strip()

    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": said("git", "describe", "--always", "--dirty"),
        "seconds": seconds,
        "rounds": rounds,
        "concurrencies": CONCURRENCIES,
        "machine": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load": [said(find_wrk(), "-v").partition("\n")[0], said("h2load", "--version")],
        "load_average_start": os.getloadavg(),
        "notes": [],
        "versions": {"mlopsnb": venvs.versions(Path(sys.executable), ("mlopsnb", *servers.OURS))},
    }


def _processor() -> str:
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return models[0].partition(":")[2].strip() if models else platform.processor()


def _write(
    out: Path,
    about: Mapping[str, Any],
    measurements: Sequence[Measurement],
    failures: Sequence[Failure],
    limits: Sequence[Limit],
) -> None:
    """Write table, JSON and plot into *out*, and print the table, the failures, the ratios and, last, the targets."""
    if not measurements and not failures:
        return
    out.mkdir(parents=True, exist_ok=True)
    found = report.ratios(measurements)
    done = list(dict.fromkeys([*(m.case for m in measurements), *(f.case for f in failures)]))
    tables = [report.table(measurements, failures, case) for case in done]
    verdicts = targets.verdicts(measurements, limits)
    text = "\n".join([_heading(about), *tables, report.ratio_table(found), targets.block(verdicts)])
    print(f"\n{text}")
    (out / "serving.md").write_text(text)
    content = {
        "about": about,
        "medians": {case: [asdict(x) for x in report.lines(measurements, case)] for case in done},
        "ratios": [asdict(r) for r in found],
        "targets": [{**asdict(v), "met": v.met} for v in verdicts],
        "limits": [asdict(x) for x in limits],
        "failures": [asdict(f) for f in failures],
        "measurements": [asdict(m) for m in measurements],
    }
    (out / "serving.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if measurements:
        report.plot(measurements, out / "serving.png")
    print(f"written: {out}/serving.md, serving.json, serving.png")


def _heading(about: Mapping[str, Any]) -> str:
    start, end = about["load_average_start"][0], about["load_average_end"][0]
    versions = (" ".join(f"{k} {v}" for k, v in found.items()) for found in about["versions"].values())
    parts = [
        f"{about['when']}, commit {about['commit']}, {about['cores']} cores of {about['processor']}",
        f"medians of {about['rounds']} rounds of {about['seconds']:g} s; {', '.join(about['load'])}",
        f"load average {start:.2f} at the start, {end:.2f} at the end",
        f"one forward alone: {', '.join(f'{k} {v:.3g} ms' for k, v in about['forward_ms'].items())}",
        f"versions: {'; '.join(versions)}",
        *about["notes"],
    ]
    return "\n".join(f"- {part}" for part in parts) + "\n"


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(code)
