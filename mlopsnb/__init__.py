"""From a notebook cell to a served, verified, monitored model.

Import it as ``import mlopsnb as ml``. Nothing heavy is loaded before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlopsnb.version import __version__ as __version__

if TYPE_CHECKING:
    from mlopsnb.building import build as build
    from mlopsnb.cleaning import Cleanup as Cleanup
    from mlopsnb.cleaning import cleanup as cleanup
    from mlopsnb.composing import compose as compose
    from mlopsnb.deployment import Deployment as Deployment
    from mlopsnb.deployment import deployments as deployments
    from mlopsnb.deployment import get as get
    from mlopsnb.errors import BuildError as BuildError
    from mlopsnb.errors import DeployError as DeployError
    from mlopsnb.errors import ExportError as ExportError
    from mlopsnb.errors import GateRejected as GateRejected
    from mlopsnb.errors import InvalidSettings as InvalidSettings
    from mlopsnb.errors import MissingExtra as MissingExtra
    from mlopsnb.errors import MlopsnbError as MlopsnbError
    from mlopsnb.errors import NotEnoughRequests as NotEnoughRequests
    from mlopsnb.errors import NotReady as NotReady
    from mlopsnb.errors import ParityError as ParityError
    from mlopsnb.errors import StepError as StepError
    from mlopsnb.errors import TrackingError as TrackingError
    from mlopsnb.errors import UnknownBackend as UnknownBackend
    from mlopsnb.errors import UnsupportedModel as UnsupportedModel
    from mlopsnb.errors import UserError as UserError
    from mlopsnb.flow import deploy as deploy
    from mlopsnb.flow import log as log
    from mlopsnb.images.image import Image as Image
    from mlopsnb.monitoring import DriftReport as DriftReport
    from mlopsnb.monitoring import ProfileBuilder as ProfileBuilder
    from mlopsnb.monitoring import drift as drift
    from mlopsnb.monitoring import profile as profile
    from mlopsnb.monitoring import watch_performance as watch_performance
    from mlopsnb.notebook.dashboard import dashboard as dashboard
    from mlopsnb.notebook.doctor import doctor as doctor
    from mlopsnb.packages import export as export
    from mlopsnb.records import Artifact as Artifact
    from mlopsnb.records import ModelVersion as ModelVersion
    from mlopsnb.records import Signature as Signature
    from mlopsnb.records import TensorSpec as TensorSpec
    from mlopsnb.watching import watch as watch


_HOMES = {
    "mlopsnb.building": ("build",),
    "mlopsnb.cleaning": ("Cleanup", "cleanup"),
    "mlopsnb.composing": ("compose",),
    "mlopsnb.deployment": ("Deployment", "deployments", "get"),
    "mlopsnb.errors": (
        *("BuildError", "DeployError", "ExportError", "GateRejected", "InvalidSettings", "MissingExtra"),
        *("MlopsnbError", "NotEnoughRequests", "NotReady", "ParityError", "StepError", "TrackingError"),
        *("UnknownBackend", "UnsupportedModel", "UserError"),
    ),
    "mlopsnb.flow": ("deploy", "log"),
    "mlopsnb.images.image": ("Image",),
    "mlopsnb.monitoring": ("DriftReport", "ProfileBuilder", "drift", "profile", "watch_performance"),
    "mlopsnb.notebook.dashboard": ("dashboard",),
    "mlopsnb.notebook.doctor": ("doctor",),
    "mlopsnb.packages": ("export",),
    "mlopsnb.records": ("Artifact", "ModelVersion", "Signature", "TensorSpec"),
    "mlopsnb.watching": ("watch",),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_PUBLIC)  # noqa: PLE0605  computed from the table, so that the two cannot part


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mlopsnb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def load_ipython_extension(ipython: Any) -> None:
    """Register the magics; called by ``%load_ext mlopsnb``."""
    from mlopsnb.notebook.extension import load_ipython_extension as load

    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Take the magics away again; called by ``%unload_ext mlopsnb``."""
    from mlopsnb.notebook.extension import unload_ipython_extension as unload

    unload(ipython)
