"""Every path of the server and what may be done there, protocol by protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.serving.openapi import replies, schemas
from mlopsnb.serving.openapi.replies import Part, errors, ok
from mlopsnb.serving.v2 import DATATYPES

if TYPE_CHECKING:
    from mlopsnb.serving.openapi.examples import Examples
    from mlopsnb.serving.routes import ServedModel

OPEN_INFERENCE = "Open Inference Protocol"
TENSORFLOW_SERVING = "TensorFlow Serving"
MLFLOW = "MLflow"
OPERATIONS = "Operations"
TAGS = {
    OPEN_INFERENCE: "Version 2: named tensors with shapes and datatypes, in JSON or with raw bytes. "
    "Spoken by KServe, Triton and MLServer.",
    TENSORFLOW_SERVING: "Values by row (`instances`) or by column (`inputs`).",
    MLFLOW: "Data frames and tensors as `mlflow models serve` takes them, in JSON or CSV.",
    OPERATIONS: "For those who run the server.",
}
_JSON = "application/json"
_BINARY = "application/octet-stream"


def paths(model: ServedModel, examples: Examples) -> Part:
    """Return the description of every path."""
    return {
        **_open_inference(model, examples),
        **_tensorflow_serving(model, examples),
        **_mlflow(examples),
        **_operations(),
    }


def _get(
    identifier: str, tag: str, summary: str, responses: Part, *, form: str = "Error", gone: bool = False
) -> Part:
    """Return the path of a view; with *gone*, another model or version may have come to the server."""
    operation = {
        "operationId": identifier,
        "tags": [tag],
        "summary": summary,
        "parameters": replies.parameter_refs("x-request-id", "traceparent"),
        "responses": responses | errors(((404,) if gone else ()) + replies.VIEW_ERRORS, form),
    }
    return {"get": operation}


def _post(
    identifier: str,
    tag: str,
    summary: str,
    content: Part,
    responses: Part,
    *headers: str,
    form: str = "Error",
    gone: bool = False,
) -> Part:
    """Return the path of a prediction; *content* is media types, *headers* are parameters beyond those of all."""
    operation = {
        "operationId": identifier,
        "tags": [tag],
        "summary": summary,
        "parameters": replies.parameter_refs("x-request-id", "traceparent", "x-request-timeout", *headers),
        "requestBody": {"required": True, "content": content},
        "responses": responses | errors(((404,) if gone else ()) + replies.PREDICTION_ERRORS, form),
    }
    return {"post": operation}


def _ref(name: str) -> Part:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str, messages: Part) -> Part:
    """Return JSON content of the schema *name*, with *messages* by their names as examples."""
    shown = {"examples": {key: {"value": value} for key, value in messages.items()}} if messages else {}
    return {"schema": _ref(name), **shown}


def _bases(protocol: str, model: ServedModel) -> dict[str, str]:
    """Return the path of the model and that of its version, and by what their operations' names end."""
    base = f"/{protocol}/models/{model.name}"
    return {base: "", f"{base}/versions/{model.version}": "_version"}


def _ready(description: str) -> Part:
    """Return both answers to whether the model is ready."""
    return ok(description, {_JSON: _ref("Ready")}) | ok(
        "It is not: the server is about to end, or the model broke.", {_JSON: _ref("Ready")}, status=503
    )


