"""From what users hold (frames, arrays, tensors, dicts, lists) to named, cleaned columns, and no further.

Nothing is dropped silently: a column that cannot be compared is `Unsupported`, with its reason. pandas is never
imported here; whoever hands us a frame has done so.
"""

from __future__ import annotations

import datetime
import decimal
import math
import numbers
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlopsnb.errors import UserError, nearest
from mlopsnb.extras import loaded
from mlopsnb.tensors import is_frame, to_array

Array = np.ndarray[Any, Any]

_TIMES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)
_SHOWN = 10
"""So many column names at most in a message."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Numbers:
    """A numeric column: its `finite` values as they came, and as `values` sorted.

    `missing` counts NaN, None and infinities, `infinite` the last alone. `whole` says that only whole numbers
    fit in; `narrow` that the values have float32's precision or less.
    """

    finite: Array
    rows: int
    missing: int
    infinite: int = 0
    whole: bool = False
    narrow: bool = False

    @cached_property
    def values(self) -> Array:
        """The finite values, sorted; whoever needs no order need not wait for it."""
        return np.sort(self.finite)


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """A column of categories, booleans or text: how often each value occurs."""

    counts: Mapping[Hashable, int]
    rows: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """A column whose values are not compared, and why not."""

    reason: str
    rows: int
    missing: int


Column = Numbers | Levels | Unsupported


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns as they came, a numpy array or a pandas Series each, by name, in order.

    `named` says that the columns have names to be matched by; a lone column, and those of an array, have not.
    """

    columns: Mapping[str, Any]
    rows: int
    named: bool


def read_table(value: object, where: str, *, prefix: str = "feature", single: str = "") -> Table:
    """Return *value* as a `Table`: a DataFrame, a Series, a dict of columns, or an array of one or two axes.

    The columns of an array are named *prefix*_0, *prefix*_1, …; that of one with a single axis *single*, if given.
    Raises `UserError`, which names *where*, for other shapes, repeated names and columns of different lengths.
    """
    pandas = loaded("pandas")
    if is_frame(value):
        return _from_pairs([(str(name), column) for name, column in value.items()], where)  # type: ignore[attr-defined]
    if pandas is not None and isinstance(value, pandas.Series):
        name = value.name
        only = single or f"{prefix}_0" if name is None else str(name)
        return Table(columns={only: value}, rows=len(value), named=False)
    if isinstance(value, Mapping):
        return _from_pairs(
            [(str(n), _one_axis(v, f"{where}: column {str(n)!r}")) for n, v in value.items()], where
        )
    array = _as_array(value, where)
    if array.ndim == 1:
        return Table(columns={single or f"{prefix}_0": array}, rows=len(array), named=False)
    if array.ndim != 2:
        raise UserError(
            f"{where} has {array.ndim} axes, shape {array.shape}; drift compares columns",
            hint="give rows by features: flatten each row, or summarise it in a few numbers",
        )
    if array.shape[1] == 0:
        raise UserError(f"{where} has no columns, shape {array.shape}")
    columns = {f"{prefix}_{i}": array[:, i] for i in range(array.shape[1])}
    return Table(columns=columns, rows=len(array), named=False)


def _from_pairs(pairs: Sequence[tuple[str, Any]], where: str) -> Table:
    if not pairs:
        raise UserError(f"{where} has no columns", hint="give at least one column to compare")
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise UserError(f"{where} has more than one column named {_listed(repeated)}", hint="rename them")
    lengths = {name: len(column) for name, column in pairs}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {n}" for name, n in list(lengths.items())[:_SHOWN])
        raise UserError(
            f"{where} has columns of different lengths ({found})", hint="give the same rows of each"
        )
    return Table(columns=dict(pairs), rows=next(iter(lengths.values())), named=True)


def _one_axis(value: object, where: str) -> Any:
    pandas = loaded("pandas")
    if pandas is not None and isinstance(value, pandas.Series):
        return value
    array = _as_array(value, where)
    if array.ndim != 1:
        raise UserError(f"{where} has shape {array.shape}, not one value for each row")
    return array


