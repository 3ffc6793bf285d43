"""Runs in the interpreter that has KServe's client: one conversation with a server, its results as a file.

Usage as of triton_client.py, with http-binary, http-json, grpc-binary or grpc-typed. This client says no version over
HTTP, and knows nothing of metadata.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import sys
import types

import numpy as np


def _without_kubernetes():
    """Stand in for the package itself, whose import needs all of Kubernetes' API; its modules come as they are."""
    package = types.ModuleType("kserve")
    package.__path__ = list(importlib.util.find_spec("kserve").submodule_search_locations)
    sys.modules["kserve"] = package


_without_kubernetes()

import grpc
import httpx
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput
from kserve.utils.numpy_codec import from_np_dtype


async def converse(how, address, model, inputs, outputs, options):
    asked = json.loads(options)
    transport, _, form = how.partition("-")
    if transport == "grpc":
        client = InferenceGRPCClient(address, retries=0)
        said = {
            "live": await client.is_server_live(),
            "ready": [await client.is_server_ready(), await client.is_model_ready(model)],
        }
    else:
        client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
        said = {
            "live": await client.is_server_live(address),
            "ready": [await client.is_server_ready(address), await client.is_model_ready(address, model)],
        }
    request = _request(model, np.load(inputs), form == "binary", asked)
    try:
        if transport == "grpc":
            answer = await client.infer(request)
        else:
            answer = await client.infer(address, request, model_name=model)
    except grpc.RpcError as exc:
        said["error"] = [exc.code().name, exc.details()]
    except httpx.HTTPStatusError as exc:
        said["error"] = [str(exc.response.status_code), exc.response.json()["error"]]
    else:
        said["id"] = answer.id
        found = {output.name: output.as_numpy() for output in answer.outputs}
        np.savez(outputs, **{k: _text(a) if a.dtype == object else a for k, a in found.items()})
    await client.close()
    return said


def _request(model, arrays, binary, asked):
    tensors = []
    for name, given in arrays.items():
        array = given.astype(object) if given.dtype.kind == "U" else given
        tensors.append(InferInput(name, list(array.shape), from_np_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array, binary_data=binary)
    names = asked["outputs"]
    wanted = None if names is None else [RequestedOutput(name, {"binary_data": binary}) for name in names]
    return InferRequest(
        model,
        tensors,
        request_id="17",
        request_outputs=wanted,
        model_version=asked["version"] or None,
        parameters={"binary_data_output": binary},
    )


def _text(array):
    texts = [v if isinstance(v, str) else v.decode() for v in array.ravel()]
    return np.array(texts, dtype=str).reshape(array.shape)


logging.disable()  # it logs every error that it raises
print(json.dumps(asyncio.run(converse(*sys.argv[1:]))))
