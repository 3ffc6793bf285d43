"""The proof that an export answers as its original does. Compares two callables on named arrays; knows no framework.

An element may differ by ``tolerance * (|original| + rms) + 1e-8``, where `rms` is the root mean square of that
position of the output, over the rows of the case or of the example, whichever is larger: a value near zero is judged
by what its position usually holds, also where it is the only row, and a small output column is not excused by a large
one beside it. Whole numbers, booleans and text must be equal. NaN equals NaN.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.errors import ExportError, ParityError, telling_line
from mlopsnb.records import ParityCheck, ParityReport
from mlopsnb.tensors import STRING, dtype_name, rows_of, take_rows

if TYPE_CHECKING:
    from mlopsnb.protocols import Predict

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

TOLERANCE: Mapping[str, float] = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-6}
"""Default tolerance by the coarsest float type among inputs and output."""

_FLOOR = 1e-8
_LARGE_BATCH = 64
_LARGE_BATCH_BYTES = 64 << 20
_SINGLE_ROWS = 8
_VARIED_ROWS = 4
"""Rows on which other values and dtypes are tried; a large model would take minutes for all rows of each."""
_TIMED_ROWS = 8
_FLOATS = ("float16", "float32", "float64")
_INTEGERS = ("uint8", "int16", "int32", "int64")
_TIMED_SECONDS = 0.1
_TIMED_CALLS = 30
_REMEMBERED_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input that both models are given.

    `required` cases must work in the original; others are left out where the original refuses them.
    `optional` cases may be refused by the export, which is then noted.
    """

    name: str
    inputs: Arrays
    required: bool = False
    optional: bool = False


