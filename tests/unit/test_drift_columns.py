from __future__ import annotations

import datetime
import decimal
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from mlopsnb.errors import UserError
from mlopsnb.monitoring.columns import Levels, Numbers, Unsupported, clean, pair_columns, read_table


def columns(value, **options):
    table = read_table(value, "the data", **options)
    return {name: np.asarray(column).tolist() for name, column in table.columns.items()}, table.named


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.arange(3), ({"feature_0": [0, 1, 2]}, False)),
        (np.arange(4).reshape(2, 2), ({"feature_0": [0, 2], "feature_1": [1, 3]}, False)),
        ([1, 2, None], ({"feature_0": [1, 2, None]}, False)),
        ([[1, "a"], [2, "b"]], ({"feature_0": [1, 2], "feature_1": ["a", "b"]}, False)),
        (["a", "b"], ({"feature_0": ["a", "b"]}, False)),
        (torch.tensor([[1.0, 2.0]], requires_grad=True), ({"feature_0": [1.0], "feature_1": [2.0]}, False)),
        (torch.tensor([1.5], dtype=torch.bfloat16), ({"feature_0": [1.5]}, False)),
        ({"a": [1, 2], 3: np.array([True, False])}, ({"a": [1, 2], "3": [True, False]}, True)),
        ({"a": torch.tensor([1, 2])}, ({"a": [1, 2]}, True)),
        (pd.DataFrame({"a": [1, 2], 7: ["x", "y"]}), ({"a": [1, 2], "7": ["x", "y"]}, True)),
        (pd.Series([1, 2], name="age"), ({"age": [1, 2]}, False)),
        (pd.Series([1, 2]), ({"feature_0": [1, 2]}, False)),
    ],
    ids=str,
)
def test_what_users_hold_becomes_columns(value, found):
    assert columns(value) == found


def test_outputs_have_names_of_their_own():
    assert columns(np.zeros(1), prefix="output", single="output") == ({"output": [0.0]}, False)
    assert columns(np.zeros((1, 2)), prefix="output", single="output") == (
        {"output_0": [0.0], "output_1": [0.0]},
        False,
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 3, 4)), "the data has 3 axes, shape (2, 3, 4)"),
        (np.zeros(()), "the data has 0 axes"),
        (np.zeros((2, 0)), "the data has no columns"),
        ({}, "the data has no columns"),
        (pd.DataFrame(), "the data has no columns"),
        ({"a": [1, 2], "b": [1]}, "different lengths (a: 2, b: 1)"),
        ({"a": [[1, 2]]}, "column 'a' has shape (1, 2)"),
        ({"a": 3}, "column 'a' is a int"),
        ([[1, 2], [3]], "the data is no table"),
        ("hello", "the data is a str"),
        (None, "the data is a NoneType"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "more than one column named 'a'"),
        ({1: [1], "1": [2]}, "more than one column named '1'"),
    ],
    ids=str,
)
def test_what_is_no_table_is_refused(value, message):
    with pytest.raises(UserError) as caught:
        read_table(value, "the data")
    assert message in caught.value.message


def pairs(reference, current):
    return [
        (name, list(a), list(b))
        for name, a, b in pair_columns(
            read_table(reference, "the reference"), read_table(current, "the current data"), "the columns"
        )
    ]


def test_columns_are_matched_by_name_where_both_have_names():
    assert pairs({"a": [1], "b": [2]}, pd.DataFrame({"b": [3], "a": [4]})) == [
        ("a", [1], [4]),
        ("b", [2], [3]),
    ]


def test_an_array_is_matched_by_position():
    assert pairs({"a": [1], "b": [2]}, np.array([[3, 4]])) == [("a", [1], [3]), ("b", [2], [4])]
    assert pairs(np.array([[3, 4]]), {"a": [1], "b": [2]}) == [("a", [3], [1]), ("b", [4], [2])]
    assert pairs(pd.Series([1], name="old"), pd.Series([2], name="new")) == [("old", [1], [2])]


def test_columns_that_differ_are_named_with_the_nearest():
    with pytest.raises(UserError) as caught:
        pairs({"age": [1], "income": [2]}, {"age": [1], "incme": [2], "zip": [3]})
    assert caught.value.message == (
        "the columns differ: the current data has missing 'income', extra 'incme', 'zip'"
    )
    assert caught.value.hint == "'income': did you mean 'incme'?"


def test_a_missing_column_alone_is_named():
    with pytest.raises(UserError, match="the current data has missing 'b'"):
        pairs({"a": [1], "b": [2]}, {"a": [1]})


def test_arrays_of_different_widths_are_refused():
    with pytest.raises(UserError, match="2 columns in the reference, 3 in the current data"):
        pairs(np.zeros((1, 2)), np.zeros((1, 3)))


def test_many_differing_columns_are_not_all_listed():
    with pytest.raises(UserError, match="and 90 more"):
        pairs({f"c{i}": [1] for i in range(100)}, {"other": [1]})


NAN = float("nan")


