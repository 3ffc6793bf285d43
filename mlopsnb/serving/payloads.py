"""The payload log: for a share of the requests one line of JSON with what went in and what came out. Off by default.

Only what was decoded is logged, whatever protocol it came by, so that what is masked is masked by its name; the text
of errors is not, as it may show a value. A line is bounded: rows that do not fit are left out, and that is said.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mlopsnb.errors import nearest
from mlopsnb.serving import values
from mlopsnb.serving.errors import BadOption, stack
from mlopsnb.serving.protocols import columns
from mlopsnb.serving.requestlog import Clock, Gathered, Sink

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec
    from mlopsnb.serving.calls import Call
    from mlopsnb.tensors import Array

MASKED = "***"
LINE_BYTES = 16_384
"""The longest line by default; container runtimes cut longer ones."""

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
_SHORTEST_VALUE = 2  # bytes: a digit and a comma
_log = logging.getLogger("mlopsnb.serving")


class PayloadLog(Gathered[bytes]):
    """Writes the payloads of a share *rate* of the requests, above 0 and up to 1, to *file*.

    Which requests those are follows from their ids alone, so that all who see a request decide alike. *mask* names
    inputs, outputs and features whose values are not shown; see `check_mask`.
    """

    _called = "payload log"

    def __init__(
        self,
        file: Sink,
        signature: Signature,
        *,
        rate: float,
        mask: Sequence[str] = (),
        max_bytes: int = LINE_BYTES,
        about: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(file)
        self._mask = frozenset(mask)
        self._signature = signature
        self._share = share(rate)
        self._max_bytes = max_bytes
        self._about = dict(about or {})
        self._clock = Clock()

    def write(
        self, call: Call, status: int, inputs: Mapping[str, Array], outcome: Mapping[str, Array] | Exception
    ) -> None:
        """Note what *call* brought, and its answer if there was one. Never raises."""
        if self._file is None or not chosen(call.request_id, self._share):
            return
        try:
            line = self._line(call, status, inputs, {} if isinstance(outcome, Exception) else outcome)
        except Exception as exc:  # noqa: BLE001  an answer must not fail for what is noted of it
            _log.error("the payload of request %s cannot be logged\n%s", call.request_id, stack(exc))
        else:
            self._note(line)

    def _line(
        self, call: Call, status: int, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> bytes:
        rows = call.rows if call.rows is not None else 1
        head: dict[str, Any] = {
            "time": self._clock.stamp(time.time_ns()),
            "request_id": call.request_id,
            "status": status,
            "rows": rows,
            **self._about,
        }
        if call.trace is not None:
            head["trace_id"], head["span_id"] = call.trace.trace_id, call.trace.span_id
        smallest = _SHORTEST_VALUE * sum(a.size for a in (*inputs.values(), *outputs.values()))
        fits = rows if smallest <= self._max_bytes else rows * self._max_bytes // smallest
        while fits or not rows:
            payload = {
                "inputs": self._shown(self._signature.inputs, inputs, fits),
                "outputs": self._shown(self._signature.outputs, outputs, fits),
            }
            cut = {"truncated": True} if fits < rows else {}
            line = orjson.dumps({**head, **payload, **cut}, option=_OPTIONS)
            if len(line) <= self._max_bytes:
                return line
            if not rows:
                break
            fits = min(fits - 1, fits * self._max_bytes // len(line))
        return orjson.dumps({**head, "inputs": {}, "outputs": {}, "truncated": True}, option=_OPTIONS)

    def _shown(
        self, specs: Iterable[TensorSpec], arrays: Mapping[str, Array], rows: int
    ) -> dict[str, object]:
        return {
            spec.name: self._tensor(spec, arrays[spec.name], rows) for spec in specs if spec.name in arrays
        }

    def _tensor(self, spec: TensorSpec, array: Array, rows: int) -> object:
        """Return the first *rows* of *array*, by column if its columns have names."""
        if spec.name in self._mask:
            return MASKED
        if spec.shape and spec.shape[0] is None:
            array = array[:rows]
        if array.ndim == 2 and len(spec.feature_names) == array.shape[1]:
            return {
                name: MASKED if name in self._mask else self._values(array[:, at])
                for at, name in enumerate(spec.feature_names)
            }
        return self._values(array) if self._mask.isdisjoint(spec.feature_names) else MASKED

    def _values(self, array: Array) -> object:
        if array.dtype.kind in "OSU":  # of texts no more than could ever be shown
            texts = [text[: self._max_bytes] for text in values.to_json(array)]
            array = np.array(texts, dtype=object).reshape(array.shape)
        return columns.nested(array)

    def _lines(self, noted: Iterable[bytes]) -> Iterable[bytes]:
        return noted


def share(rate: float) -> int:
    """Return the share *rate*, above 0 and up to 1, as `chosen` takes it."""
    return int(rate * 2**64)


def chosen(request_id: str, share: int) -> bool:
    """Say whether the request is of that *share*; always the same of one id."""
    digest = blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share


def check_mask(mask: Iterable[str], signature: Signature) -> None:
    """Raise `BadOption` if *mask* has a name that is none of an input, an output or a feature."""
    specs = (*signature.inputs, *signature.outputs)
    known = dict.fromkeys(spec.name for spec in specs)
    features = dict.fromkeys(name for spec in specs for name in spec.feature_names)
    for name in mask:
        if name not in known and name not in features:
            shown = ", ".join(known) + (f" and the features {', '.join(features)}" if features else "")
            raise BadOption(
                f"there is no {name[:80]!r} to mask; the model has {shown[:1000]}",
                hint=nearest(name[:80], [*known, *features]),
            )
