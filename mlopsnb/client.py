"""A client of the Open Inference Protocol v2 that speaks in arrays. What users call is `Deployment.predict`.

Protocol: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlopsnb.errors import DeployError, UserError
from mlopsnb.extras import need
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.targets.process_control import short
from mlopsnb.tensors import arrange

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

_SECONDS = 60.0
_READY_SECONDS = 2.0
_HEADER_LENGTH = "inference-header-content-length"


class Client:
    """One endpoint: *address* is `http://HOST:PORT`, or `unix:PATH` of a server's own socket."""

    def __init__(self, address: str, model: str) -> None:
        httpx = need("httpx", extra="deploy")
        self.address = address
        self.model = model
        self._signature: Signature | None = None
        self._binary: bool | None = None
        self._errors = (httpx.TransportError,)
        self._open = ExitStack()
        uds: str | None = None
        if address.startswith("unix:"):
            uds = str(self._open.enter_context(short(Path(address.removeprefix("unix:")))))
        self._http = self._open.enter_context(
            httpx.Client(
                base_url="http://localhost" if uds else address,
                transport=httpx.HTTPTransport(uds=uds, retries=1),
                timeout=_SECONDS,
                trust_env=False,  # a proxy is never between us and our own machine or cluster
            )
        )
        weakref.finalize(self, self._open.close)  # a handle is dropped in a notebook, never closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def is_ready(self) -> bool:
        """Say whether the model is ready; a server that does not answer is not."""
        try:
            return bool(self._http.get("/v2/health/ready", timeout=_READY_SECONDS).status_code == 200)
        except self._errors:
            return False

    @property
    def signature(self) -> Signature:
        """The signature that the server states; asked for once."""
        if self._signature is None:
            self._signature = _signature(self._request("GET", f"/v2/models/{self.model}").json())
        return self._signature

    def predict(self, x: object) -> dict[str, np.ndarray[Any, Any]]:
        """Arrange *x* as the model's inputs and return the outputs by name."""
        return self.infer(arrange(x, self.signature))

    def infer(self, inputs: Arrays, *, check: bool = False) -> dict[str, np.ndarray[Any, Any]]:
        """Send named arrays and return the outputs by name.

        Where the server takes raw bytes every value arrives as it was sent; JSON has no infinity. A *check* sends the
        golden example to prove a deploy; the server counts it apart from traffic.
        """
        from mlopsnb.serving import v2
        from mlopsnb.serving.calls import CHECK_HEADER
        from mlopsnb.serving.errors import BadRequest

        path = f"/v2/models/{self.model}/infer"
        if self._takes_binary():
            body, length = v2.encode_binary_request(inputs)
            headers = {"content-type": "application/octet-stream", _HEADER_LENGTH: str(length)}
        else:
            try:
                body = v2.encode_request(inputs)
            except BadRequest as exc:
                raise UserError(str(exc)) from exc
            headers = {"content-type": "application/json"}
        if check:
            headers[CHECK_HEADER] = "golden"
        answer = self._request("POST", path, body, headers)
        told = answer.headers.get(_HEADER_LENGTH, "")
        return v2.decode_response(answer.content, header_length=int(told) if told.isdecimal() else None)

    def _takes_binary(self) -> bool:
        """Say whether the server lists the extension for raw bytes; asked for once."""
        if self._binary is None:
            try:
                extensions = self._request("GET", "/v2").json().get("extensions", ())
            except UserError:  # a server that does not describe itself
                extensions = ()
            self._binary = "binary_tensor_data" in extensions
        return self._binary

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        try:
            answer = self._http.request(method, path, content=body, headers=headers)
        except self._errors as exc:
            raise DeployError(
                f"{self.model!r} does not answer at {self.address}: {exc}", hint="see .status and .logs()"
            ) from exc
        if answer.status_code < 400:
            return answer
        try:
            told = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            told = answer.text[:300]
        kind = UserError if answer.status_code < 500 else DeployError
        raise kind(f"{self.model!r} answered {answer.status_code}: {told}")


def _signature(metadata: Mapping[str, Any]) -> Signature:
    return Signature(
        inputs=tuple(map(_spec, metadata["inputs"])), outputs=tuple(map(_spec, metadata["outputs"]))
    )


def _spec(tensor: Mapping[str, Any]) -> TensorSpec:
    from mlopsnb.serving import v2

    dtypes = {datatype: dtype for dtype, datatype in v2.DATATYPES.items()}
    told = tensor.get("parameters", {})
    return TensorSpec(
        name=tensor["name"],
        dtype=dtypes[tensor["datatype"]],
        shape=tuple(None if n < 0 else n for n in tensor["shape"]),
        feature_names=tuple(told.get("feature_names", ())),
        allow_nan=bool(told.get("allow_nan", False)),
    )