def _open_inference(model: ServedModel, examples: Examples) -> Part:
    tag, length = OPEN_INFERENCE, "inference-header-content-length"
    messages = {"one_row": examples.infer} if examples.fits else {}
    raw = "The JSON, then the raw bytes of tensors that say `binary_data_size` instead of `data`, in their order."
    content = {_JSON: _json("InferRequest", messages), _BINARY: {"schema": {"description": raw}}}
    answer = ok("The outputs.", {_JSON: _ref("InferResponse")})
    if examples.answer:
        answer["200"]["content"][_JSON]["examples"] = {"one_row": {"value": examples.answer}}
    answer["200"]["content"][_BINARY] = {
        "schema": {"description": "JSON and raw bytes, if they were asked for."}
    }
    answer["200"]["headers"][length] = {
        "description": "With raw bytes alone: the bytes of JSON in the body.",
        "schema": {"type": "integer", "minimum": 1},
    }
    found = {
        "/v2": _get("server", tag, "Describe the server", ok("The server.", {_JSON: _ref("Server")})),
        "/v2/health/live": _get("live", tag, "Is it alive?", ok("It is.", {_JSON: _ref("Live")})),
        "/v2/health/ready": _get("server_ready", tag, "Is it ready?", _ready("It is.")),
    }
    for base, end in _bases("v2", model).items():
        described = ok("The model.", {_JSON: _ref("Model")})
        found[base] = _get(f"model{end}", tag, "Describe the model", described, gone=True)
        found[f"{base}/ready"] = _get(f"ready{end}", tag, "Is the model ready?", _ready("It is."), gone=True)
        found[f"{base}/infer"] = _post(f"infer{end}", tag, "Predict", content, answer, length, gone=True)
    return found


def _tensorflow_serving(model: ServedModel, examples: Examples) -> Part:
    tag = TENSORFLOW_SERVING
    content = {_JSON: _json("PredictRequest", examples.predict())}
    answer = ok("`predictions` row by row, or `outputs`, as was asked.", {_JSON: _ref("PredictResponse")})
    status = ok("Whether the version takes requests.", {_JSON: _ref("ModelStatus")})
    metadata = ok("Names, dtypes and shapes.", {_JSON: _ref("ModelMetadata")})
    found = {}
    for base, end in _bases("v1", model).items():
        found[base] = _get(f"status{end}", tag, "Tell the model's status", status, gone=True)
        found[f"{base}/metadata"] = _get(f"metadata{end}", tag, "Describe the model", metadata, gone=True)
        found[f"{base}:predict"] = _post(f"predict{end}", tag, "Predict", content, answer, gone=True)
    return found


def _mlflow(examples: Examples) -> Part:
    content = {_JSON: _json("InvocationsRequest", examples.invocations())}
    if (text := examples.invocations_csv()) is not None:
        header = {
            "type": "string",
            "description": "A header line with the columns' names, then a line a row.",
        }
        content["text/csv"] = {"schema": header, "examples": {"csv": {"value": text}}}
    answer = ok("The predictions.", {_JSON: _ref("InvocationsResponse")})
    healthy = ok("It is.") | ok("It is not.", status=503)
    version = ok("The version of the server.", {"text/plain": {"type": "string"}})
    told: Part = {"form": "MlflowError"}
    return {
        "/invocations": _post("invocations", MLFLOW, "Predict", content, answer, **told),
        "/ping": _get("ping", MLFLOW, "Is it ready?", healthy, **told),
        "/health": _get("health", MLFLOW, "Is it ready?", healthy, **told),
        "/version": _get("version", MLFLOW, "Tell the server's version", version, **told),
    }


def _operations() -> Part:
    text: Part = {"type": "string"}
    forms = {"text/plain": text, "application/openmetrics-text": text}
    metrics = ok("Metrics in Prometheus' text format, or in OpenMetrics if that is asked for.", forms)
    profile = ok("The counters of each window of the last day.", {_JSON: _ref("Profile")})
    reference = ok("The reference profile; null if the package has none.", {_JSON: _ref("ReferenceProfile")})
    return {
        "/healthz": _get("healthz", OPERATIONS, "Is the process alive?", ok("It is.", {_JSON: _ref("Live")})),
        "/ready": _get("process_ready", OPERATIONS, "Should requests come here?", _ready("They should.")),
        "/metrics": _get("metrics", OPERATIONS, "Count requests, rows and seconds", metrics),
        "/profile": _get("profile", OPERATIONS, "Count rows on the bins of the reference profile", profile),
        "/profile/reference": _get("reference", OPERATIONS, "Tell the reference profile", reference),
    }


