"""What every launcher needs, in whichever environment it runs: the model as a function of one array.

Frozen, optimised for inference where that helps, and on one thread: the best that each server could do with this file.
"""

from __future__ import annotations

import os

import numpy as np

BATCH = os.environ.get("BENCH_BATCH") == "1"
HEAVY = os.environ.get("BENCH_HEAVY") == "1"
MANY_ROWS = int(os.environ.get("BENCH_ROWS", "1")) > 64
BINARY = os.environ.get("BENCH_BINARY") == "1"
MAX_BATCH_SIZE = 32


def load():
    """Return the model, warmed up, as a function from a float32 array of rows to another."""
    file = os.environ["BENCH_MODEL"]
    run = _onnx(file) if file.endswith(".onnx") else _torchscript(file)
    row = tuple(int(n) for n in os.environ["BENCH_ROW"].split(","))
    for rows in (1, 1, 1, 8, 8, 8):
        run(np.zeros((rows, *row), np.float32))
    return run


def _torchscript(file):
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = torch.jit.load(file).eval()
    # What the optimizer does to weights that no convolution takes gains with a few rows, and costs with many.
    model = torch.jit.freeze(model) if MANY_ROWS else torch.jit.optimize_for_inference(model)

    def run(x):
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return run


def _onnx(file):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    [wanted] = session.get_outputs()
    return lambda x: session.run([wanted.name], {given.name: x})[0]


def tensor(y):
    """Return *y* as an output of the Open Inference Protocol."""
    return {"name": "y", "shape": list(y.shape), "datatype": "FP32", "data": y.ravel().tolist()}


def array(tensor):
    """Return an input of the Open Inference Protocol, parsed as plain JSON, as an array."""
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])