def numbers(column):
    assert isinstance(column, Numbers)
    return column.values.tolist(), column.rows, column.missing, column.infinite, column.whole, column.narrow


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (np.array([3, 1, 2], "uint8"), ([1, 2, 3], 3, 0, 0, True, False)),
        (np.array([2, -1], "int64"), ([-1, 2], 2, 0, 0, True, False)),
        (np.array([2**64 - 1], "uint64"), ([float(2**64)], 1, 0, 0, True, False)),
        (np.array([2, NAN, np.inf, -np.inf, 1]), ([1, 2], 5, 3, 2, False, False)),
        (np.array([0.5, 0.25], "float32"), ([0.25, 0.5], 2, 0, 0, False, True)),
        (np.array([0.5], "float16"), ([0.5], 1, 0, 0, False, True)),
        (np.array([np.longdouble("1e4000"), 1]), ([1], 2, 1, 1, False, False)),
        (np.array([None, 2, 1.5], object), ([1.5, 2], 3, 1, 0, False, False)),
        (np.array([None, None], object), ([], 2, 2, 0, True, False)),
        (np.array([decimal.Decimal("1.5"), decimal.Decimal("NaN")], object), ([1.5], 2, 1, 0, False, False)),
        (pd.Series([1, None, 3], dtype="Int64"), ([1, 3], 3, 1, 0, True, False)),
        (pd.Series([200, 7], dtype="UInt8"), ([7, 200], 2, 0, 0, True, False)),
        (pd.Series([1.5, None], dtype="Float32"), ([1.5], 2, 1, 0, False, True)),
        (np.array([3000, "NaT"], "timedelta64[ms]"), ([3], 2, 1, 0, False, False)),
        (pd.Series(pd.to_timedelta([2, None], unit="s")), ([2], 2, 1, 0, False, False)),
        (pd.Series([1.5, None], dtype="float64[pyarrow]"), ([1.5], 2, 1, 0, False, False)),
        (pd.Series([1, None], dtype="int64[pyarrow]"), ([1], 2, 1, 0, True, False)),
        (pd.Series(pd.arrays.SparseArray([0.0, 2.0])), ([0, 2], 2, 0, 0, False, False)),
        (pd.Series([1, pd.NA, "x"], dtype=object)[:2], ([1], 2, 1, 0, True, False)),
    ],
    ids=repr,
)
def test_numbers_are_sorted_and_their_missing_counted(raw, found):
    assert numbers(clean(raw)) == found


@pytest.mark.parametrize(
    ("raw", "counts", "missing"),
    [
        (np.array([True, False, True]), {True: 2, False: 1}, 0),
        (np.array([True, True]), {True: 2}, 0),
        (np.array(["a", "b", "a"]), {"a": 2, "b": 1}, 0),
        (np.array([b"a"]), {b"a": 1}, 0),
        (np.array(["a", None, NAN, "b"], object), {"a": 1, "b": 1}, 2),
        (np.array([True, None], object), {True: 1}, 1),
        (np.array(["a", 1], object), {"a": 1, 1: 1}, 0),
        (pd.Series(["a", None, "a"], dtype="category"), {"a": 2}, 1),
        (pd.Series(pd.Categorical(["a"], categories=["a", "unused"])), {"a": 1}, 0),
        (pd.Series(pd.Categorical([3, 3, 1])), {3: 2, 1: 1}, 0),
        (pd.Series([True, None], dtype="boolean"), {True: 1}, 1),
        (pd.Series([True, None], dtype="bool[pyarrow]"), {True: 1}, 1),
        (pd.Series(["a", None], dtype="string"), {"a": 1}, 1),
        (pd.Series(["a", None], dtype="string[pyarrow]"), {"a": 1}, 1),
        (pd.Series(["a", None]), {"a": 1}, 1),
        (pd.Series(["a", "b"], dtype=object), {"a": 1, "b": 1}, 0),
    ],
    ids=repr,
)
def test_levels_are_counted(raw, counts, missing):
    assert clean(raw) == Levels(counts=counts, rows=len(raw), missing=missing)


@pytest.mark.parametrize(
    ("raw", "reason", "missing"),
    [
        (np.array(["2024-01-01", "NaT"], "datetime64[D]"), "datetime64[D]", 1),
        (np.array([1j]), "complex128", 0),
        (np.array([datetime.date(2024, 1, 1), None], object), "datetime", 1),
        (np.array([np.timedelta64(1, "s")], object), "datetime", 0),
        (np.array([{"a": 1}, None], object), "values of type dict", 1),
        (np.array([10**400, 1], object), "numbers too large", 0),
        (pd.Series(pd.to_datetime(["2024-01-01", None], utc=True)), "datetime64[", 1),
        (pd.Series(pd.period_range("2024", periods=1, freq="M")), "period[M]", 0),
        (pd.Series(pd.interval_range(0, 1)), "interval", 0),
        (pd.Series([[1], [2]]), "values of type list", 0),
    ],
    ids=repr,
)
def test_what_cannot_be_compared_says_why(raw, reason, missing):
    column = clean(raw)
    assert isinstance(column, Unsupported)
    assert column.reason.startswith(reason)
    assert (column.rows, column.missing) == (len(raw), missing)


def test_objects_are_understood_without_pandas(monkeypatch):
    monkeypatch.delitem(sys.modules, "pandas")
    assert clean(np.array(["a", None, NAN], object)) == Levels(counts={"a": 1}, rows=3, missing=2)
