"""One row of the golden example, as each protocol sends it. Pure; what is made here is answered when it is sent.

Values are plain JSON values: NaN is null, and floats have the fewest digits that read back as the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mlopsnb.serving import v2
from mlopsnb.serving.openapi import schemas
from mlopsnb.serving.protocols import columns
from mlopsnb.tensors import dtype_name, take_rows

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec
    from mlopsnb.serving.model import Package
    from mlopsnb.serving.routes import ServedModel
    from mlopsnb.tensors import Array

LARGEST_BYTES = 1 << 16
"""A longer example is of no use to people, and slows down what shows it."""

Arrays = Mapping[str, "Array"]


class Examples:
    """The example of one model. `fits` is false if it is too long to be shown; then there are no messages.

    `infer` is the message of the Open Inference Protocol and `answer` what the original model says to it, None if
    that is not known of the row alone.
    """

    def __init__(self, package: Package, model: ServedModel) -> None:
        self.signature = signature = model.signature
        self.inputs = _one_row(package.golden, signature)
        body = v2.encode_request(self.inputs)
        self.fits = len(body) <= LARGEST_BYTES
        self.infer: dict[str, Any] = orjson.loads(body) if self.fits else {}
        self.answer = _answer(package, model) if self.fits else None
        self._values = {name: plain(array) for name, array in self.inputs.items()} if self.fits else {}

    def predict(self) -> dict[str, dict[str, Any]]:
        """Return the messages of TensorFlow Serving's protocol, each with a name."""
        if not self.fits:
            return {}
        rows = self._rows() if self._is_answered_by_row() else None
        by_row = {"by_row": {"instances": rows}} if rows is not None else {}
        return {**by_row, "by_column": {"inputs": self._columns()}}

    def _is_answered_by_row(self) -> bool:
        rows = v2.rows_of(self.inputs, self.signature)
        return all(s.shape and s.shape[0] in (None, rows) for s in self.signature.outputs)

    def invocations(self) -> dict[str, dict[str, Any]]:
        """Return the JSON messages of MLflow's protocol, each with a name."""
        if not self.fits:
            return {}
        table = self._table()
        found: dict[str, dict[str, Any]] = {}
        if table:
            names, *rows = table
            found["dataframe_split"] = {"dataframe_split": {"columns": names, "data": rows}}
            records = [dict(zip(names, row, strict=True)) for row in rows]
            found["dataframe_records"] = {"dataframe_records": records}
        if (instances := self._rows()) is not None:
            found["instances"] = {"instances": instances}
        return {**found, "inputs": {"inputs": self._columns()}}

    def invocations_csv(self) -> str | None:
        """Return the example as CSV with a header line; None if it is no table of scalars."""
        table = self._table() if self.fits else None
        if table is None:
            return None
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in table)
        return text.getvalue()

    def _rows(self) -> list[Any] | None:
        """Return the rows, as values if there is one input, else as objects; None if rows cannot be told apart."""
        sizes = {array.shape[:1] for array in self.inputs.values()}
        if () in sizes or len(sizes) > 1:
            return None
        if len(self._values) == 1:
            found: list[Any] = next(iter(self._values.values()))
            return found
        return [dict(zip(self._values, row, strict=True)) for row in zip(*self._values.values(), strict=True)]

    def _columns(self) -> Any:
        return next(iter(self._values.values())) if len(self._values) == 1 else self._values

    def _table(self) -> list[list[Any]] | None:
        """Return the column names and then the rows; None if the inputs are not columns of scalars of equal length."""
        names = schemas.columns_of(self.signature)
        if names is None or self._rows() is None:
            return None
        cells: dict[str, list[Any]] = {}
        for spec in self.signature.inputs:
            cells |= _cells(spec, self._values[spec.name])
        parts = cells.values()
        return [list(names), *map(list, zip(*parts, strict=True))]


def _one_row(golden: Arrays, signature: Signature) -> dict[str, Array]:
    """Return the first row, or all where not every input has rows, as at load. The largest number is infinity's."""
    first = golden if _has_no_rows(signature) else take_rows(golden, 1)
    return {
        name: np.nan_to_num(array, nan=np.nan) if array.dtype.kind == "f" else array
        for name, array in first.items()
    }


def _has_no_rows(signature: Signature) -> bool:
    return not all(s.shape and s.shape[0] is None for s in signature.inputs)


def _answer(package: Package, model: ServedModel) -> dict[str, Any] | None:
    specs, found = model.signature.outputs, package.answers
    rows = {len(array) if array.ndim else None for array in (*package.golden.values(), *found.values())}
    by_row = (
        not _has_no_rows(model.signature) and len(rows) == 1 and all(s.shape[:1] == (None,) for s in specs)
    )
    if not by_row or {s.name: s.dtype for s in specs} != {k: dtype_name(a) for k, a in found.items()}:
        return None
    first = {spec.name: found[spec.name][:1] for spec in specs}
    body = v2.encode_response(first, model_name=model.name, model_version=model.version)
    answer: dict[str, Any] = orjson.loads(body)
    return answer if len(body) <= LARGEST_BYTES else None


def _cells(spec: TensorSpec, values: list[Any]) -> dict[str, list[Any]]:
    if len(spec.shape) == 1:
        return {spec.name: values}
    names = schemas.features_of(spec) or tuple(map(str, range(len(values[0]))))
    return dict(zip(names, map(list, zip(*values, strict=True)), strict=True))


def plain(array: Array) -> Any:
    """Return *array* in nested lists of JSON values."""
    return orjson.loads(orjson.dumps(columns.nested(array), option=orjson.OPT_SERIALIZE_NUMPY))


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value
