from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from sklearn import metrics
from sklearn.isotonic import IsotonicRegression

from mlopsnb.errors import UserError
from mlopsnb.monitoring import estimation as pf
from mlopsnb.monitoring import watch_performance

SEEDS = some.integers(0, 10_000)


def scored(rows, seed=0, shift=0.0):
    """Give scores and labels of a model that says 0.9 where it is right in 80 % of cases, and so on."""
    rng = np.random.default_rng(seed)
    scores = np.clip(rng.beta(0.8, 0.8, rows) + shift * rng.random(rows), 0, 1).round(3)
    return scores, (rng.random(rows) < 0.1 + 0.8 * scores).astype(int)


@settings(max_examples=30, deadline=None)
@given(SEEDS, some.integers(2, 200))
def test_calibration_is_sklearns(seed, rows):
    scores, labels = scored(rows, seed)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    asked = np.linspace(-0.2, 1.2, 50)
    assert pf.calibrate(scores, labels)(asked) == pytest.approx(theirs.predict(asked), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(SEEDS, some.integers(10, 300))
def test_realised_metrics_are_sklearns(seed, rows):
    scores, labels = scored(rows, seed)
    labels[:2] = 0, 1
    said = scores >= 0.4
    assert pf.realised(labels, said, scores) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, said),
            "precision": metrics.precision_score(labels, said, zero_division=np.nan),
            "recall": metrics.recall_score(labels, said),
            "f1": metrics.f1_score(labels, said),
            "roc_auc": metrics.roc_auc_score(labels, scores),
        },
        nan_ok=True,
    )
    assert pf.realised_errors(labels, scores) == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(labels, scores),
            "rmse": metrics.root_mean_squared_error(labels, scores),
        }
    )


@pytest.mark.parametrize("shift", [0.0, 0.5, -0.5])
def test_the_estimate_comes_true_under_covariate_shift(shift):
    calibration = pf.calibrate(*scored(50_000))
    scores, labels = scored(20_000, seed=1, shift=shift)
    assert pf.estimated(calibration, scores) == pytest.approx(
        pf.realised(labels, scores >= 0.5, scores), abs=0.015
    )


NAMES = ("cat", "dog", "emu")


