"""ONNX models as users have them, in memory or in a file: taken as they are, and checked all the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.errors import ExportError, UserError, telling_line
from mlopsnb.extras import loaded, need
from mlopsnb.formats.onnx_session import FILE, open_session, runner
from mlopsnb.protocols import Bound
from mlopsnb.tensors import STRING, dtype_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlopsnb.tensors import Array, Example

SUFFIX = ".onnx"
_EMBEDDED_BYTES = 1 << 30
"""Weights beyond this go into a file of their own: one protobuf message holds 2 GB at most."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": STRING,
    **{f"tensor({name})": name for name in ("float16", "bool")},
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


def is_graph(model: object) -> bool:
    """Say whether *model* is an `onnx.ModelProto`, or a path that ends with `.onnx`."""
    if isinstance(model, str | Path):
        return Path(model).suffix == SUFFIX
    onnx = loaded("onnx")
    return onnx is not None and isinstance(model, onnx.ModelProto)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """An ONNX model whose files are in a directory that lasts as long as it is bound."""

    directory: Path
    notes: tuple[str, ...] = ()

    def write(self, into: Path) -> tuple[str, ...]:
        """Copy the model's files into the directory *into*, and return notes for people."""
        for file in self.directory.iterdir():
            shutil.copyfile(file, into / file.name)
        return self.notes


def save(proto: Any, into: Path) -> None:
    """Write *proto* as `model.onnx` into the directory *into*; large weights beside it."""
    onnx = need("onnx", extra="onnx")
    if proto.ByteSize() <= _EMBEDDED_BYTES:
        onnx.save_model(proto, str(into / FILE))
        return
    copy = onnx.ModelProto()  # to write the weights apart is to take them out
    copy.CopyFrom(proto)
    onnx.save_model(copy, str(into / FILE), save_as_external_data=True, location=f"{FILE}.data")


@contextmanager
def bind(model: Any, example: Example) -> Iterator[Bound]:
    """Name the example's parts as the graph's inputs are named, in the dtypes that it takes.

    Raises `ExportError` if the file is no ONNX model or ONNX Runtime cannot run it, `UserError` if the example
    does not fit the graph.
    """
    proto = _read(model)
    with TemporaryDirectory(prefix="mlopsnb-") as scratch:
        save(proto, Path(scratch))
        try:
            session = open_session(Path(scratch) / FILE)
        except Exception as exc:
            raise ExportError(f"ONNX Runtime cannot run the model: {telling_line(exc)}") from exc
        _refuse_unservable(session)
        arrays, note = _cast(session, _named(session, example))
        features = {
            name: columns
            for key, columns in example.feature_names.items()
            for name in [key if isinstance(key, str) else session.get_inputs()[key].name]
        }
        yield Bound(
            model=Graph(directory=Path(scratch), notes=("the ONNX model as it was given", *note)),
            inputs=arrays,
            predict=runner(session, list(arrays), [o.name for o in session.get_outputs()]),
            feature_names=features,
        )


def _read(model: Any) -> Any:
    if not isinstance(model, str | Path):
        return model
    if not Path(model).is_file():
        raise UserError(f"there is no file {str(model)!r}", hint="give the path of an ONNX model")
    onnx = need("onnx", extra="onnx")
    try:
        return onnx.load(str(model))
    except Exception as exc:
        raise ExportError(f"{model} is no ONNX model: {telling_line(exc)}") from exc


def _refuse_unservable(session: Any) -> None:
    """Raise `ExportError` for inputs and outputs that no protocol can carry."""
    for node in (*session.get_inputs(), *session.get_outputs()):
        if node.type not in _DTYPES:
            hint = "give tensors" if "map" not in node.type else "convert it with the option zipmap=False"
            raise ExportError(
                f"{node.name!r} of the graph is a {node.type}; only tensors can be served", hint=hint
            )


def _named(session: Any, example: Example) -> dict[str, Array]:
    names = [node.name for node in session.get_inputs()]
    given = dict(example.named) or dict(zip(names, example.positional, strict=False))
    if set(given) != set(names) or (example.positional and len(example.positional) != len(names)):
        found = ", ".join(example.named) or f"{len(example.positional)} parts"
        raise UserError(
            f"the graph's inputs are {', '.join(names)}; the example has {found}",
            hint="give a dict by these names, or a tuple in this order",
        )
    return {name: given[name] for name in names}


def _cast(session: Any, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Give numbers in the types that the graph takes: frames and numpy hold float64, graphs seldom do."""
    wanted = {node.name: _DTYPES[node.type] for node in session.get_inputs()}
    cast: dict[str, Array] = {}
    notes: list[str] = []
    for name, array in arrays.items():
        have, want = dtype_name(array), wanted[name]
        cast[name] = array
        if have == want:
            continue
        if STRING in (have, want) or (np.dtype(want).kind != "f" and array.dtype.kind == "f"):
            raise UserError(f"input {name!r} of the graph takes {want}; the example has {have}")
        cast[name] = array.astype(want)
        notes.append(f"{name} given as {have}, taken as {want} like the graph's input")
    return cast, tuple(notes)
