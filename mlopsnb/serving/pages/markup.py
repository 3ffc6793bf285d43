"""HTML that cannot be broken by what users named: whatever is not `Html` already is escaped. Knows no page."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources

from mlopsnb.serving.routes import Reply

_VOID = frozenset({"br", "input", "link", "meta"})
_HEADERS = (
    (b"cache-control", b"no-cache"),  # the next version has pages of its own at the same address
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='4' fill='%233563d9'/%3E%3Cpath d='M4 11V5l4 4 4-4v6' fill='none' "
    "stroke='white' stroke-width='1.6' stroke-linejoin='round' stroke-linecap='round'/%3E%3C/svg%3E"
)


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


Part = str | Sequence[str] | None
"""Text, which is escaped, or markup, which is not; several of them; or nothing."""


def tag(name: str, /, *parts: Part, **attributes: str | bool | None) -> Html:
    """Return the element *name* with *attributes* around *parts*.

    Attributes that are Python's words end in an underscore, `_` stands for `-`; False and None leave one out.
    """
    told = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{told}>")
    return Html(f"<{name}{told}>{join(*parts)}</{name}>")


def _attribute(key: str, value: str | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(value)}"'


def join(*parts: Part) -> Html:
    """Return *parts* one behind the other."""
    found = []
    for part in parts:
        for piece in (part,) if isinstance(part, str) else part or ():
            found.append(piece if isinstance(piece, Html) else html.escape(piece, quote=False))
    return Html("".join(found))


def table(headings: Sequence[str], rows: Sequence[Sequence[Part]], *, label: str) -> Html:
    """Return a table whose rows are named by their first cells; wide ones scroll by themselves."""
    head = tag("tr", [tag("th", heading, scope="col") for heading in headings])
    body = [
        tag("tr", tag("th", first, scope="row"), [tag("td", cell) for cell in cells])
        for first, *cells in rows
    ]
    whole = tag("table", tag("thead", head), tag("tbody", body))
    return tag("div", whole, class_="scroll", role="region", aria_label=label, tabindex="0")


def page(title: str, body: Html, *scripts: str, call: str = "'none'") -> Reply:
    """Return the page *body* with our style and the *scripts*, files beside this one; nothing else may run on it.

    *call* is where the scripts may send requests, as a content security policy says it.
    """
    style, script = _file("page.css"), "\n".join(map(_file, scripts))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src {call}; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href=_ICON),
        tag("style", Html(style)),
    )
    whole = tag("html", head, tag("body", body, tag("script", Html(script))), lang="en")
    return Reply(
        200,
        f"<!doctype html>\n{whole}\n".encode(),
        b"text/html; charset=utf-8",
        ((b"content-security-policy", policy.encode()), *_HEADERS),
    )


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
