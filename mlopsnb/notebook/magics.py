"""The line magics: parse the line, call one Python function while its progress is shown, return what it returns."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, needs_local_scope, no_var_expand

from mlopsnb.background import Detached
from mlopsnb.notebook.arguments import JSON, OUT, Verb
from mlopsnb.notebook.documents import document
from mlopsnb.notebook.grammar import ATTACH, BUILD, DEPLOY, EXPORT, SETTINGS_HELP, SETTINGS_VERB, VERBS
from mlopsnb.notebook.parsing import Scope, help_text, meant, parse, read
from mlopsnb.notebook.splitting import UsageError, split
from mlopsnb.notebook.views import Card, choose, following

if TYPE_CHECKING:
    from mlopsnb.notebook.completion import Known

_SHOWN_AS = {"deployments": "Listing", "logs": "LogText"}
"""Results that are plain tuples or text in Python and get a display of their own here, which is still a tuple or text."""


_PLAIN_NAME = re.compile(r"[\w-]+")


class MlopsnbMagics(Magics):
    """mlopsnb's line magics, one for each verb of the grammar."""

    registered = True
    magics: Mapping[str, Mapping[str, str]] = {
        "line": {name: f"_{name}" for name in (*VERBS, SETTINGS_VERB)},
        "cell": {},
    }

    def __init__(self, shell: Any, known: Known) -> None:
        super().__init__(shell)
        self._known = known

    def run(self, verb: Verb, line: str, local: Mapping[str, Any] | None) -> Any:
        """Run one line of *verb*; return its record, or None after a `;` or when help was asked for."""
        line, silent = _without_semicolon(line)
        asked, verb = verb, meant(verb, line)
        words = parse(verb, line)
        if words is None:
            sys.stdout.write(help_text(asked) + "\n")
            return None
        scope = Scope(self.shell.user_ns, local)
        values = {
            a.name: read(a, words[a.name], scope)
            for a in (*verb.positionals, *verb.all_options)
            if a.name in words
        }
        out, as_json = values.pop(OUT.name, None), values.pop(JSON.name, False)
        title = _title(verb, words)
        notes = fill_in(verb, words, values, scope)
        try:
            # One document is all that a program wants to read.
            with following(title, mode="off" if as_json else self._mode(), notes=notes) as card:
                result = _call(verb, values, scope)
                _show_rollout(verb, result, card)
        except KeyboardInterrupt as exc:
            # The card tells what was interrupted, and what was put back; a stack would only bury it.
            told = f"KeyboardInterrupt: {title} was cancelled"
            if isinstance(exc, Detached):
                told += f"; {exc}, %attach {exc.rollout.name} shows it"
            exc._render_traceback_ = lambda: [told]  # type: ignore[attr-defined]
            raise
        self._remember(verb, values, result)
        shown = _shown(verb, values, result)
        if out is not None:
            self.shell.user_ns[out] = shown
        if as_json:
            sys.stdout.write(document(result) + "\n")
        return None if silent or as_json else shown

    def _mode(self) -> Any:
        from mlopsnb.settings import settings

        return choose(settings().status, self.shell)

    def _remember(self, verb: Verb, values: Mapping[str, Any], result: Any) -> None:
        """Keep the names that completion offers up to date, without asking anybody."""
        if verb.name == "undeploy":
            self._known.deployments.remove(str(getattr(values["deployment"], "name", values["deployment"])))
        elif verb.name == "deployments":
            self._known.deployments.add(d.name for d in result)
        elif verb is DEPLOY and not values.get("dry_run"):
            self._known.deployments.add([result.name])
        elif uri := getattr(result, "uri", ""):
            self._known.models.add([uri])

    @no_var_expand
    def _mlopsnb(self, line: str) -> Any:
        from mlopsnb.notebook.overview import overview, settings_overview

        line, silent = _without_semicolon(line)
        result: Any
        match split(line):
            case []:
                result = overview()
            case ["doctor"]:
                from mlopsnb.notebook.doctor import doctor

                result = doctor()
            case ["settings"]:
                result = settings_overview()
            case ["set", *pairs] if pairs:
                _set(pairs, Scope(self.shell.user_ns))
                result = settings_overview()
            case ["-h" | "--help"]:
                sys.stdout.write(SETTINGS_HELP)
                return None
            case words:
                raise UsageError(
                    f"%mlopsnb does not know {' '.join(words)!r}", hint="%mlopsnb? shows what it takes"
                )
        return None if silent else result

    _mlopsnb.__doc__ = SETTINGS_HELP


