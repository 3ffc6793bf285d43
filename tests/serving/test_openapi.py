from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema_rs
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

import mlopsnb as ml
from mlopsnb import manifest, plugins
from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import openapi, v2
from mlopsnb.serving.app import App
from mlopsnb.serving.engine import Engine
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.model import Package
from mlopsnb.serving.openapi import operations, schemas
from mlopsnb.serving.openapi.examples import Examples
from mlopsnb.serving.protocols import mlflow, tfserving
from mlopsnb.serving.routes import ServedModel

EXAMPLES = int(os.environ.get("MLOPSNB_FUZZ_EXAMPLES", "0"))
"""Requests that schemathesis tries of each kind; if it is set they are other ones in every run, else always the same."""

FEATURES = ("age", "debt, old", 'rate "r"')
TABLE = np.array([[30, 1.5, np.nan], [40, 2, 0.25]])
ECHOES = {
    "table": ({"x": TABLE}, {"features": FEATURES}),
    "plain": ({"x": np.arange(8, dtype=np.float32).reshape(2, 4) / 8}, {"nan": False}),
    "vector": ({"x": np.array([3, 4], np.int64)}, {}),
    "text": ({"s": np.array(['it\'s "é"\n', "b"], object)}, {}),
    "texts": ({"s_bytes": np.array([["a,b", ""], ["c", "d"]], object)}, {}),
    "truth": ({"b": np.array([[True, False], [False, True]])}, {}),
    "half": ({"h": np.array([[0.1, 65504], [np.nan, -0.0]], np.float16)}, {}),
    "large": ({"u": np.array([2**64 - 1, 0], np.uint64), "i": np.array([-(2**63), 2**63 - 1])}, {}),
    "image": ({"x": np.arange(24, dtype=np.uint8).reshape(2, 2, 3, 2)}, {}),
    "tokens": ({"ids": np.array([[7, 8, 9]], np.int32)}, {"shapes": {"ids": (None, None)}}),
    "no rows": ({"x": np.array([1.5, np.nan, np.inf], np.float32)}, {"shapes": {"x": (3,)}}),
    "scalar": ({"x": np.array(2.5)}, {"shapes": {"x": ()}}),
    "mixed": ({"x": TABLE, "k": np.array(3, np.int8)}, {"shapes": {"k": ()}}),
    "several": ({"v": TABLE, "n": np.array([1, 2], np.int8), "s": np.array(["a", "b"], object)}, {}),
    "too long": ({"x": np.zeros((1, 3, 128, 128), np.float32)}, {}),
}


def document(runtime):
    return runtime.get("/openapi.json").json()


def requests(described):
    """Yield every example: path, media type, schema and what is sent."""
    for path, methods in described["paths"].items():
        for operation in methods.values():
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                for name, shown in content.get("examples", {}).items():
                    yield path, kind, name, content["schema"], shown["value"]


def check(described, schema, value):
    jsonschema_rs.validator_for({**schema, "components": described["components"]}).validate(value)


