from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mlopsnb.notebook.example_search import Found, accepts, candidates, find_example, recognised


class Counting(nn.Module):
    """Notes each call, to show what the search does to a model."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.seen = []

    def forward(self, x):
        self.seen.append((tuple(x.shape), x.dtype, self.training, torch.is_grad_enabled()))
        return self.drop(self.norm(self.linear(x)))


def test_candidates_are_ranked_by_name_and_leave_answers_and_non_arrays_out():
    rows = np.zeros((3, 4))
    names = {
        **dict.fromkeys(("y_test", "labels", "unrelated", "df", "batch", "test_rows", "my_inputs"), rows),
        **dict.fromkeys(("example", "x_new", "X_train", "X", "X_valid", "X_test", "_X", "X_pred"), rows),
        "X_list": [1, 2],
        "X_empty": np.zeros((0, 4)),
        "X_scalar": np.float64(3),
        "x": np.array(3.0),
    }
    assert candidates(names) == [
        *("X_test", "X_valid", "X", "X_train", "x_new", "example", "my_inputs", "test_rows", "batch", "df"),
    ]


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((100, 4)),
        np.zeros((100, 4), np.float32),
        torch.zeros(100, 4),
        torch.zeros(100, 4, dtype=torch.float64),
        pd.DataFrame(np.zeros((100, 4)), columns=list("abcd")),
    ],
    ids=["float64", "float32", "tensor", "double tensor", "frame"],
)
def test_rows_of_every_kind_are_tried_in_the_models_dtype(rows):
    model = Counting()
    found = find_example(model, {"X_test": rows})
    assert found is not None
    assert found.expression == "X_test[:64]"
    assert type(found.value) is type(rows)
    assert found.value.shape == (64, 4)
    assert model.seen == [((2, 4), torch.float32, False, False)]


def test_the_first_that_the_model_accepts_is_taken():
    wide, fits = np.zeros((5, 7)), np.ones((5, 4))
    found = find_example(nn.Linear(4, 2), {"batch": fits, "X_test": wide, "words": np.array(["a"])})
    assert found == Found("batch[:64]", found.value)
    np.testing.assert_array_equal(found.value, fits)


def test_nothing_fits():
    assert find_example(nn.Linear(4, 2), {"X_test": np.zeros((5, 7)), "other": np.zeros((5, 4))}) is None


def test_the_model_is_left_as_it_was():
    model = Counting().train()
    model.drop.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert accepts(model, np.ones((2, 4)))
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.rand(1) == expected


def test_a_refusal_restores_the_training_flag():
    model = Counting().train()
    assert not accepts(model, np.ones((2, 9)))
    assert model.training


def test_tokens_for_an_embedding():
    model = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(6, 1))
    found = find_example(model, {"X": np.zeros((5, 6)), "input_ids": np.zeros((5, 2), np.int64)})
    assert found is not None
    assert found.expression == "input_ids[:64]"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_modules_and_modules_without_parameters():
    assert accepts(torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4)), np.zeros((2, 4)))
    assert accepts(nn.ReLU(), np.zeros((2, 4)))


def test_other_objects_are_not_tried():
    assert not recognised(object())
    assert not recognised(lambda x: x)
    assert not accepts(lambda x: x, np.zeros((2, 4)))


def test_tensorflow():
    tf = pytest.importorskip("tensorflow")

    class Scale(tf.Module):
        def __init__(self):
            self.weights = tf.Variable([[1.0], [2.0]])

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
        def __call__(self, x):
            return x @ self.weights

    keras_model = tf.keras.Sequential([tf.keras.layers.Input((2,)), tf.keras.layers.Dense(1)])
    for model in (Scale(), keras_model):
        assert recognised(model)
        found = find_example(model, {"X_test": np.zeros((5, 3)), "X": np.zeros((5, 2))})
        assert found is not None
        assert found.expression == "X[:64]"
        assert accepts(model, tf.zeros((2, 2)))
