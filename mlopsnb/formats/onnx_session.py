"""How an ONNX file is run. Needs onnxruntime and numpy, and must import nothing else: servers start with this.

The CPU alone; one thread unless more are asked for, and none that spins while it waits.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mlopsnb.extras import need

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlopsnb.protocols import Predict, Tensors

FILE = "model.onnx"
_FATAL = 4
"""ONNX Runtime writes every error to stderr before it raises it; raised is enough."""


def open_session(file: Path, *, threads: int = 0) -> Any:
    """Return an `InferenceSession` on *file* whose calls use *threads* threads; 0 leaves that to ONNX Runtime."""
    os.environ.setdefault(
        "ORT_DISABLE_TELEMETRY", "1"
    )  # it looks for a place to keep an id as it is imported
    ort = need("onnxruntime", extra="onnx")
    ort.set_default_logger_severity(_FATAL)
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it keeps a plan and a block for every batch size, and saves no time
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def runner(session: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Predict:
    """Return *session* as a callable on named arrays; *outputs* name what it gives, in the graph's order.

    An output may have the name of an input, which ONNX forbids; so the graph may call it something else.
    """
    run = session.run
    taken = [node.name for node in session.get_inputs()]
    given = [node.name for node in session.get_outputs()]
    if len(given) != len(outputs):
        raise ValueError(f"the graph has {len(given)} outputs, {', '.join(given)}; expected {len(outputs)}")
    exact = set(taken) == set(inputs)  # what the model does not use may not be in the graph

    def predict(arrays: Tensors) -> Tensors:
        feed = arrays if exact and type(arrays) is dict else {name: arrays[name] for name in taken}
        return dict(zip(outputs, run(given, feed), strict=True))

    return predict
