"""The notebook on drift, run from top to bottom: the shift is seen, told, explained, and gone with the new revision."""

from __future__ import annotations

import ast
import re

import pytest

import notebooks
from notebooks import text


@pytest.fixture
def executed(home):
    return notebooks.run("drift.ipynb", home / "work", timeout=300)


@pytest.mark.timeout(600)
def test_the_shift_is_seen_told_explained_and_gone_with_the_new_revision(executed):
    assert [o.text for c in executed.cells for o in c.get("outputs", ()) if o.get("name") == "stderr"] == []
    assert text(executed, "usual").startswith("ok: none of 1 output and 10 features drifted")
    told = text(executed, "shift")
    assert re.match(r"told after \d+ of 105 patients\n", told)
    assert re.search(r"severe: progression on process, revision 1: drifted_features \d", told)
    why = text(executed, "why")
    assert "(worst: bmi" in why
    assert re.search(r"▲ +output +output +drift", why)
    assert re.search(r"✓ +age +numeric +ok", why)
    error = ast.literal_eval(text(executed, "retrain"))
    assert error["mae after"] < 0.92 * error["mae before"]
    notices, _, history = text(executed, "redeploy").partition("\nresolved, severe: ")
    assert notices.count("severe: progression") == 1
    assert [line.split()[1:3] for line in history.splitlines()[-2:]] == [["✓", "running"], ["○", "stopped"]]
    assert text(executed, "after").startswith("ok: none of 1 output and 10 features drifted")
    assert text(executed, "cleaned").strip().endswith("nothing is deployed")
