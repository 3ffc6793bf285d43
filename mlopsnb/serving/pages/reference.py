"""The page at `/docs`: what the model takes and gives, every path, and requests to copy. Made of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlopsnb.serving.openapi import operations, replies
from mlopsnb.serving.pages import commands, layout, markup
from mlopsnb.serving.pages.markup import Html, Part, join, tag

if TYPE_CHECKING:
    from mlopsnb.records import TensorSpec
    from mlopsnb.serving.openapi.examples import Examples
    from mlopsnb.serving.routes import Reply, ServedModel

_TITLES = {
    "one_row": "One row",
    "by_row": "By row",
    "by_column": "By column",
    "csv": "CSV",
}
_PINNED = "/versions/"
"""Paths with it take what those without it take, so that one of the two is shown."""


def page(model: ServedModel, examples: Examples, document: dict[str, Any]) -> Reply:
    """Return the page that tells people what *document* tells programs."""
    sections = [_protocol(name, model, examples, document) for name in operations.TAGS]
    body = join(
        layout.header(model, "Docs"),
        tag(
            "main",
            _contents(),
            layout.without_script("Without JavaScript, commands do not know where they are sent."),
            _model(model),
            sections,
            _headers(document),
            _errors(document),
            class_="docs",
        ),
    )
    return markup.page(f"{model.name}: docs", body, "common.js")


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


def _section(name: str, *parts: Part) -> Html:
    heading = tag("h2", tag("a", name, href=f"#{_id(name)}"), id=_id(name))
    return tag("section", heading, *parts)


def _contents() -> Html:
    names = ("The model", *operations.TAGS, "Headers", "Errors")
    links = [tag("li", tag("a", name, href=f"#{_id(name)}")) for name in names]
    return tag("nav", tag("ul", links), aria_label="Contents", class_="contents")


def _model(model: ServedModel) -> Html:
    signature = model.signature
    headings = ("Name", "Datatype", "Shape", "Values")
    tables = [
        join(tag("h3", name), markup.table(headings, [_tensor(s, given=given) for s in specs], label=name))
        for name, specs, given in (("Inputs", signature.inputs, True), ("Outputs", signature.outputs, False))
    ]
    told = "In a shape, n is the number of rows and * an axis of any size. JSON has no NaN: what is missing is null."
    return _section("The model", tables, tag("p", told))


def _tensor(spec: TensorSpec, *, given: bool) -> list[Part]:
    values = layout.values(spec) if given else layout.answers(spec)
    features = join(tag("br"), "columns: ", layout.chips(spec.feature_names)) if spec.feature_names else None
    return [spec.name, layout.datatype(spec), layout.shape(spec.shape), join(values, features)]


def _protocol(name: str, model: ServedModel, examples: Examples, document: dict[str, Any]) -> Html:
    paths = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if name in operation["tags"]
    ]
    rows = [(tag("code", path), method.upper(), operation["summary"]) for path, method, operation in paths]
    posts = [(p, o) for p, m, o in paths if m == "post" and _PINNED not in p]
    return _section(
        name,
        tag("p", operations.TAGS[name].replace("`", "")),
        markup.table(("Path", "Method", "What for"), rows, label=f"Paths of {name}"),
        [part for path, operation in posts for part in _requests(path, operation, model, examples)],
        [part for _, operation in posts for part in _schemas(operation, document)],
    )


def _requests(path: str, operation: dict[str, Any], model: ServedModel, examples: Examples) -> Iterator[Html]:
    """Yield the requests to *path* to copy: a command for each example, and a program for the first."""
    token = "security" in operation
    if not examples.fits:
        if path.endswith("/infer"):
            yield tag("p", "The example is too long to be shown; zeros as raw bytes, in its shape:")
            yield layout.code(commands.infer(model, examples, token=token), "Command for zeros")
        return
    for kind, content in operation["requestBody"]["content"].items():
        for name, example in content.get("examples", {}).items():
            title = _TITLES.get(name, name)
            value = example["value"]
            sent = value if isinstance(value, str) else commands.lines(value)
            yield tag("h3", title)
            yield layout.code(
                commands.curl(path, {"content-type": kind}, sent, token=token), f"Command: {title}"
            )
            if name == "one_row":
                if examples.answer:
                    yield tag("h3", "Its answer")
                    yield layout.code(commands.lines(examples.answer), "Answer")
                yield tag("h3", "In Python")
                yield layout.code(commands.python(path, value, token=token), "Program in Python")


def _schemas(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[Html]:
    answer = operation["responses"]["200"]["content"]
    for title, content in (("Request", operation["requestBody"]["content"]), ("Answer", answer)):
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        text = commands.lines(document["components"]["schemas"][name])
        yield tag(
            "details",
            tag("summary", f"{title}: JSON Schema"),
            layout.code(text, f"Schema of the {title.lower()}"),
        )


def _headers(document: dict[str, Any]) -> Html:
    sent = [
        (tag("code", name), part["description"].replace("`", ""))
        for name, part in document["components"]["parameters"].items()
    ]
    came = [
        (tag("code", name), part["description"].replace("`", ""))
        for name, part in document["components"]["headers"].items()
    ]
    return _section(
        "Headers",
        tag("h3", "Of requests"),
        markup.table(("Name", "What for"), sent, label="Headers of requests"),
        tag("h3", "Of answers"),
        markup.table(("Name", "What for"), came, label="Headers of answers"),
    )


def _errors(document: dict[str, Any]) -> Html:
    rows = [
        (str(status), name, text.replace("`", ""))
        for status, (name, text) in replies.STATUSES.items()
        if f"Error{status}" in document["components"]["responses"]
    ]
    forms = join(
        "The body says what happened: ",
        tag("code", '{"error": "…"}'),
        "; by MLflow's protocol ",
        tag("code", '{"error_code": "…", "message": "…"}'),
        ".",
    )
    return _section("Errors", tag("p", forms), markup.table(("Status", "Name", "Why"), rows, label="Errors"))
