"""The protocols over HTTP, one file each: paths, and what is read and written there. Pure; knows no sockets.

Each module has `routes(model)`; `routes` here joins them. What several share is in `columns`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.serving.protocols import mlflow, open_inference, tfserving

if TYPE_CHECKING:
    from mlopsnb.serving.routes import Route, ServedModel


def routes(model: ServedModel) -> dict[str, Route]:
    """Return every path at which *model* is described or asked, for all protocols."""
    return {**open_inference.routes(model), **tfserving.routes(model), **mlflow.routes(model)}
