"""Our image builder against docker, MLflow and buildah, in one run on one machine and one registry.

    python benchmarks/images.py [--rounds 3] [--builders mlopsnb docker mlflow buildah] [--no-start]

All build the same model (a TorchScript MLP of 99 MB) on the same base, and ours, docker and buildah from the same lock;
the wheels are on this machine for all of them. Rounds are outermost and the builders take turns, so that a slow moment
of the machine hits all alike; medians over the rounds count. Every measured time is build and push together. See
benchmarks/README.md for what is compared, and for what it does not say.

The registry and the base are those of MLOPSNB_TEST_REGISTRY and MLOPSNB_BASE_IMAGE. What the run makes there and in the
engine has names of its own and is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from images_peers import start, wheels
from images_peers.common import Builder, Built, CannotBuild, Work, cache_home, compressed_size, forget
from images_peers.dockerfile import Buildah, Docker, remove_images
from images_peers.mlflow_docker import MLflow
from images_peers.ours import Ours

KINDS = ("cold", "changed", "again")
_BUILDERS: dict[str, Callable[[], Builder]] = {
    "mlopsnb": Ours,
    "docker": Docker,
    "mlflow": MLflow,
    "buildah": Buildah,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be shown: *value* may be *limit* at most."""

    what: str
    value: float
    limit: float
    unit: str = ""

    def __str__(self) -> str:
        verdict = "met" if self.value <= self.limit else "NOT MET"
        return f"  {verdict:8}{self.what:58}{self.value:8.3f} (at most {self.limit:.3f}){self.unit}"


