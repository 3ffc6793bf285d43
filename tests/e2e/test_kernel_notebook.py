"""The front end in real kernels: loading, help, completion, interrupts, and what a saved notebook keeps."""

from __future__ import annotations

import os
import queue
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbconvert import HTMLExporter

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*TCP.*without encryption"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WIDGET = "application/vnd.jupyter.widget-view+json"

# A step that waits, in place of a server that starts.
WAITING = """
import threading
from mlopsnb import flow
from mlopsnb.events import report_progress, step

def deploy(what, **options):
    with step("export") as log:
        log.result = "<b>1.2 MB</b>"
    with step("start", "revision 1"):
        report_progress("start", "waiting", 0.5)
        threading.Event().wait(60)

flow.deploy = deploy
model = object()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    names = (
        "IPYTHONDIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "MLOPSNB_STATE_DIR",
    )
    places = {name: str(home / name.lower()) for name in names}
    return {
        **os.environ,
        **places,
        "MLOPSNB_CACHE_DIR": str(home / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
    }


@pytest.fixture(scope="module")
def kernel(environment):
    manager, client = start_new_kernel(kernel_name="python3", env=environment)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def execute(client, code, *, allow_stdin=False, seen=None):
    """Run a cell; return the reply's content and the messages it published."""
    outputs = []

    def note(message):
        outputs.append(message)
        if seen is not None:
            seen(message)

    reply = client.execute_interactive(code, allow_stdin=allow_stdin, output_hook=note, timeout=120)
    return reply["content"], [m for m in outputs if m["msg_type"] != "status"]


@pytest.fixture(scope="module")
def client(kernel):
    reply, outputs = execute(kernel[1], "%load_ext mlopsnb")
    assert reply["status"] == "ok"
    assert [m["msg_type"] for m in outputs] == ["execute_input"]
    return kernel[1]


def test_complete_request(client):
    code = "d = %deploy --form"
    client.complete(code, len(code))
    content = client.get_shell_msg(timeout=20)["content"]
    assert content["matches"] == ["--format"]
    assert code[: content["cursor_start"]] + content["matches"][0] == "d = %deploy --format"


def test_inspect_request(client):
    client.inspect("%deploy", 5)
    text = client.get_shell_msg(timeout=20)["content"]["data"]["text/plain"]
    assert "Serve a model." in text
    assert "--example EXAMPLE" in text


def test_a_usage_error_is_an_error_of_few_lines(client):
    reply, outputs = execute(client, "%deploy modle")
    assert reply["status"] == "error"
    assert outputs[-1]["content"]["traceback"] == ["UsageError: no variable named 'modle'"]


def late_messages(client):
    """Return what the kernel publishes after a cell has ended."""
    found = []
    with suppress(queue.Empty):
        while True:
            message = client.get_iopub_msg(timeout=0.3)
            if message["msg_type"] != "status":
                found.append(message)
    return found


@pytest.mark.parametrize(("allow_stdin", "has_widget"), [(True, True), (False, False)])
def test_interrupt_leaves_a_frozen_card(kernel, client, allow_stdin, has_widget):
    execute(client, WAITING)
    manager, _ = kernel
    times = {}

    def interrupt(message):
        content = message["content"]
        shown = str(content.get("data", content))
        if "revision 1" in shown or "waiting" in shown:
            times.setdefault("sent", time.perf_counter())
            if len(times) == 1:
                manager.interrupt_kernel()
                times["interrupted"] = 0.0

    reply, outputs = execute(client, "%deploy model", allow_stdin=allow_stdin, seen=interrupt)
    assert time.perf_counter() - times["sent"] < 5
    assert reply["status"] == "error"
    assert reply["ename"] == "KeyboardInterrupt"
    assert reply["traceback"] == ["KeyboardInterrupt: %deploy model was cancelled"]
    displays = [m["content"] for m in outputs if m["msg_type"] in ("display_data", "update_display_data")]
    assert (WIDGET in displays[0]["data"]) is has_widget
    last = displays[-1]
    assert set(last["data"]) == {"text/html", "text/plain"}
    assert last["transient"]["display_id"] == displays[0]["transient"]["display_id"]
    assert "⊘ %deploy model: cancelled after" in last["data"]["text/plain"]
    assert "start the server  cancelled" in last["data"]["text/plain"]
    assert "&lt;b&gt;1.2 MB&lt;/b&gt;" in last["data"]["text/html"]
    assert [m for m in outputs if m["msg_type"] == "stream"] == []
    if has_widget:
        assert outputs[-1]["msg_type"] == "error"
        assert "comm_close" in {m["msg_type"] for m in outputs}
    assert late_messages(client) == []  # from a timer, for example


