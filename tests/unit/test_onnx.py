"""The format `onnx`: how it captures, what it refuses and why, and what a session may take of the machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mlopsnb import flow, manifest, plugins
from mlopsnb.errors import ExportError, ParityError, UnsupportedModel, UserError
from mlopsnb.formats.onnx_session import open_session
from mlopsnb.packages import export
from mlopsnb.protocols import THREADS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4)).astype("float32")
Pair = namedtuple("Pair", "low high")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x)


class Branches(Net):
    def forward(self, x):
        if x.sum() > 0:
            return self.linear(x)
        return -self.linear(x)


class RowByRow(Net):
    def forward(self, x):
        rows = []
        for i in range(x.shape[0]):
            rows.append(self.linear(x[i]))
        return torch.stack(rows)


class BranchesOutsideTorch(Net):
    def forward(self, x):
        sign = {True: 1.0, False: -1.0}[bool(np.sum(x.numpy()) > 0)]
        return self.linear(x) * sign


class BakedIn(Net):
    def forward(self, x):
        return self.linear(x.view(5, 4))


class Nested(Net):
    def forward(self, x):
        y = self.linear(x)
        return {"y": y, "pair": Pair(y.min(1).values, y.max(1).values), "none": None}


class SameNames(torch.nn.Module):
    def forward(self, a, b):
        return {"a": a, "b": b + 1}


class Unused(torch.nn.Module):
    def forward(self, a, b):
        return a * 2


class Kinds(torch.nn.Module):
    """Every dtype out, and one output that does not follow the rows."""

    DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")

    def forward(self, x):
        found = {name: x.abs().to(getattr(torch, name)) for name in self.DTYPES}
        return found | {"fixed": torch.arange(3)}


class Eigen(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x.unsqueeze(-1) @ x.unsqueeze(-2)).abs()


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def loaded(artifact):
    return plugins.create("format", "onnx").load(artifact.path / manifest.MODEL_DIR, artifact.signature)


@pytest.mark.parametrize(
    ("model", "example", "captured"),
    [
        (Net, X, "captured by tracing"),
        (Recurrent, np.ones((2, 5, 4), "float32"), "captured by tracing"),
        (lambda: torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), np.ones((2, 5, 4), "float32"),
         "captured by tracing"),
        (Branches, X, "captured by scripting: forward depends on its data"),
        (RowByRow, X, "captured by scripting"),
    ],
)  # fmt: skip
def test_a_module_is_captured_in_the_way_that_keeps_its_meaning(model, example, captured, capfd):
    artifact = export(model(), example, format="onnx")
    assert artifact.parity.notes[0].startswith(captured)
    assert artifact.parity.notes[-1].startswith("ONNX opset ")
    assert artifact.requirements == (f"onnxruntime=={pytest.importorskip('onnxruntime').__version__}",)
    assert set(manifest.read(artifact.path).files) == {"example.npz", "model/model.onnx"}
    assert capfd.readouterr() == ("", "")


def test_a_scripted_module_is_taken(recwarn):
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(Branches())
    assert "captured by scripting" in export(scripted, X, format="onnx").parity.notes[0]


def test_what_a_trace_cannot_take_goes_through_torch_export(capfd):
    class NoTrace(Net):
        def forward(self, x):
            if torch.jit.is_tracing():
                raise RuntimeError("no trace today")
            return eval("self.linear(x)")  # no script either

    notes = export(NoTrace(), X, format="onnx").parity.notes
    assert notes[0] == "captured by torch.export: the trace differed: RuntimeError: no trace today"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (BakedIn, ParityError, "bakes in the batch size"),
        (BranchesOutsideTorch, ParityError, r"output 'output' differs in .*\n.*no way to ONNX is left.*'torchscript'"),
        (Eigen, ExportError, r"forward uses aten::linalg_eigvals, for which ONNX has no operator\n.*another format"),
    ],
)  # fmt: skip
def test_what_onnx_cannot_say_is_refused(model, error, message, capfd, tmp_path):
    with pytest.raises(error, match=message):
        export(model(), X, format="onnx", into=tmp_path / "p")
    assert not (tmp_path / "p").exists()
    assert capfd.readouterr() == ("", "")


def test_the_exporters_and_torch_are_left_as_they_were():
    write, fast = torch._C._jit_onnx_log, torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ExportError):
        export(Eigen(), X, format="onnx")
    assert torch._C._jit_onnx_log is write
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_torch_modules_are_torchscript_unless_onnx_is_asked_for():
    assert export(Net(), X).format == "torchscript"


def test_nested_outputs_of_every_kind_and_batches_of_none():
    artifact = export(Nested(), X, format="onnx")
    assert [(s.name, s.shape) for s in artifact.signature.outputs] == [
        ("y", (None, 3)),
        ("pair_low", (None,)),
        ("pair_high", (None,)),
    ]
    kinds = export(Kinds(), X, format="onnx")
    outputs = loaded(kinds)({"x": X})
    assert {k: (v.dtype.name, v.shape) for k, v in outputs.items()} == {
        **{name: (name, (5, 4)) for name in Kinds.DTYPES},
        "fixed": ("int64", (3,)),
    }
    assert {s.name: s.shape for s in kinds.signature.outputs}["fixed"] == (3,)
    assert loaded(artifact)({"x": X[:0]})["y"].shape == (0, 3)


def test_inputs_that_are_not_used_and_outputs_named_like_inputs():
    unused = loaded(export(Unused(), (X, X), format="onnx"))({"a": X, "b": X})
    np.testing.assert_array_equal(unused["output"], X * 2)
    same = loaded(export(SameNames(), (X, X), format="onnx"))({"a": X, "b": X})
    assert {k: v.tolist() for k, v in same.items()} == {"a": X.tolist(), "b": (X + 1).tolist()}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats(dtype):
    module = Net().to(getattr(torch, dtype))
    artifact = export(module, X.astype(dtype), format="onnx")
    assert (artifact.signature.inputs[0].dtype, artifact.signature.outputs[0].dtype) == (dtype, dtype)


def test_arrays_in_any_memory_layout():
    predict = loaded(export(Net(), X, format="onnx"))
    frozen = X.copy()
    frozen.flags.writeable = False
    expected = predict({"x": X})["output"]
    for same in (frozen, np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2]):
        np.testing.assert_array_equal(predict({"x": same})["output"], expected)


def graph(*, batch="n", dtype=np.float32, text=False):
    make = onnx.helper
    if text:
        kind, nodes = onnx.TensorProto.STRING, [make.make_node("StringConcat", ["x", "x"], ["y"])]
        ends = [make.make_tensor_value_info(name, kind, ["n"]) for name in "xy"]
    else:
        kind = make.np_dtype_to_tensor_dtype(np.dtype(dtype))
        nodes = [make.make_node("Add", ["x", "x"], ["y"])]
        ends = [make.make_tensor_value_info(name, kind, [batch, 4]) for name in "xy"]
    built = make.make_graph(nodes, "g", ends[:1], ends[1:])
    return make.make_model(built, opset_imports=[make.make_opsetid("", 20)], ir_version=10)  # fmt: skip


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16"]
)
def test_graphs_take_and_give_every_number(dtype):
    x = np.arange(20).reshape(5, 4).astype(dtype)
    artifact = export(graph(dtype=dtype), x)
    found = loaded(artifact)({"x": x})["y"]
    assert (artifact.format, found.dtype.name, found.tolist()) == ("onnx", dtype, (x + x).tolist())


def test_graphs_take_and_give_text():
    artifact = export(graph(text=True), np.array(["a", "bc", "ä"]))
    assert [
        (s.name, s.dtype, s.shape) for s in (*artifact.signature.inputs, *artifact.signature.outputs)
    ] == [
        ("x", "str", (None,)),
        ("y", "str", (None,)),
    ]
    found = loaded(artifact)({"x": np.array(["q", "é"], dtype=object)})["y"]
    assert (found.dtype, found.tolist()) == (np.dtype(object), ["qq", "éé"])


def test_a_file_is_taken_by_its_path(tmp_path):
    onnx.save(graph(), tmp_path / "given.onnx")
    for path in (tmp_path / "given.onnx", str(tmp_path / "given.onnx")):
        artifact = export(path, X.astype("float64"))
        assert artifact.parity.notes[:3] == (
            "the ONNX model as it was given",
            "x given as float64, taken as float32 like the graph's input",
            "ONNX opset 20",
        )
        np.testing.assert_array_equal(loaded(artifact)({"x": X})["y"], X * 2)


def test_a_file_with_its_weights_beside_it_is_taken_whole(tmp_path):
    weights = RNG.normal(size=(4, 4)).astype("float32")
    make = onnx.helper
    ends = [make.make_tensor_value_info(name, 1, ["n", 4]) for name in "xy"]
    tensor = onnx.numpy_helper.from_array(weights, "w")
    built = make.make_graph([make.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [tensor])
    model = make.make_model(built, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    artifact = export(tmp_path / "m.onnx", X)
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_allclose(loaded(artifact)({"x": X})["y"], X @ weights, rtol=1e-5)


def test_weights_that_are_too_large_for_one_file_go_beside_it(monkeypatch, tmp_path):
    from mlopsnb.formats import onnx_graph

    monkeypatch.setattr(onnx_graph, "_EMBEDDED_BYTES", 1000)
    model = graph()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((40, 40), "float32"), "w"))
    artifact = export(model, X)
    assert {p.name for p in (artifact.path / "model").iterdir()} == {"model.onnx", "model.onnx.data"}
    np.testing.assert_array_equal(loaded(artifact)({"x": X})["y"], X * 2)


def sequence():
    make = onnx.helper
    value = make.make_tensor_sequence_value_info("y", 1, None)
    nodes = [make.make_node("SequenceConstruct", ["x"], ["y"])]
    built = make.make_graph(nodes, "g", [make.make_tensor_value_info("x", 1, ["n", 4])], [value])
    return make.make_model(built, opset_imports=[make.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "example", "error", "message"),
    [
        (lambda: graph(batch=5), X, ParityError, "bakes in the batch size: it takes 5 rows but fails on 1"),
        (graph, (X, X), UserError, "the graph's inputs are x; the example has 2 parts"),
        (graph, {"z": X}, UserError, "the graph's inputs are x; the example has z"),
        (lambda: graph(dtype="int64"), X, UserError, "input 'x' of the graph takes int64; the example has float32"),
        (graph, np.array(["a"]), UserError, "takes float32; the example has str"),
        (sequence, X, ExportError, r"'y' of the graph is a seq\(tensor\(float\)\); only tensors can be served"),
        (lambda: Path("nowhere.onnx"), X, UserError, "there is no file 'nowhere.onnx'"),
    ],
)  # fmt: skip
def test_graphs_that_do_not_fit_are_refused(model, example, error, message, capfd):
    with pytest.raises(error, match=message):
        export(model(), example)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match="text.onnx is no ONNX model"):
        export(tmp_path / "text.onnx", X)


def test_keras_models_are_refused_with_the_format_that_takes_them():
    keras = pytest.importorskip("keras")
    with pytest.raises(
        UnsupportedModel, match=r"'onnx' does not accept .*\n.*formats that accept it: savedmodel"
    ):
        export(keras.Sequential([keras.layers.Dense(2)]), X, format="onnx")


class TestSklearn:
    ROWS = RNG.normal(size=(60, 4))
    WANT = ROWS[:, 0] > 0

    @pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 1e-6), ("int64", 1e-12)])
    def test_a_classifier_gives_labels_and_probabilities_in_its_own_precision(self, dtype, error):
        from sklearn.linear_model import LogisticRegression

        rows = (self.ROWS * 9).astype(dtype)
        model = LogisticRegression().fit(rows, np.where(self.WANT, "yes", "no"))
        artifact = export(model, rows)
        assert (artifact.format, artifact.signature.inputs[0].dtype) == ("onnx", dtype)
        assert artifact.parity.notes[0] == "converted by skl2onnx, computed in float64"
        found = loaded(artifact)({"X": rows})
        assert found["label"].tolist() == model.predict(rows).tolist()
        np.testing.assert_allclose(found["probabilities"], model.predict_proba(rows), rtol=0, atol=error)

    def test_where_float64_will_not_do_it_is_float32_and_that_is_said(self):
        from sklearn.svm import SVR

        model = SVR().fit(self.ROWS, self.ROWS[:, 0])
        artifact = export(model, self.ROWS)
        assert "computed in float32: in float64 NotImplemented" in artifact.parity.notes[0]
        assert {s.dtype for s in (*artifact.signature.inputs, *artifact.signature.outputs)} == {"float32"}

    def test_forests_regressors_clusters_transformers(self):
        from sklearn.cluster import KMeans
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        two = np.c_[self.ROWS[:, 0], self.ROWS[:, 1]]
        for model, outputs in (
            (RandomForestClassifier(5, random_state=0).fit(self.ROWS, self.WANT), ["label", "probabilities"]),
            (RandomForestRegressor(5, random_state=0).fit(self.ROWS, two), ["output"]),
            (KMeans(2, n_init=1, random_state=0).fit(self.ROWS), ["output"]),
            (make_pipeline(StandardScaler()).fit(self.ROWS), ["output"]),
            (LinearSVC().fit(self.ROWS, self.WANT), ["label"]),
        ):
            assert [s.name for s in export(model, self.ROWS).signature.outputs] == outputs

    def test_columns_of_a_frame_with_text_in_it(self):
        from sklearn.compose import make_column_transformer
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        frame = pd.DataFrame(
            {"age": np.arange(30, 90), "city": np.where(self.WANT, "Oslo", "Rom"), "pay": self.ROWS[:, 1]}
        )
        encode = make_column_transformer(
            (StandardScaler(), ["age", "pay"]), (OneHotEncoder(handle_unknown="ignore"), ["city"])
        )
        model = make_pipeline(encode, RandomForestClassifier(5, random_state=0)).fit(frame, self.WANT)
        with pytest.raises(UserError, match=r"'city' \(str\)\n.*dict\(frame\)"):
            export(model, frame)
        artifact = export(model, dict(frame))
        assert [(s.name, s.dtype, s.shape) for s in artifact.signature.inputs] == [
            ("age", "int64", (None,)),
            ("city", "str", (None,)),
            ("pay", "float64", (None,)),
        ]
        with pytest.raises(UserError, match="fitted on columns that the example has not: city, pay"):
            export(model, {"age": frame["age"]})

    def test_what_cannot_be_converted_says_why(self):
        from sklearn.linear_model import LogisticRegression

        class Own(LogisticRegression):
            pass

        with pytest.raises(
            ExportError, match=r"Own cannot be turned into ONNX: in float64 .*Own.*; in float32 "
        ):
            export(Own().fit(self.ROWS, self.WANT), self.ROWS)
        with pytest.raises(ExportError, match="NotFittedError"):
            export(LogisticRegression(), self.ROWS)
        with pytest.raises(UserError, match="takes one table"):
            export(LogisticRegression(), (self.ROWS, self.ROWS))


def test_a_session_has_the_threads_it_is_given_and_none_more(tmp_path):
    onnx.save(graph(), tmp_path / "model.onnx")

    def threads():
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc to count threads")
    before = threads()
    alone = open_session(tmp_path / "model.onnx", threads=1)
    assert threads() == before
    four = open_session(tmp_path / "model.onnx", threads=4)
    assert threads() == before + 3
    del alone, four


def test_load_takes_the_threads_of_its_context():
    artifact = export(graph(), X)
    fmt = plugins.create("format", "onnx")
    asked = []

    def count():
        THREADS.set(3)
        fmt.load(artifact.path / manifest.MODEL_DIR, artifact.signature)
        asked.append(THREADS.get())

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    assert (asked, THREADS.get()) == ([3], 0)


WITHOUT = """
import sys
sys.modules[{missing!r}] = None
from pathlib import Path
from mlopsnb import plugins
from mlopsnb.records import Signature
fmt = plugins.create("format", "onnx")
try:
    {call}
except ImportError as exc:
    print(type(exc).__name__, exc)
"""


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("onnxruntime", "fmt.load(Path('.'), Signature(inputs=(), outputs=()))", "onnx"),
        ("onnx", "import torch; fmt.bind(torch.nn.ReLU(), None)", "onnx"),
        ("skl2onnx", "from sklearn.svm import SVC; fmt.bind(SVC(), None).__enter__()", "sklearn"),
    ],
)
def test_what_is_not_installed_is_named_with_the_extra(missing, call, extra):
    code = WITHOUT.format(missing=missing, call=call)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("MissingExtra")
    assert f"{missing!r} is not installed" in said
    assert f"pip install 'mlopsnb[{extra}]'" in said


def test_an_export_in_a_fresh_process_prints_nothing():
    code = (
        "import torch, mlopsnb as ml, numpy as np\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
        "assert ml.export(model, np.ones((3, 4)), format='onnx').format == 'onnx'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_path_of_a_file_can_be_deployed_only_with_an_example(tmp_path):
    onnx.save(graph(), tmp_path / "given.onnx")
    with pytest.raises(UserError, match="needs an example"):
        flow.deploy(tmp_path / "given.onnx", name="given")
