"""The contract of `Format`: every back end, and for each every way to take inputs and to give outputs."""

import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
import pytest
import torch

from mlopsnb import parity, plugins
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.tensors import read_example, specs_of

RNG = np.random.default_rng(0)
A = RNG.normal(size=(5, 4)).astype("float32")
B = RNG.normal(size=(5, 3)).astype("float32")
FRAME = pd.DataFrame(A.astype("float64"), columns=["a", "b", "c", "d"])


class One(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.norm(self.linear(x)))


class Several(One):
    def forward(self, a, b, scale: float = 2.0):
        return {"sum": self.linear(a) + b, "scaled": b * scale}


class OneDict(One):
    def forward(self, batch):
        return self.linear(batch["a"]), batch["b"]


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 4)

    def forward(self, ids):
        return self.embedding(ids).mean(1)


def keras_one():
    import keras

    layers = keras.layers
    return keras.Sequential(
        [layers.Dense(8, activation="relu"), layers.BatchNormalization(), layers.Dropout(0.5)]
    )


def keras_several():
    import keras

    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    return keras.Model([a, b], {"sum": keras.layers.Dense(3)(a) + b, "scaled": b * 2})


def tf_module():
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(RNG.normal(size=(4, 3)).astype("float32"))

        def __call__(self, a, b):
            total = a @ self.w + b
            if tf.reduce_sum(a) > 0:
                return total, b
            return -total, b

    return Module()


def sklearn_table():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(A, [0, 1, 0, 1, 1])


def sklearn_columns():
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    encode = make_column_transformer(
        (StandardScaler(), ["age"]), (OneHotEncoder(handle_unknown="ignore"), ["city"])
    )
    return make_pipeline(encode, LogisticRegression()).fit(pd.DataFrame(PEOPLE), ["yes", "no", "yes"])


def onnx_graph():
    import onnx

    make = onnx.helper
    nodes = [make.make_node("MatMul", ["a", "w"], ["m"]), make.make_node("Add", ["m", "b"], ["sum"])]
    values = [make.make_tensor_value_info(k, 1, ["n", size]) for k, size in (("a", 4), ("b", 3), ("sum", 3))]
    weights = [onnx.numpy_helper.from_array(RNG.normal(size=(4, 3)).astype("float32"), "w")]
    graph = make.make_graph(nodes, "graph", values[:2], values[2:], weights)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)


def tf_text():
    import tensorflow as tf

    class Text(tf.Module):
        def __call__(self, text):
            return {"length": tf.strings.length(text), "upper": tf.strings.upper(text)}

    return Text()


BOTH = (A, B)
NAMED = {"b": B, "a": A}
IDS = np.array([[1, 2], [3, 4], [49, 0]])
PEOPLE = {"age": np.array([20, 30, 40]), "city": np.array(["Oslo", "Rom", "Rom"], dtype=object)}
CASES = [
    *(
        pytest.param(fmt, model, example, inputs, id=f"{fmt}-{name}")
        for fmt in ("torchscript", "torch_export", "onnx")
        for name, model, example, inputs in [
            ("array", One, A, ["x"]),
            ("float64", One, A.astype("float64"), ["x"]),
            ("tensor", One, torch.from_numpy(A), ["x"]),
            ("frame", One, FRAME, ["x"]),
            ("one row", One, A[:1], ["x"]),
            ("tuple", Several, BOTH, ["a", "b"]),
            ("keywords", Several, NAMED, ["a", "b"]),
            ("one dict", OneDict, {"a": A, "b": B}, ["a", "b"]),
            ("integers", Tokens, IDS, ["ids"]),
        ]
    ),
    pytest.param("savedmodel", keras_one, A.astype("float64"), ["inputs"], id="savedmodel-keras"),
    pytest.param("savedmodel", keras_one, FRAME, ["inputs"], id="savedmodel-keras frame"),
    pytest.param("savedmodel", keras_several, BOTH, ["a", "b"], id="savedmodel-keras tuple"),
    pytest.param("savedmodel", keras_several, {"a": A, "b": B}, ["a", "b"], id="savedmodel-keras dict"),
    pytest.param("savedmodel", tf_module, BOTH, ["a", "b"], id="savedmodel-module"),
    pytest.param("savedmodel", tf_module, {"a": A, "b": B}, ["a", "b"], id="savedmodel-module keywords"),
    pytest.param("onnx", sklearn_table, A.astype("float64"), ["X"], id="onnx-sklearn"),
    pytest.param("onnx", sklearn_table, FRAME, ["X"], id="onnx-sklearn frame"),
    pytest.param("onnx", sklearn_columns, PEOPLE, ["age", "city"], id="onnx-sklearn columns"),
    pytest.param("onnx", onnx_graph, BOTH, ["a", "b"], id="onnx-graph"),
    pytest.param("onnx", onnx_graph, NAMED, ["a", "b"], id="onnx-graph dict"),
    pytest.param("savedmodel", tf_text, np.array(["a", "bc"]), ["text"], id="savedmodel-text"),
]


