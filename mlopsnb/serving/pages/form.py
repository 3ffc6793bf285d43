"""The page at `/`: a form with a field for each value of one row, a button, and what the server answers to it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from mlopsnb.serving.openapi.examples import plain
from mlopsnb.serving.openapi.schemas import features_of
from mlopsnb.serving.pages import commands, layout, markup
from mlopsnb.serving.pages.markup import Html, join, tag
from mlopsnb.tensors import STRING

if TYPE_CHECKING:
    from mlopsnb.records import TensorSpec
    from mlopsnb.serving.openapi.examples import Examples
    from mlopsnb.serving.routes import Reply, ServedModel
    from mlopsnb.tensors import Array

MOST_FIELDS = 100
"""An input with more values is edited as JSON."""


def page(model: ServedModel, examples: Examples, *, protected: Collection[str] = ()) -> Reply:
    """Return the page; it asks for a token if the path of predictions is *protected*."""
    path = f"/v2/models/{model.name}/infer"
    inputs = [
        _input(spec, examples.inputs[spec.name], f"v{number}", shown=examples.fits)
        for number, spec in enumerate(model.signature.inputs)
    ]
    buttons = tag("button", "Predict", type="submit"), tag("button", "Reset", type="reset", class_="quiet")
    form = tag(
        "form",
        _token() if path in protected else None,
        inputs,
        tag("p", *buttons, class_="buttons"),
        id="form",
        action=path[1:],
        method="post",
        autocomplete="off",
        aria_label="Input",
    )
    command = commands.infer(model, examples, token=path in protected)
    body = join(
        layout.header(model, "Try it"),
        tag(
            "main",
            tag(
                "section",
                tag("h2", "Input"),
                layout.without_script("The form needs JavaScript; the command does not."),
                form,
            ),
            tag("section", tag("h2", "Answer"), _answer()),
            tag("section", tag("h2", "The same in a shell"), layout.code(command, "Command", id="command")),
            class_="try",
        ),
    )
    return markup.page(f"{model.name}: try it", body, "common.js", "form.js", call="'self'")


def _token() -> Html:
    field = tag("input", type="password", id="token", autocomplete="off", spellcheck="false")
    return tag("fieldset", tag("legend", "Access"), tag("label", "Bearer token", field))


def _input(spec: TensorSpec, row: Array, id: str, *, shown: bool) -> Html:
    """Return the fields for one input: one a value if they are few and their number is fixed, else all as JSON."""
    sizes = spec.shape
    batched = bool(sizes) and sizes[0] is None
    free = sizes[1:] if batched and len(row) == 1 else sizes
    legend = tag(
        "legend", tag("span", spec.name), " ", tag("small", f"{layout.datatype(spec)} {layout.shape(sizes)}")
    )
    if row.size <= MOST_FIELDS and None not in free and shown:
        parts = _fields(spec, row.reshape(row.shape[1:]) if batched else row, id)
    else:
        parts = [_as_json(spec, row, id, shown=shown)]
    return tag(
        "fieldset",
        legend,
        tag("div", parts, class_="fields"),
        data_name=spec.name,
        data_datatype=layout.datatype(spec),
        data_shape=json.dumps(list(row.shape)),
    )


def _fields(spec: TensorSpec, row: Array, id: str) -> list[Html]:
    flat: list[Any] = plain(row.reshape(-1))
    return [
        _field(spec, label, value, f"{id}-{at}")
        for at, (label, value) in enumerate(zip(_labels(spec, row), flat, strict=True))
    ]


def _labels(spec: TensorSpec, row: Array) -> list[str]:
    features = features_of(spec)
    if len(features) == row.size:
        return list(features)
    if not row.ndim or row.shape == (1,):
        return [spec.name]
    return [f"{spec.name}[{', '.join(map(str, place))}]" for place in np.ndindex(row.shape)]


def _field(spec: TensorSpec, label: str, value: Any, id: str) -> Html:
    name = tag("label", label, for_=id)
    if spec.dtype == "bool":
        return tag("div", tag("input", type="checkbox", id=id, checked=bool(value)), name, class_="check")
    if spec.dtype == STRING:
        return tag(
            "div",
            name,
            tag("textarea", Html("\n"), value, id=id, rows="2", spellcheck="false"),
            class_="text",
        )
    text = "" if value is None else json.dumps(value)
    told = "empty: missing" if spec.allow_nan else None
    field = tag("input", id=id, value=text, placeholder=told, spellcheck="false")
    return tag("div", name, field, class_="wide" if len(text) > 12 else None)


def _as_json(spec: TensorSpec, row: Array, id: str, *, shown: bool) -> Html:
    label = tag("label", f"Nested lists of shape {layout.shape(spec.shape)}", for_=id)
    empty = "empty text" if spec.dtype == STRING else "zeros"
    field = tag(
        "textarea",
        commands.lines(plain(row)) if shown else "",
        id=id,
        rows="12",
        spellcheck="false",
        data_rank=str(row.ndim),
        placeholder=None if shown else f"left empty: {empty} of shape {list(row.shape)}",
    )
    return tag("div", label, field, class_="whole")


def _answer() -> Html:
    return join(
        tag("p", "Press Predict.", id="status", role="status", aria_live="polite"),
        tag("div", id="outputs"),
        tag(
            "details",
            tag("summary", "As it came"),
            layout.code("", "Answer", id="body"),
            id="raw",
            hidden=True,
        ),
    )
