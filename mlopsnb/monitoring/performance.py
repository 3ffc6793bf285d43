"""How well a model does: estimated while labels are not there yet, realised once they are, on one scale over time.

Binary classifiers are estimated from their own scores (confidence-based performance estimation); regressors and other
classifiers have realised metrics only. numpy in, records out; drift is looked at elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlopsnb.errors import UserError
from mlopsnb.extras import need

Array = np.ndarray[Any, Any]

CLASSIFICATION = ("accuracy", "precision", "recall", "f1", "roc_auc")
REGRESSION = ("mae", "rmse")


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """From a classifier's *scores* to how often it was right at them: *chances* at the same places, rising."""

    scores: Array
    chances: Array

    def __call__(self, scores: Array) -> Array:
        """Return the chance of the positive class at each of *scores*, on a straight line between those known."""
        return np.interp(scores, self.scores, self.chances)


def calibrate(scores: object, labels: object) -> Calibration:
    """Learn a `Calibration` from the *scores* of the positive class and the *labels* (0 or 1) of a reference.

    Isotonic regression; source: Zadrozny and Elkan 2002, as `sklearn.isotonic.IsotonicRegression` has it. Raises
    `UserError` if the two do not fit.
    """
    x, y = _vector(scores, "the scores"), _labels(labels)
    _same(x, y, "scores", "labels")
    places, inverse, weights = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, y) / weights
    fitted = need("scipy.optimize", extra="monitoring").isotonic_regression(means, weights=weights).x
    return Calibration(places, np.asarray(fitted))


def estimated(calibration: Calibration, scores: object, predictions: object = None) -> dict[str, float]:
    """Return the metrics that a binary classifier may be expected to have at *scores*, without labels.

    Each row counts as positive with the chance that the *calibration* gives it; *predictions* are what the model
    decided, by default a score of 0.5 or more. It holds while the scores mean what they meant on the reference; it does
    not see a change of what they mean (concept drift). Source: confidence-based performance estimation, NannyML's CBPE.
    """
    x = _vector(scores, "the scores")
    said = x >= 0.5 if predictions is None else _labels(predictions).astype(bool)
    _same(x, said, "scores", "predictions")
    chance = calibration(x)
    hits, misses = float(chance[said].sum()), float(chance[~said].sum())
    return _from_table(hits, float(said.sum()) - hits, misses, float((~said).sum()) - misses) | {
        "roc_auc": _auc(x, chance)
    }


def realised(labels: object, predictions: object, scores: object = None) -> dict[str, float]:
    """Return the metrics of a binary classifier whose *labels* are known; `roc_auc` only if *scores* are given.

    They are those of `sklearn.metrics`; where one is not defined it is NaN.
    """
    truth, said = _labels(labels), _labels(predictions).astype(bool)
    _same(truth, said, "labels", "predictions")
    hits, misses = float(truth[said].sum()), float(truth[~said].sum())
    found = _from_table(hits, float(said.sum()) - hits, misses, float((~said).sum()) - misses)
    if scores is not None:
        x = _vector(scores, "the scores")
        _same(x, truth, "scores", "labels")
        found["roc_auc"] = _auc(x, truth)
    return found


def realised_errors(truth: object, predictions: object) -> dict[str, float]:
    """Return the mean absolute and the root mean squared error of a regressor whose true values are known."""
    a, b = _vector(truth, "the true values"), _vector(predictions, "the predictions")
    _same(a, b, "true values", "predictions")
    gap = a - b
    return {"mae": float(np.abs(gap).mean()), "rmse": math.sqrt(float((gap**2).mean()))}


