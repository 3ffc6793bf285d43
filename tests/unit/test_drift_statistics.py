from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays
from scipy import stats

from mlopsnb.monitoring import statistics as st

FLOATS = some.floats(-1e6, 1e6, allow_subnormal=False)
SMALL = some.integers(-4, 4).map(float)
SAMPLE = some.lists(FLOATS | SMALL, min_size=1, max_size=60).map(lambda v: np.sort(np.array(v)))
TIED = some.lists(SMALL, min_size=1, max_size=60).map(lambda v: np.sort(np.array(v)))
COUNTS = some.integers(1, 12).flatmap(
    lambda k: some.tuples(*[some.lists(some.integers(0, 300), min_size=k, max_size=k)] * 2)
)


@given(SAMPLE | TIED, SAMPLE | TIED)
def test_ks_is_scipys(x, y):
    ours = st.ks_statistic(x, y)
    p_value = st.ks_p_value(ours, len(x), len(y))
    with warnings.catch_warnings(record=True) as given_up:
        warnings.simplefilter("always")
        theirs = stats.ks_2samp(x, y, method="exact")
    assert ours == pytest.approx(theirs.statistic, abs=1e-12)
    # Scipy gives up on the exact way if its sum comes out a rounding error above 1.
    assert p_value == pytest.approx(1.0 if given_up else theirs.pvalue, rel=1e-9, abs=1e-14)


@settings(max_examples=30)
@given(some.integers(10, 400), some.integers(10, 400), some.floats(0.0, 3.0))
def test_exact_ks_p_value_is_scipys_far_into_the_tail(n, m, shift):
    rng = np.random.default_rng(n * 1000 + m)
    x, y = np.sort(rng.normal(size=n)), np.sort(rng.normal(shift, size=m))
    theirs = stats.ks_2samp(x, y, method="exact")
    assert st.ks_p_value(st.ks_statistic(x, y), n, m) == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-60)


@pytest.mark.parametrize(("n", "m"), [(1001, 30), (900, 800), (5000, 4000), (30, 9000)])
@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1, 0.2])
def test_limiting_ks_p_value_is_near_scipys(n, m, shift):
    rng = np.random.default_rng(1)
    x, y = np.sort(rng.normal(size=n)), np.sort(rng.normal(shift, size=m))
    theirs = stats.ks_2samp(x, y, method="exact").pvalue
    ours = st.ks_p_value(st.ks_statistic(x, y), n, m)
    assert ours == pytest.approx(theirs, abs=0.02)
    if theirs < 0.1:
        assert ours == pytest.approx(theirs, rel=0.1)


def test_ks_p_value_is_symmetric_and_bounded():
    assert st.ks_p_value(0.0, 40, 700) == 1.0
    assert st.ks_p_value(1.0, 40, 700) == st.ks_p_value(1.0, 700, 40)
    assert 0 < st.ks_p_value(1.0, 40, 700) < 1e-50
    assert st.ks_p_value(1.0, 10**6, 10**6) == 0.0


@given(SAMPLE | TIED, SAMPLE | TIED)
def test_wasserstein_is_scipys(x, y):
    assert st.wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x, y), rel=1e-9, abs=1e-9)


@given(SAMPLE)
def test_wasserstein_of_a_sample_with_its_repetition_is_zero(x):
    assert st.wasserstein(x, np.repeat(x, 3)) == 0.0
    assert st.ks_statistic(x, np.repeat(x, 3)) == 0.0


def test_wasserstein_effect_of_a_shift_is_the_shift_in_standard_deviations():
    x = np.sort(np.random.default_rng(0).normal(size=20_000))
    assert st.wasserstein_effect(x, x + 0.5) == pytest.approx(0.5, rel=0.01)
    assert st.wasserstein_effect(x, np.sort(x * 1.0)) == 0.0


def test_one_outlier_neither_makes_nor_hides_an_effect():
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=20_000)), rng.normal(size=20_000)
    y[0] = 1e6
    assert st.wasserstein_effect(x, np.sort(y)) < 0.03
    assert st.wasserstein_effect(np.sort(np.append(x, 1e6)), np.sort(y) + 1) == pytest.approx(1, rel=0.05)


