"""Compare what a model was built on with what it sees now.

`drift` compares two samples, feature by feature; `profile` sums up a sample in counters, and `compare_profile` compares
what a server has counted with it; `DriftReport` is what was found, as a record, a table, a page and figures. Nothing here knows Jupyter, a tracker or a target, and importing the package loads none of pandas,
scipy and matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlopsnb.monitoring.compare import drift as drift
    from mlopsnb.monitoring.live import compare_profile as compare_profile
    from mlopsnb.monitoring.performance import PerformanceReport as PerformanceReport
    from mlopsnb.monitoring.performance import watch_performance as watch_performance
    from mlopsnb.monitoring.profiling import ProfileBuilder as ProfileBuilder
    from mlopsnb.monitoring.profiling import profile as profile
    from mlopsnb.monitoring.report import DriftReport as DriftReport

_HOMES = {
    "DriftReport": "mlopsnb.monitoring.report",
    "PerformanceReport": "mlopsnb.monitoring.performance",
    "ProfileBuilder": "mlopsnb.monitoring.profiling",
    "compare_profile": "mlopsnb.monitoring.live",
    "drift": "mlopsnb.monitoring.compare",
    "profile": "mlopsnb.monitoring.profiling",
    "watch_performance": "mlopsnb.monitoring.performance",
}
__all__ = [
    "DriftReport",
    "PerformanceReport",
    "ProfileBuilder",
    "compare_profile",
    "drift",
    "profile",
    "watch_performance",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mlopsnb.monitoring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
