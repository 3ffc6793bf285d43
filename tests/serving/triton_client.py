"""Runs in the interpreter that has Triton's client: one conversation with a server, its results as a file.

Usage: triton_client.py http-binary|http-json|grpc-binary ADDRESS MODEL INPUTS.npz OUTPUTS.npz OPTIONS; OPTIONS is JSON
with `outputs`, the names of those asked for or null, `version`, maybe empty, and, for TLS, `ca`, the file of the CA to
trust. Tells on stdout, in JSON, what the server said of itself and of the model, or the error that it answered.
"""

from __future__ import annotations

import json
import ssl
import sys

import numpy as np


def main(how, address, model, inputs, outputs, options):
    asked = json.loads(options)
    if how == "grpc-binary":
        import tritonclient.grpc as triton

        metadata, raw = {"as_json": True}, {}
        secure = {"ssl": True, "root_certificates": asked.get("ca")}
    else:
        import tritonclient.http as triton

        metadata, raw = {}, {"binary_data": how == "http-binary"}
        context = ssl.create_default_context(cafile=asked.get("ca"))
        secure = {"ssl": True, "ssl_context_factory": lambda: context}
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype

    client = triton.InferenceServerClient(address, **(secure if "ca" in asked else {}))
    arrays = {k: a.astype(object) if a.dtype.kind == "U" else a for k, a in np.load(inputs).items()}
    tensors = []
    for name, array in arrays.items():
        tensors.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array, **raw)
    names = asked["outputs"]
    wanted = None if names is None else [triton.InferRequestedOutput(name, **raw) for name in names]
    said = {"live": client.is_server_live()}
    try:
        said |= {
            "ready": [client.is_server_ready(), client.is_model_ready(model)],
            "server": client.get_server_metadata(**metadata),
            "model": client.get_model_metadata(model, asked["version"], **metadata),
        }
        answer = client.infer(
            model, tensors, outputs=wanted, model_version=asked["version"], request_id="17", priority=1
        )
    except InferenceServerException as exc:
        said["error"] = [exc.status().removeprefix("StatusCode."), exc.message()]
    else:
        response = answer.get_response(**({"as_json": True} if how == "grpc-binary" else {}))
        said["id"] = response["id"]
        found = {output["name"]: answer.as_numpy(output["name"]) for output in response["outputs"]}
        np.savez(outputs, **{k: _text(a) if a.dtype == object else a for k, a in found.items()})
    print(json.dumps(said))


def _text(array):
    # What came in JSON is str, what came as raw bytes is bytes.
    texts = [v if isinstance(v, str) else v.decode() for v in array.ravel()]
    return np.array(texts, dtype=str).reshape(array.shape)


main(*sys.argv[1:])
