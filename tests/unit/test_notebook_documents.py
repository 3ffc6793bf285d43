"""JSON of what the read verbs find: keys that stay, no NaN, no control characters, nothing secret."""

import json
import math
from contextlib import ExitStack

import numpy as np

from mlopsnb.background import Rollout
from mlopsnb.deployment import Deployments
from mlopsnb.monitoring import drift
from mlopsnb.monitoring.counting import Counts, Levels, Window
from mlopsnb.monitoring.traffic import RevisionTraffic, Traffic
from mlopsnb.notebook.displays import LogText
from mlopsnb.notebook.documents import document


def read(result):
    said = document(result)
    assert said.isascii()
    assert "\n" not in said
    return json.loads(said, parse_constant=lambda name: f"not JSON: {name}")


def test_the_log_is_its_lines():
    assert read(LogText("a\x1b[31m b\ntoken=s3cret")) == {"lines": ["a b", "token=•••"]}
    assert read("") == {"lines": []}


def test_traffic():
    nothing = Window(at=0.0, seconds=2.0, counts=Counts(), levels=Levels())
    revision = RevisionTraffic(revision=2, source="models:/m/2", role="canary", share=10, total=nothing)
    source = "http://ann:s3cret@prometheus"
    found = read(Traffic(name="<net>", target="docker", source=source, revisions=(revision,)))
    [told] = found.pop("revisions")
    assert found == {"name": "<net>", "target": "docker", "source": "http://prometheus"}
    figures = told["total"].pop("figures")
    assert told == {
        "revision": 2,
        "model": "models:/m/2",
        "role": "canary",
        "share": 10,
        "watched": None,
        "total": {"seconds": 2.0},
    }
    assert (figures["requests"], figures["p99_ms"]) == (0.0, None)


def test_drift():
    values = np.random.default_rng(0).normal(size=(200, 2))
    report = drift(values, values + np.array([3, 0]))
    found = read(report)
    assert list(found) == [
        *(
            "state",
            "verdict",
            "drifted",
            "reference_rows",
            "current_rows",
            "threshold",
            "q",
            "span",
            "features",
        )
    ]
    assert (found["state"], found["drifted"], found["span"]) == ("drift", list(report.drifted), None)
    frame = report.to_frame()
    assert list(found["features"][0]) == list(frame.columns)
    assert math.isclose(found["features"][0]["effect"], frame["effect"][0])


def test_rollouts_in_the_background():
    listed = Deployments()
    failed = Rollout(("docker", "net"), lambda: 1 / 0, held=ExitStack())
    failed.start()
    failed.join(60)
    listed.rollouts = (failed,)
    reason = "ZeroDivisionError: division by zero"
    assert read(listed)["rollouts"] == [
        {"name": "net", "target": "docker", "state": "failed", "reason": reason}
    ]
