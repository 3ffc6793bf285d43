"""Rows that a server captured, joined with labels that came later; the files are those that `serving.capture` writes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mlopsnb.errors import UserError
from mlopsnb.monitoring.captured import live_performance, read_reference
from mlopsnb.records import Revision, Signature, TensorSpec
from mlopsnb.serving.capture import Capture

NAMES = ("cat", "dog", "emu")
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(None,)),),
    outputs=(
        TensorSpec(name="label", dtype="str", shape=(None,)),
        TensorSpec(name="probability", dtype="float32", shape=(None, 3)),
    ),
)
ROWS = 4


def answers(requests, seed=0):
    """What a model of three classes says, by request, and what was true."""
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet([1, 1, 1], (requests, ROWS)).astype(np.float32)
    truth = (rng.random((requests, ROWS, 1)) > scores.cumsum(axis=2)).sum(axis=2).clip(0, 2)
    return scores, np.array(NAMES, object)[truth]


@pytest.fixture
def revision(tmp_path):
    """A revision that has captured 100 requests of four rows, in two files."""
    scores, _ = answers(100)
    place = tmp_path / "captured"
    capture = Capture(place, SIGNATURE, rate=1.0)
    for number in range(100):
        said = np.array(NAMES, object)[scores[number].argmax(axis=1)]
        call = SimpleNamespace(rows=ROWS, request_id=f"r{number}")
        outputs = {"label": said, "probability": scores[number]}
        capture.note(call, {"x": np.zeros(ROWS, np.float32)}, outputs)
        if number == 49:
            capture.flush()
    capture.close()
    assert len(list(place.glob("*.parquet"))) == 2
    return Revision(id=1, source="", digest="", capture=1.0, captured=place)


def known():
    scores, truth = answers(500, seed=1)
    return {"scores": pd.DataFrame(scores.reshape(-1, 3), columns=NAMES), "labels": truth.ravel()}


def late(requests=60):
    _, truth = answers(100)
    rows = [(f"r{i}", row, truth[i, row]) for i in range(requests) for row in range(ROWS)]
    return pd.DataFrame(rows, columns=["request_id", "row", "label"])


def ask(revision, labels=None, *, reference=None, outputs=None, seconds=None):
    return live_performance(
        "m",
        revision,
        labels=labels,
        reference=reference or known(),
        outputs=outputs,
        rows=100,
        seconds=seconds,
    )


def test_labels_are_joined_by_request_and_row_and_the_rest_is_estimated(revision, tmp_path):
    report = ask(revision, late().sample(frac=1, random_state=0), seconds=3600)
    assert [(s.rows, bool(s.realised)) for s in report.spans] == [
        *[(100, True)] * 3,
        (100, False),
    ]
    scores, truth = answers(100)
    right = (scores.argmax(axis=2) == np.vectorize(NAMES.index)(truth)).ravel()
    assert report.spans[0].realised["accuracy"] == pytest.approx(right[:100].mean())
    assert report.spans[2].realised["accuracy"] == pytest.approx(right[200:240].mean())
    assert all(0.4 < s.estimated["accuracy"] < 0.8 for s in report.spans)
    late().to_csv(tmp_path / "labels.csv", index=False)
    late().to_parquet(tmp_path / "labels.parquet")
    for path in (tmp_path / "labels.csv", str(tmp_path / "labels.parquet")):
        assert ask(revision, path).spans == report.spans
    assert all(not s.realised for s in ask(revision).spans)


def test_predictions_are_chosen_by_the_reference(revision):
    said = known()["labels"]
    report = ask(revision, late(), reference={"labels": said, "predictions": said})
    assert report.baseline["accuracy"] == 1.0
    assert [bool(s.realised) for s in report.spans] == [True, True, True, False]
    named = ask(revision, late(), outputs={"predictions": "label", "scores": "probability"})
    assert named.spans == ask(revision, late()).spans


def test_a_reference_is_read_from_a_file(tmp_path):
    made = known()
    frame = made["scores"].add_prefix("scores.").assign(labels=made["labels"], other=1)
    frame.to_parquet(tmp_path / "known.parquet")
    read = read_reference(tmp_path / "known.parquet")
    assert list(read) == ["labels", "scores"]
    pd.testing.assert_frame_equal(read["scores"], made["scores"])
    pd.DataFrame({"labels": [0, 1], "scores": [0.2, 0.9]}).to_csv(tmp_path / "known.csv")
    assert {k: list(v) for k, v in read_reference(str(tmp_path / "known.csv")).items()} == {
        "labels": [0, 1],
        "scores": [0.2, 0.9],
    }
    with pytest.raises(UserError, match="cannot be read"):
        read_reference(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"outputs": {"scores": "p"}}, "no output 'p' is captured; there are label, probability"),
        ({"labels": {"id": [1]}}, "the labels have no column label, request_id; there are id"),
        ({"labels": {"request_id": ["q"], "label": ["cat"]}}, "none of 1 labels is of a request"),
        ({"seconds": 0.0}, "has captured no rows in the last 0 s"),
    ],
)
def test_what_does_not_fit_is_told(revision, given, message):
    with pytest.raises(UserError, match=message):
        ask(revision, **given)


def test_what_is_not_captured_or_not_here_is_told(tmp_path):
    plain = Revision(id=3, source="", digest="")
    with pytest.raises(UserError, match=r"'m', revision 3, captures no rows(?s:.*)capture=0\.1"):
        ask(plain)
    away = Revision(id=3, source="", digest="", captured=tmp_path / "gone" / "captured")
    with pytest.raises(UserError, match="which is not on this machine"):
        ask(away)
    (tmp_path / "gone").mkdir()
    with pytest.raises(UserError, match="has captured no rows yet"):
        ask(away)


def test_several_outputs_of_a_kind_have_to_be_named(tmp_path):
    specs = tuple(TensorSpec(name=n, dtype="float32", shape=(None,)) for n in ("mean", "spread"))
    capture = Capture(tmp_path / "c", Signature(inputs=(), outputs=specs), rate=1.0)
    capture.note(
        SimpleNamespace(rows=2, request_id="r"), {}, {n: np.ones(2, np.float32) for n in ("mean", "spread")}
    )
    capture.close()
    made = Revision(id=1, source="", digest="", captured=tmp_path / "c")
    errors = {"labels": [1.5, 2.5], "predictions": [1.0, 2.0]}
    with pytest.raises(UserError, match="mean, spread may all be the predictions"):
        ask(made, reference=errors)
    labels = {"request_id": ["r", "r"], "row": [0, 1], "label": [2.0, 1.0]}
    found = ask(made, labels, reference=errors, outputs={"predictions": "mean"})
    assert found.spans[0].realised == {"mae": 0.5, "rmse": pytest.approx(0.5**0.5)}
