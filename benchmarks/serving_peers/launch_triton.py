"""Triton's Python back end with our model: this file becomes `1/model.py` of the model repository."""

from __future__ import annotations

import os

import numpy as np
import triton_python_backend_utils as backend

from serving_peers import launch_common


class TritonPythonModel:
    """One TorchScript file; requests that Triton has gathered run in one forward."""

    def initialize(self, args):
        self._run = launch_common.load()

    def execute(self, requests):
        arrays = [backend.get_input_tensor_by_name(r, os.environ["BENCH_INPUT"]).as_numpy() for r in requests]
        answers = self._run(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
        ends = np.cumsum([len(a) for a in arrays])[:-1]
        parts = np.split(answers, ends)
        return [backend.InferenceResponse([backend.Tensor("y", np.ascontiguousarray(p))]) for p in parts]