def check_document(described):
    OPENAPI_31_VALIDATOR.validate(described)
    for schema in described["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def answers(runtime, described, *, exact=True):
    """Send every example; return what was answered by path and name, after a look at the schemas of both."""
    found = {}
    for path, kind, name, schema, value in requests(described):
        body = value if isinstance(value, str) else json.dumps(value)
        check(described, schema, value)
        answer = runtime.request("POST", path, body.encode(), {"content-type": kind})
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.body
        content = described["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]
        check(described, content["schema"], answer.json())
        if exact and (shown := content.get("examples")):
            assert shown[name]["value"] == answer.json()
        found[path, name] = answer.json()
    return found


def test_the_document_tells_every_path_and_its_examples_are_answered(served):
    described = document(served)
    check_document(described)
    base = "/v{}/models/affine"
    by_protocol = [
        *(
            f"{base.format(2)}{version}{end}"
            for version in ("", "/versions/1")
            for end in ("", "/ready", "/infer")
        ),
        *(
            f"{base.format(1)}{version}{end}"
            for version in ("", "/versions/1")
            for end in ("", "/metadata", ":predict")
        ),
    ]
    others = ["/v2", "/v2/health/live", "/v2/health/ready", "/invocations", "/ping", "/health", "/version"]
    operations = ["/healthz", "/ready", "/metrics", "/profile", "/profile/reference"]
    assert sorted(described["paths"]) == sorted([*by_protocol, *others, *operations])
    assert {p: served.get(p).status for p, o in described["paths"].items() if "get" in o} == {
        p: 200 for p, o in described["paths"].items() if "get" in o
    }
    found = answers(served, described)
    one = {"y": 1.5, "sign": "+"}
    assert found["/v1/models/affine:predict", "by_row"] == {"predictions": [one]}
    assert found["/v1/models/affine:predict", "by_column"] == {"outputs": {k: [v] for k, v in one.items()}}
    assert found["/invocations", "instances"] == {"predictions": {k: [v] for k, v in one.items()}}
    assert {name for _, name in found} == {"one_row", "by_row", "by_column", "instances", "inputs"}


@pytest.fixture
def app(make_package, format_path, monkeypatch):
    monkeypatch.syspath_prepend(format_path)
    plugins.available.cache_clear()  # other tests of this process may have looked already
    engine = Engine.load(make_package())
    yield App(engine, name="affine", version="1", max_body_bytes=1000, log=io.BytesIO())
    engine.close()
    plugins.available.cache_clear()


def test_every_route_is_described_but_the_pages(app):
    described = json.loads(app._routes["/openapi.json"].show(True).body)
    routes = {path: {m.lower() for m in route.methods} - {"head"} for path, route in app._routes.items()}
    told = {path: set(operations) for path, operations in described["paths"].items()}
    assert told | {path: {"get"} for path in ("/", "/docs", "/openapi.json")} == routes


ALL = {"one_row", "by_row", "by_column", "instances", "inputs", "dataframe_split", "dataframe_records", "csv"}
TABLES = {"dataframe_split", "dataframe_records", "csv"}
FORMS = {
    "image": ALL - TABLES,
    "tokens": ALL - TABLES,
    "several": ALL - TABLES,
    "scalar": {"one_row", "by_column", "inputs"},
    "mixed": {"one_row", "by_column", "inputs"},
    "no rows": ALL - {"by_row"},
    "too long": set(),
}


@pytest.mark.parametrize("name", ECHOES)
def test_every_example_is_answered_with_the_values_themselves(serve, make_echo, name):
    inputs, options = ECHOES[name]
    runtime = serve(make_echo(inputs, **options), "--port", "0", "--name", "m")
    described = document(runtime)
    check_document(described)
    found = answers(runtime, described)
    assert {form for _, form in found} == FORMS.get(name, ALL)
    if found:
        rows = None if {(), (3,)} & set(options.get("shapes", {}).values()) else 1
        expected = {f"out_{key}": sent(array[:rows] if rows else array) for key, array in inputs.items()}
        assert {key: answered(key, answer, expected) for key, answer in found.items()} == dict.fromkeys(
            found, expected
        )


def sent(array):
    """Return the values of *array* as JSON says them: no NaN, no infinity, and float16 as float32 reads it."""
    if array.dtype.kind != "f":
        return array.ravel().tolist()
    finite = np.nan_to_num(array, nan=np.nan).astype(np.promote_types(array.dtype, np.float32))
    return [None if np.isnan(value) else float(str(value)) for value in finite.ravel()]


def answered(key, answer, names):
    """Return the values of each output of *answer*, whatever its form."""
    form = key[1]
    if form == "one_row":
        return {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}
    (values,) = answer.values()
    if len(names) == 1:
        values = dict.fromkeys(names, values)
    elif form == "by_row":
        values = {name: [row[name] for row in values] for name in names}
    return {name: list(flat(value)) for name, value in values.items()}


def flat(value):
    if isinstance(value, list):
        for part in value:
            yield from flat(part)
    else:
        yield base64.b64decode(value["b64"]).decode() if isinstance(value, dict) else value


def test_a_cache_and_a_fallback_are_described(serve, make_package):
    package = make_package()
    runtime = serve(package, "--port", "0", "--cache-bytes", "1MB", "--fallback", str(package))
    described = document(runtime)
    check_document(described)
    for path, _, name, _, value in requests(described):
        operation = described["paths"][path]["post"]
        assert {"$ref": "#/components/parameters/cache-control"} in operation["parameters"]
        answer = runtime.request("POST", path, json.dumps(value), {"content-type": "application/json"})
        told = set(operation["responses"]["200"]["headers"]) | {"date", "content-type", "content-length"}
        assert (name, answer.headers.keys() - told) == (name, set())
        assert {"cache-status", "x-model-degraded"} <= told
    answers(runtime, described)


def several(x, k):
    return {"sum": x.sum(1) + k, "greater": x > 0.5, "count": k * 2}


class Torch(torch.nn.Module):
    def forward(self, x, k):
        return several(x, k)


def tensorflow_model():
    import tensorflow as tf

    class Lookup(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.string, name="word"),
                tf.TensorSpec([None, 2], tf.float32, name="x"),
            ]
        )
        def __call__(self, word, x):
            return {"loud": tf.strings.upper(word), "half": tf.cast(x / 2, tf.float16)}

    return Lookup()


