"""Pages for people: `/` to try a prediction, `/docs` to read how to, and the OpenAPI document that both lean on.

Nothing of it is made, or even imported, before somebody asks. A page is one file that needs no other: no page loads
anything from elsewhere, and its content security policy says so. What users named is escaped by `markup`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import TYPE_CHECKING

from mlopsnb.serving.routes import Reply, Route, ServedModel, json_reply

if TYPE_CHECKING:
    from mlopsnb.serving.model import Package
    from mlopsnb.serving.openapi.examples import Examples


def routes(model: ServedModel, package: Package, *, protected: Collection[str] = ()) -> dict[str, Route]:
    """Return the paths of the pages on *model*, with examples of its *package*.

    The paths in *protected* are said to take a bearer token; whether they do is decided elsewhere.
    """

    @cache
    def examples() -> Examples:
        from mlopsnb.serving.openapi.examples import Examples

        return Examples(package, model)

    @cache
    def description() -> Reply:
        from mlopsnb.serving.openapi import document

        return json_reply(document(model, examples(), protected=protected))

    @cache
    def form() -> Reply:
        from mlopsnb.serving.pages.form import page

        return page(model, examples(), protected=protected)

    @cache
    def reference() -> Reply:
        from mlopsnb.serving.openapi import document
        from mlopsnb.serving.pages.reference import page

        return page(model, examples(), document(model, examples(), protected=protected))

    return {"/": _route(form), "/docs": _route(reference), "/openapi.json": _route(description)}


def _route(make: Callable[[], Reply]) -> Route:
    return Route(show=lambda ready: make(), public=True)
