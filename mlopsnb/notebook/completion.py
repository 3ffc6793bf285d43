"""Complete the magics' options, values, variables and deployment names. Waits for no network and raises nothing.

Names of deployments come from a list in memory. The magics keep it, and a thread refreshes it from this machine's state.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlopsnb.notebook.grammar import SETTINGS_VERB, SETTINGS_WORDS, URI_SCHEMES, VERBS

if TYPE_CHECKING:
    from mlopsnb.notebook.arguments import Argument, Verb

_LINE = re.compile(r"(?:^|=)\s*%(\w+)\s+(.*)$")
_NAME = re.compile(r"[A-Za-z_]\w*|")
_FRESH = 2.0
_PATIENCE = 0.2


class DeploymentNames:
    """The deployment names that completion offers."""

    def __init__(self, read: Callable[[], Iterable[str]]) -> None:
        self._read = read
        self._names: set[str] = set()
        self._read_at = float("-inf")
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None

    def add(self, names: Iterable[str]) -> None:
        """Offer these too."""
        with self._lock:
            self._names.update(names)

    def remove(self, name: str) -> None:
        """Offer it no longer."""
        with self._lock:
            self._names.discard(name)

    def get(self) -> list[str]:
        """Return the names known by now; starts a refresh if they are old, and waits for it a moment at most."""
        with self._lock:
            old = time.monotonic() - self._read_at > _FRESH
            if old and (self._reader is None or not self._reader.is_alive()):
                self._reader = threading.Thread(target=self._refresh, name="mlopsnb-completion", daemon=True)
                self._reader.start()
            reader = self._reader
        if old and reader is not None:
            reader.join(_PATIENCE)
        with self._lock:
            return sorted(self._names)

    def _refresh(self) -> None:
        try:
            names = set(self._read())
        except Exception:  # noqa: BLE001  completion has nobody to tell; the magic itself will say what is wrong
            names = set()
        with self._lock:
            self._names |= names
            self._read_at = time.monotonic()


def local_names() -> list[str]:
    """Return the names of the deployments on this machine, from its state directory."""
    from mlopsnb.deployment import deployments

    return [d.name for d in deployments(target="process")]


@dataclass(frozen=True, slots=True)
class Offer:
    """Completions for the *fragment* before the cursor. *kind* is what the front end shows beside them."""

    fragment: str
    values: tuple[str, ...]
    kind: str


def offer(text: str, names: Mapping[str, Any], deployments: Callable[[], Iterable[str]]) -> Offer | None:
    """Return what can stand at the end of *text*, the line up to the cursor; None if that is not ours to say."""
    found = _LINE.search(text)
    if found is None:
        return None
    *before, fragment = re.split(r"\s+", found[2]) if found[2] else [""]
    if found[1] == SETTINGS_VERB:
        return _settings_offer(before, fragment)
    verb = VERBS.get(found[1])
    if verb is None:
        return None
    if fragment.startswith("-"):
        given = {word.partition("=")[0] for word in before}
        return _offer(
            fragment, [o.flag for o in verb.all_options if o.flag not in given or o.repeats], "option"
        )
    argument = _argument(verb, before)
    if argument is None:
        return None
    values, kind = _values(argument, names, deployments)
    return _offer(fragment, values, kind)


def _settings_offer(before: list[str], fragment: str) -> Offer | None:
    from dataclasses import fields

    from mlopsnb.settings import Settings

    if not before:
        return _offer(fragment, SETTINGS_WORDS, "command")
    if before[0] == "set":
        return _offer(fragment, [f"{f.name}=" for f in fields(Settings)], "setting")
    return None


def _argument(verb: Verb, before: list[str]) -> Argument | None:
    """Return the argument whose value comes after the words *before*."""
    positionals = list(verb.positionals)
    waiting: Argument | None = None
    for word in before:
        if waiting is not None:
            waiting = None
        elif option := verb.option(word.partition("=")[0]):
            waiting = option if option.takes_value and "=" not in word else None
        elif positionals:
            positionals.pop(0)
    return waiting or (positionals[0] if positionals else None)


def _values(
    argument: Argument, names: Mapping[str, Any], deployments: Callable[[], Iterable[str]]
) -> tuple[Iterable[str], str]:
    match argument.kind:
        case "text" if argument.backend is not None or argument.choices:
            from mlopsnb.plugins import available

            installed = available(argument.backend) if argument.backend else ()
            return [*argument.choices, *installed], argument.backend or "value"
        case "deployment":
            return [*deployments(), *_variables(names, "Deployment")], "deployment"
        case "source":
            return [*_variables(names), *URI_SCHEMES], "instance"
        case "object" | "variable":
            return _variables(names), "instance"
        case "numbers" | "texts":
            return _variables(names, "dict"), "instance"
        case _:
            return (), ""


def _variables(names: Mapping[str, Any], kind: str = "") -> list[str]:
    """Return the notebook's own variables that may hold data or models, those of class *kind* if it is given."""
    return [
        name
        for name, value in names.items()
        if not name.startswith("_")
        and name not in ("In", "Out", "exit", "quit", "open", "get_ipython")
        and (type(value).__name__ == kind if kind else not isinstance(value, (ModuleType, type)))
    ]


def _offer(fragment: str, values: Iterable[str], kind: str) -> Offer | None:
    matching = tuple(dict.fromkeys(v for v in values if v.startswith(fragment)))
    return Offer(fragment, matching, kind) if matching else None


def make_matcher(shell: Any, deployments: DeploymentNames) -> Any:
    """Return a matcher for IPython's completer (its matcher API, version 2)."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier="mlopsnb")  # type: ignore[misc, unused-ignore]
    def mlopsnb_matcher(context: Any) -> Any:
        try:
            found = offer(context.text_until_cursor, shell.user_ns, deployments.get)
        except Exception:  # noqa: BLE001  IPython would print a traceback into the user's prompt
            found = None
        if found is None:
            return {"completions": []}
        return {
            "completions": [SimpleCompletion(text=value, type=found.kind) for value in found.values],
            "matched_fragment": found.fragment,
            "suppress": True,
        }

    return mlopsnb_matcher
