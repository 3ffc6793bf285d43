"""Runs in the interpreter that has Triton's client: one conversation with a server, its results as a file.

Usage: triton_client.py http-binary|http-json|grpc ADDRESS MODEL INPUTS.npz OUTPUTS.npz [CA]; tells on stdout, in JSON,
what the server said of itself and of the model, or the error that it answered.
"""

from __future__ import annotations

import json
import ssl
import sys

import numpy as np


def main(how, address, model, inputs, outputs, ca=None):
    if how == "grpc":
        import tritonclient.grpc as triton

        metadata, options, secure = {"as_json": True}, {}, {"ssl": True, "root_certificates": ca}
    else:
        import tritonclient.http as triton

        metadata, options = {}, {"binary_data": how == "http-binary"}
        secure = {"ssl": True, "ssl_context_factory": lambda: ssl.create_default_context(cafile=ca)}
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype

    client = triton.InferenceServerClient(address, **(secure if ca else {}))
    arrays = {k: a.astype(object) if a.dtype.kind == "U" else a for k, a in np.load(inputs).items()}
    tensors = []
    for name, array in arrays.items():
        tensors.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array, **options)
    wanted = [triton.InferRequestedOutput(f"out_{name}", **options) for name in arrays]
    said = {
        "live": client.is_server_live(),
        "ready": [client.is_server_ready(), client.is_model_ready(model), client.is_model_ready(model, "1")],
        "server": client.get_server_metadata(**metadata),
        "model": client.get_model_metadata(model, **metadata),
    }
    try:
        answer = client.infer(model, tensors, outputs=wanted, request_id="17")
    except InferenceServerException as exc:
        said["error"] = [exc.status(), exc.message()]
    else:
        response = answer.get_response() if how != "grpc" else answer.get_response(as_json=True)
        said["id"] = response["id"]
        found = {name: answer.as_numpy(f"out_{name}") for name in arrays}
        np.savez(outputs, **{k: _text(a) if a.dtype == object else a for k, a in found.items()})
    print(json.dumps(said))


def _text(array):
    # What came in JSON is str, what came as raw bytes is bytes.
    texts = [v if isinstance(v, str) else v.decode() for v in array.ravel()]
    return np.array(texts).reshape(array.shape)


main(*sys.argv[1:])
