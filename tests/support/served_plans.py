"""A plan of a whole serving image, small but real, for tests that run what was built."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlopsnb import manifest
from mlopsnb.images import base, contents
from mlopsnb.images.cache import Store
from mlopsnb.images.environment.install import install
from mlopsnb.images.environment.locking import resolve
from mlopsnb.images.environment.prove import prove
from mlopsnb.images.environment.roots import roots
from mlopsnb.images.planning import plan_image

if TYPE_CHECKING:
    from mlopsnb.images.environment import Bytecode, Environment

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PLATFORM = "linux/amd64"
WEIGHTS = np.arange(8, dtype="float32").reshape(4, 2)
EXAMPLE = np.ones((3, 4), "float32")
BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]}
).encode()
"""A request to such a model."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What plans of one package have in common."""

    package: Path
    environment: Environment
    bytecode: Bytecode
    base: base.Base

    def plan(self, name, labels):
        """Plan an image of the name *name*."""
        return plan_image(
            name=name,
            version="3",
            base=self.base,
            environment=self.environment,
            bytecode=self.bytecode,
            runtime=contents.runtime_files(),
            package=self.package,
            package_digest=manifest.read(self.package).digest,
            files=contents.package_files(self.package),
            labels=labels,
        )


def make_parts(place, base_image):
    """Export a model, resolve and install what it needs, prove it, and look up the base: the stages of a build."""
    package, cache = make_package(place / "package"), place / "store"
    lock = resolve(roots(manifest.read(package)), platform=PLATFORM, python=PYTHON)
    environment = install(lock, cache)
    return Parts(
        package=package,
        environment=environment,
        bytecode=prove(environment, package),
        base=base.inspect(base_image, platform=PLATFORM, python=PYTHON, store=Store(cache)),
    )


def make_package(into, weights=WEIGHTS):
    """Export `x @ weights` as an ONNX package."""
    from mlopsnb.flow import export

    return export(make_model(weights), EXAMPLE, into=into).path


def make_model(weights=WEIGHTS):
    """Return `x @ weights` as an ONNX model."""
    import onnx

    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    rows, columns = weights.shape
    graph = make.make_graph(
        [make.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [make.make_tensor_value_info("x", kind, ["n", rows])],
        [make.make_tensor_value_info("y", kind, ["n", columns])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
