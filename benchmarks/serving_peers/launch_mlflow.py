"""MLflow's model with ours in it, written before its server starts: `python -m serving_peers.launch_mlflow DIR`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from serving_peers import launch_common


class Runtime(mlflow.pyfunc.PythonModel):
    """One TorchScript file."""

    def load_context(self, context):
        self._run = launch_common.load()

    def predict(self, context, model_input, params=None):
        return self._run(model_input)


if __name__ == "__main__":
    row = tuple(int(n) for n in os.environ["BENCH_ROW"].split(","))
    schema = Schema([TensorSpec(np.dtype("float32"), (-1, *row))])
    model_code = Path(sys.argv[1]).with_suffix(".py")
    model_code.write_text(
        "import mlflow.models\nfrom serving_peers.launch_mlflow import Runtime\n"
        "mlflow.models.set_model(Runtime())\n"
    )
    mlflow.pyfunc.save_model(
        path=sys.argv[1],
        python_model=str(model_code),
        pip_requirements=["mlflow"],
        signature=ModelSignature(inputs=schema),
    )