class Original:
    """A model, and what it answered to the `cases` of one example: an export is compared with it more than once."""

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._answers: dict[str, Arrays] = {}
        self._left = _REMEMBERED_BYTES

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run the model."""
        return self._predict(inputs)

    def answer(self, case: Case) -> Arrays:
        """Return what the model answers to *case*."""
        known = self._answers.get(case.name)
        if known is not None:
            return known
        found = self._predict(case.inputs)
        self._left -= sum(a.nbytes for a in found.values())
        if self._left >= 0:
            # Copies: a model may write each answer into the memory of the one before.
            self._answers[case.name] = {name: a.copy() for name, a in found.items()}
        return found


def batch_sizes(inputs: Arrays) -> tuple[int, ...]:
    """Return the batch sizes tried for an example: 1, 2, an odd one, its own, and a large one that fits in memory."""
    rows = rows_of(inputs)
    row_bytes = sum(a.nbytes for a in inputs.values()) // rows
    large = min(_LARGE_BATCH, max(8, _LARGE_BATCH_BYTES // max(1, row_bytes)))
    return tuple(sorted({1, 2, 7, rows, large}))


def cases(inputs: Arrays) -> Iterator[Case]:
    """Yield the inputs to compare on: batch sizes, single rows, other values, and the dtypes of the same kind."""
    rows = rows_of(inputs)
    yield Case(name=f"the example ({rows} rows)", inputs=inputs, required=True)
    for size in batch_sizes(inputs):
        if size != rows:
            yield Case(name=f"batch of {size}", inputs=take_rows(inputs, size), required=True)
    for row in range(1, min(rows, _SINGLE_ROWS)):
        single = {k: a[row : row + 1] if a.ndim else a for k, a in inputs.items()}
        yield Case(name=f"row {row} alone", inputs=single)
    few = take_rows(inputs, min(rows, _VARIED_ROWS))
    yield from _other_values(few)
    yield from _other_dtypes(few)


def _other_values(inputs: Arrays) -> Iterator[Case]:
    """Values that take the branches the example did not: a trace that baked one in differs on some of them."""
    rng = np.random.default_rng(0)
    reversed_rows = {k: a[::-1] if a.ndim else a for k, a in inputs.items()}
    yield Case(name="rows reversed", inputs=reversed_rows)
    for name in ("negated", "zeros", "x 100", "x 0.01", "random", "smallest", "largest"):
        changed = {k: _change(name, a, rng) for k, a in inputs.items()}
        if any(not np.array_equal(changed[k], a) for k, a in inputs.items()):
            yield Case(name=f"values {name}", inputs=changed)


def _change(how: str, array: Array, rng: np.random.Generator) -> Array:
    """Return *array* with other values of its own dtype; whole numbers stay within the range they have."""
    if not array.size or array.dtype.kind == "O":
        return array
    if how in ("smallest", "largest"):
        return np.full_like(array, array.min() if how == "smallest" else array.max())
    if array.dtype.kind == "b":
        return ~array if how == "negated" else array
    if array.dtype.kind in "iu":
        return rng.permuted(array) if how == "random" else array
    return _change_floats(how, array, rng)


def _change_floats(how: str, array: Array, rng: np.random.Generator) -> Array:
    factors = {"negated": -1.0, "zeros": 0.0, "x 100": 100.0, "x 0.01": 0.01}
    values = array.astype("float64")
    with np.errstate(over="ignore", invalid="ignore"):
        if how in factors:
            return (values * factors[how]).astype(array.dtype)
        center, spread = float(np.nanmean(values)), float(np.nanstd(values)) or 1.0
        return np.asarray(rng.normal(center, spread, size=array.shape)).astype(array.dtype)


def _other_dtypes(inputs: Arrays) -> Iterator[Case]:
    for family, kinds in ((_FLOATS, "f"), (_INTEGERS, "iu")):
        current = {a.dtype.name for a in inputs.values() if a.dtype.kind in kinds}
        for dtype in family if current else ():
            if current == {dtype}:
                continue
            with np.errstate(over="ignore"):
                cast = {k: a.astype(dtype) if a.dtype.kind in kinds else a for k, a in inputs.items()}
            if all(np.allclose(cast[k], a, rtol=1e-2) for k, a in inputs.items() if a.dtype.kind in kinds):
                yield Case(name=f"dtype {dtype}", inputs=cast, optional=True)


def check_original(original: Predict, inputs: Arrays) -> frozenset[str]:
    """Return the outputs whose first axis follows the rows; the others keep one shape.

    Raises `ParityError` if the original is random, or takes only the batch size of the example: it can neither be
    compared nor served, since its answer depends on chance or on its neighbours. Raises `ExportError` if it fails
    on the example itself.
    """
    try:
        first, second = original(inputs), original(inputs)
    except ExportError:
        raise
    except Exception as exc:
        shapes = ", ".join(f"{k} {a.dtype}{list(a.shape)}" for k, a in inputs.items())
        raise ExportError(
            f"the model fails on the example ({shapes}): {telling_line(exc)}",
            hint="give rows as the model takes them, the first axis counting rows",
        ) from exc
    for check in _compare("the example", first, second, _coarsest(inputs), None):
        if not check.equal:
            raise ParityError(
                f"the original model is not deterministic: two runs on the same example differ in output "
                f"{check.output!r} by up to {check.max_abs_error:.3g}",
                hint="is dropout left on in forward (F.dropout needs training=self.training)? Seed or remove the noise",
            )
    return _following(original, inputs, first)


def _following(original: Predict, inputs: Arrays, first: Arrays) -> frozenset[str]:
    rows = rows_of(inputs)
    shapes = {name: {rows: a.shape} for name, a in first.items()}
    for size in (1, 2, 7):
        try:
            outputs = original(take_rows(inputs, size))
        except Exception as exc:
            raise ParityError(
                f"the original model bakes in the batch size: it takes {rows} rows but fails on {size}: {telling_line(exc)}",
                hint="let forward read the number of rows from its input (x.shape[0], or -1 in a reshape); an example of "
                "a single row needs its first axis too: example[None]",
            ) from exc
        for name, a in outputs.items():
            shapes.setdefault(name, {})[size] = a.shape
    follow = {name for name, seen in shapes.items() if all(shape[:1] == (n,) for n, shape in seen.items())}
    for name, seen in shapes.items():
        constant = len(set(seen.values())) == 1 and (rows == 1 or seen[rows][:1] != (rows,))
        if name not in follow and not constant:
            size = next(n for n, shape in seen.items() if shape[:1] != (n,))
            raise ParityError(
                f"the original model bakes in the batch size, or puts the rows elsewhere: {size} rows in, but output "
                f"{name!r} has shape {list(seen[size])}",
                hint="the first axis of every output must follow the rows of the input",
            )
    return frozenset(follow)


def prove(
    original: Predict,
    exported: Predict,
    inputs: Arrays,
    *,
    tolerance: float | None = None,
    notes: tuple[str, ...] = (),
) -> ParityReport:
    """Compare *exported* with *original* on all `cases` of *inputs* and time both on up to 8 rows of the example.

    Returns the report whether or not they agree; `require` raises for one that does not.
    *tolerance* replaces the default of the dtype.
    """
    checks, refused = _checked(original, exported, inputs, tolerance)
    if refused:
        notes = (*notes, f"the original takes {', '.join(refused)} too, the export does not")
    timed = take_rows(inputs, min(rows_of(inputs), _TIMED_ROWS))
    return ParityReport(
        checks=tuple(checks),
        tolerance=tolerance if tolerance is not None else TOLERANCE[_coarsest(inputs)],
        original_ms=_milliseconds(original, timed),
        exported_ms=_milliseconds(exported, timed),
        rows=rows_of(timed),
        notes=notes,
    )


def difference(original: Predict, exported: Predict, inputs: Arrays) -> ParityError | None:
    """Return the error that tells where *exported* differs, as in `prove`'s report; times nothing."""
    checks, _ = _checked(original, exported, inputs, None)
    return _failure(checks, TOLERANCE[_coarsest(inputs)])


