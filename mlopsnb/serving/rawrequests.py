"""Open Inference requests with raw bytes, of which only the bytes are read: the JSON before them came before.

A client sends the same few words of JSON with each batch of a size. To read and check them takes as long as all else
that is done to the request, so what came of it is kept, by the very bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mlopsnb.serving import binary, v2

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec

_HEADS = 64
_HEAD_BYTES = 2048


class _Known(NamedTuple):
    """What such a request asks for, how many raw bytes it has, and which of them are which input in what shape."""

    request: v2.InferRequest
    size: int
    tensors: list[tuple[TensorSpec, tuple[int, ...], slice]]


class RawRequests:
    """Reads requests to a model of one signature."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._known: dict[bytes, _Known] = {}

    def decode(self, body: bytes, header_length: int) -> v2.InferRequest:
        """Return the request in *body* as `v2.decode_request` does, and raise what that raises."""
        head = body[:header_length]
        known = self._known.get(head)
        if known is None or len(body) != header_length + known.size:
            return self._anew(body, header_length, head)
        raw = memoryview(body)[header_length:]
        inputs = {
            spec.name: binary.from_bytes(
                raw[place], spec.dtype, shape, allow_nan=spec.allow_nan, where=f"input {spec.name!r}"
            )
            for spec, shape, place in known.tensors
        }
        asked = known.request
        return v2.InferRequest(inputs=inputs, rows=asked.rows, outputs=asked.outputs, binary=asked.binary)

    def _anew(self, body: bytes, header_length: int, head: bytes) -> v2.InferRequest:
        request = v2.decode_request(body, self._signature, header_length=header_length)
        places = v2.raw_places(head) if len(head) <= _HEAD_BYTES and request.id is None else None
        if places is not None:  # an id comes but once
            if len(self._known) >= _HEADS:
                self._known.clear()
            tensors = [
                (spec, request.inputs[spec.name].shape, places[spec.name]) for spec in self._signature.inputs
            ]
            asked = v2.InferRequest(
                inputs={}, rows=request.rows, outputs=request.outputs, binary=request.binary
            )
            self._known[head] = _Known(asked, len(body) - header_length, tensors)
        return request
