"""How well a model does: estimated while labels are not there yet, realised once they are, on one scale over time.

Classifiers are estimated from their own scores; regressors, and classifiers that give none, have realised metrics only.
numpy in, records out; the metrics are in `estimation`, drift is looked at elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mlopsnb.errors import UserError
from mlopsnb.extras import need
from mlopsnb.monitoring.estimation import (
    REGRESSION,
    calibrate,
    calibrate_classes,
    estimated,
    estimated_classes,
    realised,
    realised_classes,
    realised_errors,
    vector,
)

Array = np.ndarray[Any, Any]
Kind = Literal["binary", "classes", "numbers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One stretch of rows, in the order that they came: what was to be expected, and what came true if that is known.

    `labelled` of its rows have labels.
    """

    name: str
    rows: int
    labelled: int = 0
    estimated: Mapping[str, float] = field(default_factory=dict)
    realised: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceReport:
    """A model's metrics over time. `baseline` are those on the reference, or those that were logged.

    `limits` are the lowest (of errors: the highest) that still count as usual.
    """

    spans: tuple[Span, ...]
    baseline: Mapping[str, float]
    limits: Mapping[str, float]

    def below(self, metric: str) -> tuple[str, ...]:
        """Return the names of the spans in which *metric*, realised or else estimated, is worse than its limit."""
        worse = metric in REGRESSION
        values = {
            span.name: span.realised.get(metric, span.estimated.get(metric, math.nan)) for span in self.spans
        }
        limit = self.limits[metric]
        return tuple(name for name, v in values.items() if (v > limit if worse else v < limit))

    @property
    def latest(self) -> dict[str, float]:
        """The metrics of the newest whole span: realised if half of its rows have labels, else estimated.

        Of metrics that cannot be estimated, those of the newest span with enough labels.
        """
        found: dict[str, float] = {}
        for span in self.spans:
            if span.rows == self.spans[0].rows:
                found |= span.estimated
                found |= span.realised if 2 * span.labelled >= span.rows else {}
        return found

    def to_frame(self) -> Any:
        """Return one row for each span: `estimated_accuracy`, `realised_accuracy`, …; NaN where it is not known."""
        pandas = need("pandas", extra="monitoring")
        rows = [
            {"span": s.name, "rows": s.rows}
            | {f"estimated_{k}": v for k, v in s.estimated.items()}
            | {f"realised_{k}": v for k, v in s.realised.items()}
            for s in self.spans
        ]
        return pandas.DataFrame(rows)

    def plot(self, metric: str | None = None) -> Any:
        """Return a matplotlib Figure: estimated and realised values over time, baseline and limit."""
        from mlopsnb.monitoring.plots import performance

        return performance(self, metric or next(iter(self.limits)))


def watch_performance(
    reference: Mapping[str, object],
    current: Mapping[str, object],
    *,
    rows: int = 1000,
    baseline: Mapping[str, float] | None = None,
    limits: Mapping[str, float] | None = None,
) -> PerformanceReport:
    """Return how a model does on *current*, in spans of so many *rows*, against a *reference* with labels.

    Args:
        reference: `labels`, and `scores`, `predictions`, or both. Scores are those of the positive class, shape (rows,),
            or of each class, shape (rows, classes): a DataFrame whose columns are the classes, or an array in the order
            of the sorted labels. Labels are 0 and 1, text, or anything where scores have several columns; other
            numbers are a regressor's, which has `labels` and `predictions`.
        current: the same, with or without `labels`; labels that are not there yet are NaN or None.
        rows: rows in a span; the last one may have fewer.
        baseline: metrics to compare with, such as those that were logged; by default those on the reference.
        limits: the worst value of each metric that is usual; by default the mean of the spans of the reference, less
            (of errors: plus) three standard deviations.
    """
    known = _Side(reference, "the reference")
    if known.labels is None:
        raise UserError("the reference has no labels", hint="give reference={'labels': …, 'scores': …}")
    now = _Side(current, "the current data", like=known)
    usual = [known.realised(part) for part in _spans(known.rows, rows)]
    estimate = _estimator(known)
    spans = tuple(
        Span(
            name=str(number),
            rows=part.stop - part.start,
            labelled=now.labelled(part),
            estimated=estimate(now, part),
            realised=now.realised(part),
        )
        for number, part in enumerate(_spans(now.rows, rows), 1)
    )
    whole = known.realised(slice(0, known.rows))
    return PerformanceReport(
        spans=spans,
        baseline={**whole, **(baseline or {})},
        limits={name: _limit(name, [one[name] for one in usual]) for name in whole} | dict(limits or {}),
    )