@pytest.fixture
def hanging(client, tmp_path):
    """A model in the kernel, and a server of it that never gets ready."""
    (tmp_path / "sitecustomize.py").write_text("import signal; signal.pause()")
    support = str(Path(__file__).parents[1] / "support")
    execute(
        client,
        f"import sys; sys.path.append({support!r}); from mlopsnb import flow; from served_plans import EXAMPLE, make_model",
    )
    execute(client, "import importlib; importlib.reload(flow)")  # other tests put functions of theirs in
    execute(client, f"import mlopsnb as ml; net = make_model(); site = {str(tmp_path)!r}")
    return "%deploy net --name bg --example EXAMPLE --env PYTHONPATH={site}"


def text_of(message):
    return message["content"].get("data", {}).get("text/plain", "")


def until(client, words, display_id):
    """Return the message that puts *words* into the display of that id, whatever cell runs."""
    while True:
        message = client.get_iopub_msg(timeout=60)
        shown = message["content"].get("transient", {}).get("display_id")
        if shown == display_id and words in text_of(message):
            return message


def test_a_card_in_the_background_lives_on_and_its_button_cancels(client, hanging):
    reply, outputs = execute(client, f"dep = {hanging} --no-wait", allow_stdin=True)
    assert reply["status"] == "ok"
    card = next(m for m in outputs if WIDGET in m["content"].get("data", {}))
    display_id = card["content"]["transient"]["display_id"]
    _, outputs = execute(client, "print(dep.status, dep.rollout.state)")
    assert [m["content"].get("text") for m in outputs[1:]] == ["starting running\n"]
    _, outputs = execute(client, "%attach bg;", allow_stdin=True)
    attached = outputs[-1]["content"]["data"]["text/plain"]
    assert attached.startswith("▸ %attach bg: running in the background")
    assert "%attach bg shows it; its wait() waits for it, cancel() ends it" in attached
    buttons = [m["content"] for m in outputs if "ButtonModel" in str(m["content"].get("data"))]
    # Of the first card too, which on some versions of the kernel is told to be of the cell that runs.
    assert {b["data"]["state"]["description"] for b in buttons} == {"⊘ Cancel"}
    click = {"method": "custom", "content": {"event": "click"}}
    client.shell_channel.send(
        client.session.msg("comm_msg", {"comm_id": buttons[-1]["comm_id"], "data": click})
    )
    last = until(client, "⊘ %deploy net: cancelled after", display_id)
    assert set(last["content"]["data"]) == {"text/html", "text/plain"}
    reply, _ = execute(client, "dep.wait(60)")
    assert (reply["ename"], reply["evalue"].splitlines()[0]) == (
        "DeployError",
        "the rollout of 'bg' was cancelled",
    )
    _, outputs = execute(client, "%deployments")
    assert "⊘ cancelled" in text_of(outputs[-1])


SLOW_RESTORING = """
import threading
from mlopsnb import executing
go = threading.Event()
real = executing._restore
def slowly(*args):
    go.wait(60)
    real(*args)
executing._restore = slowly
"""


def test_a_second_interrupt_detaches_what_is_being_restored(kernel, client, hanging):
    execute(client, SLOW_RESTORING)
    manager, _ = kernel
    sent = []

    def interrupt(message):
        if len(sent) < 2 and ("process ", "⊘ start the server")[len(sent)] in text_of(message):
            sent.append(message)
            manager.interrupt_kernel()

    reply, _ = execute(client, hanging, seen=interrupt)
    assert reply["traceback"] == [
        "KeyboardInterrupt: %deploy net was cancelled; what served 'bg' before is still being restored, %attach bg shows it"
    ]
    _, outputs = execute(client, "%attach bg;")
    assert "⊘ %attach bg: cancelling in the background" in str([text_of(m) for m in outputs])
    execute(client, "go.set()")
    until(client, "⊘ %deploy net: cancelled after", sent[0]["content"]["transient"]["display_id"])
    reply, _ = execute(client, "executing._restore = real; ml.get('bg').wait(60)")
    assert reply["evalue"].startswith("the rollout of 'bg' was cancelled")
    _, outputs = execute(client, "len(ml.deployments())")
    assert text_of(outputs[-1]) == "0"


