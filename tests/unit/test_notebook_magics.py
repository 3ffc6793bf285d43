from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from IPython.core.completer import provisionalcompleter
from IPython.core.magics.basic import MagicsDisplay
from IPython.utils.capture import capture_output

import mlopsnb
import notebooks
from mlopsnb.cleaning import Cleanup
from mlopsnb.deployment import Deployments, History
from mlopsnb.notebook.grammar import VERBS
from mlopsnb.notebook.magics import MlopsnbMagics
from mlopsnb.records import Revision
from mlopsnb.settings import settings

MAGICS = {*VERBS, "mlopsnb"}


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    with notebooks.shell(tmp_path_factory.mktemp("ipython")) as shell:
        yield shell


@pytest.fixture
def ip(shell, monkeypatch, tmp_path):
    monkeypatch.setenv("MLOPSNB_STATE_DIR", str(tmp_path / "state"))
    shell.reset(new_session=False)
    shell.run_line_magic("load_ext", "mlopsnb")
    yield shell
    shell.run_line_magic("unload_ext", "mlopsnb")


@pytest.fixture
def run(ip):
    """Run a cell; return what its last expression gave, and what was printed."""

    def run(cell, **names):
        ip.user_ns.update(names)
        ip.user_ns.pop("_", None)
        with capture_output() as said:
            result = ip.run_cell(cell)
        return result, said

    return run


@pytest.fixture
def twin(monkeypatch):
    """Put a function in the place of a twin; it notes its arguments and returns the value given."""

    def put(module, name, value=None):
        calls = []

        def stand_in(*args, **kwargs):
            calls.append((args, kwargs))
            return value

        home = sys.modules.get(module) or ModuleType(module)
        monkeypatch.setitem(sys.modules, module, home)
        monkeypatch.setattr(home, name, stand_in, raising=False)
        return calls

    return put


def test_load_and_unload_leave_the_shell_as_it_was(shell):
    def state():
        return (
            dict(shell.magics_manager.magics["line"]),
            list(shell.Completer.custom_matchers),
            {
                kind: (dict(f.type_printers), dict(f.deferred_printers))
                for kind, f in shell.display_formatter.formatters.items()
            },
            list(shell.configurables),
            dict(shell.magics_manager.registry),
        )

    before = state()
    with capture_output() as said:
        mlopsnb.load_ipython_extension(shell)
        mlopsnb.load_ipython_extension(shell)
        loaded = state()
        mlopsnb.unload_ipython_extension(shell)
        mlopsnb.unload_ipython_extension(shell)
    assert set(loaded[0]) - set(before[0]) == MAGICS
    assert len(loaded[1]) == len(before[1]) + 1
    assert state() == before
    assert (said.stdout, said.stderr, said.outputs) == ("", "", [])


def test_a_magic_that_was_there_comes_back(shell):
    def other(line):
        """Another project's magic."""

    shell.register_magic_function(other, magic_name="deploy")
    mlopsnb.load_ipython_extension(shell)
    assert shell.find_line_magic("deploy") is not other
    mlopsnb.unload_ipython_extension(shell)
    assert shell.find_line_magic("deploy") is other
    shell.magics_manager.magics["line"].pop("deploy")


def test_lsmagic_shows_them_under_our_class(ip):
    listed = MagicsDisplay(ip.magics_manager)._jsonable()["line"]
    assert {name for name, owner in listed.items() if owner == "MlopsnbMagics"} == MAGICS
    assert set(MlopsnbMagics.magics["line"]) == MAGICS


def test_a_line_becomes_a_call_and_the_record_comes_back(run, twin):
    calls = twin("mlopsnb.flow", "log", "the version")
    result, said = run("v = %log_model art --name n --metrics acc={acc}\nv", art="A", acc=0.5)
    assert result.result == "the version"
    assert calls == [(("A",), {"name": "n", "metrics": {"acc": 0.5}})]
    assert said.stderr == ""


def test_a_semicolon_silences(run, twin):
    calls = twin("mlopsnb.flow", "log", "the version")
    result, said = run("%log_model art --name n;", art="A")
    assert (result.result, said.stdout) == (None, "")
    assert len(calls) == 1


def test_the_result_goes_into_a_variable_too(run, twin):
    twin("mlopsnb.flow", "log", "the version")
    result, _ = run("%log_model art --name n -o kept", art="A")
    assert result.result == "the version"
    assert run("%log_model art --name n -o silent;")[0].result is None
    assert run("(kept, silent)")[0].result == ("the version", "the version")
    calls = twin("mlopsnb.flow", "log")
    assert "-o takes the name of a variable, found '1x'" in run("%log_model art --name n -o 1x")[1].stdout
    assert calls == []


def test_json_is_one_document_and_nothing_else(run, twin):
    listed = run("%deployments --json -o none")
    assert json.loads(listed[1].stdout) == {"deployments": [], "rollouts": []}
    assert (listed[0].result, listed[1].stderr) == (None, "")
    assert run("none")[0].result == ()
    twin("mlopsnb.deployment", "get", Named("a\x1b[31m", {"y": np.array([[np.nan, np.inf], [1, 2.5]])}))
    assert json.loads(run("%predict net 1 --json")[1].stdout) == {"y": [[None, None], [1.0, 2.5]]}