def _as_array(value: object, where: str) -> Array:
    """Return an array of any dtype; tensors go through `to_array`, which knows their devices and gradients."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "numpy"):
        return to_array(value, where)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        raise UserError(
            f"{where} is a {type(value).__name__}, which holds no columns",
            hint="give a DataFrame, an array, a tensor, or a dict of columns",
        )
    try:
        array = np.asarray(value)
        # numpy would turn [1, None] and ["a", None] to objects, but ["a", nan] and ["a", 1] to text.
        return np.asarray(value, dtype=object) if array.dtype.kind in "SU" else array
    except (ValueError, TypeError) as exc:
        raise UserError(f"{where} is no table: {exc}", hint="all rows must have the same length") from exc


def pair_columns(reference: Table, current: Table, where: str) -> list[tuple[str, Any, Any]]:
    """Return (name, reference column, current column) for all columns, in the reference's order.

    Columns are matched by name where both sides have names, otherwise by position. Raises `UserError` naming what is missing
    and what is extra in the current side.
    """
    names, found = list(reference.columns), list(current.columns)
    if not (reference.named and current.named):
        if len(names) != len(found):
            raise UserError(
                f"{where} differ: {len(names)} columns in the reference, {len(found)} in the current data",
                hint="give the same columns on both sides",
            )
        shown = found if current.named else names
        return list(zip(shown, reference.columns.values(), current.columns.values(), strict=True))
    missing = [name for name in names if name not in current.columns]
    extra = [name for name in found if name not in reference.columns]
    if missing or extra:
        guesses = (f"{name!r}: {guess}" for name in missing if (guess := nearest(name, extra)))
        parts = [f"{what} {_listed(some)}" for what, some in (("missing", missing), ("extra", extra)) if some]
        raise UserError(
            f"{where} differ: the current data has {', '.join(parts)}",
            hint=next(guesses, "give the same columns on both sides"),
        )
    return [(name, reference.columns[name], current.columns[name]) for name in names]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def clean(raw: Any) -> Column:
    """Return a column sorted or counted, with its missing values taken out and counted."""
    if isinstance(raw, np.ndarray):
        return _clean_array(raw)
    return _clean_series(raw)


def _clean_series(raw: Any) -> Column:
    pandas = loaded("pandas")
    dtype, types = raw.dtype, pandas.api.types
    if isinstance(dtype, np.dtype):
        return _clean_array(raw.to_numpy())
    if isinstance(dtype, pandas.SparseDtype):
        return _clean_array(np.asarray(raw))
    rows, missing = len(raw), int(raw.isna().sum())
    if isinstance(dtype, pandas.CategoricalDtype):
        codes = raw.cat.codes.to_numpy()
        per_code = np.bincount(codes[codes >= 0], minlength=len(raw.cat.categories))
        named = zip(raw.cat.categories.tolist(), per_code.tolist(), strict=True)
        return Levels(counts={name: n for name, n in named if n}, rows=rows, missing=missing)
    if types.is_numeric_dtype(dtype) and not types.is_bool_dtype(dtype) and not types.is_complex_dtype(dtype):
        values = raw.to_numpy(dtype="float64", na_value=np.nan)
        return _numbers(values, whole=types.is_integer_dtype(dtype), narrow="float32" in str(dtype).lower())
    if types.is_bool_dtype(dtype) or types.is_string_dtype(dtype):
        return Levels(counts=_value_counts(raw), rows=rows, missing=missing)
    return Unsupported(reason=_why_not(str(dtype)), rows=rows, missing=missing)


def _value_counts(raw: Any) -> dict[Hashable, int]:
    arrow = loaded("pyarrow")
    if arrow is not None and hasattr(raw.array, "__arrow_array__"):  # pandas would sort the counts too
        counted = arrow.compute.value_counts(arrow.array(raw.array, from_pandas=True))
        levels, times = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
        return {level: n for level, n in zip(levels, times, strict=True) if level is not None}
    found = raw.value_counts(dropna=True)
    return dict(zip(found.index.tolist(), map(int, found.tolist()), strict=True))


def _clean_array(raw: Array) -> Column:
    match raw.dtype.kind:
        case "b":
            true = int(raw.sum())
            counts: dict[Hashable, int] = {False: len(raw) - true, True: true}
            return Levels(counts={level: n for level, n in counts.items() if n}, rows=len(raw), missing=0)
        case "i" | "u":
            return _numbers(raw.astype(np.float64), whole=True, narrow=False)
        case "f":
            return _numbers(raw, whole=False, narrow=raw.dtype.itemsize < 8)
        case "U" | "S" | "O":
            return _clean_objects(raw.astype(object, copy=False))
        case "m":
            seconds = np.where(np.isnat(raw), np.nan, raw / np.timedelta64(1, "s"))
            return _numbers(seconds, whole=False, narrow=False)
        case _:
            absent = np.isnat(raw) if raw.dtype.kind == "M" else np.zeros(len(raw), bool)
            return Unsupported(reason=_why_not(str(raw.dtype)), rows=len(raw), missing=int(absent.sum()))


def _numbers(raw: Array, *, whole: bool, narrow: bool) -> Numbers:
    with np.errstate(over="ignore"):  # what only a wider float can hold counts as infinite
        raw = np.ascontiguousarray(raw, dtype=np.float64)
    finite = np.isfinite(raw)
    values = raw if finite.all() else raw[finite]
    return Numbers(
        finite=values,
        rows=len(raw),
        missing=len(raw) - len(values),
        infinite=int(np.isinf(raw).sum()) if len(values) < len(raw) else 0,
        whole=whole,
        narrow=narrow,
    )


def _clean_objects(raw: Array) -> Column:
    """Return a column of Python objects by what they are; pandas' own missing values are known if it is loaded."""
    pandas = loaded("pandas")
    if pandas is not None:
        absent = np.asarray(pandas.isna(raw), dtype=bool)
    else:
        absent = np.array([v is None or (isinstance(v, float) and math.isnan(v)) for v in raw], dtype=bool)
    present, rows = raw[~absent], len(raw)
    missing = rows - len(present)
    types = set(map(type, present))
    if any(issubclass(t, _TIMES) for t in types):
        return Unsupported(reason=_why_not("datetime"), rows=rows, missing=missing)
    if types and all(issubclass(t, (bool, np.bool_, str, bytes)) for t in types):
        return Levels(counts=Counter(present.tolist()), rows=rows, missing=missing)
    if all(issubclass(t, (numbers.Real, decimal.Decimal)) for t in types):
        try:
            filled = np.full(rows, np.nan)
            filled[~absent] = [float(v) for v in present]
        except (OverflowError, TypeError, ValueError):
            return Unsupported(reason="numbers too large for float64", rows=rows, missing=missing)
        whole = all(issubclass(t, numbers.Integral) for t in types)
        return _numbers(filled, whole=whole, narrow=False)
    odd = sorted(t.__name__ for t in types if not issubclass(t, (str, bytes, numbers.Real)))
    if odd:
        reason = _why_not(f"values of type {', '.join(odd)}")
        return Unsupported(reason=reason, rows=rows, missing=missing)
    return Levels(counts=Counter(present.tolist()), rows=rows, missing=missing)


def _why_not(kind: str) -> str:
    timed = any(word in kind for word in ("date", "time", "period"))
    advice = "give an hour, a weekday or an age as a number" if timed else "give numbers, booleans or text"
    return f"{kind} is not compared; {advice}"
