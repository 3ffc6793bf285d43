"""Complete the magics' options, values and variables, and names of deployments, models and contexts. Raises nothing.

Names that are not in the notebook come from lists in memory, which threads refresh: nothing here waits for a network.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import MlopsnbError
from mlopsnb.notebook.grammar import SETTINGS_VERB, SETTINGS_WORDS, URI_SCHEMES, VERBS

if TYPE_CHECKING:
    from mlopsnb.notebook.arguments import Argument, Verb

_LINE = re.compile(r"(?:^|=)\s*%(\w+)\s+(.*)$")
_FRESH = 2.0
_MODELS_FRESH = 30.0
_PATIENCE = 0.2


class Names:
    """Names that completion offers: those that *read* returned last, and what the magics have seen since.

    They are read in a thread when somebody asks and they are older than *fresh* seconds; nobody waits for it but a moment.
    """

    def __init__(self, read: Callable[[], Iterable[str]], *, fresh: float = _FRESH) -> None:
        self._read = read
        self._fresh = fresh
        self._names: dict[str, None] = {}
        self._added: dict[str, None] = {}
        self._read_at = float("-inf")
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None

    def add(self, names: Iterable[str]) -> None:
        """Offer these too."""
        with self._lock:
            self._added.update(dict.fromkeys(names))

    def remove(self, name: str) -> None:
        """Offer it no longer."""
        with self._lock:
            self._added.pop(name, None)
            self._names.pop(name, None)

    def get(self) -> list[str]:
        """Return the names known by now; starts a refresh if they are old, and waits for it a moment at most."""
        with self._lock:
            old = time.monotonic() - self._read_at > self._fresh
            if old and (self._reader is None or not self._reader.is_alive()):
                self._reader = threading.Thread(target=self._refresh, name="mlopsnb-completion", daemon=True)
                self._reader.start()
            reader = self._reader
        if old and reader is not None:
            reader.join(_PATIENCE)
        with self._lock:
            return [*self._names, *(name for name in self._added if name not in self._names)]

    def _refresh(self) -> None:
        try:
            names = dict.fromkeys(self._read())
        except Exception:  # noqa: BLE001  completion has nobody to tell; the magic itself will say what is wrong
            names = {}
        with self._lock:
            self._names = names
            self._read_at = time.monotonic()


def deployed_names() -> list[str]:
    """Return the names of the deployments on this machine, and on the target that the settings name."""
    from mlopsnb.deployment import deployments
    from mlopsnb.settings import settings

    names: dict[str, None] = {}
    for target in dict.fromkeys(("process", settings().target)):
        with suppress(MlopsnbError):  # the other one counts all the same
            names.update(dict.fromkeys(sorted(d.name for d in deployments(target=target))))
    return list(names)


def registered_models() -> Iterable[str]:
    """Return the addresses of the registered models."""
    from mlopsnb.tracking.listing import models

    return models()


def contexts() -> Iterable[str]:
    """Return the names of the contexts of the kubeconfig."""
    from mlopsnb.targets.kubeconfig import contexts

    return contexts()


class Known:
    """All names that completion offers and that are not in the notebook."""

    def __init__(self) -> None:
        self.deployments = Names(deployed_names)
        self.models = Names(registered_models, fresh=_MODELS_FRESH)
        self.contexts = Names(contexts)


@dataclass(frozen=True, slots=True)
class Offer:
    """Completions for the *fragment* before the cursor. *kind* is what the front end shows beside them."""

    fragment: str
    values: tuple[str, ...]
    kind: str


def offer(text: str, names: Mapping[str, Any], known: Known) -> Offer | None:
    """Return what can stand at the end of *text*, the line up to the cursor; None if that is not ours to say."""
    found = _LINE.search(text)
    if found is None:
        return None
    *before, fragment = re.split(r"\s+", found[2]) if found[2] else [""]
    if found[1] == SETTINGS_VERB:
        return _settings_offer(before, fragment, known)
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
    values, kind = _values(argument, fragment, names, known)
    return _offer(fragment, values, kind)


def _settings_offer(before: list[str], fragment: str, known: Known) -> Offer | None:
    from dataclasses import fields

    from mlopsnb.plugins import available
    from mlopsnb.settings import CHOICES, Settings

    if not before:
        return _offer(fragment, SETTINGS_WORDS, "command")
    if before[0] != "set":
        return None
    key, equals, _ = fragment.partition("=")
    if not equals:
        return _offer(fragment, [f"{f.name}=" for f in fields(Settings)], "setting")
    values = CHOICES.get(key, ())
    if key == "target":
        values = tuple(available("target"))
    elif key == "context":
        values = tuple(known.contexts.get())
    return _offer(fragment, [f"{key}={value}" for value in values], "value")


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
    argument: Argument, fragment: str, names: Mapping[str, Any], known: Known
) -> tuple[Iterable[str], str]:
    match argument.kind:
        case "text" if argument.backend is not None or argument.choices:
            from mlopsnb.plugins import available

            installed = available(argument.backend) if argument.backend else ()
            return [*argument.choices, *installed], argument.backend or "value"
        case "deployment":
            return [*known.deployments.get(), *_variables(names, "Deployment")], "deployment"
        case "source":
            if fragment.startswith("models:/"):
                return _addresses(fragment, known.models.get()), "value"
            return [*_variables(names), *URI_SCHEMES], "instance"
        case "object" | "variable" | "numbers" | "texts":
            return _variables(names, "dict" if argument.repeats else ""), "instance"
        case _:
            return (), ""


def _addresses(fragment: str, models: Iterable[str]) -> list[str]:
    """Return the next part of an address: the names of the models and their aliases, then the versions of one."""
    if fragment.count("/") > 1:
        return list(models)
    return [m if "@" in m else m[: m.rindex("/") + 1] for m in models]


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


def make_matcher(shell: Any, known: Known) -> Any:
    """Return a matcher for IPython's completer (its matcher API, version 2)."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier="mlopsnb")  # type: ignore[misc, unused-ignore]
    def mlopsnb_matcher(context: Any) -> Any:
        try:
            found = offer(context.text_until_cursor, shell.user_ns, known)
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
