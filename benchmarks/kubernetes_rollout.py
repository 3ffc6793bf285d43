"""Requests that fail while a deployment on Kubernetes changes, under steady load from another process: none should.

    python benchmarks/kubernetes_rollout.py [--context NAME] [--namespace NAME] [--rate 150] [--requests 20000]

A rolling deploy, a canary that is promoted, a rollback, a pod that is deleted, and a scale-down, again and again until
enough requests were sent; they go to the Service's port on a node. Ends with 1 if a request failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from open_loop import Load
from small_model import package

from mlopsnb import rollout
from mlopsnb.building import build
from mlopsnb.records import Artifact, Revision, Workload
from mlopsnb.rollout import Check, Gate, Scale, Shift, Start, Stop
from mlopsnb.targets.kubernetes import Kubernetes
from mlopsnb.targets.manifests import REVISION, workload_name

NAME = f"rollout-{os.urandom(3).hex()}"
SECONDS = 300.0
REPLICAS = 2
HELD = threading.Event()
"""Never set: to let time pass."""


def main() -> int:
    """Measure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", default="", help="of the kubeconfig (default: the current one)")
    parser.add_argument("--namespace", default="", help="(default: the context's)")
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=20_000, help="at the least (default: %(default)s)")
    asked = parser.parse_args()
    target = Kubernetes(context=asked.context, namespace=asked.namespace)
    delivery = target.delivery()
    with tempfile.TemporaryDirectory() as scratch:
        images = [_image(Path(scratch) / str(n), factor, delivery) for n, factor in enumerate((1, -1))]
    try:
        with target.claim(NAME):
            report = _measure(target, images, asked.rate, asked.requests)
    finally:
        target.apply(NAME, rollout.Forget(), timeout=SECONDS)
    print(report)
    failed = report.failures.total()
    print(f"failed {failed} of {len(report.outcomes)} requests (target: 0 of 20,000)")
    return int(failed > 0)


def _image(into: Path, factor: float, delivery: str) -> tuple[Artifact, str]:
    """Return a small model and its image."""
    artifact = package(into, factor)
    place = {} if delivery == "registry" else {"load": delivery}
    return artifact, build(artifact, name="rollout-benchmark", **place).reference


def _measure(target: Kubernetes, images: list[tuple[Artifact, str]], rate: float, requests: int):
    numbers = iter(range(1, 1000))

    def fresh() -> Revision:
        number = next(numbers)
        artifact, image = images[number % 2]
        return Revision(
            id=number,
            source=f"models:/rollout/{number}",
            digest=artifact.digest,
            image=image,
            workload=Workload(replicas=REPLICAS, expose="nodeport"),
        )

    _carry_out(target, rollout.rolling(target.observe(NAME), fresh()))
    url = f"{target.observe(NAME).url}/v2/models/{NAME}/infer"
    row = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}
    body = json.dumps({"inputs": [row]}).encode()
    with Load(url, body, rate=rate) as load:
        end = threading.Timer(requests / rate, HELD.set)
        end.start()
        while not HELD.is_set():
            _round(target, load, fresh)
    return load.report()


def _round(target: Kubernetes, load: Load, fresh) -> None:
    with load.phase("rolling update", after=8.0):
        _carry_out(target, rollout.rolling(target.observe(NAME), fresh()))
    with load.phase("canary, promoted", after=8.0):
        new = fresh()
        _carry_out(target, [*rollout.canary(target.observe(NAME), new, steps=(10, 50), pause=3.0)])
    with load.phase("rollback", after=8.0):
        now = target.observe(NAME)
        earlier = [r for r in now.revisions if r.state == "stopped"][-1]
        again = fresh()
        _carry_out(target, rollout.rolling(now, replace(earlier, id=again.id, note="rollback")))
    serving = rollout.serving(target.observe(NAME))
    assert serving is not None
    with load.phase("pod deleted", after=8.0):
        _delete_one_pod(target, serving.id)
        HELD.wait(8.0)
    with load.phase("scale-down", after=8.0):
        _carry_out(target, [Scale(serving.id, 1)])
    with load.phase("scale-up"):
        _carry_out(target, [Scale(serving.id, REPLICAS)])


def _carry_out(target: Kubernetes, plan: Iterator[rollout.Action] | list[rollout.Action]) -> None:
    for action in plan:
        match action:
            case Check():
                pass
            case Gate(_, _, seconds):
                threading.Event().wait(seconds)
            case Start() | Shift() | Scale() | Stop():
                target.apply(NAME, action, timeout=SECONDS)


def _delete_one_pod(target: Kubernetes, number: int) -> None:
    cluster = target._cluster
    pods = cluster.list("v1", "Pod", labels=f"{REVISION}={number}")
    prefix = workload_name(NAME, number)
    mine = [p["metadata"]["name"] for p in pods if p["metadata"]["name"].startswith(f"{prefix}-")]
    cluster.delete("v1", "Pod", mine[0])


if __name__ == "__main__":
    sys.exit(main())