class Named:
    """A deployment that answers all with the same."""

    def __init__(self, name, answer):
        self.name, self._answer = name, answer

    def predict(self, x):
        return self._answer


def test_local_names_of_a_function(run, twin):
    calls = twin("mlopsnb.flow", "log", "v")
    result, _ = run(
        "def f(thing):\n    tag = 'x'\n    v = %log_model thing --name {tag}\n    return v\nf('A')"
    )
    assert result.result == "v"
    assert calls == [(("A",), {"name": "x"})]


def test_deploy_alone_finds_name_and_example(run, twin):
    record = SimpleNamespace(name="my-model")
    calls = twin("mlopsnb.flow", "deploy", record)
    model = torch.nn.Linear(4, 2)
    result, _ = run("dep = %deploy my_model\ndep", my_model=model, X_test=np.ones((100, 4)))
    assert result.result is record
    ((what,), options) = calls[0]
    assert what is model
    assert options.pop("example").shape == (64, 4)
    assert options == {"name": "my-model"}


def test_build_finds_name_and_example_too(run, twin):
    calls = twin("mlopsnb.building", "build", "the image")
    result, _ = run(
        "image = %build my_net --requirements a==1 --requirements {more} --push --max-size 900MB\nimage",
        my_net=torch.nn.Linear(4, 2),
        X_test=np.ones((100, 4)),
        more="b>2",
    )
    assert result.result == "the image"
    ((_, options),) = calls
    assert options.pop("example").shape == (64, 4)
    assert options == {
        "name": "my-net",
        "requirements": ["a==1", "b>2"],
        "push": True,
        "max_size": "900MB",
    }


def test_what_is_given_is_not_searched_for(run, twin):
    calls = twin("mlopsnb.flow", "deploy", ())
    model = torch.nn.Linear(4, 2)
    run("%deploy model --example rows --name n --dry-run", model=model, rows="R", X_test=np.ones((100, 4)))
    assert calls == [((model,), {"name": "n", "example": "R", "dry_run": True})]


def test_addresses_keep_their_own_name(run, twin):
    calls = twin("mlopsnb.flow", "deploy", ())
    run("%deploy models:/fraud/{v} --dry-run", v=3)
    run("%deploy uri --dry-run", uri="models:/fraud/4")
    assert calls == [(("models:/fraud/3",), {"dry_run": True}), (("models:/fraud/4",), {"dry_run": True})]


def test_dry_run_of_a_clean_up_is_its_own_record(run, twin):
    planned = Cleanup(dry_run=True)
    twin("mlopsnb.cleaning", "cleanup", planned)
    assert run("%cleanup --images --dry-run")[0].result is planned


@pytest.mark.parametrize("magic", ["deploy", "export"])
def test_no_rows_that_fit(run, magic):
    result, said = run(f"%{magic} net", net=torch.nn.Linear(4, 2), X_test=np.ones((5, 7)))
    assert str(result.error_in_exec) == (
        f"%{magic}: no variable holds rows that net accepts\n  hint: give --example X, a few rows of its input"
    )
    assert said.stdout.splitlines() == [
        f"UsageError: %{magic}: no variable holds rows that net accepts",
        "  hint: give --example X, a few rows of its input",
    ]


def test_errors_are_few_lines_without_a_stack(run):
    _, said = run("%deploy model --targte process", model=1)
    assert said.stdout.splitlines() == [
        "UsageError: %deploy has no option --targte",
        "  hint: did you mean '--target'?",
    ]


def test_deployments_are_found_by_variable_expression_and_name(run, twin):
    class Deployment:
        def __init__(self, name):
            self.name = name

        def logs(self, tail=None):
            return f"{self.name} {tail}"

    Deployment.__module__ = "mlopsnb.deployment"
    calls = twin("mlopsnb.deployment", "get", Deployment("found"))
    one = Deployment("held")
    assert run("%logs dep --tail 3", dep=one)[0].result == "held 3"
    assert run("%logs deps[0]", deps=[one])[0].result == "held None"
    assert calls == []
    assert run("%logs model --target process", model="no deployment")[0].result == "found None"
    run("%logs net-{i}", i=2)
    assert calls == [(("model",), {"target": "process"}), (("net-2",), {"target": None})]
    result, _ = run("%logs deps[0]", deps=[3])
    assert str(result.error_in_exec) == "'deps[0]' is no deployment but of type int"


def test_the_doctor_is_asked_from_a_cell(run, monkeypatch):
    from mlopsnb.notebook import doctor_checks
    from mlopsnb.notebook.doctor import Finding

    monkeypatch.setattr(doctor_checks, "checks", lambda: [("kernel", lambda: Finding("works", "this one"))])
    result, _ = run("%mlopsnb doctor")
    assert str(result.result) == "what is set up here works\n  kernel  ✓ works  this one"


