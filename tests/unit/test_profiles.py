from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from mlopsnb import profiles
from mlopsnb.profiles import BadProfile, DriftProfile, Feature, Tally

PROFILE = DriftProfile(
    rows=100,
    features=(
        Feature(name="x", tensor="input", column=0, edges=(0.0, 1.0, 2.0), counts=(10, 40, 40, 8), missing=2),
        Feature(name="y", tensor="input", column=1, edges=(0.5,), counts=(50, 50), mean=1.0, std=2.0),
        Feature(name="city", tensor="city", kind="category", levels=("Bonn", "Ulm"), rare=("Köln",), counts=(60, 39, 1, 0)),
        Feature(name="flag", tensor="flag", kind="category", levels=(True, False), counts=(60, 40, 0, 0)),
        Feature(name="id", tensor="id", kind="category", levels=("a",), complete=False, counts=(1, 99, 0)),
        Feature(name="when", skipped="datetime64 is not compared"),
        Feature(name="score", tensor="output", role="output", edges=(0.5,), counts=(50, 50)),
    ),
)  # fmt: skip
NAN, INF = float("nan"), float("inf")


def cells(tally, index):
    return tally.cells[tally.profile.places[index]].tolist()


def test_json_brings_back_what_was_written():
    again = profiles.from_json(profiles.to_json(PROFILE))
    assert again == PROFILE
    assert again.digest == PROFILE.digest
    assert again.features[3].levels[0] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "that is no profile"),
        ("[]", "that is no profile"),
        ('{"protocol": 2}', "the profile has protocol 2; this mlopsnb reads 1"),
        ('{"protocol": 1, "rows": 1, "features": [{"name": "x"}]}', "that is no profile"),
        (profiles.to_json(PROFILE).replace("[50,50]", "[50]"), "y has 1 counts for 2 bins"),
        (profiles.to_json(PROFILE).replace('"rows"', '"rowz"'), "that is no profile"),
    ],
)
def test_what_is_no_profile_is_refused(text, message):
    with pytest.raises(BadProfile, match=message):
        profiles.from_json(text)


def test_rows_are_counted_on_the_bins():
    tally = Tally(PROFILE)
    rows = np.array([[0.0, 1], [0.5, 3], [1.0, NAN], [9.0, 1], [NAN, 1], [INF, -INF]], np.float32)
    city = np.array(["Ulm", "Köln", "Rom", None, "Ulm", NAN], object)
    flags = np.array([True, True, False, True, True, True])
    inputs = {"input": rows, "city": city, "flag": flags, "id": np.array(list("abbbbb"), object)}
    tally.add_tensors(inputs, "input")
    tally.add_tensors({"output": np.array([0.1, 0.6, 0.7, 0.8, 0.9, 1.0])}, "output")
    assert tally.rows == 6
    assert cells(tally, 0) == [1, 2, 0, 1, 2, 1]
    assert cells(tally, 1) == [0, 4, 2, 1]
    assert cells(tally, 2) == [0, 2, 1, 1, 2, 0]
    assert cells(tally, 3) == [5, 1, 0, 0, 0, 0]
    assert cells(tally, 4) == [1, 5, 0, 0, 0]
    assert cells(tally, 5) == [0, 0]
    assert cells(tally, 6) == [1, 5, 0, 0]
    assert tally.sums[2:4].tolist() == [1.0, 1.0]


@given(some.lists(some.sampled_from([-2.0, 0.0, 0.3, 1.0, 1.5, 2.0, 7.0, NAN, INF, -INF])))
def test_cells_are_numpys_histogram(values):
    tally = Tally(PROFILE)
    tally.add_column(0, np.array(values, float))
    finite = [v for v in values if np.isfinite(v)]
    bins = np.bincount(np.searchsorted(PROFILE.features[0].edges, finite, "left"), minlength=4)
    infinite = sum(np.isinf(values)) if values else 0
    assert cells(tally, 0) == [*bins.tolist(), len(values) - len(finite), infinite]


@given(some.lists(some.lists(some.floats() | some.just(NAN), max_size=5), max_size=5))
def test_snapshots_merge_by_addition(parts):
    whole, taken = Tally(PROFILE), []
    for start, part in enumerate(parts):
        block = np.array(part, float)
        whole.add_column(0, block)
        one = Tally(PROFILE)
        one.add_column(0, block)
        taken.append(one.take(start, start + 1))
        assert not one.cells.any()
    if taken:
        merged = profiles.merge(taken)
        assert merged.cells.tolist() == whole.cells.tolist()
        assert merged.sums == pytest.approx(whole.sums)
        assert (merged.start, merged.end) == (0, len(parts))


def test_the_same_windows_of_replicas_become_one():
    tally = Tally(PROFILE)
    taken = []
    for start in (300, 0, 300):
        tally.add_tensors({"input": np.zeros((2, 2))}, "input")
        taken.append(tally.take(start, start + 300))
    windows = profiles.by_window(taken)
    assert [(w.start, w.end, w.rows, int(w.cells[0])) for w in windows] == [(0, 300, 2, 2), (300, 600, 4, 4)]


def test_snapshots_survive_json():
    tally = Tally(PROFILE)
    tally.add_tensors({"input": np.array([[0.5, 1e30]])}, "input")
    taken = tally.take(1.5, 2.5)
    again = profiles.read_snapshot(json.loads(json.dumps(profiles.snapshot_document(taken))), PROFILE)
    assert (again.start, again.end, again.rows) == (1.5, 2.5, 1)
    assert again.cells.tolist() == taken.cells.tolist()
    assert again.sums.tolist() == taken.sums.tolist()
    assert again.sums[2] == profiles.FARTHEST


def test_counters_of_another_profile_are_refused():
    document = profiles.snapshot_document(Tally(PROFILE).take(0, 1))
    other = DriftProfile(rows=1, features=PROFILE.features[:2])
    with pytest.raises(BadProfile, match="33 counters where the profile has 10"):
        profiles.read_snapshot(document, other)
    for wrong in ({}, {**document, "cells": "???"}, {**document, "sums": "AAAA"}, {**document, "rows": "x"}):
        with pytest.raises(BadProfile, match="the counters do not fit the profile"):
            profiles.read_snapshot(wrong, PROFILE)


def test_the_module_needs_numpy_only():
    heavy = {"pandas", "scipy", "matplotlib", "mlflow", "mlopsnb.monitoring"}
    code = f"import sys, mlopsnb.profiles; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
