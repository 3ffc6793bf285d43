"""A plan of a small but whole serving image, for tests that build it for real."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mlopsnb import manifest
from mlopsnb.images import base, contents
from mlopsnb.images.cache import Store
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.images.plan import File
from mlopsnb.images.planning import plan_image

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ROOTS = (
    *("grpcio", "httptools", "msgspec", "numpy", "onnxruntime", "orjson", "prometheus-client", "protobuf"),
    *("pysimdjson", "uvicorn", "uvloop"),
)
WEIGHTS = np.arange(8, dtype="float32").reshape(4, 2)
EXAMPLE = np.ones((3, 4), "float32")


def make_package(into):
    """Export `x @ WEIGHTS` as an ONNX package."""
    import onnx

    from mlopsnb.flow import export

    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [make.make_tensor_value_info("x", kind, ["n", 4])],
        [make.make_tensor_value_info("y", kind, ["n", 2])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    return export(model, EXAMPLE, into=into).path


def make_environment(place):
    """Bring the wheels that the package and the server need, unpack them, and say what is in each."""
    wheels, tree = place / "wheels", place / "site-packages"
    wanted = [f"{name}=={version(name)}" for name in ROOTS]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--only-binary",
        ":all:",
        "--dest",
        str(wheels),
    ]
    subprocess.run([*command, *wanted], check=True, capture_output=True)
    packages, locked = {}, []
    for wheel in sorted(wheels.iterdir()):
        name, number = wheel.name.split("-")[:2]
        name = name.replace("_", "-").lower()
        locked.append(
            LockedPackage(
                name=name, version=number, filename=wheel.name, sha256=_digest(wheel), url=wheel.as_uri()
            )
        )
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree)
            files = [item for item in archive.infolist() if _is_wanted(item)]
        packages[name] = tuple(_file(tree / item.filename, item) for item in files)
    lock = Lock(python=PYTHON, platform="linux/amd64", packages=tuple(sorted(locked, key=lambda p: p.name)))
    return SimpleNamespace(lock=lock, root=tree, packages=packages)


def _is_wanted(item):
    unwanted = item.is_dir() or ".data/" in item.filename or "/tests/" in item.filename
    return not unwanted and not item.filename.endswith((".pyi", ".h", "RECORD"))


def _file(path, item):
    mode = 0o755 if item.external_attr >> 16 & 0o100 else 0o644
    return File(path=item.filename, source=path, size=item.file_size, sha256=_digest(path), mode=mode)


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_plan(name, *, package, environment, base_image, cache, labels=None):
    """Plan the image of *package*; *base_image* is looked up."""
    found = base.inspect(base_image, platform="linux/amd64", python=PYTHON, store=Store(cache))
    return plan_image(
        name=name,
        version="3",
        base=found,
        environment=environment,
        bytecode=SimpleNamespace(files={"numpy/__pycache__/none.cpython-311.pyc": b"stands for bytecode"}),
        runtime=contents.runtime_files(),
        package=Path(package),
        package_digest=manifest.read(package).digest,
        files=contents.package_files(Path(package)),
        labels=labels,
    )
