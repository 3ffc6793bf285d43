"""Run the quickstart notebook, and say what came out of it.

Everything that the notebook makes stays in one directory: its deployments, its cache and its MLflow store. When the
run ends, in whatever way, no process of it is left.

Usage: python tools/demo.py [INTO [NOTEBOOK]]      by default .demo and notebooks/quickstart.ipynb
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from textwrap import indent

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

CELL_SECONDS = 300
LOG = "kernel.log"
TAGS = {"over-http": "a prediction over HTTP", "drift": "the drift verdict"}
"""Tags of the cells whose output is printed, and what it is."""


def main(into: str = ".demo", source: str = "notebooks/quickstart.ipynb") -> int:
    """Run the notebook, write it down, and print where it is and what its tagged cells said."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    home, path = Path(into).absolute(), Path(source).absolute()
    if home.exists() and not (home / LOG).exists():
        sys.exit(f"{home} is there already and was not made by this script; it would be emptied")
    _use(home)
    _end_deployments()  # those of a run that was killed
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    notebook = nbformat.read(path, as_version=4)
    print(f"running {source}, about a minute", flush=True)
    started = time.monotonic()
    try:
        _execute(notebook, home)
    except CellExecutionError as exc:
        print(exc, file=sys.stderr)
        return 1
    except AssertionError:  # nbclient takes signals itself, ends the kernel, and then misses it
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        _write(notebook, home / path.name)
        _end_deployments()
    print(f"ran from top to bottom in {time.monotonic() - started:.0f} s")
    for tag, title in TAGS.items():
        print(f"\n{title}:\n{indent(_said(notebook, tag), '  ')}")
    return 0


def _use(home: Path) -> None:
    """Point mlopsnb and MLflow, here and in the kernel, at places below *home*."""
    for name in [n for n in os.environ if n.startswith(("MLOPSNB_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ["MLOPSNB_STATE_DIR"] = str(home / "state")
    os.environ["MLOPSNB_CACHE_DIR"] = str(home / "cache")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home / 'mlflow.db'}"


def _execute(notebook: NotebookNode, home: Path) -> None:
    where = {"metadata": {"path": str(home)}}
    client = NotebookClient(notebook, timeout=CELL_SECONDS, resources=where, store_widget_state=False)
    with (home / LOG).open("w") as log:
        client.execute(stderr=log)


def _end_deployments() -> None:
    import mlopsnb

    for deployment in mlopsnb.deployments(target="process"):
        deployment.delete()


def _write(notebook: NotebookNode, path: Path) -> None:
    """Write the notebook as it stands, with its outputs, and as a page that needs no network."""
    nbformat.write(notebook, path)
    exporter = HTMLExporter(require_js_url="", mathjax_url="", mermaid_js_url="", jquery_url="")
    page = path.with_suffix(".html")
    page.write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8")
    print(f"the notebook with its outputs: {path}")
    print(f"the same as a page:            {page}")


def _said(notebook: NotebookNode, tag: str) -> str:
    """Return the text of the outputs of the cell that carries *tag*."""
    [cell] = [c for c in notebook.cells if tag in c.metadata.get("tags", ())]
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return "\n".join(filter(None, texts)).strip()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