MANY = """
from mlopsnb import flow
from mlopsnb.events import report_progress, step
import time

def log(artifact, **options):
    with step("log"):
        for i in range(5000):
            report_progress("log", f"part {i}", i / 5000)
    return "version 1"

flow.log = log
"""


def test_updates_are_few_and_the_last_one_shows(client):
    execute(client, MANY)
    start = time.perf_counter()
    _, outputs = execute(client, "%log_model 1 --name n")
    took = time.perf_counter() - start
    displays = [m["content"] for m in outputs if m["msg_type"] in ("display_data", "update_display_data")]
    assert len(displays) <= took * 10 + 2
    assert "✓ %log_model 1: done in" in displays[-1]["data"]["text/plain"]


def run_notebook(cells, environment, tmp_path, **options):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    client = NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}, **options)
    with client.setup_kernel(env=environment):
        for i, cell in enumerate(book.cells):
            client.execute_cell(cell, i)
    return book


def test_a_saved_notebook_keeps_html_and_text_only(environment, tmp_path):
    failing = WAITING.replace("threading.Event().wait(60)", "raise RuntimeError('no <port>')")
    book = run_notebook(
        ["%load_ext mlopsnb", failing, "%deploy model", "%mlopsnb"], environment, tmp_path, allow_errors=True
    )
    assert book.cells[0].outputs == []
    card, error = book.cells[2].outputs
    assert card.output_type == "display_data"
    assert set(card.data) == {"text/html", "text/plain"}
    assert "✗ %deploy model: failed after" in card.data["text/plain"]
    assert "no &lt;port&gt;" in card.data["text/html"]
    assert error.ename == "RuntimeError"
    assert "widgets" not in book.metadata
    page, _ = HTMLExporter().from_notebook_node(book)
    assert "start\u00a0the\u00a0server" in page
    assert "Model not found" not in page


MODEL = """
%load_ext mlopsnb
import torch
X_test = torch.rand(100, 4).double().numpy()
my_model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
"""

PREDICT = """
y = %predict my-model X_test[:3]
expected = my_model(torch.tensor(X_test[:3]).float()).detach().numpy()
assert y.shape == (3, 2)
assert abs(y - expected).max() < 1e-5
"""


def test_a_model_is_deployed_from_a_cell_and_everything_is_shown(environment, tmp_path):
    """The whole way, with the real functions."""
    cells = [
        MODEL,
        "dep = %deploy my_model\ndep",
        PREDICT,
        "%deployments",
        "%deploy my_model --dry-run",
        "%deploy my_model --metrics acc=0.5;",
        "%rollback my-model",
        "dep.history()",
        "%logs my-model --tail 5",
        "%undeploy my-model",
        "dep = %deploy my_model --no-wait",
        "dep.wait(300);",
        "%undeploy my-model;",
    ]
    try:
        book = run_notebook(cells, environment, tmp_path)
    finally:
        run_notebook(
            ["import mlopsnb\nfor d in mlopsnb.deployments():\n    d.delete()"], environment, tmp_path
        )
    card, record = book.cells[1].outputs
    text = card.data["text/plain"]
    assert "✓ %deploy my_model: done in" in text
    assert "name: my-model" in text
    assert "example: X_test[:64]" in text
    for step in (
        "export",
        "verify against the original",
        "log to the registry",
        "start the server",
        "check its answers",
    ):
        assert f"✓ {step}" in text
    assert "✓ ready" in record.data["text/plain"]
    assert "curl -s http://127.0.0.1:" in record.data["text/plain"]
    assert "models:/my-model/1" in book.cells[3].outputs[-1].data["text/plain"]
    assert "start   run revision 2" in book.cells[4].outputs[-1].data["text/plain"]
    assert [o.output_type for o in book.cells[5].outputs] == ["display_data"]
    assert "Deployment my-model" in book.cells[6].outputs[-1].data["text/plain"]
    assert "models:/my-model/2" in book.cells[7].outputs[-1].data["text/html"]
    assert "<pre" in book.cells[8].outputs[-1].data["text/html"]
    assert "✓ %undeploy my-model: done" in book.cells[9].outputs[0].data["text/plain"]
    [waited_for] = book.cells[10].outputs  # the card of that cell, when a later one has ended
    assert "✓ %deploy my_model: done in" in waited_for.data["text/plain"]
    everything = [o for c in book.cells for o in c.outputs]
    assert not any(WIDGET in o.get("data", {}) for o in everything)
    assert not any(o.output_type == "stream" for o in everything)
