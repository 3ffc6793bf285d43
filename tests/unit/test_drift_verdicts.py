from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from sklearn.datasets import load_breast_cancer

import mlopsnb
from mlopsnb.errors import UserError
from mlopsnb.monitoring import DriftReport, drift

ROWS = 2000
NAN = float("nan")


def rng(seed=0):
    return np.random.default_rng(seed)


def only(report):
    (row,) = report.rows
    return row


def outcome(reference, current, **options):
    row = only(drift(reference, current, **options))
    return row.kind, row.state


def test_it_is_public():
    assert (mlopsnb.drift, mlopsnb.DriftReport) == (drift, DriftReport)


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"pandas", "scipy", "matplotlib", "numpy"}
    code = f"import sys, mlopsnb.monitoring; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_comparing_arrays_loads_neither_pandas_nor_matplotlib():
    code = (
        "import sys, numpy as np, mlopsnb.monitoring as m\n"
        "r = m.drift(np.arange(90.0), np.arange(90.0)); str(r); r._repr_html_()\n"
        "print(sorted({'pandas', 'matplotlib', 'scipy.stats'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_shuffled_split_is_ok():
    data = load_breast_cancer(as_frame=True).data
    order = rng().permutation(len(data))
    report = drift(data.iloc[order[:300]], data.iloc[order[300:]])
    assert report.drifted == ()
    assert report.verdict == "ok: none of 30 features drifted, 300 against 269 rows"
    report.assert_ok()


def test_a_split_by_class_drifts():
    loaded = load_breast_cancer(as_frame=True)
    report = drift(loaded.data[loaded.target == 1], loaded.data[loaded.target == 0])
    assert len(report.drifted) == 27
    assert "mean radius" in report.drifted
    assert report.state == "drift"


def test_shifted_numbers_drift_by_the_shift():
    x = rng().normal(5, 2, ROWS)
    row = only(drift({"x": x}, {"x": x + 1}))
    assert (row.feature, row.kind, row.state, row.statistic) == ("x", "numeric", "drift", "wasserstein")
    assert row.effect == pytest.approx(0.5, rel=0.03)
    assert row.p_value < row.q_value < 1e-10  # the checks of shares are in its family


def test_a_significant_effect_below_the_threshold_is_a_shift():
    x = rng().normal(size=100_000)
    assert outcome(x, x + 0.05) == ("numeric", "shift")
    assert outcome(x, x + 0.05, threshold=0.04) == ("numeric", "drift")


def test_an_effect_that_chance_explains_is_ok():
    row = only(drift(rng(1).normal(size=500), rng(2).normal(size=40)))
    assert row.effect > row.threshold
    assert row.state == "ok"


def test_clean_reports_raise_a_false_alarm_about_as_rarely_as_q_says():
    drifted = 0
    for seed in range(20):
        generator = rng(seed)
        a, b = generator.normal(size=(800, 20)), generator.normal(size=(300, 20))
        drifted += bool(drift(a, b).drifted)
    assert drifted <= 3  # one is expected; chance alone gives more than three in 2 % of such runs


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int8", "int64", "uint8", "uint64"])
def test_every_number_is_compared(dtype):
    x = rng().integers(0, 90, ROWS).astype(dtype)
    assert outcome(x, x[::-1].copy()) == ("numeric", "ok")
    assert outcome(x, x // 2) == ("numeric", "drift")


@pytest.mark.parametrize("dtype", ["Int64", "UInt8", "Float64", "int64[pyarrow]"])
def test_nullable_numbers_are_compared(dtype):
    x = pd.Series(rng().integers(0, 90, ROWS)).astype(dtype)
    x[:3] = pd.NA
    assert outcome(x.to_frame("x"), x.to_frame("x")) == ("numeric", "ok")
    assert outcome(x.to_frame("x"), (x // 2).to_frame("x")) == ("numeric", "drift")


@pytest.mark.parametrize("dtype", [object, "category", "string", "str", "string[pyarrow]"])
def test_categories_are_compared(dtype):
    a = pd.DataFrame({"c": list("aabc") * 500}).astype(dtype)
    b = pd.DataFrame({"c": list("abcc") * 500}).astype(dtype)
    assert outcome(a, a) == ("category", "ok")
    assert outcome(a, b) == ("category", "drift")
    assert only(drift(a, b)).statistic == "jensen-shannon"


def test_a_category_and_text_of_the_same_levels_are_alike():
    text = pd.DataFrame({"c": list("aabc") * 500})
    assert outcome(text, text.astype("category")) == ("category", "ok")


@pytest.mark.parametrize("dtype", [bool, "boolean", "int8", float])
def test_booleans_and_few_numbers_are_categories(dtype):
    a = pd.DataFrame({"c": [True, False] * 500}).astype(dtype)
    b = pd.DataFrame({"c": [True, True, True, False] * 250}).astype(dtype)
    assert outcome(a, a) == ("category", "ok")
    assert outcome(a, b) == ("category", "drift")
    assert outcome(a, b.astype(bool)) == ("category", "drift")


def test_float32_and_float64_of_the_same_few_values_are_alike():
    x = rng().choice([0.1, 0.2, 0.3], ROWS)
    assert outcome(x, x.astype("float32")) == ("category", "ok")
    assert outcome(x.astype("float32"), x) == ("category", "ok")


def test_new_levels_are_counted_and_named():
    row = only(drift({"c": ["a", "b"] * 500}, {"c": ["a", "b", "b", "new"] * 250}))
    assert (row.state, row.new_levels) == ("drift", 1)
    assert row.note == "1 new level (25.0% of rows): new"


def test_one_row_of_a_new_level_is_no_drift():
    row = only(drift({"c": list("xyz") * 266}, {"c": [*(list("xyz") * 265), "NEW"]}))
    assert (row.state, row.new_levels) == ("ok", 1)


def test_many_new_rare_levels_together_are_drift():
    row = only(drift({"c": list("xyz") * 300}, {"c": list("xyz") * 200 + [f"new {i}" for i in range(300)]}))
    assert (row.state, row.new_levels) == ("drift", 300)


def test_identifiers_cannot_be_compared():
    row = only(drift({"id": [f"a{i}" for i in range(500)]}, {"id": [f"b{i}" for i in range(500)]}))
    assert (row.kind, row.state, row.effect, row.new_levels) == ("category", "no-data", None, 500)
    assert row.note.startswith("no level of 1000 is frequent enough to be compared")


def test_many_levels_of_one_distribution_are_ok():
    weights = 1 / np.arange(1, 2001) ** 1.1
    levels = [f"v{i}" for i in range(2000)]
    a, b = (rng(s).choice(levels, 20_000, p=weights / weights.sum()) for s in (1, 2))
    assert outcome(a, b) == ("category", "ok")


def test_constant_columns():
    constant = np.full(ROWS, 5.0)
    assert only(drift(constant, constant)).note == "constant: 5"
    assert outcome(constant, constant) == ("category", "ok")
    assert outcome(constant, constant + 1) == ("category", "drift")
    assert outcome(constant, rng().normal(5, 1, ROWS)) == ("category", "drift")
    row = only(drift(rng().normal(5, 1, ROWS), constant))
    assert (row.kind, row.state, row.note) == ("numeric", "drift", "constant in the current data: 5")


def test_a_moved_missing_share_is_drift():
    x = rng().normal(size=ROWS)
    y = np.where(rng(1).random(ROWS) < 0.3, NAN, x)
    row = only(drift(x, y))
    assert (row.state, row.missing_reference) == ("drift", 0.0)
    assert row.missing_current == pytest.approx(0.3, abs=0.05)
    assert row.note.startswith("missing share went from 0.0% to ")
    assert row.effect < row.threshold
    assert outcome(y, x) == ("numeric", "drift")
    assert outcome(y, y) == ("numeric", "ok")


def test_a_small_move_of_the_missing_share_is_no_drift():
    x = rng().normal(size=ROWS)
    y = x.copy()
    y[: ROWS * 4 // 100] = NAN
    row = only(drift(x, y))
    assert row.checks[0].q_value < 1e-6
    assert row.state == "ok"


def test_a_column_that_went_missing_is_drift():
    row = only(drift(rng().normal(size=ROWS), np.full(ROWS, NAN)))
    assert (row.kind, row.state, row.effect) == ("numeric", "drift", None)
    assert row.note == (
        "missing share went from 0.0% to 100.0%; 2000 reference and 0 current values; 30 of each are needed"
    )


def test_all_missing_on_both_sides_is_no_data():
    nothing = np.full(ROWS, NAN)
    assert outcome(nothing, nothing) == ("numeric", "no-data")
    assert outcome(pd.DataFrame({"x": [None] * 50}), pd.DataFrame({"x": [None] * 50})) == (
        "numeric",
        "no-data",
    )


def test_infinities_count_as_missing_and_are_told():
    x = rng().normal(size=ROWS)
    y = x.copy()
    y[:3] = np.inf, -np.inf, np.inf
    row = only(drift(x, y))
    assert (row.state, row.missing_current) == ("ok", 3 / ROWS)
    assert row.note == "infinite values count as missing: 0 in the reference, 3 in the current data"


@pytest.mark.parametrize(("reference", "current"), [(ROWS, 29), (29, ROWS), (0, 0), (0, ROWS), (1, 1)])
def test_too_few_rows_are_no_data(reference, current):
    report = drift(rng().normal(size=reference), rng().normal(size=current) + 9)
    assert only(report).state == "no-data"
    assert report.verdict == f"no-data: nothing could be compared, {reference} against {current} rows"
    report.assert_ok()


def test_thirty_rows_are_enough():
    assert outcome(rng().normal(size=30), rng().normal(size=30) + 9) == ("numeric", "drift")


def test_dates_are_skipped_with_a_reason():
    frame = pd.DataFrame({"when": pd.date_range("2024", periods=100), "x": np.arange(100.0)})
    report = drift(frame, frame)
    row = report.find("when")
    assert (row.kind, row.state) == ("other", "skipped")
    assert row.note.endswith("is not compared; give an hour, a weekday or an age as a number")
    assert report.verdict == "ok: none of 2 features drifted, 1 skipped, 100 against 100 rows"


def test_a_skipped_column_that_went_missing_is_drift():
    when = pd.Series(pd.date_range("2024", periods=100))
    assert outcome(when.to_frame("w"), when.where(when.index < 60).to_frame("w")) == ("other", "drift")


@pytest.mark.parametrize(
    ("reference", "current", "note"),
    [
        (np.arange(100.0), np.arange(100).astype(str), "numbers in the reference, text in the current data"),
        (["a", "b"] * 50, np.arange(100), "text in the reference, numbers in the current data"),
        (np.arange(100).astype("datetime64[s]"), ["a"] * 100, "datetime64[s] in the reference, text"),
    ],
)
def test_another_type_is_drift(reference, current, note):
    row = only(drift(reference, current))
    assert row.state == "drift"
    assert note in row.note


def test_outputs_come_first():
    x = rng().normal(size=(ROWS, 2))
    scores = rng(1).random((ROWS, 2))
    report = drift(x, x + np.array([0, 3]), outputs=(scores, scores + np.array([0, 0.3])))
    assert [(r.feature, r.kind, r.state) for r in report.rows] == [
        ("output_1", "output", "drift"),
        ("output_0", "output", "ok"),
        ("feature_1", "numeric", "drift"),
        ("feature_0", "numeric", "ok"),
    ]
    assert report.drifted == ("output_1", "feature_1")
    assert report.verdict.startswith(
        "drift: 1 of 2 outputs and 1 of 2 features drifted (worst: feature_1, effect "
    )


def test_classes_are_compared_as_categories():
    x = np.arange(100.0)
    report = drift(x, x, outputs=(["cat", "dog"] * 50, ["cat", "dog", "dog", "dog"] * 25))
    assert (report.rows[0].feature, report.rows[0].state) == ("output", "drift")
    assert report.rows[0].statistic == "jensen-shannon"


def test_tensors_and_lists_give_the_same_report():
    x, y = rng(1).normal(size=(200, 3)), rng(2).normal(size=(200, 3))
    expected = drift(x, y)
    assert drift(torch.tensor(x), torch.tensor(y)) == expected
    assert drift(x.tolist(), y.tolist()) == expected
    assert drift(np.asfortranarray(x), y).rows == expected.rows


def test_arguments_are_not_changed():
    x = rng().normal(size=(100, 2))
    frame = pd.DataFrame(x.copy(), columns=["a", "b"])
    drift(frame, x)
    assert (frame.to_numpy() == x).all()


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (
            {"method": "autoo"},
            "no drift method named 'autoo'; there is auto, evidently",
            "did you mean 'auto'?",
        ),
        ({"threshold": 0}, "threshold is 0;", "0.1 is"),
        ({"threshold": NAN}, "threshold is nan;", "0.1 is"),
        ({"q": 1.0}, "q is 1.0;", "0.05 is"),
        ({"outputs": np.zeros(3)}, "outputs is a ndarray; it must be a pair", "give outputs="),
    ],
)
def test_impossible_settings_are_refused(options, message, hint):
    with pytest.raises(UserError) as caught:
        drift([1, 2], [1, 2], **options)
    assert caught.value.message.startswith(message)
    assert caught.value.hint.startswith(hint)


EXTREME = some.lists(
    some.floats(allow_nan=True, allow_infinity=True) | some.sampled_from([0.0, 1e308, -1e308, 5e-324]),
    min_size=30,
    max_size=60,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(EXTREME, EXTREME)
def test_any_floats_get_a_finite_row_without_a_warning(x, y):
    row = only(drift(x, y))
    assert row.effect is None or np.isfinite(row.effect)
    assert row.q_value is None or 0 <= row.q_value <= 1
    histogram = row.histogram
    if histogram is not None:
        assert sum(histogram.reference) == pytest.approx(1)
        assert sum(histogram.current) == pytest.approx(1)
        assert np.isfinite(histogram.edges).all()


@settings(max_examples=60)
@given(some.lists(some.none() | some.booleans() | some.integers() | some.text(max_size=3), min_size=60))
def test_any_objects_get_a_state(values):
    half = len(values) // 2
    report = drift({"x": values[:half]}, {"x": values[half:]})
    assert only(report).state in ("ok", "shift", "drift", "no-data", "skipped")
    assert str(report)
    assert report._repr_html_()


@settings(max_examples=30)
@given(some.integers(0, 10_000))
def test_a_sample_against_itself_has_no_effect(seed):
    x = rng(seed).normal(size=(100, 3)).round(seed % 3)
    assert [row.effect for row in drift(x, x).rows] == [0.0] * 3


def test_a_hundred_thousand_rows_by_twenty_take_no_time():
    x, y = rng(1).normal(size=(100_000, 20)), rng(2).normal(size=(90_001, 20))
    drift(x[:100], y[:100])
    start = time.process_time()
    drift(x, y)
    assert time.process_time() - start < 5  # about half a second on one slow core
