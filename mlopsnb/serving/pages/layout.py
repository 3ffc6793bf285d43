"""What the pages share: the head of a page, code to copy, and how a tensor is told to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlopsnb.serving.openapi.schemas import scalar
from mlopsnb.serving.pages.commands import ADDRESS
from mlopsnb.serving.pages.markup import Html, Part, join, tag
from mlopsnb.serving.v2 import DATATYPES

if TYPE_CHECKING:
    from mlopsnb.records import TensorSpec
    from mlopsnb.serving.routes import ServedModel

_PAGES = {"Try it": "./", "Docs": "docs", "OpenAPI": "openapi.json"}


def header(model: ServedModel, here: str) -> Html:
    """Return the head of the page *here*: whose it is, and the way to the others."""
    links = [
        tag("a", name, href=address, aria_current="page" if name == here else None)
        for name, address in _PAGES.items()
    ]
    title = tag("h1", model.name, " ", tag("small", "version ", model.version))
    return tag("header", title, tag("nav", links, aria_label="Pages"))


def without_script(advice: str) -> Html:
    """Return *advice* to those whose browser runs no scripts; a script hides it from others."""
    told = f"{advice} Put the address of this server in the place of {ADDRESS}."
    return tag("p", told, class_="note without-script")


def code(text: str, label: str, *, id: str | None = None) -> Html:
    """Return *text* as a block of code with a button that copies it; a script puts the server's address in."""
    before, found, behind = text.partition(ADDRESS)
    address = tag("span", found, class_="address") if found else ""
    block = tag(
        "pre", tag("code", before, address, behind, id=id), tabindex="0", aria_label=label, role="region"
    )
    return tag("div", tag("button", "Copy", type="button", class_="copy", hidden=True), block, class_="code")


def shape(sizes: Sequence[int | None]) -> str:
    """Return a shape as people write it; `n` is the number of rows, `*` another free axis."""
    told = ["*" if n is None else str(n) for n in sizes]
    if sizes and sizes[0] is None:
        told[0] = "n"
    return f"[{', '.join(told)}]"


def datatype(spec: TensorSpec) -> str:
    """Return the protocol's name of the dtype of *spec*."""
    return DATATYPES[spec.dtype]


def values(spec: TensorSpec) -> str:
    """Say which values *spec* takes."""
    told = scalar(spec)
    if told["type"] == "integer":
        return f"whole numbers from {told['minimum']} to {told['maximum']}"
    if told["type"] in ("string", "boolean"):
        return "text" if told["type"] == "string" else "true or false"
    return "numbers, or null for a missing one" if spec.allow_nan else "numbers"


def chips(names: Sequence[str]) -> Part:
    """Return *names* one by one, each in a box."""
    return tag("span", join(*(join(tag("code", name), " ") for name in names)), class_="chips")


def answers(spec: TensorSpec) -> str:
    """Say which values the model answers with."""
    if spec.dtype.startswith("float"):
        return "numbers, or null for NaN and infinity"
    return values(spec)
