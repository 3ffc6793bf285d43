"""The paths of the Open Inference Protocol, version 2; its messages are in `serving.v2`.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md); the headers of
binary messages: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from mlopsnb.serving import v2
from mlopsnb.serving.codec import Codec
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.rawrequests import RawRequests
from mlopsnb.serving.routes import Headers, Prediction, Reply, Route, ServedModel, always, json_reply
from mlopsnb.version import __version__

if TYPE_CHECKING:
    from mlopsnb.tensors import Array

HEADER_LENGTH = b"inference-header-content-length"


def routes(model: ServedModel) -> dict[str, Route]:
    """Return the protocol's paths for *model*."""

    def ready(is_ready: bool) -> Reply:
        return json_reply({"name": model.name, "ready": is_ready}, 200 if is_ready else 503)

    codec = Codec(model)
    raw = RawRequests(model.signature)

    def decode(body: bytes, headers: Headers) -> Prediction:
        length = header_length(headers)
        if length is not None:
            return _prediction(model, raw.decode(body, length))
        return codec.decode(body) or _prediction(model, v2.decode_request(body, model.signature))

    found = {
        "/v2": Route(show=lambda ready: json_reply(server_metadata())),
        "/v2/health/live": Route(show=always({"live": True}), public=True),
        "/v2/health/ready": Route(show=ready, public=True),
    }
    metadata = v2.metadata(model.name, model.version, model.manifest)

    def describe(is_ready: bool) -> Reply:
        return json_reply({**metadata, "parameters": model.parameters()})

    for path in (f"/v2/models/{model.name}", f"/v2/models/{model.name}/versions/{model.version}"):
        found[path] = Route(show=describe)
        found[f"{path}/ready"] = Route(show=ready)
        found[f"{path}/infer"] = Route(decode=decode)
    return found


@cache
def server_metadata() -> Mapping[str, object]:
    """Return what the protocol says of the server."""
    return {
        "name": "mlopsnb",
        "version": __version__,
        "extensions": list(v2.EXTENSIONS),
    }


def _prediction(model: ServedModel, request: v2.InferRequest) -> Prediction:
    def encode(outputs: Mapping[str, Array]) -> Reply:
        content, length = v2.answer(request, outputs, model_name=model.name, model_version=model.version)
        if length is None:
            return Reply(200, content)
        return Reply(200, content, b"application/octet-stream", ((HEADER_LENGTH, b"%d" % length),))

    return Prediction(inputs=request.inputs, rows=request.rows, encode=encode)


def header_length(headers: Headers) -> int | None:
    """Return the length of the JSON before raw bytes, None if the message is JSON alone."""
    told = headers.get(HEADER_LENGTH)
    if told is None:
        return None
    if not told.isdigit() or len(told) > 18:
        raise BadRequest(
            f"{HEADER_LENGTH.decode()} should be a number of bytes, found {told[:40].decode('latin-1')!r}",
            kind="malformed",
        )
    return int(told)
