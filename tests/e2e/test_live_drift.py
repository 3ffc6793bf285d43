"""From a reference that is logged to the drift of live traffic, asked of a real server: one call sees it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import mlopsnb as ml
from mlopsnb.errors import UserError
from notebooks import shell

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
        format="torchscript",
        target="process",
    )
    yield made
    made.delete()


def test_shifted_traffic_is_seen(deployed, tmp_path):
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
