"""Compare what a model was built on with what it sees now.

`drift` compares two samples, feature by feature; `DriftReport` is what it found, as a record, a table, a page
and figures. Nothing here knows Jupyter, a tracker or a target, and importing the package loads none of pandas,
scipy and matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlopsnb.monitoring.compare import drift as drift
    from mlopsnb.monitoring.report import DriftReport as DriftReport

_HOMES = {"DriftReport": "mlopsnb.monitoring.report", "drift": "mlopsnb.monitoring.compare"}
__all__ = ["DriftReport", "drift"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mlopsnb.monitoring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
