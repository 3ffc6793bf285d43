"""A retrained model, from the notebook to the cluster's answers: `ml.deploy` against docker and kubectl by hand.

    python benchmarks/deploy.py [--rounds 3] [--context NAME] [--namespace NAME]

Ours starts from the model in memory: export, proof, log, image, rollout, check. The other starts from the exported model:
`docker build` with its dependencies cached, `docker push`, `kubectl apply`, `kubectl rollout status`, of a Deployment with
the same server, resources and probes as Kubernetes' defaults have them. Both have deployed an earlier model before, take
turns, and end with the first answer of the new model through the Service. The registry and the base are those of
MLOPSNB_TEST_REGISTRY and MLOPSNB_BASE_IMAGE. Ends with 1 if ours is less than five times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images_peers import wheels
from images_peers.common import CannotBuild, Work, cache_home, forget, run
from images_peers.dockerfile import context, remove_images
from images_peers.ours import Ours

import mlopsnb as ml
from mlopsnb.client import Client
from mlopsnb.errors import DeployError, UserError

TARGET = 5.0
EXAMPLE = np.random.default_rng(0).normal(size=(4, 1024)).astype("float32")
SECONDS = 300.0


def model(seed: int) -> torch.nn.Module:
    """Return a model of 99 MB."""
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 4096), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(4096, 928)).eval()


def answers(url: str, name: str, wanted: np.ndarray[Any, Any]) -> None:
    """Return when the server at *url* answers as the new model does."""
    end = time.monotonic() + SECONDS
    said = "it answers as another model"
    while time.monotonic() < end:
        try:
            with Client(url, name) as client:
                if np.allclose(client.predict(EXAMPLE)["output"], wanted, atol=1e-3):
                    return
        except (DeployError, UserError) as exc:
            said = str(exc)
        time.sleep(0.05)
    raise CannotBuild(f"{url} did not answer as the new model within {SECONDS:g} s: {said}")


class ByHand:
    """docker and kubectl, as a careful person types them."""

    name = "docker and kubectl"

    def __init__(self, work: Work, kubectl: list[str]) -> None:
        self._work, self._kubectl, self._log = work, kubectl, work.log("byhand")
        self._service = f"{work.prefix}-byhand"

    def deploy(self, number: int, wanted: np.ndarray[Any, Any]) -> float:
        """Bring the model of that number to the cluster; return the seconds until it answers."""
        reference = f"{self._work.repository('byhand', 1)}:m{number}"
        place = context(self._work, number)
        manifest = self._work.root / "byhand.json"
        manifest.write_text(
            json.dumps({"apiVersion": "v1", "kind": "List", "items": self._objects(reference)})
        )
        start = time.perf_counter()
        environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
        run(["docker", "build", "--quiet", "--tag", reference, str(place)], self._log, env=environment)
        run(["docker", "push", "--quiet", reference], self._log)
        run([*self._kubectl, "apply", "-f", str(manifest)], self._log)
        run([*self._kubectl, "rollout", "status", f"deployment/{self._service}", "--timeout=300s"], self._log)
        answers(self._url(), "bench", wanted)
        return time.perf_counter() - start

    def _url(self) -> str:
        import subprocess

        path = "jsonpath={.spec.clusterIP}"
        asked = [*self._kubectl, "get", "service", self._service, "-o", path]
        return f"http://{subprocess.run(asked, capture_output=True, text=True, check=True).stdout}:8080"

    def _objects(self, image: str) -> list[dict[str, Any]]:
        labels = {"app": self._service}
        container = {
            "name": "model",
            "image": image,
            "ports": [{"containerPort": 8080}],
            "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
        }
        return [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": self._service},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": self._service},
                "spec": {"selector": labels, "ports": [{"port": 8080}]},
            },
        ]

    def clean(self) -> None:
        """Remove what it made in the cluster."""
        run([*self._kubectl, "delete", "deployment,service", self._service, "--wait=false"], self._log)


class WithUs:
    """One call."""

    name = "ml.deploy"

    def __init__(self, work: Work) -> None:
        self._name = f"{work.prefix}-ours"
        self._deployment: ml.Deployment | None = None

    def deploy(self, number: int, wanted: np.ndarray[Any, Any]) -> float:
        """As above."""
        start = time.perf_counter()
        self._deployment = ml.deploy(
            model(number), name=self._name, example=EXAMPLE, target="kubernetes", memory="1Gi"
        )
        answers(self._deployment.url or "", self._name, wanted)
        return time.perf_counter() - start

    def clean(self) -> None:
        """As above."""
        if self._deployment is not None:
            self._deployment.delete()


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="medians need 3 (default: %(default)s)")
    parser.add_argument("--context", default="", help="of the kubeconfig (default: the current one)")
    parser.add_argument("--namespace", default="", help="(default: the context's)")
    asked = parser.parse_args()
    os.environ |= {"MLOPSNB_CONTEXT": asked.context, "MLOPSNB_NAMESPACE": asked.namespace}
    for name in ("MLOPSNB_CONTEXT", "MLOPSNB_NAMESPACE"):
        if not os.environ[name]:
            del os.environ[name]
    words = {"--context": asked.context, "--namespace": asked.namespace}
    kubectl = ["kubectl", *(word for option, value in words.items() if value for word in (option, value))]
    root = Path(tempfile.mkdtemp(prefix="mlopsnb-deploy-"))
    registry = os.environ["MLOPSNB_TEST_REGISTRY"]
    work = Work(
        root=root, registry=registry, base=os.environ["MLOPSNB_BASE_IMAGE"], prefix=f"bench-{os.getpid()}"
    )
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root / 'mlflow.db'}"
    with ExitStack() as ends:
        ends.callback(shutil.rmtree, root, ignore_errors=True)
        ends.callback(remove_images, f"{registry}/{work.prefix}-*")
        ends.callback(forget, registry, work.prefix)
        times = _measured(work, kubectl, asked.rounds, ends)
    ours, other = (statistics.median(times[name]) for name in (WithUs.name, ByHand.name))
    print(f"\n{WithUs.name}: {ours:.1f} s; {ByHand.name}: {other:.1f} s; {other / ours:.2f} times as fast")
    print(f"target, {TARGET:g} times as fast: {'met' if other / ours >= TARGET else 'NOT MET'}")
    return int(other / ours < TARGET)


def _measured(work: Work, kubectl: list[str], rounds: int, ends: ExitStack) -> dict[str, list[float]]:
    wanted = []
    for number in range(rounds + 1):
        exported = ml.export(model(number), EXAMPLE, into=work.root / "models" / str(number))
        work.models.append(exported.path)
        with torch.no_grad():
            wanted.append(model(number)(torch.from_numpy(EXAMPLE)).numpy())
    Ours().prepare(work)  # for the lock
    work.wheels = cache_home() / "wheels"
    wheels.download(work.wheels, "--no-deps", "--requirement", str(work.lock))
    work.wheelhouse = ends.enter_context(wheels.served(work.wheels, wheels.bridge()))
    ways: list[WithUs | ByHand] = [WithUs(work), ByHand(work, kubectl)]
    times: dict[str, list[float]] = {}
    for way in ways:
        ends.callback(way.clean)
    for number in range(rounds + 1):
        for way in ways:
            seconds = way.deploy(number, wanted[number])
            print(f"{'first' if number == 0 else 'retrained':10} {way.name:20} {seconds:6.1f} s", flush=True)
            if number:
                times.setdefault(way.name, []).append(seconds)
    return times


if __name__ == "__main__":
    sys.exit(main())
