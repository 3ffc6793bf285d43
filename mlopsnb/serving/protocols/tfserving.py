"""TensorFlow Serving's REST interface: status, metadata, and `:predict` by row (`instances`) and column (`inputs`).

Differs from it in two things: NaN and infinity are answered as null, which every JSON parser reads, and infinity
is not taken. Source: https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlopsnb.serving import v2
from mlopsnb.serving.bulk import Bulk
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.protocols import columns
from mlopsnb.serving.routes import Headers, Prediction, Reply, Route, ServedModel, always, json_reply
from mlopsnb.tensors import STRING, Array

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec

SIGNATURE_NAME = "serving_default"
_SIGNATURE_NAMES = (None, "", SIGNATURE_NAME)
_FORMS = ("instances", "inputs")
_OPTIONAL = {"signature_name": _SIGNATURE_NAMES}

_TYPES = {
    "bool": "DT_BOOL",
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    STRING: "DT_STRING",
}
"""TensorFlow's names of dtypes; those of integers are made of ours."""


def routes(model: ServedModel) -> dict[str, Route]:
    """Return the interface's paths for *model*."""

    def status(ready: bool) -> Reply:
        return json_reply(_status(model.version, ready))

    bulk = Bulk(model.signature)

    def predict(body: bytes, headers: Headers) -> Prediction:
        return decode(body, model.signature, bulk)

    found = {}
    metadata = always(_metadata(model))
    for path in (f"/v1/models/{model.name}", f"/v1/models/{model.name}/versions/{model.version}"):
        found[path] = Route(show=status)
        found[f"{path}/metadata"] = Route(show=metadata)
        found[f"{path}:predict"] = Route(decode=predict)
    return found


def _status(version: str, ready: bool) -> dict[str, Any]:
    state, code = ("AVAILABLE", "OK") if ready else ("UNLOADING", "UNAVAILABLE")
    status = {"error_code": code, "error_message": "" if ready else "the model takes no new requests"}
    return {"model_version_status": [{"version": version, "state": state, "status": status}]}


def _metadata(model: ServedModel) -> dict[str, Any]:
    signature = {
        "inputs": {s.name: _tensor(s) for s in model.signature.inputs},
        "outputs": {s.name: _tensor(s) for s in model.signature.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE_NAME: signature}}},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    sizes = [{"size": str(-1 if n is None else n), "name": ""} for n in spec.shape]
    return {
        "dtype": _TYPES.get(spec.dtype, f"DT_{spec.dtype.upper()}"),
        "tensor_shape": {"dim": sizes, "unknown_rank": False},
        "name": spec.name,
    }


def decode(body: bytes, signature: Signature, bulk: Bulk | None = None) -> Prediction:
    """Return the request in *body*, which *bulk* reads if it can; raises nothing but `BadRequest`."""
    form, inputs = (bulk and bulk.read(body, _FORMS, _OPTIONAL)) or _inputs(body, signature)
    rows = v2.rows_of(inputs, signature)
    if form == "inputs":
        return Prediction(inputs=inputs, rows=rows, encode=_outputs)
    return Prediction(inputs=inputs, rows=rows, encode=lambda outputs: _predictions(outputs, rows))


def _inputs(body: bytes, signature: Signature) -> tuple[str, dict[str, Array]]:
    content = columns.parse(body)
    asked = content.get("signature_name")
    if asked not in _SIGNATURE_NAMES:
        raise BadRequest(f"there is no signature {str(asked)[:80]!r}; there is {SIGNATURE_NAME!r}")
    given = [form for form in _FORMS if form in content]
    if len(given) != 1:
        raise BadRequest(
            'expected {"instances": [...]}, row by row, or {"inputs": ...}, input by input; found '
            + (", ".join(sorted(map(repr, given))) or "neither"),
            kind="malformed",
        )
    read = columns.from_rows if given[0] == "instances" else columns.from_values
    return given[0], read(content[given[0]], signature)


def _predictions(outputs: Mapping[str, Array], rows: int) -> Reply:
    """Answer row by row: values alone if there is one output, else objects."""
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != rows:
            raise BadRequest(
                f"output {name!r} of shape {list(array.shape)} has no row for each of the {rows} instances; "
                "send the request as inputs"
            )
    written = {name: _values(name, array) for name, array in outputs.items()}
    if len(written) == 1:
        return json_reply({"predictions": next(iter(written.values()))})
    names = list(written)
    return json_reply(
        {"predictions": [dict(zip(names, row, strict=True)) for row in zip(*written.values(), strict=True)]}
    )


def _outputs(outputs: Mapping[str, Array]) -> Reply:
    """Answer output by output: the values alone if there is one."""
    written = {name: _values(name, array) for name, array in outputs.items()}
    return json_reply({"outputs": next(iter(written.values())) if len(written) == 1 else written})


def _values(name: str, array: Array) -> Any:
    """Return the values of an output; text is taken for bytes where the name says so, as TensorFlow Serving does."""
    found = columns.nested(array)
    return _as_base64(found) if name.endswith("_bytes") and array.dtype.kind in "OSU" else found


def _as_base64(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_base64(part) for part in value]
    return {"b64": b64encode(value.encode()).decode()}
