"""%deploy in a real JupyterLab, seen by a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.browser

CELLS = (
    "import torch\n%load_ext mlopsnb\nX = torch.rand(8, 4)\nmodel = torch.nn.Linear(4, 2)",
    "dep = %deploy model --name lab --example X\ndep",
)
CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
CARD = ".jp-OutputArea-output [role=status]"
WIDGET = ".jp-OutputArea-output .jupyter-widgets"


@pytest.fixture
def lab(home):
    """A JupyterLab that knows nothing of this machine's user; its address and its notebook."""
    path = home / "work" / "lab.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    news = home / "settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        "IPYTHONDIR": home / "ipython",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
    }
    command = [
        *(
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={port}",
        ),
        *(
            "--ServerApp.port_retries=0",
            "--IdentityProvider.token=secret",
            "--LabApp.expose_app_in_browser=True",
        ),
    ]
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=path.parent,
            env=os.environ | {k: str(v) for k, v in own.items()},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(port, server, home / "lab.log")
            yield f"http://127.0.0.1:{port}", path
        finally:
            server.terminate()
            server.wait(30)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/api")
            if connection.getresponse().read():
                connection.close()
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.1)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)


def run_all(page) -> None:
    """Run all cells. JupyterLab drops a command that comes while it still connects, so it is given until it works."""
    from playwright.sync_api import expect

    for _ in range(20):
        page.evaluate("() => void jupyterapp.commands.execute('notebook:run-all-cells')")
        with contextlib.suppress(AssertionError):
            expect(page.locator(".jp-InputPrompt").first).not_to_have_text("[ ]:", timeout=2000)
            return
    pytest.fail("JupyterLab does not run the cells")


def test_status_is_live_while_it_runs_and_stays_readable_without_a_kernel(lab, browser):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    address, path = lab
    page = browser.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{address}/lab/tree/{path.name}?token=secret&reset")
    expect(page.locator("[data-status=idle]")).to_be_visible()

    run_all(page)
    expect(page.locator(WIDGET).filter(has_text="verify against the original")).to_be_visible()
    expect(page.locator(CARD).filter(has_text="%deploy model: done in")).to_be_visible()
    expect(page.locator(WIDGET)).to_have_count(0)
    expect(page.get_by_text("Deployment lab", exact=True)).to_be_visible()

    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    saved = [o.get("data", {}) for o in json.loads(path.read_text())["cells"][1]["outputs"]]
    assert [sorted(data) for data in saved] == [["text/html", "text/plain"]] * 2

    page.reload()
    expect(page.locator(CARD).filter(has_text="%deploy model: done in")).to_be_visible()
    assert wrong == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
