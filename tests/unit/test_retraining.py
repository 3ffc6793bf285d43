"""The hook that trains again: once for each incident, beside the watch, and its failure is told."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from mlopsnb.errors import UserError
from mlopsnb.monitoring.alerts import Notice, parse
from mlopsnb.monitoring.retraining import NOTICE, RetrainFailed, retrain

SECONDS = 60


def notice(status="firing", rule="error_rate>0.1", deployment="m", revision=1):
    return Notice(
        alert=parse(rule),
        status=status,
        deployment=deployment,
        target="process",
        revision=revision,
        figures={},
        since=0.0,
        at=1.0,
    )


def test_an_incident_starts_one_run_whatever_else_fires_and_however_often_it_is_told():
    ran = []
    hook = retrain(ran.append)
    first = hook(notice())
    assert first.result(SECONDS) is None
    assert [hook(notice()), hook(notice(rule="f1<0.5")), hook(notice("resolved"))] == [None] * 3
    assert hook(notice()) is None  # the other alert still fires
    assert hook(notice("resolved", rule="f1<0.5")) is hook(notice("resolved")) is None
    hook(notice(revision=2)).result(SECONDS)
    hook(notice(deployment="other")).result(SECONDS)
    assert [(n.deployment, n.revision) for n in ran] == [("m", 1), ("m", 2), ("other", 1)]


def test_no_run_is_started_while_another_is_under_way():
    go_on = threading.Event()
    hook = retrain(lambda notice: go_on.wait(SECONDS))
    begun = hook(notice())
    hook(notice("resolved"))
    assert hook(notice()) is None
    go_on.set()
    assert begun.result(SECONDS)


def test_a_command_has_the_notice_in_its_environment(tmp_path):
    place = tmp_path / "told.json"
    code = f"import os, pathlib; pathlib.Path({str(place)!r}).write_text(os.environ[{NOTICE!r}])"
    retrain([sys.executable, "-c", code])(notice()).result(SECONDS)
    assert json.loads(place.read_text()) == notice().plain()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([sys.executable, "-c", "raise SystemExit('no data')"], "ended with 1: no data"),
        (["/nowhere/papermill"], "/nowhere/papermill cannot be started: No such file or directory"),
    ],
)
def test_a_command_that_fails_says_why(command, message):
    with pytest.raises(RetrainFailed, match=message):
        retrain(command)(notice()).result(SECONDS)


@pytest.mark.parametrize("run", ["papermill a.ipynb b.ipynb", [], [1]])
def test_what_cannot_be_run_is_refused(run):
    with pytest.raises(UserError, match="a function or a command as a list of words"):
        retrain(run)
