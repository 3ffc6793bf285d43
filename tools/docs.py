"""What the documentation site shows besides docs/: the README, the notebooks, and a reference made from the code.

MkDocs calls the functions `on_…` (https://www.mkdocs.org/dev-guide/plugins/#events); `mkdocs.yml` names this file. No
page is written to disk, and no text is here twice: what the code says is read from the code.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, fields, is_dataclass
from html import escape
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import nbformat
from mkdocs.structure.files import File, Files

import mlopsnb
from mlopsnb import cli, plugins
from mlopsnb import settings as settings_module
from mlopsnb.errors import MlopsnbError
from mlopsnb.notebook.grammar import SETTINGS_HELP, SETTINGS_VERB, VERBS
from mlopsnb.serving import arguments

if TYPE_CHECKING:
    from mlopsnb.notebook.arguments import Argument, Verb

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "licence.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages that lie elsewhere in the repository, and what the site calls them."""

NOTEBOOKS = {
    "quickstart": "Quickstart",
    "tensorflow": "TensorFlow",
    "images": "Images",
    "kubernetes": "Kubernetes",
    "drift": "Drift",
    "dashboard": "Dashboard",
}
"""The path through the notebooks, with their names in the navigation; others come after these."""

EXECUTED = (".executed", ".demo")
"""Where the tests and `make demo` leave notebooks with their outputs."""

ERROR_MODULES = (
    *("images.errors", "manifest", "monitoring.retraining", "monitoring.sinks", "profiles"),
    "targets.cluster_errors",
)
"""Modules, beside `errors`, that have errors which users meet."""


