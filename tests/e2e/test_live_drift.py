"""From a reference that is logged to the drift of live traffic, asked of a real server: one call sees it."""

from __future__ import annotations

import time

import httpx
import numpy as np
import pandas as pd
import pytest
import torch

import mlopsnb as ml
from mlopsnb.errors import UserError
from mlopsnb.serving import v2
from notebooks import shell

SECONDS = 120.0
MANY = 50_000
"""Rows of a request of which two are more than a server keeps waiting for their file."""

COLUMNS = ["age", "income", "debt"]


def people(rows, seed=0, shift=0.0):
    frame = pd.DataFrame(np.random.default_rng(seed).normal(size=(rows, 3)), columns=COLUMNS)
    frame["age"] += shift
    return frame


@pytest.fixture
def deployed(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softmax(1))
    made = ml.deploy(
        model,
        name="people",
        example=people(10),
        reference=people(3000),
        capture=1.0,
        mask=["debt"],
        format="torchscript",
        target="process",
    )
    yield made
    made.delete()


def send(deployed, request_id, rows):
    """Send *rows* as a client of the protocol does, with an id of its own."""
    inputs = {deployed._connect().signature.inputs[0].name: rows.to_numpy("float32")}
    body, length = v2.encode_binary_request(inputs)
    headers = {"x-request-id": request_id, "inference-header-content-length": str(length)}
    answer = httpx.post(
        f"{deployed.url}/v2/models/people/infer", content=body, headers=headers, trust_env=False, timeout=60
    )
    assert answer.status_code == 200


def performance(deployed, asked, labels):
    """Ask, and ask the server for more, until its rows so far are in their file."""
    known = people(2000, seed=8)
    scores = deployed.predict(known)
    reference = {"scores": scores, "labels": chosen(scores)}
    end = time.monotonic() + SECONDS
    while True:
        send(deployed, "more", asked)
        try:
            return deployed.performance(labels, reference=reference, rows=MANY, since="1h")
        except UserError:
            assert time.monotonic() < end


def chosen(scores):
    """What comes true: mostly what the model says, a tenth of it not."""
    return (scores.argmax(axis=1) + (np.arange(len(scores)) % 10 == 0)) % 2


def test_shifted_traffic_is_seen_and_late_labels_tell_how_well_it_did(deployed, tmp_path):
    assert deployed.drift().state == "no-data"
    deployed.predict(people(500, seed=1))
    assert deployed.drift().drifted == ()
    for seed in range(3):
        deployed.predict(people(1000, seed=seed + 2, shift=1.0))
    report = deployed.drift(since="1h")
    assert "age" in report.drifted
    assert report.rows[0].kind == "output"
    assert report.find("income").state == "ok"
    assert report.current_rows == 3500
    assert report.find("age").windows[-1].state == "drift"
    with pytest.raises(UserError, match="'people' has no revision 9; there are: 1"):
        deployed.drift(revision=9)
    with shell(tmp_path) as ip:
        ip.run_line_magic("load_ext", "mlopsnb")
        assert "age" in ip.run_line_magic("drift", "people --since 1h").drifted
    late_labels_tell_how_well_it_did(deployed)


def late_labels_tell_how_well_it_did(deployed):
    asked = people(MANY, seed=5)
    truth = chosen(deployed.predict(asked))
    send(deployed, "first", asked)
    labels = pd.DataFrame({"request_id": "first", "row": np.arange(MANY), "label": truth})
    report = performance(deployed, asked, labels)
    kept = pd.read_parquet(deployed.release.revisions[-1].captured)
    assert {"input.age", "input.income"} <= set(kept)
    assert not any("debt" in column for column in kept)
    realised = [span.realised["accuracy"] for span in report.spans if span.labelled]
    assert realised == pytest.approx([0.9] * len(realised), abs=0.01)
    assert sum(span.labelled for span in report.spans) == MANY
    assert all(span.estimated["accuracy"] == pytest.approx(0.9, abs=0.03) for span in report.spans)
