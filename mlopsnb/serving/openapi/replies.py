"""What all paths have in common: headers, and errors with their statuses, in the form of the path's protocol."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

Part = dict[str, Any]

STATUSES = {
    400: (
        "Bad request",
        "The request is not of the protocol, or does not fit the model; the message says where.",
    ),
    401: ("Unauthorized", "The bearer token is missing or unknown."),
    404: ("Not found", "The server has another model or version by now."),
    405: ("Method not allowed", "The path takes other methods; the header `allow` names them."),
    413: ("Content too large", "The body is larger than the server takes; it was not read."),
    415: ("Unsupported", "The server does not take this content type, content encoding or extension."),
    422: (
        "Rejected by the model",
        "The request fits the model, which failed on its values; others are answered.",
    ),
    500: ("Failed", "The model or the server is at fault; the server's log has it under the request id."),
    503: ("Overloaded", "Too many rows wait for the model; come back after `retry-after` seconds."),
    504: ("Deadline exceeded", "The request waited for the model longer than it was given; it was not run."),
}
"""For each status that tells of an error, its name and what it means here."""

PREDICTION_ERRORS = (400, 405, 413, 415, 422, 500, 503, 504)
VIEW_ERRORS = (405, 500)

_ALWAYS = ("x-request-id", "x-model-name", "x-model-version", "traceparent")
_ALSO = {401: ("www-authenticate",), 405: ("allow",), 503: ("retry-after",)}
_TEXT = {"type": "string"}


_STAGE_HEADERS = {
    "cache": {"cache-status": "What of the answer was kept; RFC 9211."},
    "fallback": {
        "x-model-degraded": "There if another model answered in the place of this one.",
        "x-model-fallback": "The digest of that model's package.",
    },
}
"""The headers that predictions have if the server was started with what is named."""

_CACHE_CONTROL: Part = {
    "name": "cache-control",
    "in": "header",
    "description": "As RFC 9111 has it: `no-cache` asks the model, `no-store` keeps nothing, `only-if-cached` asks "
    "for kept answers alone, else 504.",
    "schema": _TEXT,
}


def components(*, tokens: bool, stages: Collection[str] = ()) -> Part:
    """Return the parts that paths refer to: headers, parameters and errors; also those of *tokens* and *stages*."""
    headers = _headers()
    if tokens:
        headers["www-authenticate"] = {"description": "The scheme, bearer.", "schema": _TEXT}
    for stage in stages:
        also = _STAGE_HEADERS.get(stage, {})
        headers |= {name: {"description": text, "schema": _TEXT} for name, text in also.items()}
    return {
        "headers": headers,
        "parameters": _parameters() | ({"cache-control": _CACHE_CONTROL} if "cache" in stages else {}),
        "responses": {
            f"{form}{status}": _error(status, form)
            for form in ("Error", "MlflowError")
            for status in STATUSES
            if tokens or status != 401
        },
    }


def schemas() -> Part:
    """Return the schemas of errors."""
    message = {"type": "string", "description": "What was expected and what came."}
    code = {"enum": ["BAD_REQUEST", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED"]}
    told = {"error_code": code, "message": message}
    return {
        "Error": {"type": "object", "properties": {"error": message}, "required": ["error"]},
        "MlflowError": {"type": "object", "properties": told, "required": list(told)},
    }


def _headers() -> Part:
    return {
        "x-request-id": {
            "description": "Names this request in the server's log.",
            "required": True,
            "schema": _TEXT,
        },
        "x-model-name": {"description": "The model that answered.", "required": True, "schema": _TEXT},
        "x-model-version": {"description": "Its version.", "required": True, "schema": _TEXT},
        "traceparent": {
            "description": "Our part of the trace, if the request belongs to one.",
            "schema": _TEXT,
        },
        "allow": {"description": "The methods that the path takes.", "required": True, "schema": _TEXT},
        "retry-after": {
            "description": "Seconds after which to try again.",
            "required": True,
            "schema": {"type": "integer", "minimum": 1, "maximum": 60},
        },
        "inference-header-content-length": {
            "description": "Bytes of JSON in the body; raw bytes of tensors follow.",
            "required": True,
            "schema": {"type": "integer", "minimum": 1},
        },
    }


def _parameters() -> Part:
    return {
        "x-request-id": {
            "name": "x-request-id",
            "in": "header",
            "description": "Comes back with the answer. Up to 128 letters, digits and `._:/+=@-`; else a new one is made.",
            "schema": _TEXT,
        },
        "traceparent": {
            "name": "traceparent",
            "in": "header",
            "description": "The trace that the request belongs to, as W3C Trace Context has it.",
            "schema": _TEXT,
        },
        "x-request-timeout": {
            "name": "x-request-timeout",
            "in": "header",
            "description": "Seconds that the request may wait for the model; 504 beyond that.",
            "schema": {
                "type": "string",
                "pattern": r"^(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,6})?$",
                "examples": ["2.5"],
            },
        },
        "inference-header-content-length": {
            "name": "inference-header-content-length",
            "in": "header",
            "description": "For the binary form alone: the bytes of JSON in the body; raw bytes of tensors follow.",
            "schema": {"type": "string", "pattern": "^(?=.*[1-9])[0-9]{1,18}$"},
        },
    }


def add_stages(operation: Part, stages: Collection[str]) -> None:
    """Tell what *stages* add to the prediction *operation*."""
    names = [name for stage in stages for name in _STAGE_HEADERS.get(stage, {})]
    operation["responses"]["200"]["headers"] |= _refs(names)
    if "cache" in stages:
        operation["parameters"] += parameter_refs("cache-control")


def _refs(names: Iterable[str]) -> Part:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def header_refs(names: Iterable[str] = ()) -> Part:
    """Return the headers that every answer has, and those in *names*."""
    return _refs((*_ALWAYS, *names))


def parameter_refs(*names: str) -> list[Part]:
    """Return the parameters in *names*."""
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _error(status: int, form: str) -> Part:
    name, text = STATUSES[status]
    return {
        "description": f"{name}. {text}",
        "headers": header_refs(_ALSO.get(status, ())),
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{form}"}}},
    }


def errors(statuses: Iterable[int], form: str = "Error") -> Part:
    """Return the responses for errors of *statuses*, in *form*: Error or MlflowError."""
    return {str(status): {"$ref": f"#/components/responses/{form}{status}"} for status in statuses}


def unauthorized(path: str) -> Part:
    """Return the response of *path* to a request without a valid token."""
    mlflow = path.strip("/") in ("invocations", "ping", "health", "version")
    return errors([401], "MlflowError" if mlflow else "Error")


def ok(description: str, content: Part | None = None, *headers: str, status: int = 200) -> Part:
    """Return a response with *content*, a schema by media type."""
    found: Part = {"description": description, "headers": header_refs(headers)}
    if content:
        found["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    return {str(status): found}
