"""Hand out data in parts that fit in memory: a frame or an array in slices, Parquet files in batches, an iterator as it is.

Reports how far it has come; looks at no values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlopsnb.errors import UserError
from mlopsnb.events import report_progress
from mlopsnb.extras import loaded, need

PARTS = 10
"""Parts that data in memory is cut into, if it has enough rows."""

PART_ROWS = 2000
"""Rows of such a part at least; with fewer, chance alone makes parts look different."""

_BATCH_ROWS = 1 << 17
_LOOK_ROWS = 50_000


def is_streamed(data: object) -> bool:
    """Say whether *data* is read in parts from elsewhere: a path, paths, an Arrow data set, or an iterator."""
    return _is_path(data) or _is_dataset(data) or hasattr(data, "__next__")


def look(data: Any) -> Any:
    """Return rows from all over *data* if it is in memory, 50,000 at most; None if it is streamed."""
    if is_streamed(data):
        return None
    return _sliced(data, 0, None, max(1, rows_in(data) // _LOOK_ROWS))


def parts(data: object) -> Iterator[Any]:
    """Yield *data* part by part, and report the progress of the step `profile`.

    In memory: a DataFrame, Series, array, tensor, list, or a dict or tuple of these, in slices. Streamed: Parquet
    (a path, a directory of files, a list of paths, or a `pyarrow.dataset.Dataset`) as DataFrames, or an iterator of
    any of the former. Raises `UserError` if there are no rows, or no such file.
    """
    seen = 0
    for part, total in _parts(data):
        yield part
        seen += rows_in(part)
        of = f" of {total:,}" if total else ""
        report_progress("profile", f"{seen:,}{of} rows", seen / total if total else None)
    if not seen:
        raise UserError("the reference has no rows", hint="give the data that the model was trained on")


def _parts(data: object) -> Iterator[tuple[Any, int | None]]:
    if hasattr(data, "__next__"):
        yield from ((part, None) for part in data)  # type: ignore[attr-defined]
    elif _is_path(data) or _is_dataset(data):
        dataset = _dataset(data)
        total = dataset.count_rows()
        for batch in dataset.to_batches(batch_size=_BATCH_ROWS):
            if batch.num_rows:
                yield batch.to_pandas(), total
    else:
        total = rows_in(data)
        size = max(PART_ROWS, -(-total // PARTS))
        for start in range(0, total, size):
            yield _sliced(data, start, start + size), total


def _is_path(data: object) -> bool:
    if isinstance(data, (list, tuple)):
        return bool(data) and all(isinstance(v, Path) or _names_parquet(v) for v in data)
    return isinstance(data, (str, Path))


def _names_parquet(value: object) -> bool:
    return isinstance(value, str) and value.endswith((".parquet", ".pq"))


def _is_dataset(data: object) -> bool:
    arrow = loaded("pyarrow.dataset")
    return arrow is not None and isinstance(data, arrow.Dataset)


def _dataset(data: Any) -> Any:
    if _is_dataset(data):
        return data
    arrow = need("pyarrow.dataset", extra="monitoring")
    need("pandas", extra="monitoring")
    named = [str(path) for path in data] if isinstance(data, (list, tuple)) else str(data)
    try:
        return arrow.dataset(named, format="parquet", partitioning="hive")
    except (OSError, ValueError) as exc:
        raise UserError(
            f"{data} cannot be read as Parquet: {exc}", hint="give a path of Parquet files"
        ) from exc


def rows_in(data: Any) -> int:
    """Return how many rows a part has."""
    if isinstance(data, Mapping):
        return min((len(v) for v in data.values()), default=0)
    if isinstance(data, tuple):
        return min(map(len, data), default=0)
    try:
        return len(data)
    except TypeError as exc:
        raise UserError(
            f"the reference is a {type(data).__name__}, which has no rows",
            hint="give a DataFrame, an array, a dict of arrays, a path of Parquet files, or an iterator of frames",
        ) from exc


def _sliced(data: Any, start: int, stop: int | None, step: int = 1) -> Any:
    if isinstance(data, Mapping):
        return {name: _sliced(v, start, stop, step) for name, v in data.items()}
    if isinstance(data, tuple):
        return tuple(_sliced(v, start, stop, step) for v in data)
    return data.iloc[start:stop:step] if hasattr(data, "iloc") else data[start:stop:step]
