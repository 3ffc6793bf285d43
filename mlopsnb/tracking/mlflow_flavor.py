"""A package as an MLflow model: written beside MLflow's own flavours, and read back by `python_function`.

MLflow calls `save_model` and `_load_pyfunc` by name. Nothing here talks to a tracking server.

    MLmodel, requirements.txt, conda.yaml, python_env.yaml    as MLflow writes them
    package/             the package, exactly
    environment.lock     every distribution that was installed
    data/                TorchScript only: the file once more, under the one name that `mlflow.pytorch` looks for
"""

from __future__ import annotations

import importlib
import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb import manifest, plugins
from mlopsnb.extras import need
from mlopsnb.tensors import STRING, arrange
from mlopsnb.tracking.environment import installable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlopsnb.records import Artifact, TensorSpec

NAME = "mlopsnb"
PACKAGE_DIR = "package"
LOCK_FILE = "environment.lock"
_DATA_DIR = "data"
_OWN_LOADER = "mlopsnb.tracking.mlflow_flavor"
_EXAMPLE_ROWS = 5
_EXAMPLE_VALUES = 10_000
"""MLflow stores the input example as JSON, twice: a few rows, and one only where rows are images."""


def save_model(*, path: str, mlflow_model: Any, artifact: Artifact, lock: str, **_: object) -> None:
    """Write *artifact* as an MLflow model into the new directory *path*; `Model.log` calls this."""
    from mlflow.models.utils import _save_example

    root = Path(path)
    described = manifest.read(artifact.path)
    _copy_package(artifact.path, described, root / PACKAGE_DIR)
    (root / LOCK_FILE).write_text(lock, encoding="utf-8")
    inputs, outputs = manifest.read_example(artifact.path)
    inputs = {name: _as_given(a, described.example_dtypes.get(name)) for name, a in inputs.items()}
    mlflow_model.signature = _signature(artifact, described)
    _save_example(mlflow_model, _input_example(inputs), path)
    data = _add_native_flavor(mlflow_model, artifact, root)
    plain = data is not None and _answers_alone(root / data, inputs, outputs)
    own = [] if plain else [f"mlopsnb=={version('mlopsnb')}"]
    requirements = [f"mlflow=={version('mlflow')}", *own, *map(installable, artifact.requirements)]
    environment = _write_environment(root, requirements)
    _add_pyfunc(mlflow_model, environment, data if plain else None)
    mlflow_model.add_flavor(NAME, data=PACKAGE_DIR, format=artifact.format, digest=artifact.digest)
    mlflow_model.model_size_bytes = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    mlflow_model.save(str(root / "MLmodel"))


def _load_pyfunc(path: str) -> PackageModel:
    """Load the package in directory *path*; `mlflow.pyfunc.load_model` calls this."""
    return PackageModel(manifest.artifact(Path(path)))


class PackageModel:
    """What `python_function` calls: the package's own answers, from arrays, frames or dicts of arrays."""

    def __init__(self, artifact: Artifact) -> None:
        self._signature = artifact.signature
        self._predict = plugins.create("format", artifact.format).load(
            artifact.path / manifest.MODEL_DIR, artifact.signature
        )

    def predict(self, data: object, params: Mapping[str, object] | None = None) -> Any:
        """Return the one output as an array, several as a dict of arrays."""
        outputs = self._predict(arrange(data, self._signature))
        return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