Results = dict[tuple[str, str], list[Built]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if a target was not met or a builder failed."""
    args = _parser().parse_args(argv)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # an exit like any other: what was made is removed
    registry, base = os.environ.get("MLOPSNB_TEST_REGISTRY"), os.environ.get("MLOPSNB_BASE_IMAGE")
    if not registry or not base:
        print("images.py: set MLOPSNB_TEST_REGISTRY and MLOPSNB_BASE_IMAGE", file=sys.stderr)
        return 2
    root = Path(tempfile.mkdtemp(prefix="mlopsnb-images-"))
    work = Work(root=root, registry=registry, base=base, prefix=f"bench-{os.getpid()}")
    keep = True
    try:
        failed = _compare(args, work)
        keep = failed
    except CannotBuild as exc:
        print(f"images.py: {exc}", file=sys.stderr)
        return 2
    finally:
        forget(registry, work.prefix)
        remove_images(f"{registry}/{work.prefix}-*")
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare builders of serving images.")
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="medians need 3 (default: %(default)s)")
    add(
        "--builders",
        nargs="+",
        choices=_BUILDERS,
        default=list(_BUILDERS),
        metavar="NAME",
        help=", ".join(_BUILDERS),
    )
    add("--no-start", action="store_true", help="leave out the start of containers")
    return parser


def _compare(args: argparse.Namespace, work: Work) -> bool:
    ours = Ours()
    print(f"load average {os.getloadavg()[0]:.1f}; logs in {work.root}", flush=True)
    work.models = _models(work.root / "models", args.rounds + 1)
    work.wheels = cache_home() / "wheels"
    work.wheels.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        stack.callback(ours.clean, work)
        ours.prepare(work)
        if set(args.builders) - {"mlopsnb"}:
            wheels.download(work.wheels, "--no-deps", "--requirement", str(work.lock))
            work.wheelhouse = stack.enter_context(wheels.served(work.wheels, wheels.bridge()))
        builders: list[Builder] = []
        for name in args.builders:
            builder = ours if name == "mlopsnb" else _BUILDERS[name]()
            try:
                if builder is not ours:
                    stack.callback(builder.clean, work)
                    builder.prepare(work)
                builders.append(builder)
            except CannotBuild as exc:
                failures[name] = str(exc)
        results = _rounds(args.rounds, builders, work, failures)
        sizes = {
            name: compressed_size(built[0].reference)
            for (name, kind), built in results.items()
            if kind == "cold"
        }
        elsewhere = ours.elsewhere(work) if "mlopsnb" in sizes else ""
        starts = {} if args.no_start or "mlopsnb" not in sizes else _starts(args.rounds, work, results)
    _print_table(results, sizes)
    return _print_targets(
        results, sizes, starts, same=elsewhere == ours.digests[0] if ours.digests else None, failures=failures
    )


def _models(root: Path, count: int) -> list[Path]:
    """Export *count* models of one shape and different weights; return their packages."""
    import torch

    import mlopsnb

    packages = []
    for seed in range(count):
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 4096), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(4096, 928)).eval()
        into = root / str(seed)
        into.parent.mkdir(exist_ok=True)
        mlopsnb.export(model, torch.randn(4, 1024), format="torchscript", into=into)
        packages.append(into)
    return packages


def _rounds(rounds: int, builders: Sequence[Builder], work: Work, failures: dict[str, str]) -> Results:
    results: Results = {}
    for number in range(1, rounds + 1):
        for builder in builders:
            if builder.name in failures:
                continue
            try:
                for kind in KINDS:
                    built = (
                        builder.cold(work, number)
                        if kind == "cold"
                        else getattr(builder, kind)(work, number, number)
                    )
                    results.setdefault((builder.name, kind), []).append(built)
                    sent = "" if built.sent is None else f", {built.sent / 1e6:.1f} MB sent"
                    print(
                        f"round {number}: {builder.name:8} {kind:8} {built.seconds:8.3f} s{sent}", flush=True
                    )
            except CannotBuild as exc:
                failures[builder.name] = str(exc)
    return results


def _starts(rounds: int, work: Work, results: Results) -> dict[str, float]:
    """Return the median seconds to the first answer, with and without bytecode."""
    reference = results["mlopsnb", "cold"][0].reference
    body = start.request_of(work.models[0])
    model = work.repository("mlopsnb", 1).rpartition("/")[2]
    bare = start.without_bytecode(work, reference)
    found: dict[str, list[float]] = {"with": [], "without": []}
    try:
        for image in (reference, bare):  # the first start brings the files into memory
            start.seconds(image, model, body)
        for _ in range(max(rounds, 3)):
            found["with"].append(start.seconds(reference, model, body))
            found["without"].append(start.seconds(bare, model, body))
    finally:
        remove_images(bare)
        remove_images(reference)
    return {name: statistics.median(times) for name, times in found.items()}


def _median(results: Results, name: str, kind: str) -> float:
    return statistics.median(built.seconds for built in results[name, kind])


def _print_table(results: Results, sizes: dict[str, int]) -> None:
    names = list(sizes)
    print(f"\nmedians, seconds of build and push together{'':11}" + "".join(f"{n:>10}" for n in names))
    for kind, what in (
        ("cold", "nothing built before, wheels at hand"),
        ("changed", "another model"),
        ("again", "nothing changed"),
    ):
        print(f"  {what:52}" + "".join(f"{_median(results, n, kind):10.3f}" for n in names))
    print(f"  {'compressed size, MB':52}" + "".join(f"{sizes[n] / 1e6:10.1f}" for n in names))


def _print_targets(
    results: Results,
    sizes: dict[str, int],
    starts: dict[str, float],
    *,
    same: bool | None,
    failures: dict[str, str],
) -> bool:
    targets: list[Target] = []

    def ratio(what: str, kind: str, peer: str, limit: float) -> None:
        if {"mlopsnb", peer} <= sizes.keys():
            value = _median(results, "mlopsnb", kind) / _median(results, peer, kind)
            targets.append(Target(f"{what}, ours / {peer}", value, limit, f"  1/{1 / value:.1f}"))

    for peer in ("docker", "mlflow"):
        ratio("cold", "cold", peer, 1 / 15)
    ratio("another model", "changed", "docker", 1 / 6)
    ratio("another model", "changed", "mlflow", 1 / 80)
    for peer, limit in (("docker", 0.85), ("mlflow", 0.55)):
        if {"mlopsnb", peer} <= sizes.keys():
            targets.append(Target(f"compressed size, ours / {peer}", sizes["mlopsnb"] / sizes[peer], limit))
    if "mlopsnb" in sizes:
        again = results["mlopsnb", "again"]
        targets.append(Target("nothing changed, seconds", _median(results, "mlopsnb", "again"), 0.1))
        targets.append(Target("nothing changed, bytes sent", max(b.sent or 0 for b in again), 0))
        targets.append(Target("digests of two clones that differ", 0 if same else 1, 0))
    if starts:
        targets.append(
            Target("start to first answer, with / without bytecode", starts["with"] / starts["without"], 0.6)
        )
    print("\ntargets")
    print("\n".join(map(str, targets)))
    for peer in ("buildah",):
        if {"mlopsnb", peer} <= sizes.keys():
            pairs = (
                f"{kind} 1/{_median(results, peer, kind) / _median(results, 'mlopsnb', kind):.1f}"
                for kind in KINDS
            )
            print(f"  without a target: ours / {peer}: {', '.join(pairs)}")
    if starts:
        print(
            f"  start to first answer: {starts['with']:.2f} s with bytecode, {starts['without']:.2f} s without"
        )
    for name, why in failures.items():
        print(f"  not measured: {name}: {why}")
    print(json.dumps({"load_average": os.getloadavg(), "sizes": sizes}))
    return bool(failures) or any(t.value > t.limit for t in targets)


if __name__ == "__main__":
    sys.exit(main())