def test_every_installed_format_is_tested():
    assert set(plugins.available("format")) >= {"onnx", "savedmodel", "torch_export", "torchscript"}
    assert {case.values[0] for case in CASES} == {"onnx", "savedmodel", "torch_export", "torchscript"}


@pytest.mark.parametrize(("name", "model", "example", "inputs"), CASES)
def test_what_is_exported_and_loaded_equals_the_original(name, model, example, inputs, tmp_path):
    fmt = plugins.create("format", name)
    original = model()
    assert fmt.accepts(original)
    with fmt.bind(original, read_example(example)) as bound:
        assert list(bound.inputs) == inputs
        wanted = bound.predict(bound.inputs)
        signature = Signature(inputs=specs_of(bound.inputs), outputs=specs_of(wanted))
        exported = fmt.export(bound, tmp_path)
        report = parity.prove(bound.predict, fmt.load(tmp_path, signature), bound.inputs)
    parity.require(report)
    assert any(p.is_file() for p in tmp_path.rglob("*"))
    assert exported.requirements
    assert all("==" in r for r in exported.requirements)
    assert exported.notes


@pytest.mark.parametrize("name", ["torchscript", "torch_export", "onnx"])
@pytest.mark.parametrize("training", [True, False])
def test_a_torch_module_is_left_as_it_was(name, training, tmp_path):
    model = One().train(training)
    model.norm.eval()  # frozen on purpose: each part keeps its own mode
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fmt = plugins.create("format", name)
    with fmt.bind(model, read_example(A)) as bound:
        assert not model.training
        fmt.export(bound, tmp_path)
    assert [m.training for m in model.modules()] == [training, training, False, training]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", sorted(plugins.available("format")))
def test_other_objects_are_refused_without_an_import(name):
    code = (
        f"import sys; from mlopsnb import plugins; f = plugins.create('format', {name!r});"
        "assert not f.accepts(object()) and not f.accepts(print);"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "tensorflow", "keras", "onnx", "onnxruntime", "sklearn"} & set(loaded)


@pytest.mark.parametrize("name", sorted(plugins.available("format")))
def test_a_fresh_process_runs_the_export_alone(name, tmp_path):
    fmt = plugins.create("format", name)
    original = keras_one() if name == "savedmodel" else One()
    with fmt.bind(original, read_example(A)) as bound:
        wanted = bound.predict(bound.inputs)
        fmt.export(bound, tmp_path)
        [key] = bound.inputs
    np.savez(tmp_path / "io.npz", x=A, y=wanted["output"])
    code = f"""
import sys, numpy as np
from mlopsnb import plugins
from mlopsnb.records import Signature, TensorSpec
io = np.load({str(tmp_path / "io.npz")!r})
spec = lambda n: TensorSpec(name=n, dtype="float32", shape=(None, 4))
predict = plugins.create("format", {name!r}).load(
    __import__("pathlib").Path({str(tmp_path)!r}), Signature(inputs=(spec({key!r}),), outputs=(spec("output"),)))
np.testing.assert_allclose(predict({{{key!r}: io["x"]}})["output"], io["y"], rtol=1e-5, atol=1e-6)
if {name!r} == "onnx":
    assert not {{"torch", "onnx", "onnxscript", "sklearn", "mlopsnb.parity"}} & set(sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:torch", "-c", code], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", ["torchscript", "torch_export", "onnx"])
@pytest.mark.parametrize("rows", [0, 1, 64, 65, 500])
def test_few_rows_and_many_are_answered_alike(name, rows, tmp_path):
    fmt = plugins.create("format", name)
    x = np.random.default_rng(5).normal(size=(rows, 4)).astype(np.float32)
    with fmt.bind(One(), read_example(A)) as bound:
        fmt.export(bound, tmp_path)
        [key] = bound.inputs
        wanted = bound.predict({key: x})["output"]
    given, answered = (TensorSpec(name=n, dtype="float32", shape=(None, 4)) for n in (key, "output"))
    predict = fmt.load(tmp_path, Signature(inputs=(given,), outputs=(answered,)))
    for inputs in (A.astype(np.float32), x):  # the first call may choose how the others are run
        found = predict({key: inputs})["output"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
