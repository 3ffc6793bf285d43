"""The cluster's notebook, run from top to bottom as somebody who may work in one namespace and not more."""

from __future__ import annotations

import ast

import pytest

import notebooks
from notebooks import text


@pytest.fixture
def executed(home, base_image, cluster, monkeypatch):
    """The notebook with its outputs, in a cluster that has nothing of an earlier run that was killed, nor keeps anything."""
    monkeypatch.setenv("MLOPSNB_CONTEXT", cluster.context)
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", base_image)
    remove = (
        "delete",
        "deployments,services,configmaps,serviceaccounts",
        "--selector=mlopsnb.io/name=digits",
    )
    cluster(*remove)
    try:
        yield notebooks.run("kubernetes.ipynb", home / "work")
    finally:
        cluster(*remove, "--wait=false")


@pytest.mark.cluster
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_bad_canary_goes_a_good_one_takes_over_and_nobody_else_fails(executed):
    [bad] = [o for c in executed.cells if c.id == "bad" for o in c.outputs if o.output_type == "error"]
    assert bad.ename == "GateRejected"
    assert "error_rate" in bad.evalue
    history = text(executed, "bad-history")
    assert [line.split()[1:3] for line in history.splitlines()[-2:]] == [["✗", "failed"], ["✓", "running"]]
    assert "✓ ready" in text(executed, "mended")
    assert "rollback to revision" in text(executed, "rollback")
    answered = ast.literal_eval(text(executed, "answered"))
    assert {what for what in answered if not what.startswith("version")} == {"error 422"}
    assert answered["version 1"] > answered["error 422"] > 0
    assert text(executed, "cleaned").strip().endswith("nothing is deployed")