def scored_classes(rows, seed=0, shift=0.0):
    """Give scores of three classes, overconfident, and the places of the true ones; *shift* favours the last."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 3)) * 1.5 + np.array([0.0, 0.0, shift])
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    said = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=1, keepdims=True)
    return said, (rng.random((rows, 1)) > true.cumsum(axis=1)).sum(axis=1)


@settings(max_examples=30, deadline=None)
@given(SEEDS, some.integers(60, 300))
def test_realised_metrics_of_several_classes_are_sklearns(seed, rows):
    scores, labels = scored_classes(rows, seed)
    labels[:3] = 0, 1, 2
    said = scores.argmax(axis=1)
    average = {"average": "macro", "labels": [0, 1, 2]}
    found = pf.realised_classes(labels, said, 3, scores)
    expected = {
        "accuracy": metrics.accuracy_score(labels, said),
        "recall": metrics.recall_score(labels, said, **average),
        "f1": metrics.f1_score(labels, said, **average),
        "roc_auc": metrics.roc_auc_score(labels, scores, multi_class="ovr"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    if len(np.unique(said)) == 3:
        assert found["precision"] == pytest.approx(metrics.precision_score(labels, said, **average))


@pytest.mark.parametrize("shift", [0.0, 0.7, -0.7])
def test_the_estimate_of_several_classes_comes_true_under_covariate_shift(shift):
    calibrations = pf.calibrate_classes(*scored_classes(50_000))
    scores, labels = scored_classes(20_000, seed=1, shift=shift)
    expected = pf.realised_classes(labels, scores.argmax(axis=1), 3, scores)
    assert pf.estimated_classes(calibrations, scores) == pytest.approx(expected, abs=0.03)


def named(places):
    return np.array(NAMES, object)[places]


def test_classes_have_names_and_late_labels_too():
    scores, labels = scored_classes(6000)
    now, truth = scored_classes(2000, seed=2)
    late = named(truth)
    late[1000:] = None
    frame = pd.DataFrame(scores, columns=NAMES)
    reference = {"scores": frame, "labels": named(labels), "predictions": named(scores.argmax(axis=1))}
    report = watch_performance(reference, {"scores": pd.DataFrame(now, columns=NAMES), "labels": late})
    assert [bool(s.realised) for s in report.spans] == [True, False]
    assert set(report.limits) == set(pf.CLASSIFICATION)
    assert report.spans[0].realised == pytest.approx(report.spans[0].estimated, abs=0.06)
    # The columns of an array are in the order of the sorted labels; what was decided follows from the scores.
    same = watch_performance({"scores": scores, "labels": named(labels)}, {"scores": now, "labels": late})
    assert same.spans == report.spans
    alone = watch_performance({"predictions": named(labels), "labels": named(labels)}, {"predictions": late})
    assert alone.baseline["accuracy"] == 1.0
    assert alone.spans[0].estimated == {}


def test_two_classes_by_name_are_the_binary_case():
    scores, labels = scored(4000)
    plain = watch_performance({"scores": scores, "labels": labels}, {"scores": scores})
    both = np.stack([1 - scores, scores], axis=1)
    texts = np.array(["no", "yes"])[labels]
    assert watch_performance({"scores": both, "labels": texts}, {"scores": both}).spans == plain.spans
    assert watch_performance({"scores": scores, "labels": texts}, {"scores": scores}).spans == plain.spans


def test_what_is_not_defined_is_nan():
    found = pf.realised([0, 0], [0, 0], [0.1, 0.2])
    assert found["accuracy"] == 1
    assert all(math.isnan(found[name]) for name in ("precision", "recall", "f1", "roc_auc"))


def test_estimates_and_late_labels_are_on_one_plot():
    scores, labels = scored(10_000)
    now, truth = scored(4000, seed=2)
    late = np.where(np.arange(4000) < 2000, truth, np.nan)
    report = watch_performance(
        {"scores": scores, "labels": labels}, {"scores": now, "labels": late}, rows=1000
    )
    assert [s.rows for s in report.spans] == [1000] * 4
    assert [bool(s.realised) for s in report.spans] == [True, True, False, False]
    for span in report.spans[:2]:
        assert span.realised == pytest.approx(span.estimated, abs=0.05)
    assert report.below("accuracy") == ()
    worse = watch_performance(
        {"scores": scores, "labels": labels}, {"scores": now, "labels": 1 - truth}, baseline={"accuracy": 0.9}
    )
    assert worse.below("accuracy") == ("1", "2", "3", "4")
    assert worse.baseline["accuracy"] == 0.9
    frame = report.to_frame()
    assert frame["estimated_roc_auc"].notna().all()
    assert frame["realised_roc_auc"].isna().tolist() == [False, False, True, True]
    assert report.plot()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="there is no metric 'mae'"):
        report.plot("mae")


def test_a_regressor_has_errors_only():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=5000)
    reference = {"labels": truth, "predictions": truth + rng.normal(0, 0.1, 5000)}
    current = {"labels": truth, "predictions": truth + rng.normal(0, [0.1] * 4000 + [0.5] * 1000)}
    report = watch_performance(reference, current)
    assert report.below("mae") == report.below("rmse") == ("5",)
    assert report.spans[0].estimated == {}


def classes(labels, scores, now=None):
    current = {"labels": now, "scores": scores[:1]} if now else {"scores": scores}
    return watch_performance({"labels": labels, "scores": scores}, current)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pf.calibrate([0.1], [1, 0]), "there are 1 scores and 2 labels"),
        (lambda: pf.calibrate([0.1], [2]), "the labels must be 0 and 1, found 2"),
        (lambda: pf.realised(["a"], [1]), "the labels are no numbers"),
        (lambda: pf.estimated(pf.calibrate([0, 1], [0, 1]), []), "the scores have shape"),
        (lambda: watch_performance({"scores": [1]}, {"scores": [1]}), "the reference has no labels"),
        (lambda: watch_performance({}, {}), "the reference has neither scores nor predictions"),
        (lambda: watch_performance({"scores": [1], "labels": [1, 0]}, {}), "columns of different lengths"),
        (lambda: classes(["a", "b"], [[1.0, 0, 0]] * 2), "3 columns of scores for 2 classes"),
        (lambda: classes(["a", "b"], [[math.nan, 0]] * 2), "a number for each, none missing"),
        (lambda: classes(["a", "b", "c"], [0.1, 0.2, 0.3]), "one score a row for 3 classes"),
        (lambda: classes(["a", 1], [[1.0, 0]] * 2), "the labels are of several types"),
        (lambda: classes(["a", "b"], [[1.0, 0]] * 2, now=["c"]), "'c' is none of the classes 'a', 'b'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
