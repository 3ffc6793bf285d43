from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp

from mlopsnb.errors import ExportError, UserError
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.tensors import arrange, dtype_name, flatten_outputs, read_example, specs_of, take_rows, to_array


def signature(*specs):
    return Signature(inputs=specs, outputs=())


X = TensorSpec(name="x", dtype="float32", shape=(None, 2))
FRAME = TensorSpec(name="x", dtype="float32", shape=(None, 2), feature_names=("age", "income"))
IDS = TensorSpec(name="ids", dtype="int64", shape=(None,))


def test_one_array_is_one_positional_input():
    example = read_example(np.ones((3, 2)))
    assert [a.shape for a in example.positional] == [(3, 2)]
    assert not example.named


def test_tensors_frames_and_lists_become_arrays():
    example = read_example(
        (torch.ones(2, 3, requires_grad=True), pd.DataFrame({"a": [1, 2]}), [[1.0], [2.0]])
    )
    assert [(a.shape, dtype_name(a)) for a in example.positional] == [
        ((2, 3), "float32"),
        ((2, 1), "int64"),
        ((2, 1), "float64"),
    ]
    assert example.feature_names == {1: ("a",)}


def test_bfloat16_and_nullable_columns_become_floats():
    assert dtype_name(to_array(torch.ones(2, dtype=torch.bfloat16))) == "float32"
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [1.5, 2.5]})
    np.testing.assert_array_equal(to_array(frame), [[1, 1.5], [np.nan, 2.5]])


def test_text_is_an_array_of_strings():
    for value in (["a", "bc"], np.array(["a", "bc"]), np.array([b"a", b"bc"]), np.array(["a", "bc"], object)):
        array = to_array(value)
        assert (dtype_name(array), list(array)) == ("str", ["a", "bc"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "the example is empty"),
        (3.0, "a single number"),
        (np.ones((0, 2)), "no rows"),
        ((np.ones((3, 2)), np.ones((2, 2))), r"different numbers of rows \(0: 3, 1: 2\)"),
        ([[1, 2], [3]], "is no array"),
        (np.array([1 + 2j]), "dtype complex128"),
        (np.array(["2020-01-01"], "datetime64[D]"), "dtype datetime64"),
        (np.array(["a", 1], object), "mixes int, str"),
        (pd.DataFrame({"a": ["x"], "b": [1]}), r"columns that are not numbers: 'a'"),
        (pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}), r"'when' \(datetime64"),
    ],
)
def test_what_cannot_be_an_example_says_why(value, message):
    with pytest.raises(UserError, match=message):
        read_example(value)


@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(max_dims=3)))
def test_any_array_is_taken_or_refused_with_our_own_error(array):
    try:
        example = read_example(array)
    except UserError:
        return
    assert example.positional[0].shape == array.shape


def test_rows_are_repeated_in_turn_and_scalars_kept():
    taken = take_rows({"x": np.array([1, 2, 3]), "k": np.array(5)}, 5)
    assert (list(taken["x"]), taken["k"]) == ([1, 2, 3, 1, 2], 5)


def test_specs_free_the_rows_and_note_missing_values():
    specs = specs_of({"x": np.array([[1.0, np.nan]], "float32")}, feature_names={"x": ("a", "b")})
    assert specs == (
        TensorSpec(name="x", dtype="float32", shape=(None, 2), feature_names=("a", "b"), allow_nan=True),
    )


def test_a_frame_is_matched_by_column_name_whatever_the_order():
    frame = pd.DataFrame({"income": [10.0], "id": [7], "age": [3]})
    np.testing.assert_array_equal(arrange(frame, signature(FRAME))["x"], np.array([[3, 10]], "float32"))
    with pytest.raises(UserError, match="columns income are missing; found age"):
        arrange(frame[["age"]], signature(FRAME))


def test_a_frame_feeds_several_inputs_by_column():
    ages = TensorSpec(name="age", dtype="float32", shape=(None,))
    out = arrange(pd.DataFrame({"ids": [1, 2], "age": [3.0, 4.0]}), signature(ages, IDS))
    assert {k: (list(v), dtype_name(v)) for k, v in out.items()} == {
        "age": ([3.0, 4.0], "float32"),
        "ids": ([1, 2], "int64"),
    }


def test_names_and_counts_must_fit():
    both = signature(X, IDS)
    with pytest.raises(UserError, match=r"takes 2 inputs \(x, ids\); found 1"):
        arrange(np.ones((1, 2)), both)
    with pytest.raises(UserError, match="missing: ids; unknown: idz"):
        arrange({"x": np.ones((1, 2)), "idz": [1]}, both)
    with pytest.raises(UserError, match="the model's inputs are x, ids; found y"):
        arrange({"y": 1}, both)


def test_values_are_cast_where_nothing_is_lost():
    assert dtype_name(arrange(np.ones((1, 2)), signature(X))["x"]) == "float32"
    assert list(arrange(np.array([1.0, 2.0]), signature(IDS))["ids"]) == [1, 2]
    with pytest.raises(UserError, match="not whole"):
        arrange(np.array([1.5]), signature(IDS))
    small = TensorSpec(name="n", dtype="int8", shape=(None,))
    with pytest.raises(UserError, match="outside its range"):
        arrange(np.array([300]), signature(small))
    with pytest.raises(UserError, match="takes int64, found str"):
        arrange(["a"], signature(IDS))


def test_outputs_are_named_by_their_place():
    class Pair(NamedTuple):
        mean: float
        rest: object

    def flat(raw):
        return flatten_outputs(raw, lambda v: isinstance(v, float))

    assert flat(1.0) == {"output": 1.0}
    assert flat((1.0, [2.0, {"a": 3.0}], None)) == {"output_0": 1.0, "output_1_0": 2.0, "output_1_1_a": 3.0}
    assert flat({"a": 1.0, "b": None, "c": (2.0, 3.0)}) == {"a": 1.0, "c_0": 2.0, "c_1": 3.0}
    assert flat(Pair(1.0, Pair(2.0, 3.0))) == {"mean": 1.0, "rest_mean": 2.0, "rest_rest": 3.0}
    for raw, found in [("x", "output: str"), ((1.0, 2), "output_1: int"), ({}, "nothing"), (None, "nothing")]:
        with pytest.raises(ExportError, match=f"found {found}"):
            flat(raw)
