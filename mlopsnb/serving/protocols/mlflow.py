"""MLflow's scoring protocol: `/invocations` in JSON or CSV, `/ping`, `/health`, `/version`.

Answers are what `mlflow models serve` gives for the same package: the one output's values, or an object with all
the values of each output; but NaN goes as null. Source: https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/
(JSON input formats), and mlflow.pyfunc.scoring_server.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from mlopsnb.serving import v2, values
from mlopsnb.serving.bulk import Bulk
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.protocols import columns
from mlopsnb.serving.routes import Headers, Prediction, Reply, Route, ServedModel, json_reply
from mlopsnb.version import __version__

if TYPE_CHECKING:
    from mlopsnb.records import Signature
    from mlopsnb.tensors import Array

_MISSING = frozenset({"", "nan", "NaN", "NA", "N/A", "null"})
"""What stands for a missing number in CSV, as pandas reads it."""

_IN_BULK = ("dataframe_split", "instances", "inputs")


def routes(model: ServedModel) -> dict[str, Route]:
    """Return the protocol's paths for *model*."""

    def ping(ready: bool) -> Reply:
        return Reply(200 if ready else 503, b"\n")

    def version(ready: bool) -> Reply:
        return Reply(200, __version__.encode(), b"text/plain; charset=utf-8")

    bulk = Bulk(model.signature)

    def invoke(body: bytes, headers: Headers) -> Prediction:
        return decode(body, headers.get(b"content-type", b"").decode("latin-1"), model.signature, bulk)

    return {
        "/ping": Route(show=ping, error=error, public=True),
        "/health": Route(show=ping, error=error, public=True),
        "/version": Route(show=version, error=error),
        "/invocations": Route(decode=invoke, error=error),
    }


def error(status: int, message: str) -> bytes:
    """Return an error as MLflow's clients show it."""
    code = {
        401: "UNAUTHENTICATED",
        429: "REQUEST_LIMIT_EXCEEDED",
        503: "TEMPORARILY_UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR")
    return orjson.dumps({"error_code": code, "message": message})


def decode(body: bytes, content_type: str, signature: Signature, bulk: Bulk | None = None) -> Prediction:
    """Return the request in *body*, which *bulk* reads if it can; raises nothing but `BadRequest`."""
    match _media_type(content_type):
        case "application/json":
            read = bulk and bulk.read(body, _IN_BULK)
            inputs = read[1] if read else _from_json(columns.parse(body), signature)
        case "text/csv":
            inputs = _from_csv(body, signature)
        case other:
            raise BadRequest(
                f"the content-type should be application/json or text/csv, found {other[:80]!r}",
                kind="unsupported",
            )
    return Prediction(inputs=inputs, rows=v2.rows_of(inputs, signature), encode=_predictions)


def _media_type(content_type: str) -> str:
    """Return the media type alone; `BadRequest` for parameters that MLflow does not take either."""
    kind, *parameters = (part.strip() for part in content_type.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.lower() != "charset" or value.strip('"').lower() != "utf-8":
            raise BadRequest(
                f"the content-type may say charset=utf-8 and no more, found {parameter[:80]!r}",
                kind="unsupported",
            )
    return kind.lower()


def _from_json(content: Mapping[str, Any], signature: Signature) -> dict[str, Array]:
    readers: dict[str, Callable[[Any, Signature], dict[str, Array]]] = {
        "dataframe_split": _from_split,
        "dataframe_records": _from_records,
        "instances": columns.from_rows,
        "inputs": columns.from_values,
    }
    given = [name for name in readers if name in content]
    if len(given) != 1:
        raise BadRequest(
            f"expected an object with exactly one of {', '.join(readers)}; found {', '.join(given) or 'none'}",
            kind="malformed",
        )
    if content.get("params") not in (None, {}):
        raise BadRequest("the model takes no params")
    return readers[given[0]](content[given[0]], signature)


def _from_split(frame: object, signature: Signature) -> dict[str, Array]:
    if not isinstance(frame, dict) or not isinstance(frame.get("data"), list):
        raise BadRequest('dataframe_split should be {"columns": [...], "data": [[...], ...]}')
    rows = frame["data"]
    names = frame.get("columns")
    if names is None:
        return columns.from_rows(rows, signature)
    if not isinstance(names, list) or len({str(name) for name in names}) != len(names):
        raise BadRequest("the columns of dataframe_split should be a list of different names")
    for at, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            found = f"{len(row)} values" if isinstance(row, list) else values.shown(row)
            raise BadRequest(
                f"row {at} of dataframe_split should have {len(names)} values, one a column; found {found}"
            )
    parts = map(list, zip(*rows, strict=True)) if rows else ([] for _ in names)
    return columns.from_columns(dict(zip(map(str, names), parts, strict=True)), signature)


def _from_records(records: object, signature: Signature) -> dict[str, Array]:
    if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
        raise BadRequest("dataframe_records should be a list of objects, one a row")
    return columns.from_rows(records, signature)


def _from_csv(body: bytes, signature: Signature) -> dict[str, Array]:
    try:
        text = body.decode("utf-8-sig")
        typed = _csv_columns(csv.reader(io.StringIO(text, newline=""), strict=True), signature)
    except (UnicodeDecodeError, csv.Error) as exc:
        raise BadRequest(f"the request is not CSV in UTF-8: {exc}", kind="malformed") from exc
    return columns.from_columns(typed, signature)


def _csv_columns(lines: Iterator[list[str]], signature: Signature) -> dict[str, list[object]]:
    """Return the values of each column. Lines are read one by one, as lists of them take much more than the body."""
    lines = filter(None, lines)
    names = next(lines, None)
    if names is None:
        raise BadRequest("the request has no body; expected CSV with a header line", kind="malformed")
    if len(set(names)) != len(names):
        raise BadRequest("the header of the CSV names a column twice")
    alone = signature.inputs[0].dtype if len(signature.inputs) == 1 else "str"
    dtypes = {name: spec.dtype for spec in signature.inputs for name in (spec.name, *spec.feature_names)}
    kinds = [dtypes.get(name, alone) for name in names]
    found: list[list[object]] = [[] for _ in names]
    for at, row in enumerate(lines):
        if len(row) != len(names):
            raise BadRequest(f"row {at} has {len(row)} fields; the header has {len(names)}", kind="malformed")
        for column, text, dtype in zip(found, row, kinds, strict=True):
            column.append(_cell(text, dtype))
    return dict(zip(names, found, strict=True))


def _cell(text: str, dtype: str) -> object:
    """Return a field as *dtype* reads it; unchanged if it cannot, so that whoever checks the values can name it."""
    if dtype == "str":
        return text
    text = text.strip()
    if text in _MISSING:
        return None
    if dtype == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        value = float(text) if dtype.startswith("float") else int(text)
    except ValueError:
        return _number(text)
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(text: str) -> object:
    """Return a whole number that is written as a float, as pandas does beside a missing one."""
    try:
        return float(text)
    except ValueError:
        return text


def _predictions(outputs: Mapping[str, Array]) -> Reply:
    written = {name: columns.nested(array) for name, array in outputs.items()}
    return json_reply({"predictions": next(iter(written.values())) if len(written) == 1 else written})
