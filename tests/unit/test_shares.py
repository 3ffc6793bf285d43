"""Shares of the traffic by counts of replicas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.targets.shares import percent_of, replicas_for

WEIGHTS = st.dictionaries(st.integers(1, 20), st.integers(1, 100), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("weights", "total", "replicas"),
    [
        ({1: 90, 2: 10}, 10, {1: 9, 2: 1}),
        ({1: 90, 2: 10}, 4, {1: 3, 2: 1}),
        ({1: 50, 2: 50}, 4, {1: 2, 2: 2}),
        ({1: 90, 2: 10}, 1, {1: 1, 2: 1}),
        ({1: 75, 2: 25}, 4, {1: 3, 2: 1}),
        ({1: 60, 2: 30, 3: 10}, 10, {1: 6, 2: 3, 3: 1}),
        ({7: 100}, 3, {7: 3}),
        ({7: 100}, 0, {7: 1}),
    ],
)
def test_replicas_are_divided_by_weight(weights, total, replicas):
    assert replicas_for(weights, total) == replicas


@given(WEIGHTS, st.integers(0, 200))
def test_each_gets_one_and_together_they_are_as_many_as_wanted(weights, total):
    found = replicas_for(weights, total)
    assert found.keys() == weights.keys()
    assert min(found.values()) >= 1
    assert sum(found.values()) == max(total, len(weights))


@given(WEIGHTS, st.integers(1, 200))
def test_more_weight_never_means_fewer_replicas(weights, total):
    found = replicas_for(weights, total)
    by_weight = sorted(weights, key=lambda k: (weights[k], -k))
    assert [found[k] for k in by_weight] == sorted(found.values())


@given(st.dictionaries(st.integers(1, 20), st.integers(0, 50), max_size=6))
def test_percent_add_up(replicas):
    found = percent_of(replicas)
    assert sum(found.values()) == (100 if any(replicas.values()) else 0)
    assert found.keys() == {k for k, n in replicas.items() if n}


@given(WEIGHTS.filter(lambda w: sum(w.values()) <= 100))
def test_what_a_hundred_replicas_can_do_exactly_is_done(weights):
    rest = 100 - sum(weights.values())
    whole = {**weights, 99: rest} if rest else weights
    assert percent_of(replicas_for(whole, 100)) == whole
