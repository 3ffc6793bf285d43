"""Requests that fail while a deployment on a Docker engine is changed, under steady load from another process.

    python benchmarks/docker_rollout.py [--rate 150] [--requests 20000]

Deploys a small model in two replicas through `mlopsnb.deploy`, with a store of its own in a temporary directory, and goes
round: a rolling redeploy of another model, a rollback, `docker stop` of one replica, a scale to two and back to one. The
load is that of `open_loop.py`: half of the requests over kept connections, the others over one each, nothing retried. It
prints what failed in each phase, and ends with 1 if anything did, or if an answer came from no known version.

The engine is the one that docker would use; the base image is that of MLOPSNB_BASE_IMAGE. All that the run makes in the
engine has a name of its own and is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from open_loop import Load, Report
from small_model import package

NAME = f"bench-{os.urandom(4).hex()}"
_REST_SECONDS = 2.0


@contextlib.contextmanager
def surroundings() -> Iterator[Path]:
    """Yield a directory of our own that holds the store, the state and what is packed."""
    with tempfile.TemporaryDirectory(prefix="docker-rollout-") as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["MLOPSNB_STATE_DIR"] = f"{folder}/state"
        os.environ["MLOPSNB_CACHE_DIR"] = f"{folder}/cache"
        os.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield Path(folder)


def changes(images: list[Any], load: Load, rate: float, requests: int) -> None:
    """Change the deployment round and round until about so many *requests* have been sent."""
    import docker

    import mlopsnb as ml

    client = docker.from_env()
    end = time.monotonic() + requests / rate
    turn = 0
    dep = ml.get(NAME, target="docker")
    while time.monotonic() < end:
        turn += 1
        with load.phase("rolling redeploy"):
            ml.deploy(images[turn % 2], name=NAME, target="docker", replicas=2)
        time.sleep(_REST_SECONDS)
        with load.phase("rollback"):
            dep.rollback()
        time.sleep(_REST_SECONDS)
        with load.phase("scale to 2"):
            dep.scale(2)  # a rollback brings back the size that the revision had
        with load.phase("docker stop"):
            wanted = {"label": [f"mlopsnb.name={NAME}", "mlopsnb.role=replica"], "status": "running"}
            client.containers.list(filters=wanted)[0].stop()
        with load.phase("scale to 2"):
            dep.scale(1)  # what was stopped by hand does not count
            dep.scale(2)
        time.sleep(_REST_SECONDS)
        with load.phase("scale to 1"):
            dep.scale(1)
    client.close()


def run(rate: float, requests: int) -> Report:
    """Deploy, change under load, delete; return what became of the requests."""
    import mlopsnb as ml

    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    with surroundings() as place:
        models = [package(place / str(number), factor) for number, factor in enumerate((1, -1))]
        images = [ml.build(model, name=NAME, load="engine") for model in models]
        try:
            dep = ml.deploy(images[0], name=NAME, target="docker", replicas=2)
            with Load(f"{dep.url}/v2/models/{NAME}/infer", json.dumps(body).encode(), rate=rate) as load:
                changes(images, load, rate, requests)
        finally:
            for left in ml.deployments(target="docker"):
                left.delete()
            forget([image.tagged for image in images])
    return load.report()


def forget(tags: list[str]) -> None:
    """Remove the images from the engine."""
    import docker

    client = docker.from_env()
    for tag in tags:
        with contextlib.suppress(docker.errors.ImageNotFound):
            client.images.remove(tag)
    client.close()


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second (default: %(default)s)")
    parser.add_argument(
        "--requests", type=int, default=20_000, help="how many at least (default: %(default)s)"
    )
    asked = parser.parse_args()
    report = run(asked.rate, asked.requests)
    print(report)
    print(f"{report.failures.total()} of {len(report.outcomes)} requests failed")
    return 1 if report.failures or "" in report.versions else 0


if __name__ == "__main__":
    sys.exit(main())
