from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlopsnb.tracking.fingerprint import data_digest


def frame():
    return pd.DataFrame(
        {
            "amount": [1.0, float("nan"), 0.0],
            "count": np.array([1, 2, 3], dtype="int32"),
            "country": ["de", "fr", None],
            "kind": pd.Categorical(["a", "b", "a"]),
            "when": pd.to_datetime(["2024-01-01", "2024-01-02", None]),
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "mixed": pd.Series([1, "1", b"1"], dtype=object),
        }
    )


def test_equal_frames_have_equal_digests():
    assert data_digest(frame()) == data_digest(frame())
    assert data_digest(frame()).startswith("sha256:")


def test_the_index_is_not_data():
    assert data_digest(frame().set_index(pd.Index([7, 8, 9]))) == data_digest(frame())


def test_layout_in_memory_is_not_data():
    values = np.arange(12.0).reshape(3, 4)
    assert data_digest(np.asfortranarray(values)) == data_digest(values)
    assert data_digest(values.astype(">f8")) == data_digest(values)


def test_zeros_and_missing_values_are_equal_as_pandas_has_it():
    odd = np.array([-0.0, -np.nan])
    assert pd.DataFrame(odd).equals(pd.DataFrame(-odd))
    assert data_digest(odd) == data_digest(-odd)


CHANGES = {
    "value": lambda f: f.assign(amount=[1.0, float("nan"), 1e-9]),
    "missing": lambda f: f.assign(amount=[1.0, 0.0, 0.0]),
    "type": lambda f: f.assign(count=f["count"].astype("int64")),
    "name": lambda f: f.rename(columns={"count": "counts"}),
    "column order": lambda f: f[["count", "amount", "country", "kind", "when", "nullable", "mixed"]],
    "row order": lambda f: f.iloc[[0, 2, 1]],
    "text": lambda f: f.assign(country=["de", "f", "r"]),
    "category": lambda f: f.assign(kind=pd.Categorical(["a", "b", "b"])),
    "unused category": lambda f: f.assign(kind=f["kind"].cat.add_categories("c")),
    "time": lambda f: f.assign(when=pd.to_datetime(["2024-01-01", "2024-01-03", None])),
    "nullable": lambda f: f.assign(nullable=pd.array([1, 0, 3], dtype="Int64")),
    "type inside": lambda f: f.assign(mixed=pd.Series(["1", 1, b"1"], dtype=object)),
    "rows": lambda f: f.iloc[:2],
    "columns": lambda f: f.drop(columns="when"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_changes_the_digest(change):
    assert data_digest(CHANGES[change](frame())) != data_digest(frame())


def test_words_are_told_apart_from_where_they_are_split():
    assert data_digest(np.array(["ab", "c"], dtype=object)) != data_digest(
        np.array(["a", "bc"], dtype=object)
    )


def test_a_dict_of_arrays_is_known_by_its_names_whatever_their_order():
    a, b = np.arange(3), np.arange(3.0)
    assert data_digest({"a": a, "b": b}) == data_digest({"b": b, "a": a})
    assert data_digest({"a": a, "b": b}) != data_digest({"a": b, "b": a})


def test_a_tensor_is_its_array():
    torch = pytest.importorskip("torch")
    values = np.arange(6, dtype="float32").reshape(2, 3)
    assert data_digest(torch.from_numpy(values)) == data_digest(values)


def test_the_middle_of_a_long_column_counts():
    values = np.zeros(3_000_000)
    changed = values.copy()
    changed[1_500_000] = 1.0
    assert data_digest(changed) != data_digest(values)


@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(max_dims=3, max_side=5)), st.data())
def test_one_changed_value_changes_the_digest(array, data):
    index = data.draw(st.integers(0, array.size - 1))
    other = array.copy()
    other.flat[index] = data.draw(hnp.from_dtype(array.dtype))
    before = data_digest(array)
    assert data_digest(array.copy()) == before
    same = np.array_equal(array, other, equal_nan=array.dtype.kind in "fcmM")
    assert (data_digest(other) == before) == same
