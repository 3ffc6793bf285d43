"""Counts the rows of requests and answers on the bins of the package's reference profile, for whoever watches drift.

A request costs a copy of its rows into a ring of fixed size; the ring is counted when it is full, once a second, and
before somebody is told. Text is not kept but counted at once. Nothing here fails a request: what cannot be counted is
named, and an error that nobody foresaw ends the counting, not the answers. For the event loop alone.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.profiles import DriftProfile, Feature, Tally, snapshot_document, to_json
from mlopsnb.serving.errors import stack
from mlopsnb.serving.windows import KEEP_SECONDS
from mlopsnb.tensors import STRING

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from mlopsnb.records import Signature, TensorSpec
    from mlopsnb.serving.windows import Windows
    from mlopsnb.tensors import Array

PROTOCOL = 1
"""Of the answer at /profile; raised when an older reader could misread it."""

COUNT_SECONDS = 1.0
"""How often the ring is counted at least: what a process that is killed has not counted is no older."""

MOST_VALUES = 1_000_000
"""Values that are counted in a second at most, 2 % of a processor; of more rows a sample is, and the rest is told."""

MOST_FEATURES = 100
"""Features that have series of their own in /metrics; the others share one."""

_RING_ROWS = 2048
_RING_BYTES = 1 << 20
_OTHERS = "(others)"
_log = logging.getLogger("mlopsnb.serving")


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The ring of one tensor of numbers: which of its columns are numeric features, and which are categories.

    *columns* are those of *features*; None if they are all that there are.
    """

    name: str
    ring: Array
    columns: Array | None
    features: tuple[int, ...]
    categories: tuple[tuple[int, int], ...]

    def count(self, rows: int, tally: Tally) -> None:
        """Count the first *rows* rows."""
        block = self.ring[:rows].reshape(rows, -1)
        if self.features:
            tally.add_block(self.features, block if self.columns is None else block[:, self.columns])
        for feature, column in self.categories:
            tally.add_column(feature, block[:, column])


class _Words:
    """The categories of one tensor of text, each counted by a dict. `columns` of them are not in the profile."""

    def __init__(self, name: str, features: Mapping[int, int], profile: DriftProfile, width: int) -> None:
        self.name = name
        self._cells = [profile.places[features[c]] if c in features else None for c in range(width)]
        self._places = [_levels(profile.features[features[c]]) if c in features else {} for c in range(width)]
        self._unknown = [
            _unknown(profile.features[features[c]]) if c in features else 0 for c in range(width)
        ]
        self._counts = [[0] * (s.stop - s.start if s else 1) for s in self._cells]
        self._columns = list(zip(self._counts, self._places, self._unknown, strict=True))

    def note(self, array: Array) -> None:
        """Count the rows of *array*, one or more."""
        if array.ndim == 1:
            [(counts, places, unknown)] = self._columns
            for value in array.tolist():
                counts[places.get(value, unknown)] += 1
            return
        for row in array.reshape(len(array), -1).tolist():
            for (counts, places, unknown), value in zip(self._columns, row, strict=True):
                counts[places.get(value, unknown)] += 1

    def count(self, tally: Tally) -> None:
        """Hand on what was counted, and begin anew."""
        for cells, counts in zip(self._cells, self._counts, strict=True):
            if cells is not None:
                tally.cells[cells] += counts
            counts[:] = [0] * len(counts)


def _levels(feature: Feature) -> dict[Any, int]:
    """Return the cell of each level that is known by its name; None is a value that is missing."""
    known = dict.fromkeys(feature.rare, len(feature.levels)) | {v: i for i, v in enumerate(feature.levels)}
    return {**known, None: feature.bins}


def _unknown(feature: Feature) -> int:
    """Return the cell of all other levels: new ones, unless the reference had some that are not known by name."""
    return feature.bins - 1 if feature.complete else feature.bins - 2