@given(
    arrays.arrays(float, 50, elements=some.floats(-1, 1)),
    arrays.arrays(float, 40, elements=some.floats(-1, 1)),
    some.sampled_from([2.0**-1000, 2.0**-500, 2.0**400, 2.0**1000]),
)
def test_wasserstein_effect_has_no_scale(x, y, scale):
    x, y = np.sort(np.round(x, 3)), np.sort(np.round(y, 3))
    if len(np.unique(x)) > 1:
        scaled = st.wasserstein_effect(x * scale, y * scale)
        assert np.isfinite(scaled)
        assert scaled == pytest.approx(st.wasserstein_effect(x, y), rel=1e-9)


def test_reference_with_all_its_spread_in_the_tails_is_not_winsorised():
    x = np.sort(np.r_[np.zeros(9990), np.arange(1.0, 6.0), -np.arange(1.0, 6.0)])
    assert st.wasserstein_effect(x, np.sort(np.r_[np.zeros(5000), np.ones(5000)])) > 1


@given(COUNTS)
def test_chi_squared_is_scipys_where_nothing_is_rare(counts):
    a, b = np.array(counts, float) + 20
    if min(a.sum(), b.sum()) / (a.sum() + b.sum()) * (a + b).min() < st.MIN_EXPECTED:
        return
    ours = st.chi_squared(a, b)
    if len(a) == 1:
        assert ours == (0.0, 1.0)
    else:
        theirs = stats.chi2_contingency(np.vstack([a, b]), correction=False)
        assert ours == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-8, abs=1e-12)


@given(COUNTS)
def test_merging_keeps_the_rows_and_leaves_nothing_rare(counts):
    a, b = np.array(counts, float)
    if not (a.sum() and b.sum()):
        return
    x, y = st.merge_rare(a, b)
    assert (x.sum(), y.sum()) == (a.sum(), b.sum())
    expected = (x + y) * min(x.sum(), y.sum()) / (x.sum() + y.sum())
    assert len(x) == 1 or expected.min() >= st.MIN_EXPECTED - 1e-9
    again = st.merge_rare(x, y)
    assert (again[0].tolist(), again[1].tolist()) == (x.tolist(), y.tolist())


def test_one_row_of_a_new_level_is_no_evidence():
    assert st.chi_squared([266, 266, 266, 0], [265, 265, 265, 1])[1] > 0.5


def test_js_distance_known_answers():
    assert st.js_distance([1000, 0], [0, 1000]) == pytest.approx(np.sqrt(np.log(2)), abs=1e-3)
    assert st.js_distance([10, 20, 30], [10, 20, 30]) == 0.0
    a, b = np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.4, 0.2])
    many = 10**9
    m = (a + b) / 2
    expected = np.sqrt((stats.entropy(a, m) + stats.entropy(b, m)) / 2)
    assert st.js_distance(a * many, b * many) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(3000, 3000), (3000, 300), (400, 3000)])
def test_what_sampling_alone_adds_is_the_mean_over_deals_by_lot(n, m):
    totals = np.repeat([1, 2, 3, 5, 9, 20, 60], [200, 100, 60, 40, 20, 10, 5])
    totals = np.append(totals, n + m - totals.sum())
    dealt = np.random.default_rng(0).multivariate_hypergeometric(totals, m, size=3000, method="marginals")
    means = [st._divergences(totals - one, one, n, m).sum() for one in dealt.astype(float)]
    assert st._divergence_by_lot(totals.astype(float), n, m) == pytest.approx(np.mean(means), rel=0.02)


def test_drift_among_rare_levels_is_measured_as_what_it_is():
    """Of 1,000 levels most are met a few times; half of them become twice as frequent as the others."""
    rng = np.random.default_rng(1)
    before, now = np.full(1000, 1e-3), np.tile([2 / 3, 4 / 3], 500) * 1e-3
    expected = np.sqrt(
        (stats.entropy(before, (before + now) / 2) + stats.entropy(now, (before + now) / 2)) / 2
    )
    found = [st.js_distance(rng.multinomial(5000, before), rng.multinomial(5000, now)) for _ in range(20)]
    assert np.mean(found) == pytest.approx(expected, rel=0.06)
    alike = [st.js_distance(rng.multinomial(5000, before), rng.multinomial(5000, before)) for _ in range(20)]
    assert max(alike) < 0.75 * expected


