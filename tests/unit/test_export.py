"""`export` as a user meets it: what is kept, what is said, and what is refused."""

import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from mlopsnb import manifest, packages
from mlopsnb.errors import (
    ExportError,
    MissingExtra,
    ParityError,
    TrackingError,
    UnknownBackend,
    UnsupportedModel,
    UserError,
)
from mlopsnb.events import reporting_to
from mlopsnb.packages import export
from mlopsnb.plugins import create
from mlopsnb.records import ModelVersion

X = np.random.default_rng(0).normal(size=(5, 4))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x)


class DropoutLeftOn(Net):
    def forward(self, x):
        return torch.nn.functional.dropout(self.linear(x), 0.5, training=True)


class BakedInBatch(Net):
    def forward(self, x):
        return self.linear(x.view(5, 4))


class BakedIntoTheTrace(Net):
    def forward(self, x):
        rows = [self.linear(x)[i] for i in range(int(np.prod(x.shape[:1])))]  # numpy: cannot be scripted
        return torch.stack(rows)


class Branches(Net):
    def forward(self, x):
        if x.sum() > 0:
            return self.linear(x)
        return -self.linear(x)


class BranchesOutsideTorch(Net):
    def forward(self, x):
        sign = {True: 1.0, False: -1.0}[bool(np.sum(x.numpy()) > 0)]
        return self.linear(x) * sign


