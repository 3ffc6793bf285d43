import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlopsnb import parity
from mlopsnb.errors import ExportError, ParityError

X = {"x": np.arange(12, dtype="float32").reshape(4, 3) - 5}


def double(inputs):
    return {"output": inputs["x"] * 2}


def test_equal_models_pass_in_every_case():
    report = parity.prove(double, double, X)
    parity.require(report)
    assert {c.case for c in report.checks} >= {
        "the example (4 rows)",
        "batch of 1",
        "batch of 2",
        "batch of 7",
        "batch of 64",
        "row 3 alone",
        "values negated",
        "values x 100",
        "dtype float64",
        "dtype float16",
    }
    assert (report.max_abs_error, report.max_rel_error, report.rows) == (0.0, 0.0, 4)
    assert report.original_ms > 0
    assert report.exported_ms > 0


def test_the_error_names_the_output_the_case_and_the_worst_place():
    def wrong(inputs):
        out = inputs["x"] * 2
        out[-1, 1] += 1 if len(out) == 4 else 0
        return {"output": out}

    with pytest.raises(
        ParityError, match=r"output 'output' differs in \d+ of \d+ checks; worst on .* at \[3, 1\]"
    ):
        parity.require(parity.prove(double, wrong, X))


def test_a_baked_in_branch_is_found_on_values_the_example_does_not_hold():
    def original(inputs):
        x = inputs["x"]
        return {"output": x if x.sum() > 0 else -x}

    positive = {"x": np.abs(X["x"]) + 1}
    with pytest.raises(ParityError, match="values negated|values random"):
        parity.require(parity.prove(original, lambda i: {"output": i["x"]}, positive))


def test_a_small_column_is_not_excused_by_a_large_one():
    def original(inputs):
        x = np.abs(inputs["x"]) + 1
        return {"output": np.stack([x[:, 0] * 1e6, x[:, 1] * 1e-3], axis=1)}

    def wrong(inputs):
        out = original(inputs)["output"].copy()
        out[:, 1] *= 1.01
        return {"output": out}

    with pytest.raises(ParityError, match=", 1\\]: original"):
        parity.require(parity.prove(original, wrong, X))


def test_rounding_is_no_difference_and_a_given_tolerance_replaces_the_default():
    def rounded(inputs):
        x = inputs["x"]
        return {"output": x * 2 * x.dtype.type(1 + 4 * np.finfo(x.dtype).eps)}

    parity.require(parity.prove(double, rounded, X))
    with pytest.raises(ParityError, match="tolerance 1e-08"):
        parity.require(parity.prove(double, rounded, X, tolerance=1e-8))


@pytest.mark.parametrize(
    ("wanted", "found", "equal"),
    [
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 3], False),
        ([True, False], [True, True], False),
        ([np.nan, 1.0], [np.nan, 1.0], True),
        ([np.nan, 1.0], [0.0, 1.0], False),
        ([np.inf, 1.0], [np.inf, 1.0], True),
        ([np.inf, 1.0], [-np.inf, 1.0], False),
        ([1.0, 2.0], [1.0, 2.0, 3.0], False),
        ([1.0, 2.0], np.array([1.0, 2.0], "float32"), False),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
        ([], [], True),
    ],
)
def test_what_is_equal(wanted, found, equal):
    report = parity.compare({"y": np.asarray(wanted)}, {"y": np.asarray(found)})
    assert [c.equal for c in report.checks] == [equal]


@given(
    hnp.arrays("float32", hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)),
    st.sampled_from(["float16", "float32", "float64"]),
)
def test_anything_equals_itself_and_a_shifted_copy_does_not(array, dtype):
    with np.errstate(over="ignore"):
        array = array.astype(dtype)
    assert parity.failure(parity.compare({"y": array}, {"y": array.copy()})) is None
    finite = array[np.isfinite(array)]
    shift = 1 + 4 * float(np.abs(finite).max(initial=0))
    with np.errstate(over="ignore"):
        moved = (array.astype("float64") + shift).astype(dtype)
    if array.size and np.isfinite(array).any() and not np.array_equal(array, moved, equal_nan=True):
        assert parity.failure(parity.compare({"y": array}, {"y": moved})) is not None


