"""Live drift is told from what the replicas say: their counters, and the profile that they count on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlopsnb.errors import DeployError, UserError
from mlopsnb.monitoring import replicas
from mlopsnb.monitoring.profiling import profile
from mlopsnb.monitoring.replicas import live_drift
from mlopsnb.profiles import Tally, snapshot_document, to_json

PROFILE = profile({"age": np.random.default_rng(0).normal(size=3000)})
OTHER = profile({"age": np.random.default_rng(1).normal(size=3000)})


class Replicas:
    """A target of made-up replicas that note what they are asked."""

    def __init__(self, pages, references=(PROFILE,)):
        self.pages, self.references, self.asked = pages, references, []

    def ask(self, name, revision_id, path):
        self.asked.append(path)
        told = self.pages if path == replicas.PAGE else map(to_json, self.references)
        return {f"r{i}": page.encode() for i, page in enumerate(told)}


def page(counts_on=PROFILE, notes=()):
    tally = Tally(PROFILE)
    tally.add_column(0, np.linspace(-2, 2, 300))
    tally.rows = 300
    windows = [snapshot_document(tally.take(0.0, 1.0))] if counts_on else []
    digest = counts_on.digest if counts_on else None
    return json.dumps(
        {"protocol": 1, "profile": digest, "notes": list(notes), "windows": windows, "uncounted": []}
    )


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(replicas, "_kept", {})


def ask(target):
    return live_drift(target, "m", 1, seconds=None, threshold=0.1, q=0.05)


def test_replicas_are_added_up_and_the_profile_is_asked_for_once():
    target = Replicas([page(), page()])
    assert [ask(target).current_rows, ask(target).current_rows] == [600, 600]
    assert target.asked == [replicas.PAGE, replicas.REFERENCE_PAGE, replicas.PAGE]


def test_few_profiles_are_kept(monkeypatch):
    monkeypatch.setattr(replicas, "_MOST_KEPT", 1)
    monkeypatch.setattr(replicas, "_kept", {OTHER.digest: OTHER})
    ask(Replicas([page()]))
    assert list(replicas._kept) == [PROFILE.digest]


@pytest.mark.parametrize(
    ("target", "error", "told"),
    [
        (Replicas([]), DeployError, "no replica of 'm', revision 1, tells what it has counted"),
        (Replicas(["{}"]), DeployError, "replica r0 tells no counters"),
        (Replicas([page(None, ["why not"])]), UserError, "has no reference to compare with: why not"),
        (Replicas([page(), page(OTHER)]), DeployError, "count on 2 references"),
        (Replicas([page()], ()), DeployError, "no replica of 'm', revision 1, tells the reference"),
        (Replicas([page()], (OTHER,)), DeployError, "no replica of 'm', revision 1, tells the reference"),
    ],
)
def test_what_cannot_be_compared_is_told(target, error, told):
    with pytest.raises(error, match=told):
        ask(target)
