"""Large weights as an image of their own, so that serving images stay small and a node fetches the weights once.

A pod mounts it as an image volume (its directory `models`) where the cluster can, or runs it as an init container that
copies the weights into a volume at `/mnt/models`. The serving image has links there, and its server checks the files
against the package's digests before it is ready.
Sources: https://kubernetes.io/docs/tasks/configure-pod-container/image-volumes; the layout is KServe's
(https://kserve.github.io/website/docs/model-serving/storage/providers/oci).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlopsnb.errors import UserError
from mlopsnb.images.plan import USER, WEIGHTS_MOUNT, File
from mlopsnb.images.planning import WEIGHTS, retagged

if TYPE_CHECKING:
    from mlopsnb.images.image import Destination, Image
    from mlopsnb.images.plan import ImagePlan

THRESHOLD = 1 << 30
"""Files of so many bytes are kept out of the serving image unless the user says otherwise."""

LABEL = "mlopsnb.weights"
"""On a serving image: the image that holds its weights, `NAME@sha256:…`, beside it in the same registry."""

_COPY = f"""
import os, shutil
for here, _, names in os.walk('/{WEIGHTS}'):
    there = '/{WEIGHTS_MOUNT}' + here[len('/{WEIGHTS}'):]
    os.makedirs(there, exist_ok=True)
    for name in names:
        half = os.path.join(there, '.' + name + '.half')
        shutil.copyfile(os.path.join(here, name), half)
        os.replace(half, os.path.join(there, name))
""".strip()
"""What the init container runs, on the base's Python and nothing else; a file is there whole or not at all."""


def kept_out(files: Sequence[File], separate: bool | None) -> Collection[str]:
    """Return the paths of the package's files that stay out of the serving image.

    *separate*: None for those of `THRESHOLD` bytes and more, True for the largest as well, False for none.
    `UserError` if there is nothing that could be kept out.
    """
    if separate is False:
        return ()
    found = [f.path for f in files if f.size >= THRESHOLD]
    if separate and not found:
        weights = [f for f in files if f.path.startswith("model/")]
        if not weights:
            raise UserError("the package has no weights that could be kept out of the image")
        found = [max(weights, key=lambda f: f.size).path]
    return found


def beside(to: Destination) -> Destination:
    """Return where the image of the weights goes, for one that goes *to*; a file or directory holds one image."""
    return (
        to
        if to.path is None
        else replace(to, path=to.path.with_name(f"{to.path.stem}-weights{to.path.suffix}"))
    )


def plan_weights(plan: ImagePlan) -> ImagePlan:
    """Plan the image that holds what *plan* keeps out: on the same base, which a node then has already."""
    labels = {
        "org.opencontainers.image.title": f"{plan.repository} weights",
        "org.opencontainers.image.base.digest": plan.base.digest,
        "mlopsnb.package": plan.package_digest,
    }
    config = {
        "User": USER,
        "Env": list((plan.base.config.get("config") or {}).get("Env") or ()),
        "WorkingDir": "/",
        "Entrypoint": [plan.base.python, "-I", "-S", "-c", _COPY],
        "Labels": labels,
    }
    return retagged(
        replace(
            plan,
            repository=f"{plan.repository}-weights",
            layers=plan.weights,
            weights=(),
            config=config,
            labels=labels,
        ),
        "weights",
    )


def naming(plan: ImagePlan, weights: Image) -> ImagePlan:
    """Return *plan* with a label that names the image of its weights."""
    labels = {**plan.labels, LABEL: f"{plan.repository}-weights@{weights.digest}"}
    config = {**plan.config, "Labels": {**plan.config["Labels"], LABEL: labels[LABEL]}}
    return retagged(replace(plan, config=config, labels=labels), plan.tag.rpartition("-")[0])