def _from_table(
    true_positive: float, false_positive: float, missed: float, true_negative: float
) -> dict[str, float]:
    rows = true_positive + false_positive + missed + true_negative
    return {
        "accuracy": _ratio(true_positive + true_negative, rows),
        "precision": _ratio(true_positive, true_positive + false_positive),
        "recall": _ratio(true_positive, true_positive + missed),
        "f1": _ratio(2 * true_positive, 2 * true_positive + false_positive + missed),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _auc(scores: Array, chance: Array) -> float:
    """Return the area under the ROC curve where each row is positive with a *chance*; rows of one score are one step."""
    _, step = np.unique(-scores, return_inverse=True)
    positive = np.cumsum(np.bincount(step, chance))
    negative = np.cumsum(np.bincount(step, 1 - chance))
    if not (positive[-1] > 0 and negative[-1] > 0):
        return math.nan
    before = np.concatenate([[0.0], positive[:-1]])
    area = ((positive + before) / 2 * np.diff(negative, prepend=0.0)).sum()
    return float(area / (positive[-1] * negative[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One stretch of rows, in the order that they came: what was to be expected, and what came true if that is known."""

    name: str
    rows: int
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
        reference: `labels`, and `scores` of the positive class, `predictions`, or both; of a regressor `labels` and
            `predictions`, and *regression* is seen by labels that are not 0 and 1.
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
    calibration = (
        calibrate(known.scores, known.labels) if known.scores is not None and not known.numeric else None
    )
    spans = []
    for number, part in enumerate(_spans(now.rows, rows), 1):
        expected = {}
        if calibration is not None and now.scores is not None:
            said = None if now.predictions is None else now.predictions[part]
            expected = estimated(calibration, now.scores[part], said)
        spans.append(
            Span(
                name=str(number), rows=part.stop - part.start, estimated=expected, realised=now.realised(part)
            )
        )
    whole = known.realised(slice(0, known.rows))
    return PerformanceReport(
        spans=tuple(spans),
        baseline={**whole, **(baseline or {})},
        limits={name: _limit(name, [one[name] for one in usual]) for name in whole} | dict(limits or {}),
    )


def _spans(rows: int, size: int) -> Sequence[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _limit(name: str, values: Sequence[float]) -> float:
    mean, spread = float(np.nanmean(values)), 3 * float(np.nanstd(values))
    return mean + spread if name in REGRESSION else mean - spread


class _Side:
    """The columns of one side, checked."""

    def __init__(self, given: Mapping[str, object], where: str, like: _Side | None = None) -> None:
        columns = {
            k: _vector(given[k], f"{where}: {k}")
            for k in ("labels", "scores", "predictions")
            if given.get(k) is not None
        }
        if not columns:
            raise UserError(
                f"{where} has neither scores nor predictions", hint="give {'scores': …} or {'predictions': …}"
            )
        if len({len(v) for v in columns.values()}) > 1:
            raise UserError(f"{where} has columns of different lengths", hint="give the same rows of each")
        self.labels, self.scores = columns.get("labels"), columns.get("scores")
        self.predictions, self.rows = columns.get("predictions"), len(next(iter(columns.values())))
        told = self.labels[~np.isnan(self.labels)] if self.labels is not None else np.array([])
        self.numeric: bool = like.numeric if like is not None else not bool(np.isin(told, (0, 1)).all())

    def realised(self, part: slice) -> dict[str, float]:
        """Return the metrics of the rows of *part* whose labels are known; nothing if none are."""
        if self.labels is None:
            return {}
        labels = self.labels[part]
        there = ~np.isnan(labels)
        if not there.any():
            return {}
        scores = None if self.scores is None else self.scores[part][there]
        if self.predictions is not None:
            said = self.predictions[part][there]
        else:
            assert scores is not None
            said = scores if self.numeric else scores >= 0.5
        return realised_errors(labels[there], said) if self.numeric else realised(labels[there], said, scores)


def _vector(values: object, where: str) -> Array:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as exc:
        raise UserError(f"{where} are no numbers: {exc}", hint="give one number a row") from exc
    if array.ndim != 1 or not len(array):
        raise UserError(
            f"{where} have shape {array.shape}; there must be one number a row, and a row at least"
        )
    return array


def _labels(values: object) -> Array:
    array = _vector(values, "the labels")
    if not np.isin(array, (0, 1)).all():
        odd = array[~np.isin(array, (0, 1))][0]
        raise UserError(f"the labels must be 0 and 1, found {odd:g}", hint="give labels == positive_class")
    return array


def _same(a: Array, b: Array, of: str, and_of: str) -> None:
    if len(a) != len(b):
        raise UserError(f"there are {len(a)} {of} and {len(b)} {and_of}", hint="give the same rows of each")
