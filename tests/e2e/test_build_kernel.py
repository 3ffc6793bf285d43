"""`%build` in a real kernel: what its card shows, and what an interrupt in the middle of it leaves."""

from __future__ import annotations

import os
import sys
import time

import pytest
from fake_registry import FakeRegistry
from jupyter_client.manager import start_new_kernel
from served_plans import make_package
from tiny_base import put_base

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the proof runs what is meant for Linux"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*TCP.*without encryption"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def fake():
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def kernel(tmp_path_factory, fake):
    home = tmp_path_factory.mktemp("home")
    names = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    places = {name: str(home / name.lower()) for name in (*names, "MLOPSNB_CACHE_DIR", "MLOPSNB_STATE_DIR")}
    settings = {"MLOPSNB_BASE_IMAGE": put_base(fake), "MLOPSNB_REGISTRY": f"{fake.host}/team"}
    manager, client = start_new_kernel(kernel_name="python3", env={**os.environ, **places, **settings})
    package = make_package(home / "package")
    reply, _ = execute(client, f"%load_ext mlopsnb\nfrom pathlib import Path\nnet = Path({str(package)!r})")
    assert reply["status"] == "ok"
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def execute(client, code, seen=lambda text: None):
    """Run a cell; return the reply's content and the texts it showed."""
    shown = []

    def note(message):
        content = message["content"]
        text = content.get("data", {}).get("text/plain", "") or content.get("text", "")
        if text:
            shown.append(text)
            seen(text)

    reply = client.execute_interactive(code, allow_stdin=False, output_hook=note, timeout=180)
    return reply["content"], shown


def images(fake):
    return {name for name, _ in fake.manifests} - {"python"}


def test_an_interrupt_during_the_upload_leaves_nothing_and_the_next_build_goes_on(kernel, fake):
    manager, client = kernel
    sent = []

    def interrupt(text):
        if "resolve the environment" in text:
            fake.release.clear()  # from here on the registry keeps everybody waiting
        if "bring them there" in text and not sent:
            sent.append(time.perf_counter())
            manager.interrupt_kernel()

    reply, shown = execute(client, "image = %build net", seen=interrupt)
    fake.release.set()
    assert sent
    assert time.perf_counter() - sent[0] < 10
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert shown[-1].startswith("⊘ %build net: cancelled after")
    assert "⊘ bring them there" in shown[-1]
    assert images(fake) == set()

    reply, shown = execute(client, "image = %build net\nimage")
    assert reply["status"] == "ok"
    assert images(fake) == {"team/net"}
    assert any("✓ %build net: done in" in text for text in shown)
    assert shown[-1].startswith(f"Image {fake.host}/team/net:v0-")

    reply, shown = execute(client, "image = %build net\nprint(image.sent)")
    assert "nothing has changed" in "".join(shown)
    assert shown[-1] == "0\n"
