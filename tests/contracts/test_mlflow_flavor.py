"""What we write is an MLflow model: MLflow's own loaders read it and answer as the package does. No store needed."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mlopsnb import flow, manifest, plugins
from mlopsnb.tracking import mlflow_flavor
from mlopsnb.tracking.environment import installable

mlflow = pytest.importorskip("mlflow")
torch = pytest.importorskip("torch")

pytestmark = [
    # What torch says of MLflow's own loader and wrapper, in a call that is the user's.
    pytest.mark.filterwarnings("ignore:'torch.load' received a zip file"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4)).astype("float32")


class Two(torch.nn.Module):
    """Two inputs, and one output or two."""

    def __init__(self, several):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.several = several

    def forward(self, x, weight):
        y = self.linear(x) * weight[:, None]
        return {"scores": y, "best": y.argmax(dim=1)} if self.several else y


def keras_model():
    keras = pytest.importorskip("keras")
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])


def text_model():
    tf = pytest.importorskip("tensorflow")

    class Length(tf.Module):
        def __call__(self, words):
            return tf.strings.length(words)

    return Length()


def onnx_session(model):
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def save(artifact, path):
    path.mkdir()
    mlflow_flavor.save_model(
        path=str(path), mlflow_model=mlflow.models.Model(), artifact=artifact, lock="# python 3\nabc==1\n"
    )
    return path


def answers(artifact, inputs):
    fmt = plugins.create("format", artifact.format)
    return fmt.load(artifact.path / manifest.MODEL_DIR, artifact.signature)(inputs)


@pytest.fixture(scope="module", params=["torchscript", "torch_export", "savedmodel", "onnx"])
def single(request, tmp_path_factory):
    tmp = tmp_path_factory.mktemp(request.param)
    model = keras_model() if request.param == "savedmodel" else torch.nn.Linear(4, 2)
    example = pd.DataFrame(X, columns=list("abcd"))
    artifact = flow.export(model, example, format=request.param, into=tmp / "exported")
    return SimpleNamespace(artifact=artifact, path=save(artifact, tmp / "saved"), format=request.param)


def golden(artifact):
    inputs, outputs = manifest.read_example(artifact.path)
    return next(iter(inputs.values())), next(iter(outputs.values()))


def test_python_function_gives_the_packages_numbers(single):
    model = mlflow.pyfunc.load_model(str(single.path))
    name = single.artifact.signature.inputs[0].name
    expected = next(iter(answers(single.artifact, {name: X}).values()))
    np.testing.assert_array_equal(model.predict(X), expected)
    frame = pd.DataFrame(X, columns=list("abcd"))
    np.testing.assert_array_equal(np.asarray(model.predict(frame)), expected)
    np.testing.assert_allclose(expected, golden(single.artifact)[1], rtol=1e-4, atol=1e-6)


def test_the_native_flavor_loads_the_same_model(single):
    x, y = golden(single.artifact)
    if single.format == "savedmodel":
        module = mlflow.tensorflow.load_model(str(single.path))
        name = single.artifact.signature.inputs[0].name
        found = next(iter(module.signatures["serving_default"](**{name: x}).values())).numpy()
    elif single.format == "onnx":
        session = onnx_session(mlflow.onnx.load_model(str(single.path)))
        found = session.run(None, {single.artifact.signature.inputs[0].name: x})[0]
    else:
        with torch.no_grad():
            found = mlflow.pytorch.load_model(str(single.path))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-6)


def test_the_package_is_there_exactly(single):
    package = single.path / "package"
    described = manifest.read(package)
    manifest.verify(package, described)
    assert described == manifest.read(single.artifact.path)


def test_weights_are_stored_twice_only_where_the_loader_forces_it(single):
    flavors = mlflow.models.Model.load(str(single.path)).flavors
    data = {
        "torchscript": flavors.get("pytorch", {}).get("model_data") == "data",
        "torch_export": flavors.get("pytorch", {}).get("model_data") == "package/model",
        "savedmodel": flavors.get("tensorflow", {}).get("saved_model_dir") == "package/model",
        "onnx": flavors.get("onnx", {}).get("data") == "package/model/model.onnx",
    }
    assert data[single.format]
    assert (single.path / "data").exists() == (single.format == "torchscript")


def test_signature_example_and_requirements(single):
    saved = mlflow.models.Model.load(str(single.path))
    assert saved.signature.inputs.to_dict() == [
        {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": (-1, 4)}}
    ]
    assert [(s.shape, s.type) for s in saved.signature.outputs.inputs] == [((-1, 2), np.dtype("float32"))]
    np.testing.assert_array_equal(saved.load_input_example(str(single.path)), X[:5])
    lines = (single.path / "requirements.txt").read_text().splitlines()
    own = [] if single.format.startswith("torch") else ["mlopsnb==0.1.0"]
    needed = list(map(installable, single.artifact.requirements))
    assert lines == [f"mlflow=={mlflow.__version__}", *own, *needed]
    assert not [line for line in lines if "+" in line]
    assert (single.path / "environment.lock").read_text() == "# python 3\nabc==1\n"


@pytest.mark.parametrize("as_frame", [False, True])
def test_what_was_the_example_is_what_pyfunc_takes(as_frame, tmp_path):
    """float64, as NumPy and pandas have it, for a float32 model: MLflow is strict, so its signature says float64."""
    rows = X.astype("float64")
    example = pd.DataFrame(rows, columns=list("abcd")) if as_frame else rows
    artifact = flow.export(torch.nn.Linear(4, 2), example, into=tmp_path / "exported")
    path = save(artifact, tmp_path / "saved")
    found = np.asarray(mlflow.pyfunc.load_model(str(path)).predict(example))
    np.testing.assert_allclose(found, answers(artifact, {"input": X})["output"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("format", ["torchscript", "torch_export"])
def test_a_plain_torch_model_loads_where_mlopsnb_is_not_installed(format, tmp_path):
    artifact = flow.export(torch.nn.Linear(4, 2), X, format=format, into=tmp_path / "exported")
    path = save(artifact, tmp_path / "saved")
    script = (
        "import sys; sys.modules['mlopsnb'] = None\n"
        "import mlflow.pyfunc, numpy\n"
        "print(mlflow.pyfunc.load_model(sys.argv[1]).predict(numpy.ones((3, 4), 'float32')).shape)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == "(3, 2)\n"


@pytest.mark.parametrize("format", ["torchscript", "torch_export", "onnx"])
@pytest.mark.parametrize("several", [False, True])
def test_several_inputs_and_outputs_by_name(format, several, tmp_path):
    inputs = {"x": X, "weight": np.arange(7, dtype="float32")}
    artifact = flow.export(Two(several), inputs, format=format, into=tmp_path / "exported")
    model = mlflow.pyfunc.load_model(str(save(artifact, tmp_path / "saved")))
    expected = answers(artifact, inputs)
    found = model.predict(inputs)
    frame = pd.DataFrame({"weight": inputs["weight"], "x": list(X)})
    for result in (found, model.predict(frame)):
        if several:
            assert {k: v.tolist() for k, v in result.items()} == {k: v.tolist() for k, v in expected.items()}
        else:
            np.testing.assert_array_equal(result, expected["output"])
    assert "mlopsnb==0.1.0" in (tmp_path / "saved" / "requirements.txt").read_text().splitlines()


def test_text_goes_in(tmp_path):
    words = np.array(["a", "bcd", "äö"], dtype=object)
    artifact = flow.export(text_model(), words, into=tmp_path / "exported")
    model = mlflow.pyfunc.load_model(str(save(artifact, tmp_path / "saved")))
    np.testing.assert_array_equal(model.predict(words), [1, 3, 4])


def test_the_example_of_large_rows_is_one_row(tmp_path):
    images = np.zeros((4, 3, 64, 64), "float32")
    artifact = flow.export(torch.nn.Flatten(), images, format="torch_export", into=tmp_path / "exported")
    path = save(artifact, tmp_path / "saved")
    assert mlflow.models.Model.load(str(path)).load_input_example(str(path)).shape == (1, 3, 64, 64)
