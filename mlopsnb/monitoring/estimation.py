"""The metrics of a model: realised where labels are known, estimated where they are not. numpy in, numbers out; pure.

Classifiers are estimated from their own scores (confidence-based performance estimation): each row counts as a class with
the chance that its calibrated score gives it. Realised metrics are the same sums with chances of 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    x, y = vector(scores, "the scores"), _labels(labels)
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
    x = vector(scores, "the scores")
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
        x = vector(scores, "the scores")
        _same(x, truth, "scores", "labels")
        found["roc_auc"] = _auc(x, truth)
    return found


def calibrate_classes(scores: Array, labels: Array) -> tuple[Calibration, ...]:
    """Learn a `Calibration` for each class, one against the rest.

    *scores* has shape (rows, classes); *labels* are the places of the true classes in it.
    """
    return tuple(calibrate(scores[:, k], labels == k) for k in range(scores.shape[1]))


def estimated_classes(
    calibrations: Sequence[Calibration], scores: Array, predictions: Array | None = None
) -> dict[str, float]:
    """Return the metrics that a classifier may be expected to have at *scores*, shape (rows, classes), without labels.

    The chances of a row's classes are those of `calibrate_classes`, brought to a sum of 1; *predictions* are the places
    of the classes that the model decided for, by default those with the highest scores. Precision, recall, F1 and ROC AUC
    are means over the classes, each against the rest. It holds as long as `estimated` does. Source: NannyML's CBPE for
    several classes.
    """
    chances = np.stack([learnt(scores[:, k]) for k, learnt in enumerate(calibrations)], axis=1)
    total = chances.sum(axis=1, keepdims=True)
    chances = np.divide(chances, total, out=np.full_like(chances, 1 / len(calibrations)), where=total > 0)
    said = scores.argmax(axis=1) if predictions is None else predictions
    return _of_classes(chances, said, scores)


def realised_classes(
    labels: Array, predictions: Array, classes: int, scores: Array | None = None
) -> dict[str, float]:
    """Return the metrics of a classifier whose *labels* are known, the places of so many *classes*, as are *predictions*.

    They are those of `sklearn.metrics`, with means over the classes (`macro`) of which they are defined.
    """
    return _of_classes(np.eye(classes)[labels], predictions, scores)


def _of_classes(chances: Array, said: Array, scores: Array | None) -> dict[str, float]:
    """Return the metrics of rows that are of each class with *chances*, shape (rows, classes)."""
    tables = []
    for k, chance in enumerate(chances.T):
        hits, misses, named = chance[said == k].sum(), chance[said != k].sum(), (said == k).sum()
        found = _from_table(hits, named - hits, misses, len(said) - named - misses)
        if scores is not None:
            found["roc_auc"] = _auc(scores[:, k], chance)
        tables.append(found)
    means = {name: _mean([table[name] for table in tables]) for name in tables[0]}
    return means | {"accuracy": float(np.take_along_axis(chances, said[:, None], 1).mean())}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def realised_errors(truth: object, predictions: object) -> dict[str, float]:
    """Return the mean absolute and the root mean squared error of a regressor whose true values are known."""
    a, b = vector(truth, "the true values"), vector(predictions, "the predictions")
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


def vector(values: object, where: str) -> Array:
    """Return *values* as floats of one axis; `UserError`, which names *where* they are, if they are none."""
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
    array = vector(values, "the labels")
    if not np.isin(array, (0, 1)).all():
        odd = array[~np.isin(array, (0, 1))][0]
        raise UserError(f"the labels must be 0 and 1, found {odd:g}", hint="give labels == positive_class")
    return array


def _same(a: Array, b: Array, of: str, and_of: str) -> None:
    if len(a) != len(b):
        raise UserError(f"there are {len(a)} {of} and {len(b)} {and_of}", hint="give the same rows of each")
