from __future__ import annotations

import inspect

import numpy as np
import pytest

from mlopsnb.notebook.arguments import OUT
from mlopsnb.notebook.grammar import (
    DEPLOY,
    DEPLOYMENTS,
    DRIFT,
    EXPORT,
    LIVE_DRIFT,
    LOG_MODEL,
    LOGS,
    PREDICT,
    VERBS,
)
from mlopsnb.notebook.magics import dns_label, twin
from mlopsnb.notebook.parsing import Scope, help_text, is_uri, meant, parse, read
from mlopsnb.notebook.splitting import UsageError


def values(verb, line, **names):
    words = parse(verb, line)
    scope = Scope(names)
    return {
        a.name: read(a, words[a.name], scope) for a in (*verb.positionals, *verb.options) if a.name in words
    }


def test_deploy():
    line = "model --name fraud-{v} --example X[:2] --port {8000 + v} --env A=1 --env B='x y' --timeout 2.5 --dry-run"
    assert values(DEPLOY, line, model="M", X=[1, 2, 3], v=3) == {
        "what": "M",
        "name": "fraud-3",
        "example": [1, 2],
        "port": 8003,
        "env": {"A": "1", "B": "x y"},
        "timeout": 2.5,
        "dry_run": True,
    }


def test_what_is_not_waited_for():
    assert values(DEPLOY, "model --no-wait --timeout 5", model="M") == {
        "what": "M",
        "wait": False,
        "timeout": 5.0,
    }
    with pytest.raises(UsageError, match="did you mean '--no-wait'"):
        parse(DEPLOY, "model --nowait")


def test_addresses_are_text():
    assert values(DEPLOY, "models:/fraud/{v}", v=3) == {"what": "models:/fraud/3"}
    assert values(DEPLOY, "runs:/0123abc/model") == {"what": "runs:/0123abc/model"}


def test_options_may_stand_anywhere():
    assert values(PREDICT, "fraud --target process x", x=1) == {
        "deployment": "fraud",
        "x": 1,
        "target": "process",
    }


def test_expressions():
    assert values(EXPORT, "nets['a'] --example (x, [i for i in (x, y)])", nets={"a": 1}, x=2, y=3) == {
        "model": 1,
        "example": (2, [2, 3]),
    }
    assert values(DRIFT, "a b --q .1 --outputs ['y']", a=1, b=2) == {
        "reference": 1,
        "current": 2,
        "q": 0.1,
        "outputs": ["y"],
    }


def test_metrics_are_numbers_from_pairs_and_dicts():
    line = "art --name n --metrics acc=0.97 --metrics scores --metrics f1={f1} --tags note=a=b"
    assert values(LOG_MODEL, line, art=1, scores={"auc": np.float32(0.5)}, f1=0.25) == {
        "artifact": 1,
        "name": "n",
        "metrics": {"acc": 0.97, "auc": 0.5, "f1": 0.25},
        "tags": {"note": "a=b"},
    }


def test_the_innermost_name_wins():
    assert Scope({"x": 1, "y": 2}, {"x": 3}).evaluate("x + y") == 5


@pytest.mark.parametrize(
    ("verb", "line", "message"),
    [
        (
            DEPLOY,
            "model --targte process",
            "%deploy has no option --targte\n  hint: did you mean '--target'?",
        ),
        (DEPLOY, "model --nam x", "%deploy has no option --nam\n  hint: did you mean '--name'?"),
        (DEPLOY, "model -z", "%deploy has no option -z\n  hint: %deploy? shows all"),
        (DEPLOY, "", "%deploy: give WHAT\n  hint: %deploy? shows what it takes"),
        (
            DEPLOY,
            "model other",
            "%deploy: unrecognized arguments: other\n  hint: %deploy? shows what it takes",
        ),
        (LOG_MODEL, "art", "%log_model: give --name\n  hint: %log_model? shows what it takes"),
        (DEPLOY, "modle", "no variable named 'modle'\n  hint: did you mean 'model'?"),
        (DEPLOY, "model --name {modl}", "no variable named 'modl'\n  hint: did you mean 'model'?"),
        (DEPLOY, "model --port 80a", "--port takes a whole number, found '80a'"),
        (DEPLOY, "model --timeout soon", "--timeout takes a number, found 'soon'"),
        (DEPLOY, "model --metrics acc=good", "--metrics: acc must be a number, found 'good'"),
        (DEPLOY, "model --env model", "--env takes KEY=VALUE or a dict, found 'model' (int)"),
        (DEPLOY, "model.x", "'model.x' gave AttributeError: 'int' object has no attribute 'x'"),
        (DEPLOY, "'a b c'", "'a b c' is not a Python expression"),
    ],
)
def test_what_is_wrong(verb, line, message):
    with pytest.raises(UsageError) as caught:
        values(verb, line, model=1, art=2)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "word",
    ["fraud:v3", "ghcr.io/team/fraud:v3-1a2b3c4", "localhost:5000/a@sha256:" + "0" * 64, "models:/a/1"],
)
def test_addresses_and_images_are_no_python(word):
    assert is_uri(word)
    assert values(DEPLOY, word) == {"what": word}


