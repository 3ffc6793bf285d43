"""Mixed load of all protocols for minutes or hours, while workers are killed and the deployment is redeployed.

    python benchmarks/soak.py [--minutes 3] [--clients 6] [--rate 200] [--redeploy-every 30] [--kill-every 20]

There are two servers, of two workers each. One is a deployment that two versions of a model take in turns; of each a
worker is killed now and then, and the other server keeps its first worker from beginning to end: its memory tells of
leaks. Every answer says by header which version gave it, and is compared with what that version computes.

Ends with 1 if an answer was wrong, a request hung, one failed or a kept connection was closed without a word that no
killed worker excuses, or a worker's memory grew by more than 2 % after it had settled. Everything runs on the loopback interface and below a temporary directory, and
is ended and removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from soak_load import FEATURES, HANG_SECONDS, NAME, Client, Reference, Tally

WORKERS = 2
EXCUSED_SECONDS = 1.0
"""How long after a kill a request may fail that was with the killed worker."""

Killed = tuple[float, float]
"""Between when and when workers were killed."""

MOST_GROWTH = 0.02
_SETTLED_SHARE, _SETTLED_SECONDS = 1 / 3, 300.0
"""A worker has settled after 5 minutes, in a short run after a third of it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; return 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description="Soak test of servers of several workers under mixed load.")
    add = parser.add_argument
    add("--minutes", type=float, default=3.0, help="of load (default: %(default)s)")
    add("--clients", type=int, default=6, help="at the same time (default: %(default)s)")
    add("--rate", type=float, default=0.0, help="requests a second at most (default: as many as go)")
    seconds = {"type": float, "metavar": "SECONDS"}
    add("--redeploy-every", default=30.0, help="(default: %(default)s)", **seconds)
    add("--kill-every", default=20.0, help="one worker of each server (default: %(default)s)", **seconds)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="mlopsnb-soak-") as name, _home(Path(name)) as state_dir:
            return _soak(args, Path(name), state_dir)
    except KeyboardInterrupt:
        print("\ninterrupted; every server was ended", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _home(root: Path) -> Iterator[Path]:
    """Keep state, cache and MLflow's store below *root*; end the servers that are left when all is over."""
    os.environ["MLOPSNB_STATE_DIR"] = str(root / "state")
    os.environ["MLOPSNB_CACHE_DIR"] = str(root / "cache")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root / 'mlflow.db'}"
    with contextlib.chdir(root):  # MLflow keeps the files of such a store in ./mlruns
        try:
            yield root / "state"
        finally:
            left = servers_below(root)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5)


def servers_below(place: Path) -> list[psutil.Process]:
    """Return the server processes, workers included, whose package is below *place*."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if (
            "mlopsnb.serving" in line
            and f"{place}/" in line
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(process)
    return found


@dataclass(frozen=True, slots=True)
class Steady:
    """The server that is not redeployed."""

    process: subprocess.Popen
    port: int
    grpc: str

    @classmethod
    def start(cls, package: Path, log: Path) -> Steady:
        read, write = os.pipe()
        command = [sys.executable, "-m", "mlopsnb.serving", str(package), "--name", NAME, "--port", "0"]
        command += ["--grpc-port", "0", "--workers", str(WORKERS), "--ready-fd", str(write)]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=out, pass_fds=(write,))
        os.close(write)
        with os.fdopen(read) as pipe:
            report = json.loads(pipe.readline())
        return cls(process, int(report["url"].rpartition(":")[2]), report["grpc"])

    def workers(self) -> list[psutil.Process]:
        """Return its workers, the oldest first."""
        children = psutil.Process(self.process.pid).children()
        return sorted(children, key=lambda child: child.create_time())


class Watch(threading.Thread):
    """Samples memory and descriptors of every server process below *root*, once a second."""

    def __init__(self, root: Path, stop: threading.Event) -> None:
        super().__init__(name="watch")
        self._root, self._stopped = root, stop
        self.samples: dict[int, list[tuple[float, float, int]]] = {}

    def run(self) -> None:
        while not self._stopped.wait(1):
            for process in servers_below(self._root):
                with contextlib.suppress(psutil.Error):
                    point = (time.monotonic(), process.memory_info().rss / 1e6, process.num_fds())
                    self.samples.setdefault(process.pid, []).append(point)

    def growth(self, pid: int, settled: float) -> tuple[str, float]:
        """Tell how process *pid* grew from *settled* seconds after the first sample to the last, and by what share."""
        points = self.samples[pid]
        late = [p for p in points if p[0] - points[0][0] >= settled] or points[-1:]
        (_, before, fds), (_, after, fds_after) = late[0], late[-1]
        told = f"{before:.1f} MB and {fds} descriptors, at the end {after:.1f} MB and {fds_after}"
        return told, after / before - 1


def _versions():
    """Export and log two models that answer differently; return their versions, packages and what each computes."""
    import torch

    import mlopsnb

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(2000, FEATURES)).round(4).astype(np.float32)
    versions, computed, artifacts = [], {}, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        sizes = (FEATURES, 64), (64, 64), (64, 2)
        layers = [part for a, b in sizes for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        model = torch.nn.Sequential(*layers[:-1]).eval()
        artifacts.append(mlopsnb.export(model, rows[:8]))
        version = mlopsnb.log(artifacts[-1], name=NAME)
        versions.append(version)
        computed[version.uri.rpartition("/")[2]] = _numpy_forward(model)
    return versions, artifacts, Reference(computed, rows, artifacts[0].signature.inputs[0].name)


def _numpy_forward(model) -> Callable[[np.ndarray], np.ndarray]:
    """Return the network as plain numpy, so that the clients do not share torch's state."""
    weights = [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in model if hasattr(m, "weight")]

    def forward(x: np.ndarray) -> np.ndarray:
        for number, (weight, bias) in enumerate(weights):
            x = x @ weight + bias
            x = np.maximum(x, 0) if number < len(weights) - 1 else x
        return x

    return forward


