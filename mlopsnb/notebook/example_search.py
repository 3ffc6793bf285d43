"""Find rows in the user's notebook that a model accepts, for `%deploy model` without `--example`.

Looks at names first and then tries: the first candidate on which the model really answers is taken. The model is left
as it was (training flags, gradients, running statistics); nothing is exported here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from mlopsnb.extras import loaded

ROWS = 64
"""Rows of the variable that become the example."""

TRIAL_ROWS = 2

_WANTED = (
    *("X_test", "X_val", "X_valid", "X_validation", "x_test", "x_val", "x_valid", "X", "x"),
    *("X_*", "x_*", "*example*", "*input*", "*sample*", "*feature*", "*test*", "*batch*", "*data*", "df"),
)
_ANSWERS = ("y", "Y", "y_*", "Y_*", "*label*", "*target*", "*pred*", "*output*")

_ROWS_OF = (("numpy", "ndarray"), ("torch", "Tensor"), ("tensorflow", "Tensor"), ("pandas", "DataFrame"))


@dataclass(frozen=True, slots=True)
class Found:
    """An example and the expression it came from."""

    expression: str
    value: Any


def recognised(model: object) -> bool:
    """Say whether *model* is of a framework that the search can try. Imports nothing."""
    return _framework(model) is not None


def find_example(model: Any, names: Mapping[str, Any]) -> Found | None:
    """Return the first rows among the variables *names* that *model* accepts, or None."""
    for name in candidates(names):
        if accepts(model, names[name][:TRIAL_ROWS]):
            return Found(f"{name}[:{ROWS}]", names[name][:ROWS])
    return None


def candidates(names: Mapping[str, Any]) -> list[str]:
    """Return the names of variables that hold rows and sound like inputs, the likeliest first."""
    rows = [n for n, value in names.items() if not n.startswith("_") and _holds_rows(value)]
    inputs = [n for n in rows if not any(fnmatchcase(n, p) for p in _ANSWERS)]
    ranked = [(_rank(n), n) for n in inputs]
    return [n for rank, n in sorted(ranked, key=lambda pair: pair[0]) if rank < len(_WANTED)]


def _rank(name: str) -> int:
    return next((i for i, pattern in enumerate(_WANTED) if fnmatchcase(name, pattern)), len(_WANTED))


def _holds_rows(value: object) -> bool:
    """Say whether *value* is an array, a tensor or a DataFrame with a row. Imports nothing."""
    modules = ((loaded(module), cls) for module, cls in _ROWS_OF)
    if not any(module is not None and isinstance(value, getattr(module, cls)) for module, cls in modules):
        return False
    shape: Any = getattr(value, "shape", ())
    return len(shape) > 0 and shape[0] is not None and int(shape[0]) > 0


def accepts(model: Any, rows: Any) -> bool:
    """Say whether *model* answers on *rows*. Whatever it raises means no."""
    call = {"torch": _call_torch, "keras": _call_keras, "tensorflow": _call_tensorflow}.get(
        _framework(model) or ""
    )
    if call is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(model, rows)
        except Exception:  # noqa: BLE001  a model may refuse in any way; to refuse is the answer
            return False
    return True


def _framework(model: object) -> str | None:
    torch, keras, tensorflow = loaded("torch"), loaded("keras"), loaded("tensorflow")
    if torch is not None and isinstance(model, torch.nn.Module):
        return "torch"
    if keras is not None and isinstance(model, keras.Model):
        return "keras"
    if tensorflow is not None and isinstance(model, tensorflow.Module) and callable(model):
        return "tensorflow"
    return None


def _call_torch(model: Any, rows: Any) -> None:
    from mlopsnb.tensors import to_array

    torch = loaded("torch")
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
    tensor = rows.detach() if isinstance(rows, torch.Tensor) else torch.from_numpy(to_array(rows).copy())
    if like is not None:
        # A float64 array is what numpy and pandas make of anything; an export casts it too.
        tensor = (
            tensor.to(like.device, like.dtype) if tensor.dtype == torch.float64 else tensor.to(like.device)
        )
    with torch.no_grad(), _inference(model), torch.random.fork_rng(devices=[]):
        model(tensor)


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Hold a torch module in evaluation mode; each part gets its own flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _call_keras(model: Any, rows: Any) -> None:
    from mlopsnb.tensors import to_array

    model(_narrowed(to_array(rows)), training=False)


def _call_tensorflow(model: Any, rows: Any) -> None:
    from mlopsnb.tensors import to_array

    array = to_array(rows)
    like = next((v for v in model.variables if v.dtype.is_floating), None)
    if array.dtype == "float64" and like is not None:
        array = array.astype(like.dtype.as_numpy_dtype)
    model(loaded("tensorflow").constant(array))


def _narrowed(array: Any) -> Any:
    """Keras computes in float32; a float64 array would only make it warn."""
    return array.astype("float32") if array.dtype == "float64" else array
