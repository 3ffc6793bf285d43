"""The status card and the side panel in a real JupyterLab, seen by a real browser."""

from __future__ import annotations

import json
import re
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from real_lab import TOKEN, Page, own_home, screenshot, write_notebook

import mlopsnb as ml

pytestmark = pytest.mark.browser

START = (
    "import torch\n%load_ext mlopsnb\nX = torch.rand(8, 4)\nmodel = torch.nn.Linear(4, 2)\ndep = %attach lab"
)
EXPORT = "artifact = %export model --example X\nartifact"

# A revision that runs and has no traffic yet, for as long as the test wants.
WAITING = """import threading
from mlopsnb import checking
from mlopsnb.events import report_line
def waiting(*_):
    report_line("check", "asking <revision 2>")
    threading.Event().wait(600)
real, checking.check = checking.check, waiting"""
DEPLOY = "%deploy artifact --name lab"
AFTER = "print('serves revision', dep.revision, tuple(dep.predict(X).shape))"
FAILING = "%deploy artifact --name '<img src=x onerror=alert(1)>'"

CARD = ".jp-OutputArea-output [role=status]"
WIDGET = ".jp-OutputArea-output .jupyter-widgets"
PANEL = "#mlopsnb-deployments"
LISTING = re.compile(r"/mlopsnb/deployments(\?|$)")
ACTIVE = ".jp-Notebook .jp-Cell.jp-mod-active .cm-content"


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_store):
    """A home in which `lab` is deployed."""
    place = tmp_path_factory.mktemp("lab")
    with own_home(place, empty_store) as own:
        deployed = ml.deploy(torch.nn.Linear(4, 2), name="lab", example=np.zeros((2, 4), "float32"))
    yield place, own, deployed
    deployed.delete()


def test_the_panel_lists_deployments_and_writes_cells(lab, browser, place):
    from playwright.sync_api import expect

    path = place[0] / "work" / "panel.ipynb"
    write_notebook(path, "my_model = 1")
    opened = Page(browser, lab, path)
    page = opened.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])

    opened.command("mlopsnb:show-deployments")
    panel = page.get_by_role("region", name="Deployments")
    listed = panel.get_by_role("listitem", name="lab")
    expect(listed).to_contain_text("✓ ready · process · revision 1")
    expect(panel.get_by_role("status")).to_have_text("1 deployment")
    listed.get_by_role("button", name="Copy the URL of lab").click()
    expect(page.get_by_text("The URL is in the clipboard.").first).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == place[2].url

    listed.get_by_role("button", name="Insert a cell that attaches lab").click()
    expect(page.locator(ACTIVE)).to_have_text("%load_ext mlopsnbdep = %attach lab --target process")
    listed.get_by_role("button", name="Insert a cell that asks lab").click()
    expect(page.locator(ACTIVE)).to_have_text("%predict lab X --target process")
    page.locator(".jp-Notebook .jp-Cell .cm-line").filter(has_text="my_model").click()
    page.get_by_role("button", name="Deploy", exact=True).click()
    expect(page.locator(ACTIVE)).to_have_text("dep = %deploy my_model --name my-model")
    screenshot(page, "panel")

    listed.get_by_role("button", name="Open the log of lab").click()
    expect(page.get_by_role("region", name="log of lab")).to_contain_text("lab")
    screenshot(page, "log")
    assert opened.wrong == []
    assert opened.asked_outside() == []

    evil = "<img src=x onerror=alert(1)>"
    answer = {
        "deployments": [dict.fromkeys(("name", "target", "state", "model", "revision", "url"), evil)],
        "problems": [{"target": "kubernetes", "message": evil}],
    }
    page.route(LISTING, lambda route: route.fulfill(json=answer))
    panel.get_by_role("button", name="Refresh the list").click()
    panel.get_by_text("not asked: kubernetes").click()
    expect(panel.get_by_text(f"kubernetes: {evil}", exact=True)).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
    page.route(LISTING, lambda route: route.fulfill(status=502, json={"message": "no <cluster>"}))
    panel.get_by_role("button", name="Refresh the list").click()
    expect(panel.get_by_role("status")).to_have_text("✗ no <cluster>")


CELLS = """async () => {
  const { nameAt, label, loading } = await import("/lab/extensions/mlopsnb/static/cells.js");
  return [
    nameAt("model = Net()", 2), nameAt("y = model(x)", 6), nameAt("y = model(x)", 4), nameAt("fit(", 3),
    nameAt("m: Net = Net()  # ", 18), nameAt("a == b  ", 8), nameAt("", 0), nameAt("if x:", 1),
    label("My_Model_2"), label("_"), label("é".repeat(5) + "a".repeat(70)).length,
    loading(["x", "import a\\n  %load_ext mlopsnb"]), loading(["# %load_ext mlopsnb"]),
  ];
}"""


