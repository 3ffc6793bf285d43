"""`%load_ext mlopsnb` and `%unload_ext mlopsnb`: put the magics, the completion and the displays in, and take them out.

Loading prints nothing and imports no framework. Unloading leaves the shell as it was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from mlopsnb.notebook.completion import Known, make_matcher
from mlopsnb.notebook.magics import MlopsnbMagics

_RECORDS = {
    ("mlopsnb.records", "Artifact"): "displays.artifact",
    ("mlopsnb.records", "ModelVersion"): "displays.version",
    ("mlopsnb.deployment", "Deployment"): "displays.deployment",
    ("mlopsnb.deployment", "Deployments"): "displays.deployments",
    ("mlopsnb.deployment", "History"): "displays.history",
    ("mlopsnb.images.image", "Image"): "image_displays.image",
    ("mlopsnb.images.environment.diff", "Diff"): "image_displays.diff",
    ("mlopsnb.cleaning", "Cleanup"): "image_displays.cleanup",
}


@dataclass
class _Installed:
    magics: MlopsnbMagics
    matcher: Any
    line_magics: dict[str, Any]
    """The magics that stood under our names before."""

    undo: list[Callable[[], object]] = field(default_factory=list)


_installed: WeakKeyDictionary[Any, _Installed] = WeakKeyDictionary()


def load_ipython_extension(ipython: Any) -> None:
    """Put mlopsnb into the shell *ipython*; a second time does nothing."""
    if ipython in _installed:
        return
    known = Known()
    magics = MlopsnbMagics(ipython, known)
    present = ipython.magics_manager.magics["line"]
    before = {name: present[name] for name in magics.magics["line"] if name in present}
    ipython.register_magics(magics)
    matcher = make_matcher(ipython, known)
    ipython.Completer.custom_matchers.append(matcher)
    state = _Installed(magics, matcher, before)
    _register_displays(ipython, state.undo)
    _installed[ipython] = state


def unload_ipython_extension(ipython: Any) -> None:
    """Take mlopsnb out of the shell *ipython* again."""
    state = _installed.pop(ipython, None)
    if state is None:
        return
    manager = ipython.magics_manager
    for name in state.magics.magics["line"]:
        manager.magics["line"].pop(name, None)
    manager.magics["line"].update(state.line_magics)
    manager.registry.pop(MlopsnbMagics.__name__, None)
    if state.magics in ipython.configurables:
        ipython.configurables.remove(state.magics)
    if state.matcher in ipython.Completer.custom_matchers:
        ipython.Completer.custom_matchers.remove(state.matcher)
    for undo in state.undo:
        undo()


def _register_displays(ipython: Any, undo: list[Callable[[], object]]) -> None:
    html = ipython.display_formatter.formatters["text/html"]
    plain = ipython.display_formatter.formatters["text/plain"]
    for (module, name), stem in _RECORDS.items():
        for formatter, function in ((html, _late(f"{stem}_html")), (plain, _printed(f"{stem}_text"))):
            before = formatter.for_type_by_name(module, name, function)
            undo.append(_restore(formatter, f"{module}.{name}", before))
    before = html.for_type(tuple, _tuple_html)
    undo.append(_restore(html, tuple, before))


def _restore(formatter: Any, kind: Any, before: Any) -> Callable[[], object]:
    def restore() -> None:
        formatter.pop(kind, None)
        if before is not None:
            formatter.for_type(kind, before)

    return restore


def _late(function: str) -> Callable[[Any], str]:
    def show(record: Any) -> str:
        module, _, name = function.partition(".")
        return getattr(import_module(f"mlopsnb.notebook.{module}"), name)(record)  # type: ignore[no-any-return]

    return show


def _printed(function: str) -> Callable[[Any, Any, bool], None]:
    show = _late(function)

    def pretty(record: Any, printer: Any, cycle: bool) -> None:
        printer.text(show(record))

    return pretty


def _tuple_html(value: tuple[Any, ...]) -> str | None:
    """Show a tuple of deployments or revisions as a table; other tuples stay as they are, their classes' own HTML too."""
    if type(value) is tuple:
        from mlopsnb.notebook.displays import history_or_listing

        return history_or_listing(value)
    own = getattr(type(value), "_repr_html_", None)
    return own(value) if callable(own) else None