@pytest.mark.parametrize("word", ["model", "models[1:2]", "a.b", "{1:2}", "x[0]:", "(a:=1)"])
def test_python_is_no_image(word):
    assert not is_uri(word)


@pytest.mark.parametrize("line", ["-h", "model --help", "--help"])
def test_help_is_asked_for(line):
    assert parse(DEPLOY, line) is None


@pytest.mark.parametrize(
    ("line", "verb"),
    [
        ("fraud", LIVE_DRIFT),
        ("fraud --since 6h --q=0.1", LIVE_DRIFT),
        ("--since 6h fraud", LIVE_DRIFT),
        ("train live", DRIFT),
        ("train live --threshold 0.2", DRIFT),
        ("", DRIFT),
    ],
)
def test_a_single_word_is_a_deployment_to_drift(line, verb):
    assert meant(DRIFT, line) is verb
    assert meant(DEPLOY, line) is DEPLOY


@pytest.mark.parametrize("verb", [*VERBS.values(), LIVE_DRIFT], ids=[*VERBS, "live_drift"])
def test_options_are_the_parameters_of_the_function(verb):
    positional = [a.name for a in verb.positionals]
    parameters = dict(inspect.signature(twin(verb)).parameters)
    if verb.on_deployment:
        assert positional.pop(0) == "deployment"
        parameters.pop("self")
        parameters["target"] = inspect.signature(twin(DEPLOYMENTS)).parameters["target"]
    assert [*positional, *sorted(o.name for o in verb.options)] == [
        *list(parameters)[: len(positional)],
        *sorted(list(parameters)[len(positional) :]),
    ]
    optional = {o.name for o in verb.options if not o.required} - {"example"}
    assert all(parameters[name].default is not inspect.Parameter.empty for name in optional)


def test_every_verb_that_returns_something_takes_a_variable_and_every_one_that_reads_json():
    assert {v.name for v in VERBS.values() if "-o" not in [o.flag for o in v.all_options]} == {"undeploy"}
    reads = {v.name for v in VERBS.values() if "--json" in [o.flag for o in v.all_options]}
    assert reads == {"attach", "deployments", "drift", "logs", "metrics", "predict"}
    assert values(DEPLOYMENTS, "-o listed --json") == {}
    for name in ("1x", "a.b", "class", "x y", ""):
        with pytest.raises(UsageError, match="-o takes the name of a variable"):
            read(OUT, name, Scope({}))
    with pytest.raises(UsageError, match="has no option --json"):
        parse(DEPLOY, "model --json")


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_examples_in_the_help_parse(verb):
    for example in verb.examples:
        name, _, line = example.partition("%")[2].partition(" ")
        assert name == verb.name
        assert parse(meant(verb, line), line) is not None


def test_help_text():
    assert help_text(LOGS) == (
        "Show the log of a deployment.\n"
        "\n"
        "usage: %logs DEPLOYMENT [options]\n"
        "\n"
        "  DEPLOYMENT           a deployment's name, or a variable that holds one\n"
        "  --tail TAIL          only the last lines\n"
        "  --revision REVISION  the revision to read; the one that serves if left out\n"
        "  --target TARGET      where it runs; the setting `target` if left out\n"
        "  -o NAME              keep the result in a variable of the notebook, as NAME = %… does\n"
        "  --json               print the result as one JSON document, and nothing else\n"
        "\n"
        "examples:\n"
        "  %logs fraud --tail 50\n"
        "\n"
        "Calls mlopsnb.deployment.Deployment.logs and returns what that returns."
    )


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("my_model", "my-model"),
        ("Net2", "net2"),
        ("__m__", "m"),
        ("_", ""),
        ("a" * 80, "a" * 63),
        ("größe", "gr-e"),
    ],
)
def test_dns_label(name, label):
    assert dns_label(name) == label
