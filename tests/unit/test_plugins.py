from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution

from mlopsnb import plugins


def test_what_is_known_without_asking_is_what_our_entry_points_say():
    ours = {ep.name: ep.value for ep in distribution("mlopsnb").entry_points if ep.group == "mlopsnb.formats"}
    assert {name: value for (kind, name), value in plugins.BUILT_IN.items() if kind == "format"} == ours


def test_a_built_in_format_is_made_without_asking_the_installation():
    code = (
        "import sys; from mlopsnb import plugins; plugins.create('format', 'onnx');"
        "assert 'importlib.metadata' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
