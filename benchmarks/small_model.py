"""A model so small that what is measured is all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import mlopsnb as ml


def package(into: Path, factor: float) -> ml.Artifact:
    """Export a model of four inputs into the directory *into*; models of different *factor* answer differently."""
    import onnx

    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.full((4, 2), factor, "float32")
    graph = make.make_graph(
        [make.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [make.make_tensor_value_info("x", kind, ["n", 4])],
        [make.make_tensor_value_info("y", kind, ["n", 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    return ml.export(model, np.ones((3, 4), "float32"), into=into)
