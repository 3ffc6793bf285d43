"""TensorFlow SavedModel, from Keras models and from `tf.Module`."""

from __future__ import annotations

import inspect
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlopsnb.errors import ExportError, telling_line
from mlopsnb.extras import loaded, need
from mlopsnb.protocols import Bound, Exported
from mlopsnb.tensors import flatten_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from mlopsnb.protocols import Predict, Tensors
    from mlopsnb.records import Signature
    from mlopsnb.tensors import Example

SIGNATURE = "serving_default"
"""The signature that TensorFlow Serving, and our runtime, call."""

Arrays = Mapping[str, np.ndarray[Any, Any]]
Style = Literal["positional", "keyword", "list", "mapping"]


class SavedModel:
    """Format `savedmodel`: the directory that `tf.saved_model.save` writes, with one named signature."""

    def accepts(self, model: object) -> bool:
        """Accept Keras models and layers on the TensorFlow back end, and callable `tf.Module` objects."""
        return _is_keras(model) or _is_tf_module(model)

    @contextmanager
    def bind(self, model: object, example: Example) -> Iterator[Bound]:
        """Name the inputs after the model's own: Keras input names, else the parameters of its call."""
        call, arrays, features = _name_inputs(model, example)
        arrays, note = _cast_floats(model, arrays)
        yield Bound(
            model=Call(
                model=model,
                names=call.names,
                style=call.style,
                training=call.training,
                notes=(note,) if note else (),
            ),
            inputs=arrays,
            predict=lambda inputs: _run(call, inputs, tuple(arrays)),
            feature_names=features,
        )

    def export(self, bound: Bound, into: Path) -> Exported:
        """Write a SavedModel whose `serving_default` signature has the bound names and a free first axis."""
        tf = need("tensorflow", extra="tensorflow")
        call: Call = bound.model
        specs = [
            tf.TensorSpec([None, *a.shape[1:]] if a.ndim else [], _tf_dtype(a), name=name)
            for name, a in bound.inputs.items()
        ]

        name_outputs = tf.autograph.experimental.do_not_convert(named_outputs)

        def serve(*tensors: Any) -> Any:
            return name_outputs(call(*tensors))

        with _quiet():
            try:
                if _is_keras(call.model):
                    archive = loaded("keras").export.ExportArchive()
                    archive.track(call.model)
                    archive.add_endpoint("serve", serve, input_signature=specs)
                    archive.write_out(str(into), verbose=False)
                else:
                    function = tf.function(serve, input_signature=specs)
                    tf.saved_model.save(call.model, str(into), signatures={SIGNATURE: function})
            except (ExportError, OSError):
                raise
            except Exception as exc:
                raise ExportError(
                    f"TensorFlow cannot save the model: {telling_line(exc)}",
                    hint="the call must be made of TensorFlow operations, and hold its variables as attributes",
                ) from exc
        return Exported(
            requirements=(_requirement(tf),),
            notes=("captured by tf.function, branches on data included", *call.notes),
        )

    def load(self, path: Path, signature: Signature) -> Predict:
        """Load the SavedModel's `serving_default` signature."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before the import: the C++ side reads it once
        tf = need("tensorflow", extra="tensorflow")
        with _quiet():
            module = tf.saved_model.load(str(path))
        function = module.signatures[SIGNATURE]
        outputs = [s.name for s in signature.outputs]

        def predict(inputs: Tensors, module: Any = module) -> Tensors:
            # The default argument keeps the module alive: a signature holds its variables weakly.
            found = function(**{name: _constant(tf, a) for name, a in inputs.items()})
            return {name: _to_numpy(found[name]) for name in outputs}

        return predict


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a model takes its inputs: by position, by keyword, all in one list, or all in one dict."""

    model: Any
    names: tuple[str, ...]
    style: Style
    training: bool
    notes: tuple[str, ...] = ()

    def __call__(self, *tensors: Any) -> Any:
        """Call the model on *tensors*, which are in the order of `names`."""
        # Plain ifs: AutoGraph reads this function too, and must get through it to the branches of the model.
        extra = {"training": False} if self.training else {}
        if self.style == "positional":
            return self.model(*tensors, **extra)
        if self.style == "list":
            return self.model(list(tensors), **extra)
        named = dict(zip(self.names, tensors, strict=True))
        return self.model(named, **extra) if self.style == "mapping" else self.model(**named, **extra)


def _is_keras(model: object) -> bool:
    keras = loaded("keras")
    return (
        keras is not None
        and isinstance(model, keras.layers.Layer)
        and keras.backend.backend() == "tensorflow"
    )


def _is_tf_module(model: object) -> bool:
    tf = loaded("tensorflow")
    return tf is not None and isinstance(model, tf.Module) and callable(model)