def test_the_variable_under_the_cursor_and_its_name(lab, browser):
    page = browser.new_page()
    page.goto(f"{lab}/login?token={TOKEN}")
    assert page.evaluate(CELLS) == [
        *("model", "model", "model", "fit", "m", "", "", ""),
        *("my-model-2", "", 62, "", "%load_ext mlopsnb\n"),
    ]


def ask(address, method, path, token):
    url = urlsplit(address)
    connection = HTTPConnection(url.hostname, url.port, timeout=60)
    connection.request(method, path, headers={"Authorization": f"token {token}"} if token else {})
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, body


LOG = "/mlopsnb/deployments/process/lab/logs"


@pytest.mark.parametrize("path", ["/mlopsnb/deployments", LOG])
def test_routes_are_for_those_who_are_logged_in_and_only_tell(lab, path):
    assert ask(lab, "GET", path, None)[0] == 403
    assert ask(lab, "GET", path, "wrong")[0] == 403
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert ask(lab, method, path, TOKEN)[0] == 405
        assert ask(lab, method, path, None)[0] in (403, 405)


def test_routes_tell_what_is_there_and_what_is_not(lab):
    status, body = ask(lab, "GET", "/mlopsnb/deployments", TOKEN)
    assert status == 200
    assert [(d["name"], d["state"]) for d in json.loads(body)["deployments"]] == [("lab", "ready")]
    status, body = ask(lab, "GET", LOG, TOKEN)
    assert status == 200
    assert json.loads(body)["left_out"] == 0
    status, body = ask(lab, "GET", "/mlopsnb/deployments/process/lib/logs", TOKEN)
    assert status == 404
    assert "no deployment named 'lib'" in json.loads(body)["message"]
    assert ask(lab, "GET", "/mlopsnb/deployments/nowhere/lab/logs", TOKEN)[0] == 404


def test_a_card_is_live_cancelled_failed_and_readable_without_a_kernel(lab, browser, place):
    from playwright.sync_api import expect

    path = place[0] / "work" / "card.ipynb"
    write_notebook(path, START, EXPORT, WAITING, DEPLOY, AFTER, FAILING)
    opened = Page(browser, lab, path)
    page = opened.page

    opened.run_all()
    expect(page.locator(CARD).filter(has_text="%export model: done in")).to_be_visible()
    live = page.locator(WIDGET).filter(has_text="check its answers").first
    expect(live).to_contain_text("asking <revision 2>")
    expect(live.locator("tr").filter(has_text="check its answers")).to_contain_text("2 s")
    cancel = page.locator("button.mlopsnb-cancel")
    expect(cancel).to_have_accessible_name("⊘ Cancel")
    cancel.scroll_into_view_if_needed()
    screenshot(page, "card-live")
    cancel.click()
    cancelled = page.locator(CARD).filter(has_text="%deploy artifact: cancelled after")
    expect(cancelled).to_contain_text("what served before serves on")
    expect(page.locator(WIDGET)).to_have_count(0)
    expect(cancel).to_have_count(0)
    screenshot(page, "card-cancelled")

    opened.run_cell(4)
    expect(page.get_by_text("serves revision 1 (8, 2)", exact=True)).to_be_visible()
    opened.run_cell(5)
    expect(page.get_by_text("UserError: '<img src=x onerror=alert(1)>' cannot name")).to_be_visible()
    assert page.locator("img[src=x]").count() == 0

    opened.save()
    cells = json.loads(path.read_text())["cells"]
    assert [sorted(o.get("data", {})) for o in cells[1]["outputs"]] == [["text/html", "text/plain"]] * 2
    assert sorted(cells[3]["outputs"][0]["data"]) == ["text/html", "text/plain"]
    page.reload()
    expect(page.locator(CARD).filter(has_text="%export model: done in")).to_be_visible()
    expect(cancelled).to_be_visible()
    opened.command("apputils:change-theme", theme="JupyterLab Dark")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    expect(page.locator(".jp-SplashScreen, #jupyterlab-splash")).to_have_count(0)
    cancelled.scroll_into_view_if_needed()
    screenshot(page, "card-dark")
    assert opened.wrong == []
    assert opened.asked_outside() == []
