"""The notebook on TensorFlow, run from top to bottom: a weakness is found, mended while in use, and taken back."""

from __future__ import annotations

import ast
import re

import pytest

import notebooks
from notebooks import text


@pytest.fixture
def executed(home):
    return notebooks.run("tensorflow.ipynb", home / "work", timeout=300)


@pytest.mark.timeout(600)
def test_a_keras_model_is_served_as_its_clients_know_it_replaced_and_taken_back(executed):
    assert [o.text for c in executed.cells for o in c.get("outputs", ()) if o.get("name") == "stderr"] == []
    assert re.search(r"parity +(\d+) of \1 checks equal", text(executed, "export"))
    assert "shape=(None, 8, 8, 1), dtype=tf.float32, name='scan'" in text(executed, "signature")
    assert re.search(
        r"POST http://127.0.0.1:\d+/v1/models/digits:predict\nread: (\[.*\]) in truth: \1\n.*AVAILABLE",
        text(executed, "rest"),
    )
    assert "same answers: True" in text(executed, "batch")
    before, after = (ast.literal_eval(text(executed, cell)) for cell in ("weak", "mended"))
    assert max(before["-1 pixels"], before["+1 pixels"]) < 0.7 < 0.9 < min(after.values())
    said = text(executed, "better")
    assert re.search(r"address: (\S+) → \1\n", said)
    assert re.search(r"'version 1': \d+, 'version 2': \d+\} failed: 0", said)
    history = text(executed, "rollback").splitlines()[-3:]
    assert [line.split()[2:4] for line in history] == [
        ["running", "models:/digits/1"],
        ["stopped", "models:/digits/2"],
        ["stopped", "models:/digits/1"],
    ]
    assert text(executed, "cleaned").endswith("nothing is deployed")
