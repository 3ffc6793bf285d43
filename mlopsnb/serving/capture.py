"""Capture: the rows of a share of the requests and their answers in Parquet files, to be joined with labels later.

Each row has the id of its request, which the client chose or was told, and its place in it. What is masked is not
written. Files are written by a thread, whole, from a bounded buffer: where the disk is too slow, rows are left out and
counted. All files of the directory together are bounded; the oldest go first. Nothing of it fails a request.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.extras import need
from mlopsnb.serving.errors import BadOption, stack
from mlopsnb.serving.payloads import chosen, share

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from mlopsnb.records import Signature, TensorSpec
    from mlopsnb.serving.calls import Call
    from mlopsnb.tensors import Array

FILE_BYTES = 16 << 20
"""What is gathered for one file at most, before it is compressed."""

FILE_SECONDS = 60.0
"""How long rows wait for their file at most; a process that is killed loses no more."""

ALL_BYTES = 1 << 30
_SUFFIX, _DRAFT = ".parquet", ".new"
_DRAFT_SECONDS = 600
_OVERHEAD = 200
_log = logging.getLogger("mlopsnb.serving")


@dataclass(frozen=True, slots=True)
class _Request:
    """What is kept of one request until it is written."""

    request_id: str
    when: float
    rows: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class Capture:
    """Writes the rows of a share *rate* of the requests into files in *directory*, of *max_bytes* together.

    Which requests those are follows from their ids, as in the payload log. *mask* names inputs, outputs and features
    that are left out. Raises `MissingExtra` without pyarrow, `BadOption` if there can be no files there.
    """

    def __init__(
        self,
        directory: Path,
        signature: Signature,
        *,
        rate: float,
        mask: Sequence[str] = (),
        max_bytes: int = ALL_BYTES,
        about: Mapping[str, str] | None = None,
    ) -> None:
        need("pyarrow", extra="capture")
        need("pyarrow.parquet", extra="capture")
        self._directory = directory
        self._share = share(rate)
        self._max_bytes = max_bytes
        self._about = dict(about or {})
        self._columns = [
            *_columns(signature.inputs, "input", frozenset(mask)),
            *_columns(signature.outputs, "output", frozenset(mask)),
        ]
        self._outputs = tuple({column.tensor for column in self._columns if column.side == "output"})
        self._waiting: list[_Request] = []
        self._bytes = self._rows = 0
        self._since = 0.0
        self._number = 0
        self._counted = {"written": 0, "dropped": 0}
        self._writes: Future[int] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="capture")
        self._stopped = False
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in directory.glob(f".*{_DRAFT}"):  # by a process that was killed
                if time.time() - left.stat().st_mtime > _DRAFT_SECONDS:
                    left.unlink(missing_ok=True)
            draft = directory / f".{os.getpid()}{_DRAFT}"
            draft.touch(mode=0o600)
            draft.unlink()
        except OSError as exc:
            raise BadOption(f"nothing can be captured in {directory}: {exc.strerror or exc}") from exc

    def note(self, call: Call, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Take in a request that was answered. Never raises."""
        if self._stopped or not call.rows or not chosen(call.request_id, self._share):
            return
        try:
            kept = _Request(call.request_id, time.time(), call.rows, inputs, outputs)
            size = _size(inputs) + _size(outputs) + _OVERHEAD * call.rows
            if self._bytes + size > FILE_BYTES:
                self.flush()
            unlike = any(len(outputs[name]) != call.rows for name in self._outputs)
            # Too large, or the file before is still being written; or the answer cannot be told by rows.
            if self._bytes + size > FILE_BYTES or unlike:
                self._counted["dropped"] += call.rows
                return
            self._since = self._since or time.monotonic()
            self._waiting.append(kept)
            self._bytes += size
        except Exception as exc:  # noqa: BLE001  an answer must not fail for what is kept of it
            self._stop(exc)

    def tick(self) -> None:
        """Begin to write what waits long enough; called about once a second."""
        if self._since and time.monotonic() - self._since >= FILE_SECONDS:
            self.flush()
        self._settle(wait=False)

    def flush(self) -> None:
        """Begin to write what waits, unless a file is being written."""
        self._settle(wait=False)
        if not self._waiting or self._writes is not None or self._stopped:
            return
        waiting, self._waiting = self._waiting, []
        self._bytes, self._since = 0, 0.0
        self._number += 1
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        path = self._directory / f"{stamp}-{os.getpid()}-{self._number:06d}{_SUFFIX}"
        self._writes = self._pool.submit(self._write, path, waiting)

    def close(self) -> None:
        """Write all that waits, and wait for it."""
        self._settle(wait=True)
        self.flush()
        self._settle(wait=True)
        self._pool.shutdown()

    def _settle(self, *, wait: bool) -> None:
        """Note what came of the write that is under way, if it has ended."""
        write = self._writes
        if write is None or not (wait or write.done()):
            return
        self._writes = None
        try:
            self._counted["written"] += write.result()
        except Exception as exc:  # noqa: BLE001  no space, or what no schema could hold
            self._stop(exc)

    def _stop(self, exc: Exception) -> None:
        self._stopped = True
        self._waiting.clear()
        told = exc.strerror if isinstance(exc, OSError) else stack(exc)
        _log.error("nothing is captured any more: %s", told)

    def _write(self, path: Path, waiting: Sequence[_Request]) -> int:
        """Write one file and make room for it; return its rows. In the thread."""
        import pyarrow as pa
        from pyarrow import parquet

        rows = np.array([one.rows for one in waiting])
        columns: dict[str, Any] = {
            "request_id": pa.array([one.request_id for one in waiting]).take(
                pa.array(np.repeat(np.arange(len(rows)), rows))
            ),
            "row": np.concatenate([np.arange(count, dtype=np.int32) for count in rows]),
            "time": pa.array(
                np.repeat([int(one.when * 1e6) for one in waiting], rows), pa.timestamp("us", tz="UTC")
            ),
        }
        for column in self._columns:
            columns[column.name] = column.values(waiting)
        table = pa.table(columns).replace_schema_metadata(self._about)
        draft = path.with_name(f".{path.name}{_DRAFT}")
        try:
            parquet.write_table(table, draft, compression="zstd")
            draft.chmod(0o600)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        self._make_room()
        return int(rows.sum())

    def _make_room(self) -> None:
        """Remove the oldest files, other processes' too, until all together are within the limit."""
        files = sorted(self._directory.glob(f"*{_SUFFIX}"))
        sizes = [_file_size(path) for path in files]
        over = sum(sizes) - self._max_bytes
        for path, size in zip(files, sizes, strict=True):
            if over <= 0:
                return
            path.unlink(missing_ok=True)
            over -= size

    def families(self, labels: Mapping[str, str]) -> Iterable[Metric]:
        """Return how many rows were written and how many left out."""
        from prometheus_client.metrics_core import CounterMetricFamily

        self._settle(wait=False)
        family = CounterMetricFamily(
            "mlopsnb_capture_rows", "Rows that were captured, or left out.", labels=[*labels, "result"]
        )
        for result, count in self._counted.items():
            family.add_metric([*labels.values(), result], count)
        return (family,)


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the files: tensor *tensor* of *side*, or its column *at*; `width` values a row, None for one."""

    name: str
    side: str
    tensor: str
    at: int | None = None
    width: int | None = None

    def values(self, waiting: Sequence[_Request]) -> Any:
        """Return the column of all rows, as Arrow takes it."""
        import pyarrow as pa

        parts = []
        for one in waiting:
            tensors = one.inputs if self.side == "input" else one.outputs
            array = tensors[self.tensor]
            parts.append(array.reshape(one.rows, -1) if array.ndim > 1 else array)
        joined = np.concatenate(parts)
        if self.at is not None:
            joined = joined[:, self.at]
        if self.width is None:
            return pa.array(
                joined.ravel().tolist() if joined.dtype == object else np.ascontiguousarray(joined.ravel())
            )
        flat = joined.ravel()
        return pa.FixedSizeListArray.from_arrays(
            pa.array(flat.tolist() if flat.dtype == object else flat), self.width
        )


def _columns(specs: Iterable[TensorSpec], side: str, mask: frozenset[str]) -> Iterator[_Column]:
    """Yield a column for each feature that has a name, and for each other tensor; for those with rows of one size."""
    for spec in specs:
        sized = spec.shape[:1] == (None,) and None not in spec.shape[1:]
        if spec.name in mask or not sized:
            continue
        width = int(np.prod([int(n or 0) for n in spec.shape[1:]], dtype=int)) if len(spec.shape) > 1 else 1
        if len(spec.shape) == 2 and len(spec.feature_names) == width:
            for at, name in enumerate(spec.feature_names):
                if name not in mask:
                    yield _Column(f"{side}.{name}", side, spec.name, at=at)
        elif mask.isdisjoint(spec.feature_names):
            yield _Column(f"{side}.{spec.name}", side, spec.name, width=None if width == 1 else width)


def _size(tensors: Mapping[str, Array]) -> int:
    """Return about what *tensors* take in memory."""
    return sum(
        sum(len(text) + 50 for text in a.ravel().tolist()) if a.dtype.kind in "OSU" else a.nbytes
        for a in tensors.values()
    )


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
