"""The load of the rollout benchmarks, for tests: `benchmarks/open_loop.py` runs as a program of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).parents[2] / "benchmarks" / "open_loop.py"
_spec = importlib.util.spec_from_file_location("open_loop", _FILE)
open_loop = sys.modules.setdefault("open_loop", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(open_loop)
Load = open_loop.Load
