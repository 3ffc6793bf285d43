"""What the README and the docs show runs as it stands: the Python blocks of a page, in order, in one kernel.

Blocks marked `py` need a registry, an engine or data of the reader's own; what they show is tested elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name_of)
def test_python_blocks_run(page, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(b) for b in blocks(page)])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    with (tmp_path / "kernel.log").open("w") as log:
        client.execute(stderr=log)
    wrong = [o.text for c in notebook.cells for o in c.outputs if o.get("name") == "stderr"]
    assert wrong == []
    # A block that catches an error is there to show it.
    assert [c.source for c in notebook.cells if "\nexcept " in c.source and not c.outputs] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(page):
    missing = [
        link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()
    ]
    assert missing == []
