from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.notebook import completion
from mlopsnb.notebook.completion import Known, Names, Offer, contexts, deployed_names, make_matcher, offer
from mlopsnb.notebook.grammar import DEPLOY, VERBS


class Deployment:
    """Looks like a deployment to the completion, which goes by the class's name."""


NAMES = {
    "model": 1,
    "metrics": {"a": 1},
    "dep": Deployment(),
    "_hidden": 1,
    "np": pytest,
    "Net": type,
    "In": [],
}


@pytest.fixture(scope="module")
def known():
    """Names that were read."""
    known = Known()
    known.deployments = Names(lambda: ["fraud", "iris"])
    models = ["models:/fraud/10", "models:/fraud/9", "models:/iris/1", "models:/fraud@champion"]
    known.models = Names(lambda: models)
    known.contexts = Names(lambda: ["kind-dev", "prod"])
    return known


@pytest.fixture
def offered(known):
    def offered(text):
        found = offer(text, NAMES, known)
        return None if found is None else found.values

    return offered


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("%deploy --", tuple(o.flag for o in DEPLOY.options)),
        ("%deploy model --t", ("--target", "--tolerations", "--ttl", "--timeout")),
        ("%deploy model --target process --t", ("--tolerations", "--ttl", "--timeout")),
        ("%deploy model --env A=1 --e", ("--example", "--env", "--expose")),
        ("x = %deploy model --form", ("--format",)),
        ("    %deploy mo", ("model", "models:/")),
        ("%deploy model --example m", ("model", "metrics")),
        ("%deploy model --metrics ", ("metrics",)),
        ("%export model --example m --format o", ("onnx",)),
        ("%deploy model --dry-run --target p", ("process",)),
        ("%deploy model --expose n", ("nodeport",)),
        ("%deploy --name x m", ("model", "metrics", "models:/")),
        ("%build model --builder a", ("auto",)),
        ("%build model --builder o", ("oci",)),
        ("%build model --load ", ("engine", "kind", "minikube", "k3d")),
        ("%build model --requirements x --r", ("--registry", "--requirements")),
        ("%predict ", ("fraud", "iris", "dep")),
        ("%predict f", ("fraud",)),
        ("%predict fraud m", ("model", "metrics")),
        ("%undeploy i", ("iris",)),
        ("%mlopsnb ", ("doctor", "set", "settings")),
        ("%mlopsnb set t", ("target=", "timeout=")),
        ("%mlopsnb set context=", ("context=kind-dev", "context=prod")),
        ("%mlopsnb set status=d", ("status=display",)),
        ("%mlopsnb set target=p", ("target=process",)),
        ("%deploy models:/", ("models:/fraud/", "models:/iris/", "models:/fraud@champion")),
        ("%deploy models:/f", ("models:/fraud/", "models:/fraud@champion")),
        ("%deploy models:/fraud/", ("models:/fraud/10", "models:/fraud/9")),
        ("%build models:/fraud@", ("models:/fraud@champion",)),
        ("%deploy model --fallback models:/i", ("models:/iris/",)),
        ("%predict fraud model -o m", ("model", "metrics")),
        ("%deployments --j", ("--json",)),
    ],
)
def test_offers(offered, text, values):
    assert offered(text) == values


@pytest.mark.parametrize(
    "text",
    [
        "",
        "deploy --f",
        "%deploy",
        "%other --f",
        "print('%deploy --form",
        "%deploy model --port ",
        "%deploy zzz",
        "%logs fraud x",
        "%mlopsnb set timeout=1",
        "%deploy models:/nothing",
    ],
)
def test_no_offer(offered, text):
    assert offered(text) is None


@given(st.sampled_from(sorted([*VERBS, "mlopsnb"])), st.text(max_size=30))
def test_any_text_is_survived_and_offers_begin_with_the_fragment(known, verb, rest):
    found = offer(f"%{verb} {rest}", NAMES, known)
    assert found is None or (found.values and all(v.startswith(found.fragment) for v in found.values))


def test_names_are_read_once_and_kept_by_the_magics():
    reads = []

    def read():
        reads.append(1)
        return ["iris"]

    names = Names(read)
    names.add(["fraud"])
    names.get()
    names._reader.join(5)
    assert names.get() == ["iris", "fraud"]
    names.remove("fraud")
    assert names.get() == ["iris"]
    assert reads == [1]


def test_a_slow_read_does_not_block(monkeypatch):
    monkeypatch.setattr(completion, "_PATIENCE", 0.01)
    go = threading.Event()

    def read():
        go.wait(10)
        return ["late"]

    names = Names(read)
    assert names.get() == []
    go.set()
    names._reader.join(5)
    assert names.get() == ["late"]


def test_a_failing_read_is_no_names():
    names = Names(lambda: 1 / 0)
    assert names.get() == []


def test_names_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("MLOPSNB_STATE_DIR", str(tmp_path))
    assert deployed_names() == []
    monkeypatch.setenv("MLOPSNB_TARGET", "nowhere")
    assert deployed_names() == []


def test_contexts_of_all_files(monkeypatch, tmp_path):
    (tmp_path / "a").write_text("contexts: [{name: dev, context: {}}]\n")
    (tmp_path / "b").write_text("contexts:\n- name: dev\n- name: prod\n")
    (tmp_path / "empty").write_text("")
    files = [str(tmp_path / name) for name in ("a", "none", "empty", "b")]
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(files))
    assert list(contexts()) == ["dev", "prod"]


def test_the_matcher_is_guarded():
    class Context:
        text_until_cursor = "%deploy --form"

    class Broken:
        user_ns = None

    names = Known()
    assert make_matcher(Broken(), names)(Context())["completions"][0].text == "--format"
    Context.text_until_cursor = "%deploy m"
    assert make_matcher(Broken(), names)(Context()) == {"completions": []}
    assert offer("%deploy --form", NAMES, names) == Offer("--form", ("--format",), "option")
