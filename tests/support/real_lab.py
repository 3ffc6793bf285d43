"""A real JupyterLab that knows nothing of this machine's user, and a real browser to look at it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import nbformat
import pytest

TOKEN = "secret"
CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
EXTENSIONS = Path(__file__).parents[2] / "extensions"
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


def write_notebook(path: Path, *cells: str) -> None:
    """Write a notebook of code cells."""
    written = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=written, metadata={"kernelspec": KERNEL}), path)


@contextlib.contextmanager
def own_home(place: Path, store: Path) -> Iterator[dict[str, str]]:
    """Work in *place* with an MLflow store that is a copy of *store*; yield the variables that say so.

    What else is deployed by this machine's user is none of a test's business: there is no engine and no cluster.
    """
    (place / "work").mkdir()
    shutil.copy(store, place / "mlflow.db")
    own = {
        "MLOPSNB_STATE_DIR": str(place / "state"),
        "MLOPSNB_CACHE_DIR": str(place / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
        "DOCKER_HOST": f"unix://{place / 'none.sock'}",
        "KUBECONFIG": str(place / "none"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        patch.chdir(place / "work")
        yield own


@contextlib.contextmanager
def jupyterlab(home: Path, work: Path, **environment: str) -> Iterator[str]:
    """Yield the address of a JupyterLab that serves the directory *work* and has this checkout's extension."""
    news = home / "settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    own = {
        "IPYTHONDIR": home / "ipython",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_CONFIG_PATH": EXTENSIONS / "etc" / "jupyter",
        "JUPYTER_PATH": EXTENSIONS / "share" / "jupyter",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
    }
    port = _free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"),
        *("--LabApp.expose_app_in_browser=True", "--ServerApp.allow_unauthenticated_access=False"),
    ]
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=work,
            env=os.environ | {k: str(v) for k, v in own.items()} | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(port, server, home / "lab.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(60)
                raise


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
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


@contextlib.contextmanager
def chromium() -> Iterator[object]:
    """Yield a browser, and see to it that its pages have time on a busy machine."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)


_CONNECTED = """() => {
  const context = globalThis.jupyterapp?.shell?.currentWidget?.sessionContext;
  const kernel = context?.isReady && context.session?.kernel;
  return kernel && kernel.connectionStatus === "connected" && kernel.status === "idle";
}"""


class Page:
    """A page of JupyterLab with one notebook open. `asked` are the requests, `wrong` the errors of its scripts."""

    def __init__(self, browser, address: str, path: Path) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.set_default_timeout(60_000)
        self.address, self.path = address, path
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        # Chromium breaks requests off when a network of the machine comes or goes, such as an engine's.
        self.page.add_locator_handler(
            self.page.locator(".jp-Dialog").filter(has_text="Server Connection Error"),
            lambda dialog: dialog.locator("button.jp-mod-accept, button.jp-mod-warn").last.click(),
        )
        self.page.goto(f"{address}/lab/tree/{path.name}?token={TOKEN}&reset")
        # A command that comes while the kernel still starts is dropped, or asks which kernel.
        self.page.wait_for_function(_CONNECTED, timeout=120_000)

    def command(self, name: str, **arguments: object) -> None:
        """Carry out a command of JupyterLab."""
        self.page.evaluate(
            "([name, args]) => void jupyterapp.commands.execute(name, args)", [name, arguments]
        )

    def run_all(self) -> None:
        """Run all cells. JupyterLab may still drop the first command, so it is given until it works."""
        from playwright.sync_api import expect

        for _ in range(5):
            self.command("notebook:run-all-cells")
            with contextlib.suppress(AssertionError):
                expect(self.page.locator(".jp-InputPrompt").first).not_to_have_text("[ ]:", timeout=10_000)
                return
        pytest.fail("JupyterLab does not run the cells")

    def run_cell(self, index: int) -> None:
        """Run one cell, as soon as the kernel has ended what it does: after an error it drops what waits."""
        self.page.wait_for_function(_CONNECTED, timeout=120_000)
        self.page.evaluate(
            "index => { jupyterapp.shell.currentWidget.content.activeCellIndex = index; }", index
        )
        self.command("notebook:run-cell")

    def save(self) -> None:
        """Save the notebook, and return when it is saved."""
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")

    def asked_outside(self) -> list[str]:
        """Return the addresses outside of the Jupyter server that were asked for anything."""
        return [url for url in self.asked if not url.startswith((self.address, "data:", "blob:"))]


_PICTURES = os.environ.get("MLOPSNB_SCREENSHOTS")


def screenshot(page: object, name: str) -> None:
    """Keep a picture of *page*, if the variable MLOPSNB_SCREENSHOTS names a directory for them."""
    if _PICTURES:
        page.screenshot(path=Path(_PICTURES) / f"{name}.png")
