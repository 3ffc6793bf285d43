"""How well a deployment does: the rows that its server captured, joined by request id with labels that came later.

Reads the files of one revision on this machine; what they hold is the server's to say (`serving.capture`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.errors import UserError
from mlopsnb.extras import need
from mlopsnb.monitoring.performance import watch_performance
from mlopsnb.monitoring.shapes import listed

if TYPE_CHECKING:
    from mlopsnb.monitoring.performance import PerformanceReport
    from mlopsnb.records import Revision

Array = np.ndarray[Any, Any]

KEY = ["request_id", "row"]
_OUTPUT = "output."


def live_performance(
    name: str,
    revision: Revision,
    *,
    labels: object,
    reference: Mapping[str, object],
    outputs: Mapping[str, str] | None,
    rows: int,
    seconds: float | None,
) -> PerformanceReport:
    """Return how well one *revision* does on the rows that it captured in the last *seconds*, or on all that are kept.

    The other arguments are those of `Deployment.performance`. Raises `UserError` if it captures nothing, if nothing of it
    is here yet, or if labels or outputs do not fit.
    """
    table = _captured(name, revision, seconds)
    current = {
        side: _values(table.column(_OUTPUT + output))
        for side, output in _chosen(table.schema, reference, outputs or {}).items()
    }
    if labels is not None:
        current["labels"] = _joined(table.select(KEY), labels)
    return watch_performance(reference, current, rows=rows)


def read_reference(path: str | Path) -> dict[str, object]:
    """Return what `watch_performance` takes as its reference from a Parquet or CSV file.

    Its columns are `labels`, and `scores`, `predictions`, or both; scores of several classes are `scores.CLASS`.
    Raises `UserError` if it cannot be read.
    """
    table = _table(path)
    found: dict[str, object] = {
        k: table[k] for k in ("labels", "scores", "predictions") if k in table.columns
    }
    several = {name: name.removeprefix("scores.") for name in table.columns if name.startswith("scores.")}
    return found | ({"scores": table[list(several)].rename(columns=several)} if several else {})


def _table(path: str | Path) -> Any:
    """Return a Parquet or CSV file as a frame; `UserError` if it cannot be read."""
    pandas = need("pandas", extra="monitoring")
    read = pandas.read_csv if str(path).endswith((".csv", ".csv.gz")) else pandas.read_parquet
    try:
        return read(path)
    except (OSError, ValueError) as exc:
        raise UserError(f"{path} cannot be read: {exc}", hint="give a Parquet or CSV file") from exc


def _captured(name: str, revision: Revision, seconds: float | None) -> Any:
    """Return all rows that were captured, the oldest first, as an Arrow table without the inputs."""
    if revision.captured is None:
        raise UserError(
            f"{name!r}, revision {revision.id}, captures no rows, so that no labels can be joined",
            hint="deploy it with capture=0.1, to target='process'",
        )
    if not revision.captured.parent.is_dir():
        raise UserError(
            f"the rows of {name!r}, revision {revision.id}, are in {revision.captured}, which is not on this machine",
            hint="ask where it runs",
        )
    tables = [t for t in map(_read, sorted(revision.captured.glob("*.parquet"))) if t is not None]
    if not tables:
        raise UserError(
            f"{name!r}, revision {revision.id}, has captured no rows yet",
            hint="rows are written a minute after they came at the latest",
        )
    pa, compute = need("pyarrow", extra="monitoring"), need("pyarrow.compute", extra="monitoring")
    table = pa.concat_tables(tables).sort_by("time")
    if seconds is not None:
        first = pa.scalar(int((time.time() - seconds) * 1e6), pa.int64()).cast(
            table.schema.field("time").type
        )
        table = table.filter(compute.greater_equal(table["time"], first))
    if not table.num_rows:
        raise UserError(f"{name!r}, revision {revision.id}, has captured no rows in the last {seconds:g} s")
    return table


def _read(path: Path) -> Any:
    """Return one file; None if it has made room for newer ones meanwhile."""
    parquet = need("pyarrow.parquet", extra="monitoring")
    try:
        names = [n for n in parquet.read_schema(path).names if n in (*KEY, "time") or n.startswith(_OUTPUT)]
        return parquet.read_table(path, columns=names).replace_schema_metadata(None)
    except FileNotFoundError:
        return None


def _chosen(schema: Any, reference: Mapping[str, object], outputs: Mapping[str, str]) -> dict[str, str]:
    """Return which output holds the scores and which the predictions; by default by their types.

    Floats are scores if the reference has scores, and predictions otherwise; whole numbers and text are predictions.
    """
    types = need("pyarrow.types", extra="monitoring")

    def is_float(field: Any) -> bool:
        kind = field.type.value_type if types.is_fixed_size_list(field.type) else field.type
        return bool(types.is_floating(kind))

    fields = {f.name.removeprefix(_OUTPUT): f for f in schema if f.name.startswith(_OUTPUT)}
    if unknown := [output for output in outputs.values() if output not in fields]:
        raise UserError(f"no output {unknown[0]!r} is captured; there are {listed(list(fields))}")
    floats = [name for name, field in fields.items() if is_float(field)]
    others = [name for name in fields if name not in floats]
    scored = reference.get("scores") is not None
    sides = {"scores": floats if scored else [], "predictions": others if scored or others else floats}
    found = {side: _only(side, names) for side, names in sides.items() if names and side not in outputs}
    return {**found, **outputs}


def _only(side: str, names: Sequence[str]) -> str:
    if len(names) > 1:
        raise UserError(
            f"{listed(names)} may all be the {side}", hint=f"say which: outputs={{{side!r}: {names[0]!r}}}"
        )
    return names[0]


def _values(column: Any) -> Array:
    """Return a column as an array of shape (rows,), or (rows, width) of an output that has several values a row."""
    types = need("pyarrow.types", extra="monitoring")
    whole = column.combine_chunks()
    if types.is_fixed_size_list(whole.type):
        return np.asarray(whole.flatten().to_numpy(zero_copy_only=False)).reshape(-1, whole.type.list_size)
    return np.asarray(whole.to_numpy(zero_copy_only=False))


def _joined(asked: Any, labels: object) -> Array:
    """Return the label of each row that was *asked*, by request id and row; None where there is none yet."""
    table = _label_table(labels)
    rows = asked.to_pandas().merge(table.drop_duplicates(KEY, keep="last"), on=KEY, how="left")
    if rows["label"].isna().all():
        raise UserError(
            f"none of {len(table)} labels is of a request among the {len(rows)} rows that were captured",
            hint="request_id is what the client sent as x-request-id, or was told there",
        )
    return np.asarray(rows["label"].astype(object).where(rows["label"].notna(), None), dtype=object)


def _label_table(labels: object) -> Any:
    """Return *labels* as a frame with `request_id`, `row` and `label`; a label of a request is that of its row 0."""
    pandas = need("pandas", extra="monitoring")
    table = _table(labels) if isinstance(labels, (str, Path)) else pandas.DataFrame(labels)
    if missing := {"request_id", "label"} - set(table.columns):
        raise UserError(
            f"the labels have no column {listed(sorted(missing))}; there are {listed(list(map(str, table.columns)))}",
            hint="give request_id, label, and row where a request has several",
        )
    table = table.assign(request_id=table["request_id"].astype(str))
    row = table["row"].astype("int32") if "row" in table.columns else np.int32(0)
    return table.assign(row=row)[[*KEY, "label"]]