def _soak(args: argparse.Namespace, root: Path, state_dir: Path) -> int:
    import mlopsnb

    versions, artifacts, reference = _versions()
    steady = Steady.start(artifacts[0].path, root / "steady.log")
    keeper = steady.workers()[0].pid
    deployment = mlopsnb.deploy(versions[0], name=NAME, workers=WORKERS)
    ports = (int(deployment.url.rpartition(":")[2]), steady.port)
    tally, stop = Tally(), threading.Event()
    watch = Watch(root, stop)
    pause = args.clients / args.rate if args.rate else 0.0
    threads: list[threading.Thread] = [watch]
    threads += [Client(n, ports, steady.grpc, reference, tally, stop, pause) for n in range(args.clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        kills, deploys = _disturb(steady, versions, state_dir, args)
    finally:
        stop.set()
        for thread in threads:
            thread.join(HANG_SECONDS + 5)
    stuck = [thread.name for thread in threads if thread.is_alive()]
    kept = steady.workers()[0].pid == keeper
    deployment.delete()
    steady.process.terminate()
    code = steady.process.wait(60)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s, {deploys} redeploys, {len(kills)} times two workers killed")
    bad = _report(tally, kills, stuck, seconds)
    settled = min(_SETTLED_SECONDS, seconds * _SETTLED_SHARE)
    told, growth = watch.growth(keeper, settled)
    print(f"the worker that lived from beginning to end: after {settled:.0f} s {told} ({growth:+.2%})")
    print(f"the supervisor beside it: {watch.growth(steady.process.pid, settled)[0]}; it ended with {code}")
    return 1 if bad or growth > MOST_GROWTH or not kept or code else 0


def _disturb(
    steady: Steady, versions: Sequence[object], state_dir: Path, args: argparse.Namespace
) -> tuple[list[Killed], int]:
    """Kill and redeploy by turns until the time is over; return when workers were killed, and the redeploys."""
    import mlopsnb

    kills: list[Killed] = []
    deploys = 0
    now = time.monotonic()
    end, kill, deploy = now + args.minutes * 60, now + args.kill_every, now + args.redeploy_every
    while (now := time.monotonic()) < end:
        time.sleep(max(0.0, min(kill, deploy, end) - now))
        now = time.monotonic()
        if now >= kill:
            kill += args.kill_every
            _kill(steady, state_dir)
            kills.append((now, time.monotonic()))  # to find the workers may take a while
        if end > now >= deploy:
            deploys += 1
            deploy += args.redeploy_every
            mlopsnb.deploy(versions[deploys % len(versions)], name=NAME, workers=WORKERS)
    return kills, deploys


def _kill(steady: Steady, state_dir: Path) -> None:
    """Kill the youngest worker of each server; the first of the steady one stays."""
    deployed = servers_below(state_dir)
    supervisors = {process.pid for process in deployed}
    workers = [process for process in deployed if process.ppid() in supervisors]
    workers.sort(key=lambda process: process.create_time())
    for process in (*steady.workers()[1:][-1:], *workers[-1:]):
        process.kill()


def _report(tally: Tally, kills: Sequence[Killed], stuck: Sequence[str], seconds: float) -> bool:
    """Print what the clients saw; say whether anything of it is bad."""

    def excused(start: float, end: float) -> bool:
        return any(start <= done + EXCUSED_SECONDS and end >= begun for begun, done in kills)

    def since(start: float) -> str:
        before = [start - done for _, done in kills if done <= start]
        return f"begun {before[-1]:.1f} s after a kill" if before else "begun before any kill"

    unexcused = [f"{what}, {since(start)}" for start, end, what in tally.failed if not excused(start, end)]
    cut = [f"found after {end - start:.1f} s" for start, end in tally.closed if not excused(start, end)]
    total = sum(tally.answered.values())
    for kind, count in sorted(tally.answered.items()):
        print(f"  {kind:<20} {count:>10,}")
    print(f"  {'all':<20} {total:>10,} ({total / seconds:,.0f} a second)")
    print("of version", ", ".join(f"{v}: {count:,}" for v, count in sorted(tally.versions.items())))
    print(f"wrong answers: {_told(tally.wrong)}")
    print(f"hung connections: {_told([*tally.hung, *(f'{name} did not end' for name in stuck)])}")
    print(f"failed requests: {_told(unexcused)}")
    print(f"  and {len(tally.failed) - len(unexcused)} in the second after a worker was killed")
    print(f"kept connections that were closed without a word: {_told(cut)}")
    print(f"  and {len(tally.closed) - len(cut)} when a worker was killed")
    print(f"told that the server drains, on a kept connection: {tally.draining}")
    return bool(tally.wrong or tally.hung or stuck or unexcused or cut)


def _told(what: Sequence[str]) -> str:
    common = Counter(what).most_common(5)
    return str(len(what)) + "".join(f"\n    {count} times: {text}" for text, count in common)


if __name__ == "__main__":
    sys.exit(main())
