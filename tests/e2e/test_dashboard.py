"""The dashboard in a real JupyterLab, seen by a real browser, over two deployments under load."""

from __future__ import annotations

import json
import re
import threading

import numpy as np
import pytest
import torch
from real_lab import Page, own_home, screenshot, write_notebook

import mlopsnb as ml

pytestmark = pytest.mark.browser

OUTPUT = ".jp-OutputArea-output"
FIGURE = re.compile(r"[\d.]+")


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_store):
    """A home with `fraud`, which has two revisions and a reference, and `tumor`; somebody asks both all the time."""
    place = tmp_path_factory.mktemp("dashboard")
    X = np.random.default_rng(0).normal(size=(400, 4)).astype("float32")
    with own_home(place, empty_store) as own:
        fraud = ml.deploy(torch.nn.Linear(4, 2), name="fraud", example=X[:4], reference=X)
        ml.deploy(torch.nn.Linear(4, 2), name="fraud", example=X[:4], reference=X)
        tumor = ml.deploy(torch.nn.Linear(4, 1), name="tumor", example=X[:4])
    over = threading.Event()

    def ask():
        while not over.wait(0.03):
            fraud.predict(X)
            tumor.predict(X[:3])

    client = threading.Thread(target=ask)
    client.start()
    yield place, own, fraud
    over.set()
    client.join()
    fraud.delete()
    tumor.delete()


def history(deployment):
    return [(r.id, r.state) for r in deployment.history()]


def test_a_dashboard_moves_shows_one_and_rolls_back_only_when_it_was_confirmed(lab, browser, place):
    from playwright.sync_api import expect

    root, _, fraud = place
    path = root / "work" / "dashboard.ipynb"
    write_notebook(path, "%load_ext mlopsnb\nboard = %dashboard", "board", "print(repr(board))")
    opened = Page(browser, lab, path)
    page = opened.page
    opened.run_cell(0)
    opened.run_cell(1)

    table = page.get_by_role("table", name="deployments")
    row = table.get_by_role("row", name="fraud on process")
    rate, drift = row.get_by_role("cell").nth(4), row.get_by_role("cell").nth(9)
    expect(row).to_contain_text("✓ ready")
    expect(table.get_by_role("row", name="tumor on process")).to_contain_text("✓ ready")
    expect(page.get_by_text("not asked: docker")).to_be_visible()
    expect(drift).to_have_text("✓ none of 6")
    expect(rate).to_have_text(FIGURE)
    expect(rate.get_by_role("img", name="requests a second of revision 2 over time")).to_be_visible()
    before = rate.inner_html()
    page.wait_for_function(
        "before => ![...document.querySelectorAll('td')].some(cell => cell.innerHTML === before)", arg=before
    )

    page.get_by_label("Deployment:").select_option("fraud on process")
    expect(page.get_by_role("table", name="deployment fraud")).to_contain_text("revision 2, 100 %")
    page.get_by_role("tab", name="replicas").click()
    expect(page.get_by_role("table", name="replicas")).to_contain_text("process")
    page.get_by_role("tab", name="log").click()
    expect(page.get_by_role("region", name="last lines of the log of fraud")).to_contain_text("/infer")
    page.get_by_role("tab", name="drift").click()
    expect(page.get_by_role("region", name="drift of revision 2")).to_contain_text("none of 2 outputs")
    page.get_by_role("tab", name="history").click()
    expect(page.get_by_role("table", name="Revisions")).to_contain_text("models:/fraud/2")
    page.get_by_role("tab", name="traffic").click()
    expect(page.get_by_role("table", name="figures")).to_contain_text("requests a second")

    expect(page.get_by_role("button", name="Promote")).to_be_disabled()
    rollback = page.get_by_role("button", name="Roll back", exact=True)
    for answer in ("No, leave it", "Yes, roll back fraud"):
        rollback.click()
        expect(page.get_by_role("alert")).to_contain_text("Serve revision 1 (models:/fraud/1) again")
        expect(rollback).to_be_disabled()
        expect(page.get_by_role("button", name="No, leave it")).to_be_focused()
        assert history(fraud) == [(1, "stopped"), (2, "running")]
        screenshot(page, "dashboard-question")
        page.get_by_role("button", name=answer).click()
        expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_role("status").filter(has_text="Roll back fraud on process")).to_contain_text(
        "done in"
    )
    expect(row).to_contain_text("revision 3")
    assert history(fraud) == [(1, "stopped"), (2, "stopped"), (3, "running")]

    page.set_viewport_size({"width": 1280, "height": 1120})
    screenshot(page, "dashboard")
    opened.run_cell(1)  # the one before is closed, and its place is taken
    expect(page.get_by_role("button", name="Close the dashboard")).to_have_count(1)
    opened.command("apputils:change-theme", theme="JupyterLab Dark")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    expect(page.locator(".jp-SplashScreen, #jupyterlab-splash")).to_have_count(0)
    page.get_by_label("Deployment:").select_option("fraud on process")
    expect(page.get_by_role("table", name="figures")).to_contain_text("requests a second")
    expect(rate).to_have_text(FIGURE)
    screenshot(page, "dashboard-dark")
    page.get_by_role("button", name="Close the dashboard").click()
    expect(page.locator(f"{OUTPUT} .jupyter-widgets")).to_have_count(0)
    expect(row).to_contain_text("revision 3")
    opened.run_cell(2)
    expect(page.get_by_text("not shown; print() it")).to_be_visible()
    opened.save()
    cells = json.loads(path.read_text())["cells"]
    assert [sorted(o["data"]) for o in cells[1]["outputs"]] == [["text/html", "text/plain"]]

    opened.run_cell(1)
    expect(page.get_by_role("button", name="Close the dashboard")).to_have_count(1)
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    expect(page.locator(f"{OUTPUT} .jupyter-widgets")).to_have_count(0)
    expect(row).to_contain_text("revision 3")
    assert opened.wrong == []
    assert opened.asked_outside() == []
