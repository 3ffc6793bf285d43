"""The notebook on the dashboard, run from top to bottom: what it shows of traffic, a new revision, drift and the way back."""

from __future__ import annotations

import re

import pytest

import notebooks
from notebooks import text


@pytest.fixture
def executed(home):
    return notebooks.run("dashboard.ipynb", home / "work", timeout=300)


@pytest.mark.timeout(600)
def test_the_dashboard_tells_of_traffic_revisions_and_drift(executed):
    outputs = [o for c in executed.cells for o in c.get("outputs", ())]
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    assert {kind for o in outputs for kind in o.get("data", ())} <= {"text/plain", "text/html"}
    first = text(executed, "board")
    assert first.startswith("Dashboard: 2 deployments, 2 ready, at ")
    for name in ("alcohol", "grapes"):
        assert re.search(
            rf"{name} on process +✓ ready +models:/{name}/1 revision 1 +100% +[\d.]+ +0.00% ", first
        )
    assert re.search(
        r"alcohol on process +✓ ready +models:/alcohol/2 revision 2 +100%", text(executed, "simpler")
    )
    assert re.search(r"alcohol/2 revision 2 .*▲ \d+ of 13\n", text(executed, "drift"))
    assert text(executed, "one").count("drift: ") == 2
    assert re.search(
        r"alcohol on process +✓ ready +models:/alcohol/1 revision 3 +100%", text(executed, "back")
    )
    assert text(executed, "cleaned").strip().endswith("nothing is deployed")