def _copy_package(package: Path, described: manifest.Manifest, into: Path) -> None:
    """Copy what the manifest names. Links where the disk allows: MLflow copies all of it once more itself."""
    for name in (manifest.FILE, *described.files):
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        _link(package / name, into / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _as_given(array: Any, dtype: str | None) -> Any:
    return array if dtype in (None, STRING) else array.astype(dtype)


def _signature(artifact: Artifact, described: manifest.Manifest) -> Any:
    """Describe inputs as the example was given: MLflow refuses any other dtype, and users hold what they gave."""
    from mlflow.models import ModelSignature

    inputs = [
        replace(s, dtype=described.example_dtypes.get(s.name, s.dtype)) for s in artifact.signature.inputs
    ]
    return ModelSignature(inputs=_schema(inputs), outputs=_schema(artifact.signature.outputs))


def _schema(specs: Sequence[TensorSpec]) -> Any:
    """Describe tensors to MLflow. A single one stays without a name: MLflow would take only dicts otherwise."""
    from mlflow.types import Schema, TensorSpec

    return Schema(
        [
            TensorSpec(
                np.dtype(object if spec.dtype == STRING else spec.dtype),
                tuple(-1 if n is None else n for n in spec.shape),
                name=spec.name if len(specs) > 1 else None,
            )
            for spec in specs
        ]
    )


def _input_example(inputs: Mapping[str, Any]) -> Any:
    values = sum(a[:1].size for a in inputs.values() if a.ndim)
    rows = max(1, min(_EXAMPLE_ROWS, _EXAMPLE_VALUES // max(values, 1)))
    few = {name: a[:rows] if a.ndim else a for name, a in inputs.items()}
    return few if len(few) > 1 else next(iter(few.values()))


def _add_native_flavor(mlflow_model: Any, artifact: Artifact, root: Path) -> str | None:
    """Let `mlflow.pytorch`, `mlflow.tensorflow` or `mlflow.onnx` load the package's own files.

    Returns the directory that `mlflow.pytorch` reads, if it can read this format.
    """
    model = f"{PACKAGE_DIR}/{manifest.MODEL_DIR}"
    match artifact.format:
        case "torch_export":
            mlflow_model.add_flavor(
                "pytorch", model_data=model, pytorch_version=_torch_version(artifact), code=None
            )
            return model
        case "torchscript":
            # mlflow.pytorch finds a TorchScript file only as `model.pth` beside the name of a pickle module.
            (root / _DATA_DIR).mkdir()
            _link(root / model / "model.pt", root / _DATA_DIR / "model.pth")
            (root / _DATA_DIR / "pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module")
            mlflow_model.add_flavor(
                "pytorch", model_data=_DATA_DIR, pytorch_version=_torch_version(artifact), code=None
            )
            return _DATA_DIR
        case "savedmodel":
            mlflow_model.add_flavor("tensorflow", model_type="tf2-module", saved_model_dir=model, code=None)
            return None
        case "onnx":
            mlflow_model.add_flavor(
                "onnx",
                data=f"{model}/model.onnx",
                onnx_version=version("onnx"),
                providers=["CPUExecutionProvider"],
                onnx_session_options=None,
                code=None,
            )
            return None
        case _:  # a third party's format: our own loader serves it
            return None


def _torch_version(artifact: Artifact) -> str:
    """Return the torch that wrote the file, with its local part, as `torch.__version__` has it."""
    return next((r.partition("==")[2] for r in artifact.requirements if r.startswith("torch==")), "")


def _answers_alone(data: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    """Say whether MLflow's own wrapper gives the model's answer, so that the model loads without mlopsnb.

    It hands over one array and wants one tensor back. Whether a stored module does that is seen by trying.
    """
    if len(inputs) != 1 or len(outputs) != 1:
        return False
    golden = next(iter(outputs.values()))
    try:
        model = importlib.import_module("mlflow.pytorch")._load_pyfunc(str(data), model_config=_MODEL_CONFIG)
        found = model.predict(next(iter(inputs.values())))
    except Exception:  # noqa: BLE001  a no for any reason: then our own loader, which export has proved, is used
        return False
    return isinstance(found, np.ndarray) and found.dtype == golden.dtype and found.shape == golden.shape


_MODEL_CONFIG = {"device": "cpu"}
"""Exports are made, and proved, on the CPU; MLflow would move them to any GPU it sees."""


def _write_environment(root: Path, requirements: Sequence[str]) -> dict[str, str]:
    from mlflow.utils.environment import _mlflow_conda_env, _PythonEnv

    (root / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    _mlflow_conda_env(
        path=str(root / "conda.yaml"), additional_pip_deps=list(requirements), install_mlflow=False
    )
    _PythonEnv.current().to_yaml(str(root / "python_env.yaml"))
    return {"conda_env": "conda.yaml", "python_env": "python_env.yaml"}


def _add_pyfunc(mlflow_model: Any, environment: Mapping[str, str], data: str | None) -> None:
    pyfunc = need("mlflow.pyfunc", extra="mlflow")
    if data is None:
        pyfunc.add_to_model(mlflow_model, loader_module=_OWN_LOADER, data=PACKAGE_DIR, **environment)
    else:
        pyfunc.add_to_model(
            mlflow_model, loader_module="mlflow.pytorch", data=data, model_config=_MODEL_CONFIG, **environment
        )