class HoldsALock(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()  # neither pickled nor scripted

    def forward(self, x):
        with self.lock:
            return self.linear(x)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"


def kept(cache):
    return sorted(p.name for p in cache.glob("*")) + sorted(p.name for p in cache.glob(".*"))


def test_the_package_holds_the_model_its_proof_and_a_golden_example(cache):
    events = []
    model = Net().train()
    with reporting_to(events.append):
        artifact = export(model, X)
    assert artifact.path.parent == cache
    read = manifest.read(artifact.path)
    manifest.verify(artifact.path, read)
    assert read.digest == artifact.digest
    assert set(read.files) == {"example.npz", "model/model.pt"}
    assert artifact.parity.max_abs_error < 1e-6
    assert artifact.requirements == (f"torch=={torch.__version__}",)
    inputs, outputs = manifest.read_example(artifact.path)
    with torch.no_grad():
        np.testing.assert_allclose(outputs["output"], model.eval()(torch.from_numpy(inputs["x"])), atol=1e-6)
    assert [(e.step, e.state) for e in events] == [
        ("export", "started"),
        ("export", "succeeded"),
        ("verify", "started"),
        ("verify", "succeeded"),
    ]
    assert "equals the original in" in events[-1].message


def test_the_same_content_is_kept_once_and_a_given_directory_is_used(cache, tmp_path):
    model = Net()
    first = export(model, X, into=tmp_path / "out")
    assert first.path == tmp_path / "out"
    assert manifest.read(first.path).digest == first.digest
    with pytest.raises(UserError, match="is there already"):
        export(model, X, into=tmp_path / "out")
    assert export(model, X).path != first.path
    assert kept(tmp_path / "cache" / "artifacts") == kept(cache)


def test_a_large_example_costs_little_and_a_little_of_it_is_kept(cache):
    artifact = export(torch.nn.Flatten(), np.ones((500, 3, 100, 100), "float32"))
    inputs, _ = manifest.read_example(artifact.path)
    assert inputs["input"].shape == (3, 3, 100, 100)
    assert any(c.case == "the example (64 rows)" for c in artifact.parity.checks)
    assert artifact.signature.inputs[0].shape == (None, 3, 100, 100)


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        out, (h, c) = self.lstm(x)
        return {"out": out, "state": (h[0], c[0])}


@pytest.mark.parametrize("fmt", ["torchscript", "torch_export"])
def test_nested_outputs_are_named_by_their_path(fmt, cache):
    artifact = export(Recurrent(), np.ones((2, 5, 4)), format=fmt)
    assert [(s.name, s.shape) for s in artifact.signature.outputs] == [
        ("out", (None, 5, 3)),
        ("state_0", (None, 3)),
        ("state_1", (None, 3)),
    ]


def test_rows_on_another_axis_of_an_output_are_refused(cache):
    with pytest.raises(ParityError, match="output 'output_1_0' has shape"):
        export(torch.nn.LSTM(4, 3, batch_first=True), np.ones((2, 5, 4)))


def test_branches_on_data_are_scripted_and_said(cache):
    artifact = export(Branches(), X, format="torchscript")
    assert any("captured by scripting" in n and "x.sum() > 0" in n for n in artifact.parity.notes)


def test_checks_of_shapes_in_torchs_own_layers_are_no_branches_on_data(cache):
    assert "captured by tracing" in export(Recurrent(), np.ones((2, 5, 4))).parity.notes


def test_whole_numbers_are_taken_as_floats_where_only_they_fit(cache):
    artifact = export(Net(), np.array([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert artifact.signature.inputs[0].dtype == "float32"
    assert "x given as whole numbers, taken as float32: the model takes no others" in artifact.parity.notes
    ids = export(torch.nn.Embedding(9, 2), np.array([[1, 2], [5, 8]]))
    assert ids.signature.inputs[0].dtype == "int64"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the user's own call of torch.compile gives them
def test_a_compiled_module_is_exported_as_what_it_wraps(cache):
    assert export(torch.compile(Net()), X).signature.inputs[0].name == "x"


@pytest.mark.parametrize(
    ("model", "fmt", "error", "message"),
    [
        (DropoutLeftOn, "torchscript", ParityError, "not deterministic.*output 'output'"),
        (DropoutLeftOn, "torch_export", ParityError, "not deterministic"),
        (BakedInBatch, "torchscript", ParityError, "bakes in the batch size: it takes 5 rows but fails on 1"),
        (BakedInBatch, "torch_export", ParityError, "bakes in the batch size"),
        (BakedIntoTheTrace, "torchscript", ParityError, "fails where the original works, on batch of 1"),
        (
            BranchesOutsideTorch,
            "torchscript",
            ParityError,
            r"output 'output' differs in .* at \[\d, \d\]: original",
        ),
        (BranchesOutsideTorch, "torch_export", ExportError, "."),
        (Branches, "torch_export", ExportError, "branches on data"),
    ],
)
def test_what_would_answer_differently_is_caught_and_not_kept(model, fmt, error, message, cache, capfd):
    with pytest.raises(error, match=message):
        export(model(), X, format=fmt)
    assert kept(cache) == []
    assert capfd.readouterr() == ("", "")


def test_a_model_that_cannot_be_pickled_is_traced(cache):
    assert export(HoldsALock(), X).parity.notes[0] == "captured by tracing"


def test_a_model_that_can_be_captured_in_no_way_says_both_reasons(cache):
    class Neither(Net):
        def forward(self, x):
            torch.from_numpy(np.ones(1)).requires_grad_()
            if torch.jit.is_tracing():
                raise RuntimeError("no trace today")
            return eval("self.linear(x)")

    with pytest.raises(ExportError, match=r"neither traced \(RuntimeError: no trace today\) nor scripted \("):
        export(Neither(), X, format="torchscript")
    assert kept(cache) == []


def test_wrong_calls_say_what_is_right(cache):
    with pytest.raises(
        UnknownBackend, match="no format named 'torchscrpt'; installed: .*\n.*did you mean 'torchscript'"
    ):
        export(Net(), X, format="torchscrpt")
    with pytest.raises(
        UnsupportedModel, match=r"no installed format accepts builtins.dict\n.*torch\.nn\.Module"
    ):
        export({}, X)
    with pytest.raises(UnsupportedModel, match="format 'savedmodel' does not accept .*Net"):
        export(Net(), X, format="savedmodel")
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(Net())
    with pytest.raises(
        UnsupportedModel, match="'torch_export' does not accept .*\n.*formats that accept it: torchscript"
    ):
        export(scripted, X, format="torch_export")
    with pytest.raises(ParityError, match=r"it takes 4 rows but fails on 1.*\n.*example\[None\]"):
        export(Net(), X[0])
    with pytest.raises(ExportError, match=r"fails on the example \(x float32\[5, 3\]\)"):
        export(Net(), X[:, :3])
    with pytest.raises(UserError, match=r"forward takes 1 inputs \(x\); the example has 2"):
        export(Net(), (X, X))
    assert kept(cache) == []


def test_without_torch_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mlopsnb import plugins\n"
        "from mlopsnb.records import Signature\n"
        "from pathlib import Path\n"
        "try: plugins.create('format', 'torchscript').load(Path('.'), Signature(inputs=(), outputs=()))\n"
        "except ImportError as e: print(type(e).__name__, e)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith(MissingExtra.__name__)
    assert "'torch' is not installed" in said
    assert "pip install 'mlopsnb[torch]'" in said


BIG = """
import os, resource, signal, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
{imports}
from mlopsnb.errors import ExportError
from mlopsnb.packages import export
model, x = {model}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export(model, x, format={fmt!r})
except ExportError as exc:
    print("ExportError:", exc)
"""
TORCH = ("import torch", "torch.nn.Linear(1000, 1000), np.ones((2, 1000), 'float32')")
KERAS = ("import keras", "keras.Sequential([keras.layers.Dense(1000)]), np.ones((2, 1000), 'float32')")


@pytest.mark.parametrize(
    ("fmt", "source"),
    [("torchscript", TORCH), ("torch_export", TORCH), ("savedmodel", KERAS)],
    ids=lambda v: str(v)[:12],
)
def test_a_disk_that_takes_no_more_leaves_nothing_half_written(fmt, source, cache):
    """A limit on the size of files stands for a full disk: the same calls fail in the same places."""
    code = BIG.format(imports=source[0], model=source[1], fmt=fmt)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert "ExportError: the export cannot be written below" in ran.stdout, ran.stdout + ran.stderr
    assert "nothing was kept" in ran.stdout
    assert kept(cache) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ExportError, match="Not a directory; nothing was kept\n.*MLOPSNB_CACHE_DIR"):
        export(Net(), X)


def test_what_was_exported_here_is_brought_from_nowhere_else(monkeypatch, tmp_path):
    class Far:
        def fetch(self, version, into):
            raise TrackingError(f"{version.uri} is far away")

    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        packages.plugins, "create", lambda kind, name: Far() if kind == "tracker" else create(kind, name)
    )
    artifact = export(Net(), X)
    version = ModelVersion(name="fraud", version=1, uri="models:/fraud/1", digest=artifact.digest)
    assert packages.fetch(version, tmp_path / "into") == artifact
    for other in (replace(version, digest="sha256:" + 64 * "0"), replace(version, digest="")):
        with pytest.raises(TrackingError, match="far away"):
            packages.fetch(other, tmp_path / "into")
    (artifact.path / "model" / "model.pt").write_bytes(b"")
    with pytest.raises(TrackingError, match="far away"):
        packages.fetch(version, tmp_path / "into")