def _estimator(known: _Side) -> Callable[[_Side, slice], dict[str, float]]:
    """Return what estimates the metrics of a part of the rows, as the labels that are *known* teach; nothing without scores."""
    if known.scores is None or known.labels is None or known.kind == "numbers":
        return lambda now, part: {}
    there = ~np.isnan(known.labels)
    scores, labels = known.scores[there], known.labels[there]
    if known.kind == "binary":
        single = calibrate(scores, labels)
        return lambda now, part: (
            {} if now.scores is None else estimated(single, now.scores[part], now.said(part))
        )
    each = calibrate_classes(scores, labels)
    return lambda now, part: (
        {} if now.scores is None else estimated_classes(each, now.scores[part], now.said(part))
    )


def _spans(rows: int, size: int) -> Sequence[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _limit(name: str, values: Sequence[float]) -> float:
    mean, spread = float(np.nanmean(values)), 3 * float(np.nanstd(values))
    return mean + spread if name in REGRESSION else mean - spread


class _Side:
    """The columns of one side, checked: numbers, or places in `classes`; a label that is not there yet is NaN."""

    def __init__(self, given: Mapping[str, object], where: str, like: _Side | None = None) -> None:
        columns = {k: given[k] for k in ("labels", "scores", "predictions") if given.get(k) is not None}
        if not columns:
            raise UserError(
                f"{where} has neither scores nor predictions", hint="give {'scores': …} or {'predictions': …}"
            )
        scores = _scores(columns.pop("scores"), where) if "scores" in columns else None
        texts = {k: _column(v, f"{where}: {k}") for k, v in columns.items()}
        sizes = {len(v) for v in (*texts.values(), *([scores.values] if scores else []))}
        if len(sizes) > 1:
            raise UserError(f"{where} has columns of different lengths", hint="give the same rows of each")
        self.rows = sizes.pop()
        self.classes: tuple[object, ...] = (
            like.classes if like is not None else _classes(scores, texts, where)
        )
        coded = {k: _coded(v, self.classes, f"{where}: {k}") for k, v in texts.items()}
        self.labels, self.predictions = coded.get("labels"), coded.get("predictions")
        self.scores = _fitting(scores, self.classes, where)
        self.kind: Kind = like.kind if like is not None else self._kind()

    def _kind(self) -> Kind:
        if self.classes:
            return "binary" if len(self.classes) == 2 else "classes"
        told = self.labels[~np.isnan(self.labels)] if self.labels is not None else np.array([])
        return "binary" if bool(np.isin(told, (0, 1)).all()) else "numbers"

    def said(self, part: slice) -> Array | None:
        """Return what the model decided for the rows of *part*, if it is there; places of classes as whole numbers."""
        if self.predictions is None:
            return None
        found = self.predictions[part]
        return found.astype(int) if self.kind == "classes" else found

    def labelled(self, part: slice) -> int:
        """Return how many rows of *part* have labels."""
        return 0 if self.labels is None else int((~np.isnan(self.labels[part])).sum())

    def realised(self, part: slice) -> dict[str, float]:
        """Return the metrics of the rows of *part* whose labels are known; nothing if none are."""
        if self.labels is None or np.isnan(self.labels[part]).all():
            return {}
        there = ~np.isnan(self.labels[part])
        labels = self.labels[part][there]
        scores = None if self.scores is None else self.scores[part][there]
        said = self.said(part)
        decided = said[there] if said is not None else self._decided(scores)
        if self.kind == "numbers":
            return realised_errors(labels, decided)
        if self.kind == "binary":
            return realised(labels, decided, scores)
        return realised_classes(labels.astype(int), decided, len(self.classes), scores)

    def _decided(self, scores: Array | None) -> Array:
        assert scores is not None
        if self.kind == "classes":
            return np.asarray(scores.argmax(axis=1))
        return scores >= 0.5 if self.kind == "binary" else scores


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of shape (rows,), or (rows, classes), whose columns may have names."""

    values: Array
    names: tuple[object, ...] = ()


def _scores(given: object, where: str) -> _Scores:
    names = tuple(getattr(given, "columns", ()))
    array = np.asarray(given)
    if array.ndim != 2:
        return _Scores(vector(given, f"{where}: scores"))
    if array.dtype.kind not in "fiu" or array.shape[1] < 2 or not len(array) or np.isnan(array).any():
        raise UserError(
            f"{where}: scores have shape {array.shape} and dtype {array.dtype}; of several classes there must be a number "
            "for each, none missing"
        )
    return _Scores(array.astype(np.float64), names)


def _column(values: object, where: str) -> Array:
    array = np.asarray(values, object) if isinstance(values, (list, tuple)) else np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise UserError(
            f"{where} have shape {array.shape}; there must be one value a row, and a row at least"
        )
    return array


def _missing(value: object) -> bool:
    return value is None or value != value  # noqa: PLR0124  NaN and NaT alone differ from themselves


def _classes(scores: _Scores | None, columns: Mapping[str, Array], where: str) -> tuple[object, ...]:
    """Return the classes in the order of the scores' columns; none if labels are numbers and scores have one column."""
    several = scores if scores is not None and scores.values.ndim == 2 else None
    if several and several.names and several.names != tuple(range(len(several.names))):
        return several.names
    values = {v for column in columns.values() for v in column.tolist() if not _missing(v)}
    if not several and not any(isinstance(v, str) for v in values):
        return ()
    try:
        found: tuple[object, ...] = tuple(sorted(values))
    except TypeError as exc:
        raise UserError(f"{where}: the labels are of several types: {exc}", hint="give one type") from exc
    if several and len(found) != several.values.shape[1]:
        raise UserError(
            f"{where}: {several.values.shape[1]} columns of scores for {len(found)} classes",
            hint="give the scores as a DataFrame whose columns are the classes",
        )
    return found


def _coded(column: Array, classes: tuple[object, ...], where: str) -> Array:
    """Return numbers as they are, and classes as their places; what is missing is NaN."""
    if not classes:
        return vector(column, where)
    places: dict[object, float] = {name: float(place) for place, name in enumerate(classes)}
    try:
        found = [math.nan if _missing(v) else places[v] for v in column.tolist()]
    except KeyError as exc:
        known = ", ".join(map(repr, classes[:20]))
        raise UserError(f"{where}: {exc.args[0]!r} is none of the classes {known}") from exc
    return np.array(found)


def _fitting(scores: _Scores | None, classes: tuple[object, ...], where: str) -> Array | None:
    """Return scores as the kind of model has them: of two classes the second one's is enough."""
    if scores is None:
        return None
    if scores.values.ndim == 1:
        if len(classes) > 2:
            raise UserError(f"{where}: one score a row for {len(classes)} classes", hint="give one for each")
        return scores.values
    # Those of 0 and 1, where the reference has the latter's alone.
    if not classes and scores.values.shape[1] == 2:
        return scores.values[:, 1]
    if scores.values.shape[1] != len(classes):
        raise UserError(f"{where}: {scores.values.shape[1]} columns of scores for {len(classes)} classes")
    return scores.values[:, 1] if len(classes) == 2 else scores.values