class _Side:
    """The inputs or the outputs: a ring for each tensor of numbers, and dicts for those of text."""

    def __init__(
        self, profile: DriftProfile, found: Mapping[TensorSpec, dict[int, int]], capacity: int
    ) -> None:
        self.numbers = [
            _numbers(profile, spec, features, capacity)
            for spec, features in found.items()
            if spec.dtype != STRING
        ]
        self.words = [
            _Words(spec.name, features, profile, _width(spec))
            for spec, features in found.items()
            if spec.dtype == STRING
        ]
        self.rings = [(one.ring, one.name) for one in self.numbers]
        self.names = [*(one.name for one in self.numbers), *(one.name for one in self.words)]

    def note(self, start: int, stop: int, tensors: Mapping[str, Array]) -> None:
        """Keep rows in the places from *start* to *stop*."""
        for ring, name in self.rings:
            ring[start:stop] = tensors[name]
        for text in self.words:
            text.note(tensors[text.name])

    def count(self, rows: int, tally: Tally) -> None:
        """Count the first *rows* rows, and all text."""
        if rows:
            for one in self.numbers:
                one.count(rows, tally)
        for text in self.words:
            text.count(tally)


def _numbers(profile: DriftProfile, spec: TensorSpec, features: Mapping[int, int], capacity: int) -> _Numbers:
    numeric = {c: f for c, f in features.items() if profile.features[f].kind == "numeric"}
    return _Numbers(
        name=spec.name,
        ring=np.empty((capacity, *map(int, spec.shape[1:])), _kept_as(spec)),  # type: ignore[arg-type]
        columns=None if list(numeric) == list(range(_width(spec))) else np.array(list(numeric), np.intp),
        features=tuple(numeric.values()),
        categories=tuple((f, c) for c, f in features.items() if c not in numeric),
    )


