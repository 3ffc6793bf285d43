"""The notebooks of the repository: read, run, and what their cells showed; and a shell for a test's own cells."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"


def read(name):
    """Return the notebook *name* as it lies in the repository."""
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def run(name, directory, *, timeout=600):
    """Return the notebook *name* with its outputs, run from top to bottom in *directory*.

    It is kept in `.executed/` too: the documentation shows its outputs from there.
    """
    notebook = read(name)
    where = {"metadata": {"path": str(directory)}}
    NotebookClient(notebook, timeout=timeout, resources=where, store_widget_state=False).execute()
    (ROOT / ".executed").mkdir(exist_ok=True)
    nbformat.write(notebook, ROOT / ".executed" / name)
    return notebook


def text(notebook, cell_id):
    """Return what the cell of that id showed, as text."""
    [cell] = [c for c in notebook.cells if c.id == cell_id]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


@contextmanager
def shell(directory):
    """Yield a shell that keeps its files in *directory*; the next test in this process gets another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(directory))
        config = Config({"HistoryManager": {"enabled": False}})
        yield InteractiveShell.instance(config=config, colors="nocolor")
        InteractiveShell.clear_instance()