X = np.array([[0.1, 0.7], [1, 0]], np.float32)
EXPORTS = {
    "torchscript": (Torch, {"x": X, "k": np.array([3, -4])}),
    "torch_export": (lambda: torch.nn.Linear(2, 3), pd.DataFrame(X, columns=["height", "<b>&'\""])),
    "savedmodel": (tensorflow_model, {"word": np.array(["hé", "b"], object), "x": X}),
}


@pytest.mark.parametrize("format", EXPORTS)
def test_exported_models(serve, format):
    make, example = EXPORTS[format]
    artifact = ml.export(make(), example, format=format)
    runtime = serve(artifact.path, "--port", "0", "--name", "m")
    described = document(runtime)
    check_document(described)
    found = answers(runtime, described, exact=False)
    _, original = manifest.read_example(artifact.path)
    first = {name: original[name][:1].ravel().tolist() for name in original}
    assert {form for _, form in found} >= ALL - TABLES
    for key, answer in found.items():
        got = answered(key, answer, first)
        assert got.keys() == first.keys()
        for name, values in got.items():
            assert values == (values if values == first[name] else pytest.approx(first[name], rel=1e-3))


def test_paths_may_be_protected():
    inputs, _ = ECHOES["plain"]
    spec = TensorSpec(name="x", dtype="float32", shape=(None, 4))
    both = Signature(inputs=(spec,), outputs=(spec,))
    model = ServedModel(name="m", version="2", manifest=Manifest(format="echo", signature=both, files={}))
    package = Package(path=Path(), manifest=model.manifest, golden=inputs)
    plain = openapi.document(model, Examples(package, model))
    check_document(plain)
    secured = openapi.document(
        model, Examples(package, model), protected=["/invocations", "/v2/models/m/infer"]
    )
    check_document(secured)
    assert {p for p, o in secured["paths"].items() if "security" in next(iter(o.values()))} == {
        "/invocations",
        "/v2/models/m/infer",
    }
    assert secured["paths"]["/invocations"]["post"]["responses"]["401"] == {
        "$ref": "#/components/responses/MlflowError401"
    }
    assert secured["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert "security" not in json.dumps(plain)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-200, 300)
    | st.floats(-1e5, 1e5)
    | st.sampled_from(["", "a", "7", {"b64": "YQ=="}, 3.4028235e38, 3.40282357e38, 65519.0, 2**64 - 1, 2.0])
)
NAMES = st.sampled_from(["x", "y", "p", "q", "n", "0"])
LISTS = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
OBJECTS = st.dictionaries(NAMES, LISTS, max_size=4)
COLUMNS = st.none() | st.lists(NAMES, max_size=3)
MESSAGES = st.one_of(
    st.fixed_dictionaries({"instances": st.lists(LISTS | OBJECTS, max_size=3)}),
    st.fixed_dictionaries({"inputs": LISTS | OBJECTS}),
    st.fixed_dictionaries({"dataframe_records": st.lists(OBJECTS, max_size=3)}),
    st.fixed_dictionaries(
        {"dataframe_split": st.fixed_dictionaries({"data": st.lists(LISTS)}, optional={"columns": COLUMNS})}
    ),
)
SPECS = st.builds(
    TensorSpec,
    name=st.sampled_from(["x", "y"]),
    dtype=st.sampled_from(sorted(v2.DATATYPES)),
    shape=st.sampled_from([(), (None,), (2,), (None, 1), (None, 2), (None, None), (None, 1, 2), (2, None)]),
    feature_names=st.just(()),
    allow_nan=st.booleans(),
)