def components(model: ServedModel) -> Part:
    """Return the schemas that paths refer to, but for those of errors."""
    signature = model.signature
    forms = {"inputs": schemas.by_column(signature)}
    frames: Part = {}
    if (rows := schemas.by_row(signature)) is not None:
        forms = {"instances": rows, **forms}
        records = {"type": "array", "items": schemas.records(signature)}
        frames = {"dataframe_split": schemas.data_frame(signature), "dataframe_records": records}
    names = {"signature_name": {"enum": ["", "serving_default", None]}}
    by_row = {"predictions": schemas.predictions(signature)}
    by_column = {"outputs": schemas.outputs(signature)}
    values = {"predictions": schemas.outputs(signature, as_bytes=False)}
    return {
        "InferRequest": schemas.infer_request(signature),
        "InferResponse": schemas.infer_response(signature, model.name, model.version),
        "PredictRequest": schemas.exactly_one(forms, names),
        "PredictResponse": {"anyOf": [_object(by_row), _object(by_column)]},
        "InvocationsRequest": schemas.exactly_one(frames | forms, {"params": _NO_PARAMS}),
        "InvocationsResponse": _object(values),
        **_about(),
    }


_TEXT: Part = {"type": "string"}
_NO_PARAMS: Part = {"type": ["object", "null"], "maxProperties": 0, "description": "The model takes none."}


def _object(properties: Part) -> Part:
    """Return the schema of an object that has all of *properties*."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _profile() -> Part:
    number: Part = {"type": "number"}
    packed: Part = {
        "type": "string",
        "contentEncoding": "base64",
        "description": "64-bit numbers, little-endian, zlib.",
    }
    window = {"start": number, "end": number, "rows": {"type": "integer"}, "cells": packed, "sums": packed}
    told = {
        "protocol": {"const": 1},
        "model": _TEXT,
        "version": _TEXT,
        "profile": {"type": ["string", "null"], "description": "The digest of the reference profile."},
        "uncounted": {"type": "array", "items": _object({"role": _TEXT, "name": _TEXT, "why": _TEXT})},
        "notes": {"type": "array", "items": _TEXT},
        "windows": {"type": "array", "items": _object(window)},
    }
    return _object(told)


def _about() -> Part:
    """Return the schemas of what is told of the server and the model."""
    truth: Part = {"type": "boolean"}
    shape: Part = {"type": "array", "items": {"type": "integer", "minimum": -1}, "description": "-1 is free."}
    own: Part = {
        "type": "object",
        "description": "What is ours: `allow_nan`, and `feature_names` if there are any.",
    }
    tensor = _object(
        {"name": _TEXT, "datatype": {"enum": sorted(DATATYPES.values())}, "shape": shape, "parameters": own}
    )
    tensors: Part = {"type": "array", "items": tensor}
    status = _object({"error_code": {"enum": ["OK", "UNAVAILABLE"]}, "error_message": _TEXT})
    state: Part = {"enum": ["AVAILABLE", "UNLOADING"]}
    return {
        "Server": _object({"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}}),
        "Live": _object({"live": {"const": True}}),
        "Ready": _object({"name": _TEXT, "ready": truth}),
        "Profile": _profile(),
        "ReferenceProfile": {
            "type": ["object", "null"],
            "description": "`reference.json` of the package: bins, counts and levels of each feature.",
        },
        "Model": _object(
            {
                "name": _TEXT,
                "versions": {"type": "array", "items": _TEXT},
                "platform": _TEXT,
                "inputs": tensors,
                "outputs": tensors,
                "parameters": {"type": "object", "description": "How the model is run."},
            }
        ),
        "ModelStatus": _object(
            {
                "model_version_status": {
                    "type": "array",
                    "items": _object({"version": _TEXT, "state": state, "status": status}),
                }
            }
        ),
        "ModelMetadata": _object(
            {
                "model_spec": _object({"name": _TEXT, "signature_name": _TEXT, "version": _TEXT}),
                "metadata": {
                    "type": "object",
                    "description": "`signature_def`, as TensorFlow Serving has it.",
                },
            }
        ),
    }