def _checked(
    original: Predict, exported: Predict, inputs: Arrays, tolerance: float | None
) -> tuple[list[ParityCheck], list[str]]:
    """Return the checks of all `cases`, and the dtypes that the export alone refuses."""
    checks: list[ParityCheck] = []
    refused: list[str] = []
    usual: Arrays = {}
    answer = original.answer if isinstance(original, Original) else lambda case: original(case.inputs)
    for case in cases(inputs):
        try:
            wanted = answer(case)
        except Exception as exc:
            if case.required:
                raise ParityError(f"the original model fails on {case.name}: {telling_line(exc)}") from exc
            continue
        try:
            found = exported(case.inputs)
        except Exception as exc:  # noqa: BLE001  a model may raise anything, and a refusal is a finding here
            if case.optional:
                refused.append(case.name.removeprefix("dtype "))
            else:
                checks.append(_refused(case, exc))
            continue
        usual = usual or {
            name: _rms(a) for name, a in wanted.items() if a.dtype.kind == "f"
        }  # of the example
        checks += _compare(case.name, wanted, found, _coarsest(case.inputs), tolerance, usual)
    return checks, refused


def compare(wanted: Arrays, found: Arrays, *, tolerance: float | None = None) -> ParityReport:
    """Compare two answers to the golden example, the original's and a server's; nothing is run."""
    coarsest = _coarsest(wanted)
    return ParityReport(
        checks=tuple(_compare("the golden example", wanted, found, coarsest, tolerance)),
        tolerance=tolerance if tolerance is not None else TOLERANCE[coarsest],
        original_ms=float("nan"),
        exported_ms=float("nan"),
        rows=0,
    )


def failure(report: ParityReport) -> ParityError | None:
    """Return the error that says where *report* is worst, or None if the export equals the original."""
    return _failure(report.checks, report.tolerance)


def _failure(checks: Sequence[ParityCheck], tolerance: float) -> ParityError | None:
    bad = [c for c in checks if not c.equal]
    if not bad:
        return None
    worst = max(bad, key=lambda c: c.max_abs_error)
    if not worst.output:
        return ParityError(
            f"the export fails where the original works, on {worst.case}",
            hint="does forward bake in sizes or branch on data? Try another format",
        )
    where = f"worst on {worst.case}"
    if worst.original is not None and worst.exported is not None:
        where += (
            f" at [{', '.join(map(str, worst.worst))}]: original {worst.original:.6g}, export {worst.exported:.6g} "
            f"(max absolute error {worst.max_abs_error:.3g}, max relative error {worst.max_rel_error:.3g}, "
            f"tolerance {tolerance:g})"
        )
    return ParityError(
        f"the export does not equal the original: output {worst.output!r} differs in {len(bad)} of "
        f"{len(checks)} checks; {where}",
        hint="does forward branch on data or bake in sizes? Try another format, or give tolerance= if this is "
        "rounding",
    )


def require(report: ParityReport) -> None:
    """Raise the `ParityError` of *report*, if there is one."""
    if error := failure(report):
        raise error


def _refused(case: Case, exc: Exception) -> ParityCheck:
    return ParityCheck(
        case=f"{case.name}: {telling_line(exc)}",
        output="",
        equal=False,
        max_abs_error=float("inf"),
        max_rel_error=float("inf"),
    )


