"""scikit-learn estimators and pipelines to ONNX, by skl2onnx.

scikit-learn computes in float64, ONNX operators often in float32 alone. So the estimator is converted in float64, and
where that does not work, or does not answer the same, in float32: then the model's inputs and outputs are float32.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mlopsnb import parity
from mlopsnb.errors import ExportError, UserError, telling_line
from mlopsnb.extras import loaded, need
from mlopsnb.formats.onnx_graph import Graph, save
from mlopsnb.formats.onnx_session import FILE, open_session, runner
from mlopsnb.protocols import Bound
from mlopsnb.tensors import STRING, dtype_name, to_array

if TYPE_CHECKING:
    from mlopsnb.protocols import Predict, Tensors
    from mlopsnb.tensors import Array, Example

_TABLE = "X"
"""The name of the one input that is a whole table, as scikit-learn calls it."""

_ML_OPSET = 3
"""The version of ONNX's operators for trees and the like that all of skl2onnx's converters know."""


def is_estimator(model: object) -> bool:
    """Say whether *model* is a scikit-learn estimator that predicts or transforms."""
    base = loaded("sklearn.base")
    if base is None or not isinstance(model, base.BaseEstimator):
        return False
    return hasattr(model, "predict") or hasattr(model, "transform")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How an estimator is called: with one table, or with a frame of named columns. `features` name the table's."""

    estimator: Any
    names: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def table(self) -> bool:
        """Whether the estimator has one input, which is a whole table."""
        return self.names == (_TABLE,)

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Return `label` and `probabilities` of a classifier, `output` of any other estimator."""
        rows = self._rows(inputs)
        estimator = self.estimator
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not hasattr(estimator, "predict"):
                return {"output": _dense(estimator.transform(rows))}
            predicted = _dense(estimator.predict(rows))
            if not hasattr(estimator, "classes_"):
                return {"output": predicted}
            chances = estimator.predict_proba(rows) if hasattr(estimator, "predict_proba") else None
        found = {"label": predicted}
        return found | {"probabilities": chances} if isinstance(chances, np.ndarray) else found

    def _rows(self, inputs: Tensors) -> Any:
        if self.table and not self.features:
            return inputs[_TABLE]
        pandas = need("pandas", extra="sklearn")
        if self.table:
            return pandas.DataFrame(inputs[_TABLE], columns=list(self.features))
        return pandas.DataFrame({name: inputs[name].reshape(-1) for name in self.names})


def _dense(values: Any) -> Array:
    return to_array(values.toarray() if hasattr(values, "toarray") else values, "what the estimator returns")


@contextmanager
def bind(estimator: Any, example: Example) -> Iterator[Bound]:
    """Name the inputs: `X` for a table, else the columns. Convert the estimator as the module says.

    Raises `UserError` if the columns are not those that the estimator was fitted on, `ExportError` if it cannot be
    converted.
    """
    need("skl2onnx", extra="sklearn")
    call, arrays = _name_inputs(estimator, example)
    features = {_TABLE: call.features} if call.table and call.features else {}
    with TemporaryDirectory(prefix="mlopsnb-") as scratch:
        model: Graph | None = None
        inputs, predict = arrays, cast("Predict", call)
        if _runs(call, arrays):
            model, inputs, predict = _converted(call, arrays, Path(scratch))
        yield Bound(model=model, inputs=inputs, predict=predict, feature_names=features)


def _runs(call: Call, arrays: Mapping[str, Array]) -> bool:
    """Say whether the estimator takes its example; if not, the step that runs the original says why."""
    try:
        call(arrays)
    except Exception:  # noqa: BLE001  an estimator may raise anything
        return False
    return True


def _converted(
    call: Call, arrays: dict[str, Array], scratch: Path
) -> tuple[Graph, dict[str, Array], Predict]:
    """Return the estimator as ONNX, in the first precision that answers as it does, with its inputs and the original."""
    ways: dict[str, tuple[dict[str, Array], Predict]] = {
        "float64": (arrays, call),
        "float32": (_narrowed(arrays), lambda inputs: _narrowed(call(inputs))),
    }
    problems: dict[str, str] = {}
    for dtype, (inputs, original) in ways.items():
        directory = scratch / dtype
        directory.mkdir()
        try:
            with _quiet():
                save(_convert(call, inputs, original(inputs), dtype), directory)
            exported = runner(open_session(directory / FILE), list(inputs), list(original(inputs)))
            problem = parity.difference(original, exported, inputs)
        except Exception as exc:  # noqa: BLE001  the converters and ONNX Runtime raise many kinds
            problems[dtype] = telling_line(exc, first=True)
            continue
        if problem is None:
            why = f": in float64 {problems['float64']}" if problems else ""
            note = f"converted by skl2onnx, computed in {dtype}{why}"
            return Graph(directory=directory, notes=(note,)), inputs, original
        problems[dtype] = problem.message
    told = "; ".join(f"in {dtype} {problem}" for dtype, problem in problems.items())
    raise ExportError(
        f"{type(call.estimator).__name__} cannot be turned into ONNX: {told}",
        hint="replace the step that is named by one that skl2onnx supports",
    )


def _name_inputs(estimator: Any, example: Example) -> tuple[Call, dict[str, Array]]:
    fitted = tuple(map(str, getattr(estimator, "feature_names_in_", ())))
    if not example.named:
        if len(example.positional) != 1 or example.positional[0].ndim != 2:
            raise UserError(
                "an estimator takes one table of rows and columns",
                hint="give a 2-D array or a DataFrame, or a dict of its columns if some hold text",
            )
        features = example.feature_names.get(0, fitted)
        return Call(estimator=estimator, names=(_TABLE,), features=features), {_TABLE: example.positional[0]}
    given = dict(example.named)
    if set(given) == {_TABLE} and given[_TABLE].ndim == 2:
        return Call(estimator=estimator, names=(_TABLE,), features=fitted), given
    if fitted and set(fitted) - set(given):
        missing = ", ".join(name for name in fitted if name not in given)
        raise UserError(f"the estimator was fitted on columns that the example has not: {missing}")
    wide = [name for name, a in given.items() if a.size != len(a)]
    if wide:
        raise UserError(
            f"column {wide[0]!r} has more than one value in a row", hint="give each column by its name"
        )
    ordered = {name: given[name] for name in (fitted or given)}
    return Call(estimator=estimator, names=tuple(ordered), features=()), ordered


def _narrowed(arrays: Tensors) -> dict[str, Array]:
    return {k: a.astype("float32") if a.dtype.kind == "f" else a for k, a in arrays.items()}


def _convert(call: Call, inputs: Tensors, outputs: Tensors, dtype: str) -> Any:
    """Return the estimator as ONNX that takes *inputs* and gives *outputs*, in their shapes and dtypes."""
    skl2onnx = need("skl2onnx", extra="sklearn")
    types = need("skl2onnx.common.data_types", extra="sklearn")
    number = types.DoubleTensorType if dtype == "float64" else types.FloatTensorType
    columns = [
        (name, (types.StringTensorType if dtype_name(a) == STRING else number)([None, _width(a)]))
        for name, a in inputs.items()
    ]
    convert = partial(
        skl2onnx.convert_sklearn,
        call.estimator,
        initial_types=columns,
        target_opset={"": skl2onnx.get_latest_tested_opset_version(), "ai.onnx.ml": _ML_OPSET},
    )
    try:
        proto = convert(options={"zipmap": False} if "label" in outputs else None)
    except NameError:  # skl2onnx's word for an option that this estimator has not: it never makes maps
        proto = convert()
    return _adapted(proto, inputs, outputs, dtype)


def _width(array: Array) -> int:
    """Return how many columns an input has."""
    return int(array.shape[1]) if array.ndim > 1 else 1


def _adapted(proto: Any, inputs: Tensors, outputs: Tensors, dtype: str) -> Any:
    """Put casts and reshapes around a converted estimator, whose columns are matrices and whose floats are all alike."""
    onnx = need("onnx", extra="onnx")
    graph = proto.graph
    inner_outputs = [node.name for node in graph.output][: len(outputs)]
    _rename(graph, {name: f"{name}__inner" for name in [*inputs, *outputs, *inner_outputs]})
    before: list[Any] = []
    after: list[Any] = []
    for name, array in inputs.items():
        to = None if dtype_name(array) == STRING else np.dtype(dtype)
        before += _fitted(onnx, graph, (name, f"{name}__inner"), (-1, _width(array)), to)
    for inner, (name, array) in zip(inner_outputs, outputs.items(), strict=True):
        to = None if dtype_name(array) == STRING else array.dtype
        after += _fitted(onnx, graph, (f"{inner}__inner", name), (-1, *array.shape[1:]), to)
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.extend(_described(onnx, name, a) for name, a in inputs.items())
    graph.output.extend(_described(onnx, name, a) for name, a in outputs.items())
    return proto


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


def _fitted(
    onnx: Any, graph: Any, names: tuple[str, str], shape: tuple[int, ...], dtype: np.dtype[Any] | None
) -> list[Any]:
    """Return the nodes that bring a value, from the first of *names* to the second, into *shape* and *dtype*."""
    source, target = names
    shape_name, between = f"{target}__shape", f"{target}__shaped"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, dtype="int64"), name=shape_name))
    make = onnx.helper.make_node
    if dtype is None:
        return [make("Reshape", [source, shape_name], [target], name=between)]
    to = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return [
        make("Reshape", [source, shape_name], [between], name=between),
        make("Cast", [between], [target], name=f"{target}__cast", to=to),
    ]


def _described(onnx: Any, name: str, array: Array) -> Any:
    text = dtype_name(array) == STRING
    kind = onnx.TensorProto.STRING if text else onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, ["rows", *array.shape[1:]])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the converters print, log and warn of, which is about their own insides."""
    logger = logging.getLogger("skl2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