def on_config(config: Any) -> Any:
    """Name the notebooks in the navigation."""
    [section] = [entry["Notebooks"] for entry in config.nav if "Notebooks" in entry]
    section[:] = [{NOTEBOOKS.get(p.stem, p.stem): f"notebooks/{p.stem}.md"} for p in notebooks()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Put in the pages that are not in docs/."""
    pages = {
        "reference/magics.md": magics_page(),
        "reference/python.md": python_page(),
        "reference/errors.md": errors_page(),
        "reference/settings.md": settings_page(),
        "reference/command-line.md": command_line_page(),
        "reference/server.md": server_page(),
    }
    pages |= {to: _text(ROOT / source) for source, to in ELSEWHERE.items()}
    pages |= {f"notebooks/{path.stem}.md": notebook_page(path) for path in notebooks()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for path in notebooks():
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text if path.suffix == ".md" else f"# {path.name.capitalize()}\n\n```text\n{text.rstrip()}\n```\n"


_LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)]*)?(\))")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    uri = page.file.src_uri
    sources = {to: source for source, to in ELSEWHERE.items()}
    at = uri if uri.startswith("notebooks/") else sources.get(uri, f"docs/{uri}")
    return _LINK.sub(lambda m: f"{m[1]}{_on_site(m[2], at, uri)}{m[3] or ''}{m[4]}", markdown)


def _on_site(link: str, at: str, uri: str) -> str:
    """Return *link*, which stands in the repository's file *at*, as the page *uri* has to say it."""
    meant = os.path.normpath(PurePosixPath(at).parent / link)
    if meant.startswith("docs/"):
        to = meant.removeprefix("docs/")
    elif meant.startswith("notebooks/"):
        to = str(PurePosixPath(meant).with_suffix(".md"))
    elif meant in ELSEWHERE:
        to = ELSEWHERE[meant]
    else:
        return link
    return os.path.relpath(to, PurePosixPath(uri).parent)


# The notebooks


def notebooks() -> list[Path]:
    """Return the notebooks of the repository, in the order in which they are meant to be read."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    order = list(NOTEBOOKS)
    return sorted(found, key=lambda path: order.index(path.stem) if path.stem in order else len(order))


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown, with the outputs of its last run if this very notebook was run here."""
    notebook = nbformat.read(path, as_version=4)
    ran = _executed(path, notebook)
    first, *cells = [_cell(cell) for cell in (ran or notebook).cells]
    told = "" if ran else "!!! note\n    Shown without outputs: it was not run where this page was made.\n\n"
    link = f'<a href="{path.name}" download>{path.name}</a>'
    return f"{first}\n\nTo run it yourself: {link}\n\n{told}" + "\n\n".join(cells)


def _executed(path: Path, source: Any) -> Any:
    for place in EXECUTED:
        candidate = ROOT / place / path.name
        if candidate.exists():
            ran = nbformat.read(candidate, as_version=4)
            if [c.source for c in ran.cells] == [c.source for c in source.cells]:
                return ran
    return None


def _cell(cell: Any) -> str:
    if cell.cell_type != "code":
        return str(cell.source)
    return "\n\n".join([f"```python\n{cell.source}\n```", *map(_output, cell.get("outputs", ()))])


_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def _output(output: Any) -> str:
    """Return one output as raw HTML: the richest form that needs no script."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
    elif "text/html" in data:
        picture = data["text/html"]
    else:
        text = output.get("text") or data.get("text/plain") or "\n".join(output.get("traceback", ()))
        picture = f"<pre>{escape(_ESCAPES.sub('', text).rstrip())}</pre>"
    return f'<div class="cell-output">\n{picture}\n</div>'


# The reference

MAGICS = """# Magics

`%load_ext mlopsnb` brings them. Each calls one Python function and returns what that returns; `%deploy?` shows in the
notebook what is said here. `{expression}` in a text is replaced by its value.
"""

PYTHON = """# Python

`import mlopsnb as ml`; every name is there as `ml.NAME`. `Artifact`, `ModelVersion`, `Signature` and `TensorSpec` are
among the [records](records.md), errors have [a page of their own](errors.md).
"""

ERRORS = """# Errors

All that mlopsnb raises on purpose is an `ml.MlopsnbError`. Its message says what happened and what was found, `.hint`
what to do next. Those without a module are names of `mlopsnb` itself.
"""

SETTINGS = """# Settings

An argument of the call comes first, then `%mlopsnb set KEY=VALUE` for this kernel, then the environment variable, then
`[tool.mlopsnb]` of the nearest `pyproject.toml`, then the default. `%mlopsnb settings` shows what holds now.

| setting | environment variable | default | |
|---|---|---|---|"""

COMMAND_LINE = """# Command line

`python -m mlopsnb VERB` does what the magics do, where no Python objects are needed: in a terminal, in CI, in a
cluster's jobs. Nothing typed there is evaluated. [Operating](../operating.md#exit-statuses) lists the exit statuses.
"""

SERVER = """# The server's options

[The model server](../serving.md) explains them.
"""


def magics_page() -> str:
    """Return a section for each magic, from the grammar that parses it."""
    parts = [MAGICS]
    for verb in VERBS.values():
        parts += _verb(verb)
    parts += [f"## `%{SETTINGS_VERB}`", f"```text\n{SETTINGS_HELP.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _verb(verb: Verb, title: str = "") -> list[str]:
    words = [f"%{verb.name}", *(a.metavar for a in verb.positionals)]
    words += [f"{o.flag} {o.metavar}" for o in verb.options if o.required]
    if any(not o.required for o in verb.all_options):
        words.append("[options]")
    rows = [f"| `{a.metavar}` | {_told(a)} |" for a in verb.positionals]
    rows += [
        f"| `{f'{o.flag} {o.metavar}' if o.takes_value else o.flag}` | {_told(o)} |" for o in verb.all_options
    ]
    table = ["\n".join(["| | |", "|---|---|", *rows])] if rows else []
    path = verb.twin.replace(":", ".")
    examples = "\n".join(verb.examples)
    return [
        title or f"## `%{verb.name}`",
        verb.summary,
        f"```text\n{' '.join(words)}\n```",
        *table,
        f"```python\n{examples}\n```",
        f"In Python: [`{_short(path)}`][{path}].",
        *(_verb(verb.alone, f"### `%{verb.name} {verb.alone.positionals[0].metavar}`") if verb.alone else ()),
    ]


def _short(path: str) -> str:
    """Return how users call what *path* names: `ml.deploy`, `Deployment.rollback`."""
    owner, _, name = path.rpartition(".")
    return f"{owner.rpartition('.')[2]}.{name}" if owner.rpartition(".")[2].istitle() else f"ml.{name}"


def _told(argument: Argument) -> str:
    values = [*argument.choices, *(plugins.available(argument.backend) if argument.backend else ())]
    offered = f" ({', '.join(f'`{v}`' for v in values)})" if values else ""
    required = " (required)" if argument.required else ""
    return (argument.help + required + offered).replace("|", "\\|")


def python_page() -> str:
    """Return the public names of the package by what they are, for mkdocstrings to fill in."""
    public = {name: getattr(mlopsnb, name) for name in mlopsnb.__all__}
    functions = [name for name, found in public.items() if inspect.isfunction(found)]
    classes = [name for name, found in public.items() if inspect.isclass(found) and _told_here(found)]
    parts = [PYTHON]
    for title, names in (("Functions", functions), ("Classes", classes)):
        parts.append(f"## {title}")
        for name in names:
            path = f"{public[name].__module__}.{name}"
            with_fields = str(is_dataclass(public[name])).lower()
            parts.append(
                f"::: {path}\n    options: {{heading: ml.{name}, toc_label: {name}, heading_level: 3, "
                f"merge_init_into_class: {with_fields}}}"
            )
    return "\n\n".join(parts) + "\n"


def _told_here(cls: type) -> bool:
    return not issubclass(cls, MlopsnbError) and cls.__module__ != "mlopsnb.records"


def errors_page() -> str:
    """Return the tree of errors, with what each says of itself."""
    for name in ERROR_MODULES:
        import_module(f"mlopsnb.{name}")
    return "\n".join([ERRORS, *_tree(MlopsnbError, 0), ""])


def _tree(error: type, depth: int) -> Iterator[str]:
    module = "" if error.__name__ in mlopsnb.__all__ else f" (`{error.__module__}`)"
    yield f"{'    ' * depth}- **`{error.__name__}`**{module}: {(inspect.getdoc(error) or '').splitlines()[0]}"
    for child in sorted(error.__subclasses__(), key=lambda c: c.__name__):
        in_reach = child.__module__.removeprefix("mlopsnb.") in (*ERROR_MODULES, "errors")
        if in_reach and not child.__name__.startswith("_"):
            yield from _tree(child, depth + 1)


def settings_page() -> str:
    """Return a table of all settings, with the documentation that stands under each field."""
    source = ast.parse(inspect.getsource(settings_module.Settings)).body[0]
    assert isinstance(source, ast.ClassDef)
    told = {
        before.target.id: ast.literal_eval(after.value)
        for before, after in zip(source.body, source.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
    }
    rows = []
    for field in fields(settings_module.Settings):
        default = (
            "below the home directory" if field.default is MISSING else f"`{field.default or '(empty)'}`"
        )
        rows.append(f"| `{field.name}` | `MLOPSNB_{field.name.upper()}` | {default} | {told[field.name]} |")
    return "\n".join([SETTINGS, *rows, ""])


def command_line_page() -> str:
    """Return the help of each verb of `python -m mlopsnb`."""
    parts = [COMMAND_LINE]
    for name in (*cli.OFFERED, "watch"):
        parts += [f"## `{name}`", f"```text\n{_help(cli.main, [name, '--help'])}\n```"]
    return "\n\n".join(parts) + "\n"


def server_page() -> str:
    """Return the help of the model server's command."""
    return f"{SERVER}\n```text\n{_help(arguments.parser().parse_args, ['--help'])}\n```\n"


def _help(read: Callable[[list[str]], object], words: list[str]) -> str:
    """Return what *read* prints for *words*, as wide as a page is."""
    os.environ["COLUMNS"] = "100"  # as argparse reads it
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        read(words)
    return said.getvalue().strip()