def _coarsest(arrays: Arrays) -> str:
    """Return the float type with the fewest digits among *arrays*, or float32 if there is none."""
    found = [name for name in _FLOATS if any(a.dtype.name == name for a in arrays.values())]
    return found[0] if found else "float32"


def _compare(
    case: str,
    wanted: Arrays,
    found: Arrays,
    coarsest: str,
    tolerance: float | None,
    usual: Arrays | None = None,
) -> list[ParityCheck]:
    missing = [name for name in wanted if name not in found] + [name for name in found if name not in wanted]
    if missing:
        return [_unequal(f"{case}, which only one of the two returns", name) for name in missing]
    return [
        _compare_output(
            case,
            name,
            (a, found[name]),
            coarsest=coarsest,
            tolerance=tolerance,
            usual=(usual or {}).get(name),
        )
        for name, a in wanted.items()
    ]


def _unequal(case: str, name: str) -> ParityCheck:
    inf = float("inf")
    return ParityCheck(case=case, output=name, equal=False, max_abs_error=inf, max_rel_error=inf)


def _compare_output(
    case: str,
    name: str,
    pair: tuple[Array, Array],
    *,
    coarsest: str,
    tolerance: float | None,
    usual: Array | None,
) -> ParityCheck:
    wanted, found = pair
    if wanted.shape != found.shape or dtype_name(wanted) != dtype_name(found):
        kinds = [f"{dtype_name(x)}{list(x.shape)}" for x in pair]
        return _unequal(f"{case}: original {kinds[0]}, export {kinds[1]}", name)
    if dtype_name(wanted) == STRING:
        equal = bool(np.array_equal(wanted, found))
        return ParityCheck(
            case=case,
            output=name,
            equal=equal,
            max_abs_error=0.0 if equal else 1.0,
            max_rel_error=0.0 if equal else 1.0,
        )
    if not wanted.size:
        return ParityCheck(case=case, output=name, equal=True, max_abs_error=0.0, max_rel_error=0.0)
    a, b = wanted.astype("float64"), found.astype("float64")
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        error = np.where(same, 0.0, np.abs(a - b))
        error = np.where(np.isnan(error), np.inf, error)
        relative = np.where(error > 0, error / np.abs(a), 0.0)
        allowed = _allowed(a, wanted.dtype.name, coarsest, tolerance, usual)
        excess = np.where(error > 0, error / allowed, 0.0)
    excess = np.where(np.isnan(excess), np.inf, excess)
    at = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
    return ParityCheck(
        case=case,
        output=name,
        equal=bool(excess[at] <= 1.0),
        max_abs_error=float(error.max()),
        max_rel_error=float(np.where(np.isnan(relative), np.inf, relative).max()),
        worst=at,
        original=float(a[at]),
        exported=float(b[at]),
    )


def _allowed(
    a: Array, dtype: str, coarsest: str, tolerance: float | None, usual: Array | None = None
) -> Array:
    """Return how much each element of the original output *a* may differ by; *usual* is the `_rms` of the example's."""
    if dtype not in TOLERANCE:
        return np.zeros_like(a)  # whole numbers and booleans are equal or wrong
    size = np.where(np.isfinite(a), np.abs(a), 0.0)
    rms = _rms(a)
    if usual is not None and usual.shape == rms.shape:
        rms = np.maximum(rms, usual)
    rtol = tolerance if tolerance is not None else max(TOLERANCE[dtype], TOLERANCE[coarsest])
    return np.asarray(rtol * (size + rms) + _FLOOR)


def _rms(array: Array) -> Array:
    """Return the root mean square over the rows of each position, what is not finite left out as 0."""
    a = array.astype("float64")
    size = np.where(np.isfinite(a), np.abs(a), 0.0)
    return np.asarray(np.sqrt(np.mean(np.square(size), axis=0, keepdims=True)) if a.ndim else size)


def _milliseconds(predict: Predict, inputs: Arrays) -> float:
    """Return the median time of a call, over at most 30 calls and a tenth of a second, but three calls at least."""
    taken: list[float] = []
    end = time.perf_counter() + _TIMED_SECONDS
    while len(taken) < 3 or (len(taken) < _TIMED_CALLS and time.perf_counter() < end):
        start = time.perf_counter()
        predict(inputs)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)
