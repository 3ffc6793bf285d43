"""A reference becomes part of the package that is logged: the profile of what the model sees, and of its answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from mlopsnb import drift, flow, manifest, packages, plugins, profile, profiles
from mlopsnb.errors import UserError
from mlopsnb.events import reporting_to
from mlopsnb.profiles import Tally
from mlopsnb.records import ModelVersion

COLUMNS = ["age", "income", "debt"]


def people(rows=3000, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.normal(size=(rows, 3)), columns=COLUMNS)


VERSION = ModelVersion(name="fraud", version=1, uri="models:/fraud/1", digest="")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x):
        return torch.softmax(self.linear(x), 1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("export") / "package"
    return packages.export(Net(), people(20), format="torchscript", into=place)


def read(artifact):
    return profiles.from_json((artifact.path / profiles.FILE).read_bytes())


def test_the_package_has_the_profile_and_a_digest_of_its_own(artifact):
    seen = []
    with reporting_to(seen.append):
        made, found = packages.with_reference(artifact, people().assign(label=1))
    assert (seen[0].step, seen[-1].message) == ("profile", "5 features and outputs, 3,000 rows")
    assert made.digest != artifact.digest
    assert dataclasses.replace(made, path=artifact.path, digest=artifact.digest) == artifact
    manifest.verify(made.path, manifest.read(made.path))
    assert read(made) == found
    assert [(f.name, f.role, f.tensor, f.column) for f in found.features] == [
        *((name, "input", artifact.signature.inputs[0].name, i) for i, name in enumerate(COLUMNS)),
        *((f"output_{i}", "output", "output", i) for i in range(2)),
    ]
    assert packages.with_reference(artifact, people().assign(label=1))[0] == made
    again, _ = packages.with_reference(made, people(seed=1))
    assert again.digest not in (made.digest, artifact.digest)


def test_a_server_that_counts_the_reference_finds_no_drift_and_a_shift_if_there_is_one(artifact):
    made, found = packages.with_reference(artifact, people())
    predict = plugins.create("format", made.format).load(made.path / manifest.MODEL_DIR, made.signature)
    tally = Tally(found)
    for shift in (0, 1):
        rows = people(2000, seed=5).to_numpy("float32") + np.float32([[shift, 0, 0]])
        inputs = {made.signature.inputs[0].name: rows}
        tally.add_tensors(inputs, "input")
        tally.add_tensors(predict(inputs), "output")
        drifted = drift(found, [tally.take(0, 300)]).drifted
        assert ("age" in drifted, "income" in drifted) == (bool(shift), False)
        assert any(name.startswith("output") for name in drifted) == bool(shift)


def test_a_stream_gives_the_profile_and_is_logged_by_it(artifact, tmp_path, monkeypatch):
    people().to_parquet(tmp_path / "x.parquet")
    _, stored = packages.with_reference(artifact, tmp_path / "x.parquet")
    _, streamed = packages.with_reference(artifact, iter([people()]))
    _, whole = packages.with_reference(artifact, people())
    for other in (stored, streamed):
        assert [f.counts for f in other.features[:3]] == [f.counts for f in whole.features[:3]]

    given = {}

    class Tracker:
        def log(self, artifact, **rest):
            given.update(rest, artifact=artifact)
            return VERSION

    monkeypatch.setattr(plugins, "create", lambda *_: Tracker())
    monkeypatch.setattr(flow, "with_reference", lambda artifact, _: (artifact, streamed))
    flow.log(artifact, name="fraud", reference=iter([people()]))
    assert given["reference"] == streamed
    flow.log(artifact, name="fraud", reference=people())
    assert given["reference"].equals(people())


def test_a_reference_that_the_model_cannot_take_is_refused(artifact):
    with pytest.raises(UserError) as caught:
        packages.with_reference(artifact, people().drop(columns="debt"))
    assert caught.value.message.startswith("the reference does not fit the model: ")
    assert "debt are missing" in caught.value.message
    with pytest.raises(UserError, match="the reference has no rows"):
        packages.with_reference(artifact, people(0))


def test_a_profile_made_elsewhere_is_bound_to_the_model(artifact):
    elsewhere = profile(people().astype("float64"))
    _, bound = packages.with_reference(artifact, elsewhere)
    assert [(f.name, f.tensor, f.column) for f in bound.features] == [
        (name, artifact.signature.inputs[0].name, i) for i, name in enumerate(COLUMNS)
    ]
    assert [f.counts for f in bound.features] == [f.counts for f in elsewhere.features]
    with pytest.raises(UserError, match="the model has no input 'other'"):
        packages.with_reference(artifact, profile({"other": np.arange(90.0)}))
