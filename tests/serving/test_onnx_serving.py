"""ONNX packages on the real server: it needs no framework, keeps to its threads, and answers every dtype."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlopsnb import flow, manifest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def model(nodes, inputs, outputs, weights=()):
    make = onnx.helper
    ends = [
        [make.make_tensor_value_info(name, kind, ["n", *shape]) for name, kind, shape in side]
        for side in (inputs, outputs)
    ]
    graph = make.make_graph([make.make_node(*node) for node in nodes], "g", *ends, list(weights))
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)


FLOAT, STRING, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.STRING, onnx.TensorProto.BOOL


@pytest.fixture
def several(tmp_path):
    """Numbers and text in; numbers, text and truth out."""
    made = model(
        [
            ("Add", ["x", "x"], ["twice"]),
            ("StringConcat", ["t", "t"], ["echo"]),
            ("IsNaN", ["x"], ["missing"]),
        ],
        [("x", FLOAT, [2]), ("t", STRING, [])],
        [("twice", FLOAT, [2]), ("echo", STRING, []), ("missing", BOOL, [2])],
    )
    example = {"x": np.array([[1, np.nan], [3, 4]], "float32"), "t": np.array(["a", "ä"], dtype=object)}
    return flow.export(made, example, into=tmp_path / "several").path


def request(rows, text):
    return {
        "inputs": [
            {"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": rows},
            {"name": "t", "shape": [len(text)], "datatype": "BYTES", "data": text},
        ]
    }


def infer(runtime, content):
    path = "/v2/models/several/infer"
    return runtime.request("POST", path, json.dumps(content).encode())


def test_numbers_text_and_truth(serve, several):
    runtime = serve(several, "--port", "0")
    answer = infer(runtime, request([[1, 2], [3, 4]], ["a", "ü"]))
    assert (answer.status, answer.json()["outputs"]) == (
        200,
        [
            {"name": "twice", "shape": [2, 2], "datatype": "FP32", "data": [2.0, 4.0, 6.0, 8.0]},
            {"name": "echo", "shape": [2], "datatype": "BYTES", "data": ["aa", "üü"]},
            {"name": "missing", "shape": [2, 2], "datatype": "BOOL", "data": [False] * 4},
        ],
    )
    wrong = infer(runtime, request([[1, 2]], [5]))
    assert (wrong.status, "'t'" in wrong.json()["error"]) == (400, True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_server_needs_no_framework_and_no_idle_threads(serve, several):
    runtime = serve(several, "--port", "0", "--workers", "1")
    assert infer(runtime, request([[1, 2]], ["a"])).status == 200
    proc = Path(f"/proc/{runtime.process.pid}")
    maps = (proc / "maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    assert "onnx_cpp2py_export" not in maps
    batching = runtime.get("/v2/models/several").json()["parameters"]["batching"]
    assert (batching["mode"], batching["threads_per_instance"]) == ("inline", 1)


def test_a_slow_model_gets_the_threads_or_instances_that_use_the_machine(serve, tmp_path):
    rng = np.random.default_rng(0)
    size = 1500
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=(size, size)).astype("float32") / size, f"w{i}")
        for i in range(6)
    ]
    nodes = [("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(5)]
    made = model(
        [("MatMul", ["x", "w5"], ["h0"]), *nodes, ("Identity", ["h5"], ["y"])],
        [("x", FLOAT, [size])],
        [("y", FLOAT, [size])],
        weights,
    )
    package = flow.export(made, rng.normal(size=(4, size)).astype("float32"), into=tmp_path / "slow").path
    runtime = serve(package, "--port", "0", "--instances", "2")
    batching = runtime.get("/v2/models/slow").json()["parameters"]["batching"]
    assert (batching["mode"], batching["instances"]) == ("threads", 2)
    assert batching["threads_per_instance"] >= 1
    x = {"name": "x", "shape": [1, size], "datatype": "FP32", "data": [0.5] * size}
    body = json.dumps({"inputs": [x]}).encode()
    assert runtime.request("POST", "/v2/models/slow/infer", body).status == 200


def test_a_damaged_model_is_told(serve, several):

    (several / "model" / "model.onnx").write_bytes(b"nonsense")
    described = manifest.read(several)
    manifest.write(several, replace(described, files=manifest.file_digests(several)))
    runtime = serve(several, "--port", "0")
    assert runtime.process.wait(30) == 4
    assert runtime.report["ready"] is False
    assert runtime.report["error"].startswith("the model cannot be loaded: ")
