"""The quickstart notebook, run as `make demo` runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

from notebooks import text

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def run_demo(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def processes_below(directory: Path) -> list[list[str]]:
    """Return the command lines that name a file below *directory*."""
    lines = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(directory) in " ".join(line)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    home = tmp_path_factory.mktemp("quickstart") / "demo"
    return run_demo(home), home


def test_demo_prints_a_prediction_over_http_and_the_drift_verdict(demo):
    done, _ = demo
    assert (done.returncode, done.stderr) == (0, "")
    assert "POST http://127.0.0.1:" in done.stdout
    assert "malignant with probability 0." in done.stdout
    assert "drift: 1 of 1 output and 7 of 10 features drifted" in done.stdout


def test_demo_leaves_no_process_behind(demo):
    assert processes_below(demo[1]) == []


def test_page_needs_no_network(demo):
    page = (demo[1] / "quickstart.html").read_text()
    assert 'src="http' not in page
    assert "mlopsnb" in page


@pytest.fixture
def executed(demo):
    return nbformat.read(demo[1] / "quickstart.ipynb", as_version=4)


def test_nothing_is_written_to_standard_error(executed):
    assert [o.text for c in executed.cells for o in c.get("outputs", ()) if o.get("name") == "stderr"] == []


def test_saved_outputs_need_no_widget(executed):
    kinds = {kind for c in executed.cells for o in c.get("outputs", ()) for kind in o.get("data", ())}
    assert kinds == {"text/plain", "text/html", "image/png"}


def test_new_version_came_without_a_failed_request_and_kept_the_address(executed):
    said = text(executed, "better")
    before, after = next(line for line in said.splitlines() if line.startswith("address:")).split()[1::2]
    assert before == after
    assert "'by version 1'" in said
    assert "'by version 2'" in said
    assert "failed: 0" in said


def test_same_population_does_not_drift(executed):
    assert text(executed, "same").startswith("ok: none of 10 features drifted")


def test_nothing_is_deployed_at_the_end(executed):
    assert text(executed, "undeploy").endswith("nothing is deployed")


def test_run_that_fails_says_why_and_leaves_no_process_behind(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    last = next(i for i, c in enumerate(notebook.cells) if c.id == "deploy")
    notebook.cells = [*notebook.cells[: last + 1], nbformat.v4.new_code_cell("raise OSError('no more ink')")]
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    done = run_demo(tmp_path / "demo", tmp_path / "broken.ipynb")
    assert done.returncode == 1
    assert "no more ink" in done.stderr
    assert "tumor" in text(nbformat.read(tmp_path / "demo" / "broken.ipynb", as_version=4), "deploy")
    assert processes_below(tmp_path) == []


def test_directory_that_is_not_its_own_is_not_emptied(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert "was not made by this script" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "chapter 1"
