"""All notebooks as they lie in the repository; others run them."""

from __future__ import annotations

import nbformat
import pytest

import notebooks


@pytest.mark.parametrize("path", sorted(notebooks.NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_source_has_no_outputs_and_runs_on_any_machines_kernel(path):
    notebook = notebooks.read(path.name)
    nbformat.validate(notebook)
    assert [c.id for c in notebook.cells if c.cell_type == "code" and (c.outputs or c.execution_count)] == []
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
