"""From what users hold (arrays, tensors, frames, dicts and tuples of them) to named numpy arrays, and no further.

Recognises torch, TensorFlow and pandas objects without importing any of them: whoever hands us a tensor has
imported its framework. The first axis of every input counts rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from mlopsnb.errors import ExportError, UserError
from mlopsnb.extras import loaded
from mlopsnb.records import Signature, TensorSpec

Array = np.ndarray[Any, Any]

STRING = "str"
"""The dtype name of text; such arrays hold `str` objects."""

_DTYPES = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + ["float16", "float32", "float64", "bool", STRING]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An input example as arrays: some by position, some by name, as the user gave them.

    `feature_names` maps the position or the name of an input that came as a DataFrame to its columns.
    """

    positional: tuple[Array, ...] = ()
    named: Mapping[str, Array] = field(default_factory=dict)
    feature_names: Mapping[int | str, tuple[str, ...]] = field(default_factory=dict)

    def head(self, rows: int) -> Example:
        """Return the first *rows* rows of every input."""
        return replace(
            self,
            positional=tuple(a[:rows] if a.ndim else a for a in self.positional),
            named={k: a[:rows] if a.ndim else a for k, a in self.named.items()},
        )


def is_frame(value: object) -> bool:
    """Say whether *value* is a pandas DataFrame."""
    pandas = loaded("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def read_example(value: object) -> Example:
    """Return *value* (array-like, tensor, DataFrame, or a dict or tuple of them) as an `Example`.

    Raises `UserError` if a part is not numeric, boolean or text, if there are no rows, or if the parts
    disagree on the number of rows.
    """
    feature_names: dict[int | str, tuple[str, ...]] = {}
    parts: dict[int | str, object]
    if isinstance(value, Mapping):
        parts = {str(k): v for k, v in value.items()}
    elif isinstance(value, tuple):
        parts = dict(enumerate(value))
    else:
        parts = {0: value}
    arrays: dict[int | str, Array] = {}
    for key, part in parts.items():
        where = f"the example's input {key!r}" if len(parts) > 1 else "the example"
        if is_frame(part):
            feature_names[key] = tuple(map(str, part.columns))  # type: ignore[attr-defined]
        arrays[key] = to_array(part, where)
    _check_rows(arrays)
    return Example(
        positional=tuple(a for k, a in arrays.items() if isinstance(k, int)),
        named={k: a for k, a in arrays.items() if isinstance(k, str)},
        feature_names=feature_names,
    )


def _check_rows(arrays: Mapping[int | str, Array]) -> None:
    if not arrays:
        raise UserError("the example is empty", hint="give a few rows that the model can predict on")
    rows = {k: a.shape[0] for k, a in arrays.items() if a.ndim}
    if not rows:
        raise UserError("the example is a single number; the first axis must count rows", hint="give [value]")
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{k}: {n}" for k, n in rows.items())
        raise UserError(
            f"the example's inputs have different numbers of rows ({found})",
            hint="the first axis of every input counts rows; give the same rows of each",
        )
    if 0 in rows.values():
        raise UserError("the example has no rows", hint="give at least one row that the model can predict on")


def to_array(value: object, where: str = "the value") -> Array:
    """Return array-like *value* as a numpy array of a dtype that can be served.

    Raises `UserError`, which names *where*, for ragged, complex, date or mixed values.
    """
    torch = loaded("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = _tensor_values(torch, value)
    elif is_frame(value):
        value = _frame_values(value, where)
    elif hasattr(value, "numpy") and callable(value.numpy):
        value = value.numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as exc:
        raise UserError(f"{where} is no array: {exc}", hint="all rows must have the same shape") from exc
    return _servable(array, where)


def _tensor_values(torch: Any, tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16


def _servable(array: Array, where: str) -> Array:
    if array.dtype.kind in "SU":
        array = array.astype(str).astype(object)
    if array.dtype.kind == "O" and array.size:
        flat = array.ravel()
        if all(isinstance(v, bytes) for v in flat):
            array = np.array([v.decode() for v in flat], dtype=object).reshape(array.shape)
        elif not all(isinstance(v, str) for v in flat):
            array = _from_objects(array, where)
    if dtype_name(array) not in _DTYPES:
        raise UserError(
            f"{where} has dtype {array.dtype}, which no protocol can carry",
            hint="give numbers, booleans or text; turn dates and categories into numbers first",
        )
    return array


def _from_objects(array: Array, where: str) -> Array:
    """Nullable pandas columns arrive as objects; numbers and missing values among them are floats."""
    try:
        return np.array([np.nan if v is None else float(v) for v in array.ravel()]).reshape(array.shape)
    except (TypeError, ValueError) as exc:
        kinds = sorted({type(v).__name__ for v in array.ravel()})
        raise UserError(f"{where} mixes {', '.join(kinds)}", hint="give one kind of value per input") from exc


def _frame_values(frame: Any, where: str) -> Array:
    bad = [
        f"{name!r} ({dtype})"
        for name, dtype in frame.dtypes.items()
        if getattr(dtype, "kind", "O") not in "biuf"
    ]
    if bad:
        raise UserError(
            f"{where} has columns that are not numbers: {', '.join(bad)}",
            hint="encode them as the model was trained, or, if it takes them so, give one input for each column: "
            "dict(frame)",
        )
    nullable = any(not isinstance(dtype, np.dtype) for dtype in frame.dtypes)
    values = frame.to_numpy(dtype="float64", na_value=np.nan) if nullable else frame.to_numpy()
    return np.ascontiguousarray(values)


def dtype_name(array: Array) -> str:
    """Return numpy's name of the array's dtype, or `STRING` for text."""
    return _name_of(array.dtype)


@lru_cache(
    maxsize=256
)  # numpy puts the name together anew each time, and servers ask for it with each request
def _name_of(dtype: np.dtype[Any]) -> str:
    return STRING if dtype.kind in "OSU" else dtype.name


def flatten_outputs(raw: object, is_tensor: Callable[[object], bool]) -> dict[str, Any]:
    """Name what a model returned: `output`, a dict's keys, a named tuple's fields, else `output_0`, `output_1`…

    What is nested is named by its path (`output_1_0`), and None left out. Raises `ExportError` for what is no tensor.
    """
    if is_tensor(raw):
        return {"output": raw}
    found = dict(_leaves(raw, ""))
    bad = {k or "output": type(v).__name__ for k, v in found.items() if not is_tensor(v)}
    if bad or not found:
        what = ", ".join(f"{k}: {t}" for k, t in bad.items()) or "nothing"
        raise ExportError(
            f"the model must return tensors, or tuples or dicts of tensors; found {what}",
            hint="return the tensors that a client should get",
        )
    return found


def _leaves(raw: object, path: str) -> Iterator[tuple[str, object]]:
    if raw is None:
        return
    if isinstance(raw, Mapping):
        parts = {str(k): v for k, v in raw.items()}
    elif isinstance(raw, tuple | list):
        fields = getattr(raw, "_fields", None) or (str(i) for i in range(len(raw)))
        parts = dict(zip(fields, raw, strict=True))
        path = path or ("" if hasattr(raw, "_fields") else "output")
    else:
        yield path, raw
        return
    for key, value in parts.items():
        yield from _leaves(value, f"{path}_{key}" if path else key)


def rows_of(arrays: Mapping[str, Array]) -> int:
    """Return how many rows the named *arrays* hold."""
    rows: int = next(a.shape[0] for a in arrays.values() if a.ndim)
    return rows


def take_rows(arrays: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Return *rows* rows, repeating those there are in turn; scalars stay as they are."""
    return {k: a.take(np.arange(rows) % a.shape[0], axis=0) if a.ndim else a for k, a in arrays.items()}


def specs_of(
    arrays: Mapping[str, Array],
    *,
    free_rows: bool = True,
    feature_names: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[TensorSpec, ...]:
    """Describe named *arrays*; the first axis is free unless *free_rows* is false."""
    return tuple(
        TensorSpec(
            name=name,
            dtype=dtype_name(a),
            shape=(None, *a.shape[1:]) if a.ndim and free_rows else tuple(a.shape),
            feature_names=(feature_names or {}).get(name, ()),
            allow_nan=a.dtype.kind == "f" and bool(np.isnan(a).any()),
        )
        for name, a in arrays.items()
    )


def arrange(value: object, signature: Signature) -> dict[str, Array]:
    """Return what a user wants predicted as the named arrays that *signature* asks for.

    Takes what `read_example` takes. A DataFrame's columns are matched by name where the model knows names.
    Values are cast where nothing is lost but float precision. Raises `UserError` naming the input.
    """
    specs = signature.inputs
    if isinstance(value, Mapping) and not {s.name for s in specs} & set(value):
        names = ", ".join(s.name for s in specs)
        raise UserError(f"the model's inputs are {names}; found {', '.join(map(str, value))}")
    if isinstance(value, Mapping):
        parts: Mapping[str, object] = {str(k): v for k, v in value.items()}
    elif is_frame(value) and len(specs) > 1:
        parts = _columns(value, specs)
    else:
        parts = _by_position(value, specs)
    missing = [s.name for s in specs if s.name not in parts]
    unknown = [name for name in parts if name not in {s.name for s in specs}]
    if missing or unknown:
        raise UserError(
            f"the model's inputs are {', '.join(s.name for s in specs)}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    return {s.name: _cast(parts[s.name], s) for s in specs}


def _by_position(value: object, specs: Sequence[TensorSpec]) -> dict[str, object]:
    values = value if isinstance(value, tuple) else (value,)
    if len(values) != len(specs):
        names = ", ".join(s.name for s in specs)
        raise UserError(f"the model takes {len(specs)} inputs ({names}); found {len(values)}")
    return {s.name: v for s, v in zip(specs, values, strict=True)}


def _columns(frame: Any, specs: Sequence[TensorSpec]) -> dict[str, object]:
    found = {str(c): c for c in frame.columns}
    missing = [s.name for s in specs if s.name not in found]
    if missing:
        raise UserError(f"columns {', '.join(missing)} are missing; found {', '.join(found) or 'none'}")
    return {s.name: frame[found[s.name]].to_numpy() for s in specs}


def _cast(value: object, spec: TensorSpec) -> Array:
    where = f"input {spec.name!r}"
    if is_frame(value) and spec.feature_names:
        found = {str(c): c for c in value.columns}  # type: ignore[attr-defined]
        missing = [c for c in spec.feature_names if c not in found]
        if missing:
            raise UserError(f"{where}: columns {', '.join(missing)} are missing; found {', '.join(found)}")
        value = value[[found[c] for c in spec.feature_names]]  # type: ignore[index]
    array = to_array(value, where)
    have, want = dtype_name(array), spec.dtype
    if have == want:
        return array
    if STRING in (have, want):
        raise UserError(f"{where} takes {want}, found {have}")
    cast = array.astype(want)
    if array.dtype.kind == "f" and cast.dtype.kind != "f" and not np.array_equal(cast.astype(have), array):
        raise UserError(
            f"{where} takes {want}, found {have} values that are not whole", hint="round them first"
        )
    if array.dtype.kind in "iu" and cast.dtype.kind in "biu" and not np.array_equal(cast.astype(have), array):
        raise UserError(f"{where} takes {want}, found {have} values outside its range")
    return cast