def test_help(run, ip):
    _, said = run("%deploy --help")
    assert said.stdout.startswith("Serve a model.")
    assert ip.object_inspect("%deploy")["docstring"].startswith("Serve a model.")
    _, said = run("%mlopsnb -h")
    assert "%mlopsnb set KEY=VALUE" in said.stdout


def test_settings(run, monkeypatch):
    monkeypatch.setattr("mlopsnb.settings._session", {})
    result, _ = run("%mlopsnb set timeout={t} status=off", t=30)
    assert "timeout 30.0" in " ".join(str(result.result).split())
    assert "status off" in " ".join(str(result.result).split())
    result, _ = run("%mlopsnb set timeout= status=")
    assert str(result.result) == str(run("%mlopsnb settings")[0].result)
    assert "timeout 600.0" in " ".join(str(result.result).split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stetings", "%mlopsnb does not know 'stetings'\n  hint: %mlopsnb? shows what it takes"),
        ("set", "%mlopsnb does not know 'set'\n  hint: %mlopsnb? shows what it takes"),
        ("set timeout", "%mlopsnb set takes KEY=VALUE, found 'timeout'"),
    ],
)
def test_settings_refuse(run, line, message):
    assert str(run(f"%mlopsnb {line}")[0].error_in_exec) == message


def test_a_target_that_is_not_installed_is_told_when_it_is_set(run):
    said = str(run("%mlopsnb set target=proces timeout=5")[0].error_in_exec)
    assert said.startswith("no target named 'proces'; installed: ")
    assert "did you mean 'process'?" in said
    assert (settings().target, settings().timeout) == ("process", 600)


def test_overview(run):
    text = str(run("%mlopsnb")[0].result)
    assert text.startswith(f"mlopsnb {mlopsnb.__version__}, Python 3.")
    assert "torchscript" in text
    assert f"numpy       {np.__version__}" in text


def test_nothing_is_deployed(run):
    result, _ = run("%deployments")
    assert result.result == ()
    assert str(result.result) == "nothing is deployed"


def test_an_unknown_deployment(run):
    _, said = run("%predict fraud x", x=1)
    assert said.stdout.startswith("UserError: no deployment named 'fraud' on target 'process'")


def test_records_are_shown(ip):
    revisions = (Revision(id=1, source="models:/fraud/2", digest="sha256:aa", state="running"),)
    data, _ = ip.display_formatter.format(revisions)
    assert "models:/fraud/2" in data["text/html"]
    assert set(ip.display_formatter.format((1, 2))[0]) == {"text/plain"}

    history = History(revisions)
    text, html = (ip.display_formatter.format(history)[0][kind] for kind in ("text/plain", "text/html"))
    assert text.splitlines()[0].split() == [
        "revision",
        "state",
        "model",
        "created",
        *("by", "from"),
        "digest",
        "note",
    ]
    assert "models:/fraud/2" in html
    data, _ = ip.display_formatter.format(Deployments())
    assert data["text/plain"] == "nothing is deployed"
    assert "nothing is deployed" in data["text/html"]

    class Own(tuple):
        def _repr_html_(self):
            return "own"

    assert ip.display_formatter.format(Own())[0]["text/html"] == "own"


def complete(ip, line):
    """Return what the line is completed to, as a front end does it."""
    with provisionalcompleter():
        return sorted(line[: c.start] + c.text for c in ip.Completer.completions(line, len(line)))


def test_what_the_magics_have_seen_is_offered(run, ip, twin, monkeypatch):
    monkeypatch.setattr("mlopsnb.tracking.listing.models", lambda: ())
    twin("mlopsnb.flow", "log", SimpleNamespace(uri="models:/fraud/7"))
    run("%log_model art --name fraud", art="A")
    assert complete(ip, "%deploy models:/fraud/") == ["%deploy models:/fraud/7"]


def test_completion_of_options_values_and_variables(ip):
    ip.user_ns.update(net=1, note={"a": 1}, np=np)
    assert complete(ip, "d = %deploy --form") == ["d = %deploy --format"]
    assert complete(ip, "%deploy net --format t") == [
        "%deploy net --format torch_export",
        "%deploy net --format torchscript",
    ]
    assert complete(ip, "%deploy net --target p") == ["%deploy net --target process"]
    assert complete(ip, "%deploy n") == ["%deploy net", "%deploy note"]
    assert complete(ip, "%deploy net --metrics n") == ["%deploy net --metrics note"]
    assert complete(ip, "%deploy m") == ["%deploy models:/"]
    assert complete(ip, "%mlopsnb se") == ["%mlopsnb set", "%mlopsnb settings"]
    assert complete(ip, "%mlopsnb set ti") == ["%mlopsnb set timeout="]
    assert "%deployments" in complete(ip, "%depl")


def test_export_takes_a_format_and_only_reports(run):
    pytest.importorskip("onnxruntime")
    result, said = run(
        "%export net --example rows --format onnx", net=torch.nn.Linear(4, 2), rows=np.ones((3, 4))
    )
    assert result.result.format == "onnx"
    assert said.stderr == ""
    card = said.stdout.partition("\nOut[")[0].splitlines()
    assert card[0] == "%export net"
    assert [line for line in card[1:] if not line.lstrip().startswith(("▸", "✓"))] == []