def test_many_levels_are_no_drift_once_debiased():
    rng = np.random.default_rng(0)
    a, b = (np.bincount(rng.integers(0, 500, 5000), minlength=500) for _ in range(2))
    assert st.js_distance(a, b) < 0.05


@given(COUNTS)
def test_js_distance_is_symmetric_and_bounded(counts):
    a, b = np.array(counts, float)
    if a.sum() and b.sum():
        assert st.js_distance(a, b) == pytest.approx(st.js_distance(b, a), abs=1e-7)
        assert 0 <= st.js_distance(a, b) <= np.sqrt(np.log(2)) + 1e-12


@settings(max_examples=300)
@given(some.integers(1, 500), some.integers(1, 500), some.floats(0, 1), some.floats(0, 1))
def test_two_proportions_is_the_two_by_two_chi_squared_test_or_fishers(n, m, p, q):
    a, b = round(n * p), round(m * q)
    table = np.array([[a, n - a], [b, m - b]])
    if (table.sum(axis=0) == 0).any():
        theirs = 1.0
    elif stats.contingency.expected_freq(table).min() < st.MIN_EXPECTED:
        theirs = stats.fisher_exact(table).pvalue
    else:
        theirs = stats.chi2_contingency(table, correction=False).pvalue
    assert st.two_proportions(a, n, b, m) == pytest.approx(theirs, rel=1e-6, abs=1e-300)


def test_two_proportions_of_very_unequal_samples():
    assert st.two_proportions(2, 10**6, 1, 30) == pytest.approx(
        stats.fisher_exact([[2, 10**6 - 2], [1, 29]]).pvalue
    )


@given(COUNTS)
def test_gap_of_counts_is_the_ks_distance_of_the_binned_samples(counts):
    a, b = np.array(counts)
    if a.sum() and b.sum():
        x, y = (np.repeat(np.arange(len(c)), c) for c in (a, b))
        with np.errstate(divide="ignore"):  # in scipy's p-value of two single rows, which is not looked at
            expected = stats.ks_2samp(x, y, method="asymp").statistic
        assert st.gap_of_counts(a, b) == pytest.approx(expected, abs=1e-12)


@given(COUNTS, some.floats(0.1, 100))
def test_wasserstein_of_whole_counts_is_scipys(counts, width):
    a, b = np.array(counts, float)
    edges = width * np.arange(len(a))  # the last edge holds the last value; nothing lies beyond
    if a.sum() and b.sum() and len(a) > 1:
        theirs = stats.wasserstein_distance(edges, edges, a, b)
        ours = st.wasserstein_of_counts(edges, np.append(a, 0), np.append(b, 0), step=True)
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)


@settings(max_examples=25)
@given(some.integers(0, 10_000), some.floats(-1, 1), some.floats(0.5, 2))
def test_wasserstein_of_counts_is_scipys_up_to_the_bins(seed, shift, scale):
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.normal(size=3000)), np.sort(rng.normal(shift, scale, size=2000))
    edges = np.linspace(min(x[0], y[0]), max(x[-1], y[-1]), 400)
    a, b = (np.diff(np.searchsorted(s, edges, "right"), prepend=0, append=len(s)) for s in (x, y))
    width = edges[1] - edges[0]
    ours = st.wasserstein_of_counts(edges, a, b, step=False)
    assert ours == pytest.approx(stats.wasserstein_distance(x, y), abs=width / 2)
    assert st.spread_of_counts(edges, a) == pytest.approx(x.std(), abs=width)


@given(COUNTS)
def test_stability_index_is_the_sum_of_both_relative_entropies(counts):
    a, b = np.array(counts, float) + 30
    p, q = a / a.sum(), b / b.sum()
    theirs = stats.entropy(p, q) + stats.entropy(q, p)
    assert st.stability_index(a, b) == pytest.approx(theirs, rel=1e-8, abs=1e-12)


def test_stability_index_of_an_empty_bin_is_finite():
    assert st.stability_index([0, 10], [10, 0]) == pytest.approx(2 * 0.9999 * np.log(10_000), rel=1e-6)


@given(some.lists(some.floats(0, 1), min_size=1, max_size=50))
def test_q_values_are_scipys(p):
    assert st.q_values(np.array(p)) == pytest.approx(stats.false_discovery_control(p), abs=1e-15)


def test_no_p_values_have_no_q_values():
    assert st.q_values(np.array([])).tolist() == []