def test_a_missing_output_and_an_extra_one_are_differences():
    report = parity.compare({"a": np.ones(2)}, {"b": np.ones(2)})
    assert [(c.output, c.equal) for c in report.checks] == [("a", False), ("b", False)]


def test_a_different_shape_says_both():
    error = parity.failure(parity.compare({"y": np.ones(2)}, {"y": np.ones(1, "float32")}))
    assert error.message.endswith("worst on the golden example: original float64[2], export float32[1]")


def test_an_export_that_refuses_a_dtype_is_noted_and_one_that_refuses_a_batch_fails():
    def picky(inputs):
        if inputs["x"].dtype != "float32":
            raise TypeError("float32 only")
        return double(inputs)

    report = parity.prove(double, picky, X)
    parity.require(report)
    assert report.notes == ("the original takes float16, float64 too, the export does not",)

    def baked(inputs):
        if len(inputs["x"]) != 4:
            raise ValueError("expected 4 rows")
        return double(inputs)

    with pytest.raises(ParityError, match="fails where the original works, on .*expected 4 rows"):
        parity.require(parity.prove(double, baked, X))


def test_an_original_that_is_random_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ParityError, match="not deterministic.*\n.*dropout"):
        parity.check_original(lambda i: {"output": i["x"] * rng.random()}, X)


@pytest.mark.parametrize(
    "original",
    [
        lambda i: {"output": i["x"].reshape(4, 3)},
        lambda i: {"output": np.zeros((4, 3), "float32")},
    ],
)
def test_an_original_that_bakes_in_the_batch_size_is_refused(original):
    with pytest.raises(ParityError, match="bakes in the batch size"):
        parity.check_original(original, X)


def test_outputs_that_follow_the_rows_are_told_from_constant_ones():
    def original(inputs):
        x = inputs["x"]
        return {"rows": x * 2, "constant": np.ones(3, "float32")}

    for rows in (1, 4):
        assert parity.check_original(original, {"x": X["x"][:rows]}) == {"rows"}


def test_rows_on_another_axis_are_refused():
    with pytest.raises(ParityError, match=r"puts the rows elsewhere: .* output 'output' has shape \[3, \d\]"):
        parity.check_original(lambda i: {"output": i["x"].T}, X)


def test_a_model_that_fails_on_its_example_says_so_with_the_shapes():
    def broken(inputs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(
        ExportError, match=r"fails on the example \(x float32\[4, 3\]\): RuntimeError: mat1 and mat2"
    ):
        parity.check_original(broken, X)


def test_whole_numbers_stay_within_the_range_of_the_example():
    ids = {"ids": np.array([[1, 2], [7, 3]])}
    seen = [c.inputs["ids"] for c in parity.cases(ids)]
    assert min(a.min() for a in seen) >= 1
    assert max(a.max() for a in seen) <= 7


def test_a_difference_is_that_of_the_report_and_nothing_is_timed():
    calls = []

    def counted(inputs):
        calls.append(len(inputs["x"]))
        return double(inputs)

    report = parity.prove(double, double, X)
    assert parity.difference(double, counted, X) is None
    assert len(calls) == len(report.checks)  # each case once

    def wrong(inputs):
        return {"output": inputs["x"] * 2 + 1}

    told = parity.failure(parity.prove(double, wrong, X))
    assert str(parity.difference(double, wrong, X)) == str(told)


def test_the_original_runs_each_case_once_however_often_it_is_compared():
    asked = []

    def counted(inputs):
        asked.append(inputs["x"].tobytes())
        return {"output": inputs["x"] * 2}

    original = parity.Original(counted)
    assert parity.difference(original, double, X) is None
    once = len(asked)
    assert parity.difference(original, double, X) is None
    assert len(asked) == once == len(list(parity.cases(X)))
    original(X)
    assert len(asked) == once + 1


def test_answers_that_take_too_much_memory_are_asked_for_again(monkeypatch):
    monkeypatch.setattr(parity, "_REMEMBERED_BYTES", 0)
    asked = []
    original = parity.Original(lambda inputs: asked.append(1) or {"output": inputs["x"] * 2})
    for _ in range(2):
        assert parity.difference(original, double, X) is None
    assert len(asked) == 2 * len(list(parity.cases(X)))
