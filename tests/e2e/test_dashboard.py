"""The dashboard in a real JupyterLab, seen by a real browser, over two deployments under load."""

from __future__ import annotations

import json
import re
import threading

import numpy as np
import pytest
import torch
from real_lab import Page, chromium, jupyterlab, own_home, screenshot, write_notebook

import mlopsnb as ml

pytestmark = pytest.mark.browser

OUTPUT = ".jp-OutputArea-output"
FIGURES = re.compile(r"[\d.]+")


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


@pytest.fixture(scope="module")
def lab(place):
    root, own, _ = place
    with jupyterlab(root, root / "work", **own) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def test_a_dashboard_moves_shows_one_and_rolls_back_only_when_it_was_confirmed(lab, browser, place):
    from playwright.sync_api import expect

    path = place[0] / "work" / "dashboard.ipynb"
    write_notebook(path, "%load_ext mlopsnb\nboard = %dashboard", "board", "board.close()")
    opened = Page(browser, lab, path)
    page = opened.page
    opened.run_cell(0)
    opened.run_cell(1)

    table = page.get_by_role("table", name="deployments")
    row = table.get_by_role("row").filter(has_text="fraud")
    expect(row).to_contain_text("✓ ready")
    expect(table.get_by_role("row").filter(has_text="tumor")).to_contain_text("✓ ready")
    expect(page.get_by_text("not asked: docker")).to_be_visible()
    rate = row.get_by_role("cell").nth(6)
    expect(rate).to_have_text(FIGURES)
    expect(row.get_by_role("cell").nth(11)).to_have_text("✓ none of 6")
    before = rate.inner_html()
    expect(rate).to_have_text(FIGURES)
    page.wait_for_function(
        "([cell, before]) => cell.isConnected === false || cell.innerHTML !== before",
        arg=[rate.element_handle(), before],
    )

    page.get_by_label("Deployment:").select_option("fraud on process")
    expect(page.get_by_role("table", name="deployment fraud")).to_contain_text("revision 2, 100 %")
    screenshot(page, "dashboard")
    assert opened.wrong == []
