"""How a prediction is asked for in a shell and in Python: text to copy, right to the last quote. Knows no HTML."""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlopsnb.serving.v2 import DATATYPES
from mlopsnb.tensors import STRING

if TYPE_CHECKING:
    from mlopsnb.records import TensorSpec
    from mlopsnb.serving.openapi.examples import Examples
    from mlopsnb.serving.routes import ServedModel
    from mlopsnb.tensors import Array

ADDRESS = "http://localhost:8080"
"""Stands for the server's address, which only the reader's browser knows; a script puts the right one there."""

_WIDTH = 96


def curl(path: str, headers: Mapping[str, str], body: str | None, *, token: bool = False) -> str:
    """Return a command that POSTs *body*, or its input; with *token* it sends the one in the variable TOKEN."""
    told = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items()]
    if token:
        told.append('-H "authorization: Bearer $TOKEN"')
    sent = "--data-binary @-" if body is None else f"--data-raw {shlex.quote(body)}"
    return " \\\n  ".join([f"curl {shlex.quote(ADDRESS + path)}", *told, sent])


def curl_zeros(path: str, tensors: list[dict[str, Any]], *, token: bool = False) -> str:
    """Return a command that POSTs *tensors*, which say their `binary_data_size`, as raw zeros."""
    header = json.dumps({"inputs": tensors}, separators=(",", ":"))
    size = sum(tensor["parameters"]["binary_data_size"] for tensor in tensors)
    length = {"inference-header-content-length": str(len(header.encode()))}
    command = curl(path, {"content-type": "application/octet-stream", **length}, None, token=token)
    return f"{{ printf %s {shlex.quote(header)}; head -c {size} /dev/zero; }} |\n{command}"


def python(path: str, content: Any, *, token: bool = False) -> str:
    """Return a program of the standard library that POSTs *content* as JSON and prints the answer."""
    literal = pprint.pformat(content, width=_WIDTH, sort_dicts=False, compact=True)
    also = ', "authorization": "Bearer " + os.environ["TOKEN"]' if token else ""
    imports = "import json\nimport os" if token else "import json"
    return (
        f"{imports}\nfrom urllib.request import Request, urlopen\n\n"
        f'url = "{ADDRESS}{path}"\n'
        f"content = {literal}\n"
        f'headers = {{"content-type": "application/json"{also}}}\n'
        "with urlopen(Request(url, json.dumps(content).encode(), headers)) as answer:\n"
        "    print(json.load(answer))"
    )


def lines(content: Any, indent: str = "") -> str:
    """Return *content* as JSON for people: what is too long for a line has its members on lines of their own."""
    short = json.dumps(content, ensure_ascii=False)
    deeper = f"{indent}  "
    if len(indent) + len(short) <= _WIDTH:
        return short
    match content:
        case dict():
            opening, closing = "{}"
            parts = [f"{json.dumps(k, ensure_ascii=False)}: {lines(v, deeper)}" for k, v in content.items()]
        case [dict() | list(), *_]:
            opening, closing = "[]"
            parts = [lines(part, deeper) for part in content]
        case _:
            return short
    return f",\n{deeper}".join([f"{opening}\n{deeper}{parts[0]}", *parts[1:]]) + f"\n{indent}{closing}"


def infer(model: ServedModel, examples: Examples, *, token: bool = False) -> str:
    """Return the command for the example by the Open Inference Protocol: its values, or zeros if they are too many."""
    path = f"/v2/models/{model.name}/infer"
    if examples.fits:
        return curl(path, {"content-type": "application/json"}, lines(examples.infer), token=token)
    tensors = [_zeros(spec, examples.inputs[spec.name]) for spec in model.signature.inputs]
    return curl_zeros(path, tensors, token=token)


def _zeros(spec: TensorSpec, array: Array) -> dict[str, Any]:
    """Return a tensor of as many zeros as *array* has values; zeros are empty text as well, whose length they are."""
    size = array.size * (4 if spec.dtype == STRING else array.itemsize)
    return {
        "name": spec.name,
        "shape": list(array.shape),
        "datatype": DATATYPES[spec.dtype],
        "parameters": {"binary_data_size": size},
    }
