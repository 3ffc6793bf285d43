"""`python -m mlopsnb`: which verbs there are, how words become arguments, and what comes out with which status."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from mlopsnb import cli, deployment
from mlopsnb.background import Detached
from mlopsnb.cleaning import Cleanup
from mlopsnb.errors import DeployError, GateRejected, UserError
from mlopsnb.monitoring.retraining import Retrain
from mlopsnb.notebook.grammar import VERBS


@pytest.fixture
def twin(monkeypatch):
    """Put a function in the place of a twin; it notes its arguments and gives or raises the value."""

    def put(module, name, value=None):
        calls = []

        def stand_in(*args, **kwargs):
            calls.append((args, kwargs))
            if isinstance(value, BaseException):
                raise value
            return value

        home = sys.modules.get(module) or ModuleType(module)
        monkeypatch.setitem(sys.modules, module, home)
        monkeypatch.setattr(home, name, stand_in, raising=False)
        return calls

    return put


class Handle:
    """A deployment that notes what it is told."""

    def __init__(self):
        self.calls = []
        self.answer = None

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self.answer

        return call


@pytest.fixture
def handle(monkeypatch):
    found = Handle()
    monkeypatch.setattr(
        deployment, "get", lambda name, *, target: found.calls.append((name, target)) or found
    )
    return found


def test_all_verbs_that_need_no_objects_are_there():
    assert set(VERBS) - set(cli.OFFERED) == {"attach", "export", "log_model"}
    assert cli.OFFERED["drift"].on_deployment


def test_words_become_the_arguments_of_the_call(twin, capsys):
    calls = twin("mlopsnb.flow", "deploy", ())
    words = "deploy models:/m/3 --name m --target docker --env A=b --env C=d=e --canary 10,50 --pause 30s --dry-run"
    assert cli.main([*words.split(), "--gate", "error_rate<1% and qps>1"]) == 0
    assert calls == [
        (
            ("models:/m/3",),
            {
                "name": "m",
                "target": "docker",
                "env": {"A": "b", "C": "d=e"},
                "canary": "10,50",
                "pause": "30s",
                "gate": "error_rate<1% and qps>1",
                "dry_run": True,
            },
        )
    ]
    assert capsys.readouterr().out == "nothing to do\n"


def test_nothing_is_evaluated(twin):
    calls = twin("mlopsnb.flow", "deploy", ())
    assert cli.main(["deploy", "models:/m/{1+1}", "--name", "{exit()}", "--dry-run"]) == 0
    assert calls == [(("models:/m/{1+1}",), {"name": "{exit()}", "dry_run": True})]


def test_verbs_of_a_deployment(handle, capsys):
    assert cli.main(["rollback", "m", "--to", "3", "--target", "docker"]) == 0
    assert cli.main(["scale", "m", "2"]) == 0
    handle.answer = np.array([[1.5]])
    assert cli.main(["predict", "m", "[[1, 2]]"]) == 0
    handle.answer = {"y": np.array([np.nan])}
    assert cli.main(["predict", "m", "[[1, 2]]"]) == 0
    handle.answer = "a log"
    assert cli.main(["logs", "m", "--tail", "5"]) == 0
    assert cli.main(["logs", "m", "--json"]) == 0
    assert handle.calls == [
        ("m", "docker"),
        ("rollback", (), {"to": 3}),
        ("m", None),
        ("scale", (2,), {}),
        *[("m", None), ("predict", ([[1, 2]],), {})] * 2,
        ("m", None),
        ("logs", (), {"tail": 5}),
        ("m", None),
        ("logs", (), {}),
    ]
    assert capsys.readouterr().out == '[[1.5]]\n{"y": [null]}\na log\n{"lines": ["a log"]}\n'


def test_records_are_text(twin, capsys):
    twin("mlopsnb.cleaning", "cleanup", Cleanup(deployments=(("m on docker", "deployed 9.0 d ago"),)))
    assert cli.main(["cleanup", "--older-than", "7d"]) == 0
    assert capsys.readouterr().out == "1 deployment removed\n  m on docker  deployed 9.0 d ago\n"


def test_a_terminal_knows_no_background():
    with pytest.raises(SystemExit):
        cli.main(["deploy", "models:/m/3", "--no-wait"])


def test_what_a_second_interrupt_leaves_is_waited_for(twin, capsys):
    """The thread that restores would end with the process."""
    waited = []

    class Restoring:
        name, state, restores, error = "m", "cancelled", True, None

        def join(self):
            waited.append(1)

        def follow(self, told, ended):
            ended(self)

    twin("mlopsnb.flow", "deploy", Detached(Restoring()))
    assert cli.main(["deploy", "models:/m/3"]) == 130
    assert waited == [1]
    assert "what served 'm' before is still being restored; one more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DeployError("no room", hint="make some"), 1),
        (GateRejected("too slow"), 1),
        (UserError("no such thing"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_goes_wrong_is_told_on_the_other_channel(error, status, twin, capsys):
    if isinstance(error, DeployError):
        error.add_note("what served before serves on")
    twin("mlopsnb.flow", "deploy", error)
    assert cli.main(["deploy", "models:/m/3"]) == status
    said = capsys.readouterr()
    assert said.out == ""
    if status == 1 and isinstance(error, DeployError):
        assert said.err.endswith(
            "DeployError: no room\n  hint: make some\n  note: what served before serves on\n"
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("deploy", "arguments are required: WHAT"),
        ("deploy m --env A", "takes KEY=VALUE, found 'A'"),
        ("deploy m --metrics a=b", "a must be a number, found 'b'"),
        ("deploy m --targe docker", "unrecognized arguments: --targe"),
        ("predict m nonsense", "is not JSON"),
        ("rollback m --to x", "invalid int value: 'x'"),
        ("watch m", "required: --alert"),
        ("", "required: VERB"),
    ],
)
def test_wrong_calls_are_told(words, told, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words.split())
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_a_watch_is_told_of_performance_and_trains_again(handle, monkeypatch, tmp_path):
    """What is written down becomes what `ml.watch` takes; a job of one look trains nothing."""
    place = tmp_path / "known.csv"
    place.write_text("labels,scores\n0,0.1\n1,0.8\n")
    seen = {}

    def watch(dep, rules, **options):
        seen.update(options, rules=[str(rule) for rule in rules])
        return SimpleNamespace(run=lambda looks: None, troubles=[], firing=())

    monkeypatch.setattr("mlopsnb.watching.watch", watch)
    words = ["watch", "m", "--alert", "accuracy<0.9", "--labels", "l.csv", "--reference", str(place)]
    assert cli.main([*words, "--retrain", "papermill 'my train.ipynb' out.ipynb"]) == 0
    assert seen["rules"] == ["warning: accuracy < 0.9"]
    assert isinstance(seen["sinks"][-1], Retrain)
    assert seen["performance"].args == ("l.csv",)
    assert list(seen["performance"].keywords["reference"]) == ["labels", "scores"]
    assert cli.main([*words, "--once", "--retrain", "x"]) == 2
    assert cli.main(words[:6]) == 2


def test_every_verb_has_help(capsys):
    for verb in (*cli.OFFERED, "watch"):
        with pytest.raises(SystemExit) as caught:
            cli.main([verb, "--help"])
        assert caught.value.code == 0
    assert "--older-than" in capsys.readouterr().out
