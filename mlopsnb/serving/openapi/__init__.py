"""The server's OpenAPI 3.1 document, made from a model's signature and its golden example.

Describes every path that predicts or tells of the model; pages for people are none of its business. `schemas` says
what messages look like, `examples` gives one of each, `operations` and `replies` put them at their paths.
Source: https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mlopsnb.serving.openapi import operations, replies

if TYPE_CHECKING:
    from mlopsnb.serving.openapi.examples import Examples
    from mlopsnb.serving.routes import ServedModel

_ABOUT = """\
One model, served in three protocols: send predictions in whichever your client speaks.

A missing value is `null`, and so is NaN or infinity in an answer, since JSON has neither. Every path that takes GET
takes HEAD as well. Answers carry `x-request-id`: the one that the request came with, or a new one.
"""
_BEARER = "bearer"


def document(model: ServedModel, examples: Examples, *, protected: Collection[str] = ()) -> dict[str, Any]:
    """Return the document for *model*; the paths that are *protected* take a bearer token."""
    paths = operations.paths(model, examples)
    stages = model.parameters().keys()
    for methods in paths.values():
        if "post" in methods:
            replies.add_stages(methods["post"], stages)
    for path in protected:
        for operation in paths.get(path, {}).values():
            operation["security"] = [{_BEARER: []}]
            operation["responses"] |= replies.unauthorized(path)
    components = {
        **replies.components(tokens=bool(protected), stages=stages),
        "schemas": {**replies.schemas(), **operations.components(model)},
    }
    if protected:
        components["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.1",
        "info": {"title": model.name, "version": model.version, "description": _ABOUT},
        "servers": [{"url": "./", "description": "The server that this document came from."}],
        "tags": [{"name": name, "description": text} for name, text in operations.TAGS.items()],
        "paths": paths,
        "components": components,
    }
