"""What `%mlopsnb` shows: versions, settings, and what is installed. Imports none of what it names."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import mlopsnb
from mlopsnb.notebook.displays import Overview
from mlopsnb.plugins import available
from mlopsnb.settings import settings

_PACKAGES = (
    *("torch", "tensorflow", "mlflow", "numpy", "pandas", "scipy", "httpx", "uvicorn"),
    *("ipython", "ipykernel", "ipywidgets"),
)
_ALSO_AS = {"tensorflow": ("tensorflow-cpu", "tensorflow-macos")}


def overview() -> Overview:
    """Return the version, the settings and what is installed."""
    return Overview(
        f"mlopsnb {mlopsnb.__version__}, Python {platform.python_version()}",
        [
            ("settings", _settings_rows()),
            (
                "back ends",
                [
                    (f"{kind}s", ", ".join(available(kind)) or "none")
                    for kind in ("format", "tracker", "builder", "target")
                ],
            ),
            ("packages", [(name, _version(name)) for name in _PACKAGES]),
        ],
    )


def settings_overview() -> Overview:
    """Return the settings as they are now."""
    return Overview("mlopsnb settings", [("settings", _settings_rows())])


def _settings_rows() -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in asdict(settings()).items()]


def _version(package: str) -> str:
    for name in (package, *_ALSO_AS.get(package, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"