class Counters:
    """Counts for *profile* the rows of a model with *signature*, into *windows*; *notes* are told beside them.

    `uncounted` says why there are none of a feature, by its role and name.
    """

    def __init__(
        self, profile: DriftProfile, signature: Signature, windows: Windows, *, notes: Sequence[str] = ()
    ) -> None:
        self.profile = profile
        self.uncounted = uncounted(profile, signature)
        self.notes = list(notes)
        self._windows = windows
        self._tally = Tally(profile)
        self._documents: dict[int, tuple[int, dict[str, object]]] = {}
        inputs, outputs = self._found(signature.inputs, "input"), self._found(signature.outputs, "output")
        row = sum(_row_bytes(spec) for spec in (*inputs, *outputs))
        self._capacity = max(1, min(_RING_ROWS, _RING_BYTES // max(row, 1)))
        self._inputs = _Side(profile, inputs, self._capacity)
        self._outputs = _Side(profile, outputs, self._capacity)
        self._plain = not (self._inputs.words or self._outputs.words)
        self._filled = self._skipped = 0
        counted = sum(map(len, (*inputs.values(), *outputs.values())))
        self._most = self._left = max(1, MOST_VALUES // max(counted, 1))
        self._stopped = self._unlike = False

    def _found(self, specs: Sequence[TensorSpec], role: str) -> dict[TensorSpec, dict[int, int]]:
        """Return the tensors of *specs* that are counted, and of each the features by their columns."""
        found = {
            spec: {
                feature.column or 0: index
                for index, feature in enumerate(self.profile.features)
                if (feature.role, feature.tensor) == (role, spec.name)
                and (role, feature.name) not in self.uncounted
            }
            for spec in specs
        }
        return {spec: features for spec, features in found.items() if features}

    def note(self, rows: int, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Take in a request of *rows* rows that was answered. Never raises."""
        start = self._filled
        stop, left = start + rows, self._left - rows
        if stop <= self._capacity and left >= 0 and self._plain:  # else there is more to it than copies
            try:
                for ring, name in self._inputs.rings:
                    ring[start:stop] = inputs[name]
                for ring, name in self._outputs.rings:
                    array = outputs[name]
                    if len(array) != rows:  # numpy would repeat a single one
                        break
                    ring[start:stop] = array
                else:
                    self._filled, self._left = stop, left
                    return
            except Exception as exc:  # noqa: BLE001  an answer must not fail for what is counted of it
                self._stop(exc)
        if rows and not self._stopped:
            try:
                self._note_in_parts(rows, inputs, outputs)
            except Exception as exc:  # noqa: BLE001  as above
                self._stop(exc)

    def _note_in_parts(self, rows: int, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        sides = [(self._inputs, inputs), (self._outputs, outputs)]
        wrong = [name for name in self._outputs.names if len(outputs[name]) != rows]
        if wrong:
            self._say_unlike(f"{wrong[0]} has {len(outputs[wrong[0]])} for {rows}")
            self._count_rings()
            del sides[1]
        if rows > self._left:
            counted = -(-rows // -(-rows // self._left)) if self._left else 0
            self._skipped += rows - counted
            if not counted:
                return
            step = -(-rows // self._left)
            sides = [(side, {name: tensors[name][::step] for name in side.names}) for side, tensors in sides]
            rows = counted
        self._left -= rows
        done = 0
        while done < rows:
            if self._filled == self._capacity:
                self._count_rings()
            more = min(rows - done, self._capacity - self._filled)
            for side, tensors in sides:
                part = {name: tensors[name][done : done + more] for name in side.names}
                side.note(self._filled, self._filled + more, part)
            self._filled += more
            done += more
            if wrong:
                self._count_rings(outputs=False)

    def _count_rings(self, *, outputs: bool = True) -> None:
        rows, self._filled = self._filled, 0
        self._tally.rows += rows
        self._inputs.count(rows, self._tally)
        if outputs:
            self._outputs.count(rows, self._tally)

    def _say_unlike(self, what: str) -> None:
        if not self._unlike:
            self._unlike = True
            self.notes.append(f"some answers are not counted, as their rows are not the request's: {what}")

    def _stop(self, exc: Exception) -> None:
        self._stopped, self._capacity = True, -1
        self.notes.append(f"counting ended with an error ({type(exc).__name__}), which the log has")
        _log.error("live rows are no longer counted\n%s", stack(exc))

    def count(self) -> None:
        """Count what waits, and allow for as many rows anew as a second may bring. Never raises."""
        self._left = self._most
        if self._stopped or not (self._filled or self._tally.rows):
            return
        try:
            self._count_rings()
            taken = self._tally.take(0, 0)
            self._windows.add(taken.rows, taken.cells, taken.sums)
        except Exception as exc:  # noqa: BLE001  a server must not end for what it counts
            self._stop(exc)

    @property
    def reference(self) -> bytes:
        """The profile that rows are counted on, for who compares and has no package: what /profile/reference tells."""
        return to_json(self.profile).encode()

    def document(self) -> dict[str, object]:
        """Return what /profile tells: each window of the last day as `profiles.snapshot_document` has it."""
        self.count()
        windows = self._windows
        counted = windows.counted()
        self._documents = {
            number: self._documents[number]
            if number in self._documents and self._documents[number][0] == rows
            else (rows, snapshot_document(windows.read(number)))
            for number, rows in counted.items()
        }
        return {
            "protocol": PROTOCOL,
            "profile": self.profile.digest,
            "window_seconds": windows.layout.seconds,
            "kept_seconds": KEEP_SECONDS,
            "saved": windows.saved,
            "unsaved_seconds": COUNT_SECONDS,
            "uncounted": [
                {"role": role, "name": name, "why": why} for (role, name), why in self.uncounted.items()
            ],
            "notes": [*self.notes, *self._told_skipped()],
            "windows": [document for _, document in self._documents.values()],
        }

    def _told_skipped(self) -> list[str]:
        if not self._skipped:
            return []
        return [
            f"{self._skipped} rows came beyond the {self._most} a second that are counted; a sample of them was"
        ]

    def families(self, labels: Mapping[str, str]) -> Iterable[Metric]:
        """Return how many values of each feature were as the reference lets expect, and how many were not."""
        from prometheus_client.metrics_core import CounterMetricFamily

        self.count()
        family = CounterMetricFamily(
            "mlopsnb_feature_values",
            "Values of inputs and outputs, by how the reference had them.",
            labels=[*labels, "role", "feature", "kind"],
        )
        values = list(labels.values())
        for (role, name), outcomes in self._outcomes().items():
            for kind, count in outcomes.items():
                family.add_metric([*values, role, name, kind], count)
        return (family,)

    def _outcomes(self) -> dict[tuple[str, str], Counter[str]]:
        """Return how many values were of each kind, by role and name, outputs first; the last share a name."""
        ever = self._windows.ever()
        found: dict[tuple[str, str], Counter[str]] = {}
        both = zip(self.profile.features, self.profile.places, strict=True)
        for feature, place in sorted(both, key=lambda one: one[0].role == "input"):
            if (feature.role, feature.name) not in self.uncounted:
                name = feature.name if len(found) < MOST_FEATURES else _OTHERS
                found.setdefault((feature.role, name), Counter()).update(_kinds(feature, ever[place]))
        return found


def nothing(why: str) -> dict[str, object]:
    """Return what /profile tells where there are no counters."""
    return {"protocol": PROTOCOL, "profile": None, "uncounted": [], "notes": [why], "windows": []}


def _kinds(feature: Feature, cells: Array) -> dict[str, int]:
    """Tell the values of one feature apart: those that the reference had, outside of its 0.1 % and 99.9 %, or not."""
    missing = int(cells[feature.bins])
    present = int(cells[: feature.bins].sum())
    if feature.kind == "category":
        new = int(cells[feature.bins - 1])
        return {"expected": present - new, "new": new, "missing": missing}
    low, high = bisect_right(feature.edges, feature.low), bisect_right(feature.edges, feature.high)
    inside = int(cells[low:high].sum())
    return {"expected": inside, "tail": present - inside, "missing": missing}


def uncounted(profile: DriftProfile, signature: Signature) -> dict[tuple[str, str], str]:
    """Return why there are no counters, for each feature of *profile*, input and output of *signature* without."""
    found: dict[tuple[str, str], str] = {}
    specs = {("input", s.name): s for s in signature.inputs} | {
        ("output", s.name): s for s in signature.outputs
    }
    known = {(f.role, f.tensor) for f in profile.features}
    for feature in profile.features:
        spec = specs.get((feature.role, feature.tensor))
        if why := feature.skipped or _cannot(feature, spec):
            found[feature.role, feature.name] = why
    for role, name in specs:
        if (role, name) not in known:
            found[role, name] = f"the reference has no such {role}"
    return found


def _cannot(feature: Feature, spec: TensorSpec | None) -> str:
    """Say why *feature* cannot be counted in tensor *spec*, if it cannot."""
    if spec is None:
        return f"the model has no {feature.role} {feature.tensor!r}"
    if not spec.shape or spec.shape[0] is not None:
        return f"{spec.name} has no rows: its shape is {list(spec.shape)}"
    if None in spec.shape[1:]:
        return f"{spec.name} has rows of different sizes"
    if (feature.column or 0) >= _width(spec):
        return f"{spec.name} has {_width(spec)} columns, and this would be column {feature.column}"
    if spec.dtype == STRING and feature.kind == "numeric":
        return f"{spec.name} is text, and the reference had numbers"
    return ""


def _width(spec: TensorSpec) -> int:
    return math.prod(n or 0 for n in spec.shape[1:])


def _row_bytes(spec: TensorSpec) -> int:
    return 0 if spec.dtype == STRING else _width(spec) * np.dtype(_kept_as(spec)).itemsize


def _kept_as(spec: TensorSpec) -> type[np.floating[Any]]:
    """Return the smaller float that holds every value of the tensor as it is, or the larger one."""
    return (
        np.float32
        if spec.dtype in ("float16", "float32", "bool", "int8", "uint8", "int16", "uint16")
        else np.float64
    )
