"""Large samples are counted on a grid; Evidently's rules are followed where they are asked for; every dtype has a state."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from scipy.spatial import distance

from mlopsnb.monitoring import drift, samples
from mlopsnb.monitoring import statistics as st
from mlopsnb.monitoring.measure import counted_distances

ROWS = 40_000
SHAPES = {
    "normal": lambda r, n: r.normal(size=n),
    "uniform": lambda r, n: r.random(n),
    "exponential": lambda r, n: r.exponential(size=n),
    "bimodal": lambda r, n: r.normal(size=n) + r.choice([-3, 3], n),
    "far": lambda r, n: r.normal(1e5, 1, n),
    "whole": lambda r, n: r.poisson(20, n).astype(float),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.3])
def test_the_grid_says_what_sorting_says(kind, shift):
    r = np.random.default_rng(0)
    x, y = SHAPES[kind](r, ROWS), SHAPES[kind](r, ROWS // 2)
    y = y + (r.random(len(y)) < shift * 3 if kind == "whole" else shift * x.std())
    pair = samples.counted(x, y, whole=kind == "whole")
    effect, gap, outside = counted_distances(*pair)
    x, y = np.sort(x), np.sort(y)
    assert effect == pytest.approx(st.wasserstein_effect(x, y), abs=1e-3)
    assert gap == pytest.approx(st.ks_statistic(x, y), abs=1e-3)
    low, high = st.tails(x)
    exactly = [int(((s < low) | (s > high)).sum()) for s in (x, y)]
    assert outside == pytest.approx(exactly, abs=0.002 * ROWS)
    shares = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    step = 1.0 if kind == "whole" else x.std() / 100
    assert pair[0].quantiles(shares) == pytest.approx(samples.Sorted(x).quantiles(shares), abs=step)
    assert pair[1].at_most(x[::5000]) == pytest.approx(samples.Sorted(y).at_most(x[::5000]), abs=2e-3)


@pytest.mark.parametrize(
    "values",
    [
        np.exp(np.random.default_rng(0).normal(0, 3, ROWS)),
        np.round(np.random.default_rng(0).normal(size=ROWS), 1),
        np.full(ROWS, 3.5),
        np.r_[np.zeros(ROWS - 1), 1e300],
        1e12 + np.random.default_rng(0).random(ROWS),
    ],
    ids=["heavy tail", "ties", "constant", "one far away", "far offset"],
)
def test_values_that_no_grid_tells_apart_are_sorted(values):
    assert samples.counted(values, values, whole=False) is None
    assert drift(values, values).rows[0].state == "ok"


def test_large_frames_are_measured_in_threads_and_alike():
    r = np.random.default_rng(0)
    x, y = r.normal(size=(ROWS, 20)), r.normal(size=(ROWS, 20))
    y[:, 3] += 0.2
    report = drift(x, y)
    assert report.drifted == ("feature_3",)
    for row in report.rows[:3]:
        i = int(row.feature.removeprefix("feature_"))
        assert row.effect == pytest.approx(
            st.wasserstein_effect(np.sort(x[:, i]), np.sort(y[:, i])), abs=1e-3
        )
        assert row.ks == pytest.approx(stats.ks_2samp(x[:, i], y[:, i], method="asymp").statistic, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(some.integers(0, 10_000), some.sampled_from([300, 1000, 1500]))
def test_evidentlys_scores_are_those_of_the_tests_that_it_calls(seed, rows):
    r = np.random.default_rng(seed)
    reference = pd.DataFrame(
        {
            "x": r.normal(size=rows),
            "three": r.choice(list("abc"), rows),
            "two": r.random(rows) < 0.5,
            "few": r.integers(0, 4, rows),
        }
    )
    current = pd.DataFrame(
        {
            "x": r.normal(0.1, 1, 250),
            "three": r.choice(list("abc"), 250, p=[0.4, 0.3, 0.3]),
            "two": r.random(250) < 0.6,
            "few": r.integers(0, 4, 250),
        }
    )
    found = {row.feature: row for row in drift(reference, current, method="evidently").rows}
    if rows <= 1000:
        assert found["x"].p_value == stats.ks_2samp(reference["x"], current["x"]).pvalue
        for name in ("three", "few"):
            a, b = (frame[name].value_counts().sort_index().to_numpy(float) for frame in (reference, current))
            expected = stats.chisquare(b, a * 250 / rows).pvalue
            assert found[name].p_value == pytest.approx(expected, rel=1e-9)
            assert found[name].state == ("drift" if expected < 0.05 else "ok")
        p, q = reference["two"].mean(), current["two"].mean()
        pooled = (p * rows + q * 250) / (rows + 250)
        z = (p - q) / np.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / 250))
        assert found["two"].p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    else:
        effect = stats.wasserstein_distance(reference["x"], current["x"]) / np.std(reference["x"])
        assert found["x"].effect == pytest.approx(effect, rel=1e-9)
        a, b = (frame["three"].value_counts(normalize=True).sort_index() for frame in (reference, current))
        assert found["three"].effect == pytest.approx(distance.jensenshannon(a, b), rel=1e-9)
        assert found["three"].state == ("drift" if found["three"].effect >= 0.1 else "ok")


def test_what_evidently_does_not_look_at_says_so():
    frame = pd.DataFrame(
        {
            "Int64": pd.array(range(60), dtype="Int64"),
            "uint8": np.arange(60, dtype="uint8"),
            "when": pd.date_range("2024", periods=60),
            "text": [f"unlike {i}" for i in range(60)],
            "empty": np.full(60, np.nan),
        }
    )
    rows = {row.feature: row for row in drift(frame, frame, method="evidently").rows}
    assert {name: row.state for name, row in rows.items()} == {
        **dict.fromkeys(rows, "skipped"),
        "empty": "no-data",
    }
    assert rows["uint8"].note == "Evidently does not look at columns of type uint8"
    assert rows["text"].note == "Evidently trains a text classifier on such columns"
    assert drift({"c": ["x", "y", "z"] * 266}, {"c": ["x"] * 266 + ["NEW"]}, method="evidently").drifted == (
        "c",
    )


N = 60
DTYPES = {
    "int8": np.arange(N, dtype="int8"),
    "uint64": np.arange(N, dtype="uint64"),
    "float16": np.arange(N, dtype="float16"),
    "longdouble": np.arange(N, dtype=np.longdouble),
    "complex": np.arange(N) * 1j,
    "bool": np.arange(N) % 2 == 0,
    "boolean": pd.array([True, None] * (N // 2), dtype="boolean"),
    "Int64": pd.array([1, None] * (N // 2), dtype="Int64"),
    "Float32": pd.array([1.5, None] * (N // 2), dtype="Float32"),
    "string": pd.array(["a", None] * (N // 2), dtype="string"),
    "category": pd.Categorical(["a", "b"] * (N // 2)),
    "category of times": pd.Categorical(pd.date_range("2024", periods=2).repeat(N // 2)),
    "datetime": pd.date_range("2024", periods=N),
    "datetime with zone": pd.date_range("2024", periods=N, tz="UTC"),
    "timedelta": pd.timedelta_range("1s", periods=N),
    "period": pd.period_range("2024", periods=N, freq="D"),
    "interval": pd.interval_range(0, N),
    "sparse": pd.arrays.SparseArray([0.0, 1.0] * (N // 2)),
    "arrow int": pd.array(range(N), dtype="int32[pyarrow]"),
    "arrow bool": pd.array([True, None] * (N // 2), dtype="bool[pyarrow]"),
    "arrow text": pd.array(["a", None] * (N // 2), dtype="string[pyarrow]"),
    "arrow date": pd.array([datetime.date(2024, 1, 1)] * N, dtype="date32[pyarrow]"),
    "arrow duration": pd.array(pd.timedelta_range("1s", periods=N), dtype="duration[ns][pyarrow]"),
    "arrow decimal": pd.array(range(N), dtype="float64[pyarrow]"),
    "objects": [{"a": 1}] * N,
    "lists": [[1]] * N,
    "dates": [datetime.date(2024, 1, 1)] * N,
    "bytes": [b"a", b"b"] * (N // 2),
    "mixed": [1, "a"] * (N // 2),
    "all missing": [None] * N,
    "all NaN": np.full(N, np.nan),
    "constant": np.ones(N),
    "infinite": np.full(N, np.inf),
}
SKIPPED = {
    *("complex", "datetime", "datetime with zone", "period", "interval", "arrow date", "arrow duration"),
    *("objects", "lists", "dates"),
}
NO_DATA = {"all missing", "all NaN", "infinite"}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("method", ["auto", "evidently"])
def test_every_dtype_has_a_state(kind, method):
    frame = pd.DataFrame({"x": DTYPES[kind]})
    (row,) = drift(frame, frame, method=method).rows
    if method == "auto":
        assert row.state == ("skipped" if kind in SKIPPED else "no-data" if kind in NO_DATA else "ok")
    else:
        assert row.state in ("ok", "skipped", "no-data")
    assert row.note or row.state == "ok"