def _method(verb: Verb) -> Any:
    @needs_local_scope
    @no_var_expand
    def magic(self: MlopsnbMagics, line: str, local_ns: Mapping[str, Any] | None = None) -> Any:
        return self.run(verb, line, local_ns)

    magic.__name__ = verb.name
    magic.__doc__ = help_text(verb)
    return magic


for _verb in VERBS.values():
    setattr(MlopsnbMagics, f"_{_verb.name}", _method(_verb))


def twin(verb: Verb) -> Any:
    """Return the Python function that *verb* calls; it is imported here and not before."""
    module, _, path = verb.twin.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def fill_in(verb: Verb, words: Mapping[str, Any], values: dict[str, Any], scope: Scope) -> tuple[str, ...]:
    """Fill in what `%deploy model` and the like alone leave out; return what was chosen, for the status card.

    A model is deployed or built under its variable's name; its example is the first rows in the notebook that it accepts.
    """
    if verb not in (BUILD, DEPLOY, EXPORT):
        return ()
    from mlopsnb.notebook.example_search import find_example, recognised
    from mlopsnb.records import ModelVersion

    first = verb.positionals[0].name
    model, word, notes = values[first], words[first], []
    unnamed = verb is not EXPORT and "name" not in values and not isinstance(model, str | ModelVersion)
    if unnamed and word.isidentifier() and (label := dns_label(word)):
        values["name"] = label
        notes.append(f"name: {label}")
    if "example" in values or values.get("dry_run"):
        return tuple(notes)
    if recognised(model):
        if found := find_example(model, {k: v for k, v in scope.names.items() if v is not model}):
            values["example"] = found.value
            return (*notes, f"example: {found.expression}")
        raise UsageError(
            f"%{verb.name}: no variable holds rows that {word} accepts",
            hint="give --example X, a few rows of its input",
        )
    if verb is EXPORT:
        raise UsageError("%export needs an example", hint="give --example X, a few rows of the model's input")
    return tuple(notes)


def dns_label(name: str) -> str:
    """Return *name* as a DNS label, which every target takes as a name: `my_model` becomes `my-model`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:63].strip("-")


def _call(verb: Verb, values: Mapping[str, Any], scope: Scope) -> Any:
    first = [values[a.name] for a in verb.positionals]
    options = {o.name: values[o.name] for o in verb.options if o.name in values}
    if not verb.on_deployment:
        return twin(verb)(*first, **options)
    handle = _deployment(first[0], scope, options.pop("target", None))
    return getattr(handle, verb.twin.rpartition(".")[2])(*first[1:], **options)


def _show_rollout(verb: Verb, result: Any, card: Card) -> None:
    """Let *card* follow what goes on in the background behind the result of `%deploy --no-wait` or `%attach`."""
    rollout = getattr(result, "rollout", None) if verb in (ATTACH, DEPLOY) else None
    if rollout is not None and rollout.state != "succeeded":
        card.go_on(rollout, anew=verb is ATTACH)


def _deployment(word: str, scope: Scope, target: str | None) -> Any:
    """Return the deployment that *word* means: a variable or expression that holds one, else the one of that name."""
    name = scope.expand(word) if "{" in word else word
    held = scope.names.get(name) if _PLAIN_NAME.fullmatch(name) else scope.evaluate(name)
    if _is_deployment(held):
        return held
    if not _PLAIN_NAME.fullmatch(name):
        raise UsageError(f"{word!r} is no deployment but of type {type(held).__name__}")
    return import_module("mlopsnb.deployment").get(name, target=target)


def _is_deployment(value: object) -> bool:
    return (type(value).__module__, type(value).__name__) == ("mlopsnb.deployment", "Deployment")


def _shown(verb: Verb, values: Mapping[str, Any], result: Any) -> Any:
    dry = values.get("dry_run") and type(result) is tuple  # a plan; a clean-up has a record of its own
    kind = "Plan" if dry else _SHOWN_AS.get(verb.name)
    if kind is None:
        return result
    return getattr(import_module("mlopsnb.notebook.displays"), kind)(result)


def _title(verb: Verb, words: Mapping[str, Any]) -> str:
    return " ".join([f"%{verb.name}", *(words[a.name] for a in verb.positionals)])


def _set(pairs: list[str], scope: Scope) -> None:
    from mlopsnb.plugins import find
    from mlopsnb.settings import set_for_session

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"%mlopsnb set takes KEY=VALUE, found {pair!r}")
        values[key] = scope.expand(value) or None
    if values.get("target"):
        find(
            "target", values["target"]
        )  # else a typo would be told by the next deploy, which may be far away
    set_for_session(**values)


def _without_semicolon(line: str) -> tuple[str, bool]:
    """Return the line without a `;` at its end, and whether it had one."""
    bare = line.rstrip()
    return (bare[:-1], True) if bare.endswith(";") else (line, False)