@st.composite
def signatures(draw):
    specs = draw(st.lists(SPECS, min_size=1, max_size=2, unique_by=lambda spec: spec.name))
    specs = [
        replace(spec, feature_names=("p", "q")) if spec.shape == (None, 2) and draw(st.booleans()) else spec
        for spec in specs
    ]
    return Signature(inputs=tuple(specs), outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),))


@settings(max_examples=max(600, EXAMPLES), deadline=None)
@given(signature=signatures(), content=MESSAGES)
def test_what_is_taken_fits_the_schema(signature, content):
    body = json.dumps(content).encode()
    model = ServedModel(
        name="m", version="1", manifest=Manifest(format="echo", signature=signature, files={})
    )
    schemas = {"components": {"schemas": operations.components(model)}}
    for name, decode in (
        ("PredictRequest", tfserving.decode),
        ("InvocationsRequest", lambda body, what: mlflow.decode(body, "application/json", what)),
    ):
        try:
            decode(body, signature)
        except BadRequest:
            continue
        jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", **schemas}).validate(content)


@settings(max_examples=max(300, EXAMPLES), deadline=None)
@given(signature=signatures(), data=st.data())
def test_what_is_taken_in_tensors_fits_the_schema(signature, data):
    sizes = st.lists(st.integers(0, 2), max_size=3)
    tensors = [
        {
            "name": spec.name,
            "shape": data.draw(st.just([2 if n is None else n for n in spec.shape]) | sizes),
            "datatype": v2.DATATYPES[spec.dtype],
            "data": data.draw(st.lists(LISTS, max_size=4)),
        }
        for spec in data.draw(st.permutations(signature.inputs))
    ]
    content = {
        "inputs": tensors,
        **data.draw(st.sampled_from([{}, {"id": None}, {"outputs": [{"name": "y"}]}])),
    }
    try:
        v2.decode_request(json.dumps(content).encode(), signature)
    except BadRequest:
        return
    jsonschema_rs.validator_for(schemas.infer_request(signature)).validate(content)


FUZZED = {
    "affine": ("affine", {}),
    "table": ("echo", {"inputs": ECHOES["table"][0], **ECHOES["table"][1]}),
    "several": ("echo", {"inputs": {**ECHOES["truth"][0], **ECHOES["text"][0]}}),
    "image": ("echo", {"inputs": ECHOES["image"][0]}),
    "scalar": ("echo", {"inputs": ECHOES["scalar"][0], **ECHOES["scalar"][1]}),
}
"""Models for schemathesis, by name: the fixture that makes them, and its keywords."""

EXACT = ("image",)
"""Those of whose messages by row and by column a schema says all, so that whatever fits it must be answered."""


def run_schemathesis(runtime, *options, cwd):
    """Let schemathesis test the running server; it must find nothing."""
    known = (
        ["--max-examples", str(EXAMPLES)]
        if EXAMPLES
        else ["--max-examples", "5", "--generation-deterministic"]
    )
    url = f"http://127.0.0.1:{runtime.port}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", url, "--phases", "examples,coverage,fuzzing"]
    done = subprocess.run(
        [*command, *known, "--no-color", "--warnings", "off", *options],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(runtime.errors.splitlines()) <= {
        "Invalid HTTP request received."
    }  # it looks what a server bears
    assert runtime.get("/ready").status == 200


@pytest.mark.timeout(3600 if EXAMPLES else 300)
@pytest.mark.parametrize("name", FUZZED)
def test_schemathesis_finds_nothing(serve, make_package, make_echo, tmp_path, name):
    kind, options = FUZZED[name]
    package = make_package() if kind == "affine" else make_echo(**options)
    runtime = serve(package, "--port", "0", "--name", "m")
    most = ("--checks", "all", "--exclude-checks", "positive_data_acceptance")
    once = () if EXAMPLES or name == "affine" else ("--exclude-path-regex", "/versions/")
    run_schemathesis(runtime, *most, *once, cwd=tmp_path)
    if name in EXACT:
        only = ("--include-path-regex", ":predict", "--mode", "positive")
        run_schemathesis(runtime, "--checks", "positive_data_acceptance", *only, cwd=tmp_path)
