"""What is served: the models, the packages and bodies made from them, and whether an answer is the model's.

Every server gets the same TorchScript file and, where it speaks the Open Inference Protocol, the same bytes.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving_peers import reference

MODEL = "m"
"""The model's name in every server."""

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Case:
    """One model with one size of request. `heavy`: a forward takes milliseconds, so servers get two workers.

    `binary`: tensors go and come as raw bytes behind the JSON.
    """

    name: str
    title: str
    row: tuple[int, ...]
    rows: int
    heavy: bool
    protocol: str = "http"
    binary: bool = False


CASES = {
    c.name: c
    for c in (
        Case("mlp", "MLP 32→64→64→2, one row", (32,), 1, heavy=False),
        Case("conv", "convnet on 3 by 64 by 64, one row", (3, 64, 64), 1, heavy=True),
        Case("table", "MLP 32→64→64→2, a batch of 1,000 rows", (32,), 1000, heavy=False),
        Case(
            "table-binary",
            "MLP 32→64→64→2, a batch of 1,000 rows, raw bytes",
            (32,),
            1000,
            heavy=False,
            binary=True,
        ),
        Case("mlp-grpc", "MLP 32→64→64→2, one row, gRPC, raw bytes", (32,), 1, heavy=False, protocol="grpc"),
    )
}


def network(case: Case):
    """Return the model of *case*, with the same weights each time."""
    import torch
    from torch import nn

    torch.manual_seed(7)
    if len(case.row) == 1:
        return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(64, 2)),
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files of one case below `root`, and inputs with the answers that the model itself gives."""

    case: Case
    root: Path
    inputs: tuple[np.ndarray, ...] = field(repr=False)
    answers: tuple[np.ndarray, ...] = field(repr=False)
    input_name: str
    forward_ms: float
    bodies: dict[str, list[bytes]] = field(default_factory=dict, repr=False)
    """The encoded inputs, by the name of the encoding; made when first asked for."""

    @property
    def script(self) -> Path:
        return self.root / "model.pt"

    @property
    def package(self) -> Path:
        return self.root / "package"

    @property
    def output_size(self) -> int:
        return int(self.answers[0].shape[1])


CHECKED_INPUTS = 16
"""How many different requests each server has to answer rightly, all at once, before it is measured."""


def prepare(case: Case, root: Path) -> Prepared:
    """Make the model's files below *root*: a TorchScript file, our package, and what the model answers."""
    import torch

    import mlopsnb

    torch.set_num_threads(1)
    model = network(case).eval()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    rng = np.random.default_rng(11)
    inputs = tuple(
        rng.normal(size=(case.rows, *case.row)).round(6).astype(np.float32) for _ in range(CHECKED_INPUTS)
    )
    example = rng.normal(size=(8, *case.row)).astype(np.float32)
    artifact = mlopsnb.export(model, example, format="torchscript", into=root / "package")
    with torch.inference_mode():
        torch.jit.trace(model, torch.from_numpy(inputs[0])).save(str(root / "model.pt"))
        answers = tuple(model(torch.from_numpy(x)).numpy() for x in inputs)
        milliseconds = _forward_ms(model, torch.from_numpy(inputs[0]))
        if len(case.row) == 1:  # rows of images have no columns to be counted
            seen = rng.normal(size=(5000, *case.row)).astype(np.float32)
            names = artifact.signature.inputs[0].name, artifact.signature.outputs[0].name
            reference.add(artifact.path, {names[0]: seen}, {names[1]: model(torch.from_numpy(seen)).numpy()})
    return Prepared(case, root, inputs, answers, artifact.signature.inputs[0].name, milliseconds)


def _forward_ms(model, x) -> float:
    times = []
    for _ in range(50):
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def v2_body(prepared: Prepared, index: int) -> bytes:
    """Return request *index* in the Open Inference Protocol's JSON, as compact as JSON gets."""
    x = prepared.inputs[index]
    tensor = {
        "name": prepared.input_name,
        "shape": list(x.shape),
        "datatype": "FP32",
        "data": _numbers(x.ravel()),
    }
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def binary_body(prepared: Prepared, index: int) -> bytes:
    """Return request *index* with the protocol's extension for binary tensors, both ways."""
    return _binary(prepared, index)[0]


def headers(prepared: Prepared) -> dict[str, str]:
    """Return what a request's head says of its body."""
    if not prepared.case.binary:
        return {"Content-Type": "application/json"}
    length = _binary(prepared, 0)[1]  # the same for all, as nothing but the numbers differs
    return {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(length)}


def _binary(prepared: Prepared, index: int) -> tuple[bytes, int]:
    from mlopsnb.serving.v2 import encode_binary_request

    return encode_binary_request({prepared.input_name: prepared.inputs[index]})


def mlflow_body(prepared: Prepared, index: int) -> bytes:
    """Return request *index* as MLflow's `/invocations` takes it: the same numbers, nested."""
    x = prepared.inputs[index]
    rows = np.array(_numbers(x.ravel())).reshape(x.shape).tolist()
    return json.dumps({"inputs": rows}, separators=(",", ":")).encode()


def grpc_body(prepared: Prepared, index: int) -> bytes:
    """Return request *index* as an encoded `ModelInferRequest` with raw bytes."""
    from mlopsnb.serving.rpc.messages import message

    x = prepared.inputs[index]
    request = message("ModelInferRequest")(model_name=MODEL)
    request.inputs.add(name=prepared.input_name, datatype="FP32", shape=x.shape)
    request.raw_input_contents.append(x.tobytes())
    return request.SerializeToString()


def _numbers(x: np.ndarray) -> list[float]:
    """Return the numbers as the shortest decimals that are the same float32."""
    return [float(str(v)) for v in x]


def right(prepared: Prepared, index: int, body: bytes) -> str:
    """Return what is wrong with the answer *body* to request *index*; nothing if it is the model's answer."""
    try:
        found = _grpc_answer(body) if prepared.case.protocol == "grpc" else _http_answer(body)
    except Exception as exc:  # noqa: BLE001  whatever a peer sends is told as it is
        return f"an answer of another form ({type(exc).__name__}: {exc}): {body[:200]!r}"
    wanted = prepared.answers[index]
    if found.size != wanted.size:
        return f"{found.size} numbers instead of {wanted.size}: {body[:200]!r}"
    error = float(np.abs(found.reshape(wanted.shape) - wanted).max())
    return "" if error <= TOLERANCE else f"numbers that are {error:.3g} off: {body[:200]!r}"


def _grpc_answer(body: bytes) -> np.ndarray:
    from mlopsnb.serving.rpc.messages import message

    response = message("ModelInferResponse").FromString(body)
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], "<f4").astype(np.float64)
    return np.array(response.outputs[0].contents.fp32_contents, dtype=np.float64)


def _http_answer(body: bytes) -> np.ndarray:
    """Return the numbers in the JSON, or those that follow it as raw bytes."""
    content, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    raw = body[end:]
    return np.frombuffer(raw, "<f4").astype(np.float64) if raw.strip() else _answer(content)


def _answer(content) -> np.ndarray:
    """Find the numbers in an answer of the protocol, in MLflow's, or in a bare list of the protocol's tensors."""
    if isinstance(content, dict) and "predictions" in content:
        return np.asarray(content["predictions"], dtype=np.float64)
    tensors = content["outputs"] if isinstance(content, dict) else content
    return np.asarray(tensors[0]["data"], dtype=np.float64)