def named_outputs(raw: Any) -> dict[str, Any]:
    """Name the tensors that a call returned; see `flatten_outputs`."""
    return flatten_outputs(raw, need("tensorflow", extra="tensorflow").is_tensor)


def _name_inputs(model: Any, example: Example) -> tuple[Call, dict[str, Any], dict[str, tuple[str, ...]]]:
    parameters, training = _parameters(model)
    if example.named:
        given = {_identifier(k): a for k, a in example.named.items()}
        features = {_identifier(str(k)): v for k, v in example.feature_names.items()}
        style: Style = "keyword" if len(parameters) > 1 and set(given) <= set(parameters) else "mapping"
        if not _is_keras(model) and set(given) <= set(parameters):
            style = "keyword"
        return Call(model=model, names=tuple(given), style=style, training=training), given, features
    count = len(example.positional)
    names = _keras_names(model, count) or parameters[:count]
    if len(names) != count:
        names = [f"input_{i}" for i in range(count)]
    by_position: Style = "list" if count > 1 and len(parameters) < count else "positional"
    features = {names[i]: columns for i, columns in example.feature_names.items() if isinstance(i, int)}
    call = Call(model=model, names=tuple(names), style=by_position, training=training)
    return call, dict(zip(names, example.positional, strict=True)), features


def _parameters(model: Any) -> tuple[list[str], bool]:
    """Return the names of the call's own inputs, and whether it takes `training`."""
    function = model.call if _is_keras(model) else model.__call__
    function = getattr(function, "python_function", function)
    found = inspect.signature(function).parameters
    plain = [
        n
        for n, p in found.items()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and n not in ("self", "training", "mask")
    ]
    return plain, "training" in found


def _keras_names(model: Any, count: int) -> list[str]:
    """Return the names that a functional Keras model's author gave its inputs, if they gave any."""
    if not _is_keras(model):
        return []
    tensors = getattr(model, "inputs", None)
    tensors = list(tensors.values()) if isinstance(tensors, Mapping) else list(tensors or ())
    names = [_identifier(t.name) for t in tensors]
    if len(names) != count or any(re.fullmatch(r"keras_tensor(_\d+)?|input_layer(_\d+)?", n) for n in names):
        return []
    return names


def _identifier(name: str) -> str:
    """Signatures name their arguments in Python: turn anything else into an underscore."""
    clean = re.sub(r"\W", "_", name)
    return clean if clean[:1].isalpha() else f"input_{clean}"


def _cast_floats(model: Any, arrays: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Give floats in the type of the model's weights: frames and numpy hold float64, weights seldom are."""
    dtypes = [np.dtype(_dtype_of(v)) for v in getattr(model, "variables", ()) if "float" in _dtype_of(v)]
    wanted = next((d.name for d in dtypes if d.kind == "f"), "float32" if _is_keras(model) else None)
    cast = [name for name, a in arrays.items() if wanted and a.dtype.kind == "f" and a.dtype.name != wanted]
    if not cast or wanted is None:
        return arrays, ""
    was = arrays[cast[0]].dtype.name
    changed = {name: a.astype(wanted) if name in cast else a for name, a in arrays.items()}
    return changed, f"{', '.join(cast)} given as {was}, taken as {wanted} like the model's weights"


def _dtype_of(variable: Any) -> str:
    name = str(getattr(variable.dtype, "name", variable.dtype))
    return "float32" if name == "bfloat16" else name


def _run(call: Call, inputs: Arrays, order: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    tf = need("tensorflow", extra="tensorflow")
    with _quiet():
        outputs = named_outputs(call(*(_constant(tf, inputs[name]) for name in order)))
    return {name: _to_numpy(t) for name, t in outputs.items()}


def _constant(tf: Any, array: np.ndarray[Any, Any]) -> Any:
    return tf.constant(array.astype(str) if array.dtype.kind == "O" else array)


def _to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(tensor.numpy())
    if array.dtype.kind == "O":
        flat = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array.ravel()]
        return np.array(flat, dtype=object).reshape(array.shape)
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _tf_dtype(array: np.ndarray[Any, Any]) -> Any:
    tf = need("tensorflow", extra="tensorflow")
    return tf.string if array.dtype.kind == "O" else tf.as_dtype(array.dtype)


def _requirement(tf: Any) -> str:
    """Name the distribution that is installed: `tensorflow` and `tensorflow-cpu` bring the same module."""
    for name in ("tensorflow-cpu", "tensorflow"):
        try:
            return f"{name}=={version(name)}"
        except PackageNotFoundError:
            continue
    return f"tensorflow=={tf.__version__}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorFlow's notes on assets and deprecated loaders from people who cannot act on them."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
