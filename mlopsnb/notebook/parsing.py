"""From a magic's line to the arguments of its Python function. Calls nothing but the user's expressions."""

from __future__ import annotations

import argparse
import keyword
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from mlopsnb.errors import nearest
from mlopsnb.notebook.arguments import OUT, Argument, Verb
from mlopsnb.notebook.grammar import URI_SCHEMES
from mlopsnb.notebook.splitting import UsageError, expand, split

_OPTION = re.compile(r"-[-A-Za-z]")
_IMAGE = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+|(:[\w.-]+)?@sha256:[0-9a-f]{64})")
"""The name of an image with a tag or a digest. Nothing in Python looks like it."""

_PAIR = re.compile(r"([^\s=()\[\]{}]+)=(?!=)(.*)", re.DOTALL)


def help_text(verb: Verb) -> str:
    """Return what `%verb?` and `%verb --help` show."""
    words = [f"%{verb.name}", *(a.metavar for a in verb.positionals)]
    words += [f"{o.flag} {o.metavar}" for o in verb.options if o.required]
    if any(not o.required for o in verb.all_options):
        words.append("[options]")
    rows = [(a.metavar, a.help) for a in verb.positionals]
    rows += [(f"{o.flag} {o.metavar}" if o.takes_value else o.flag, o.help) for o in verb.all_options]
    width = max((len(left) for left, _ in rows), default=0)
    lines = [verb.summary, "", f"usage: {' '.join(words)}", ""]
    lines += [f"  {left:<{width}}  {right}" for left, right in rows]
    lines += ["", "examples:", *(f"  {e}" for e in verb.examples), ""]
    lines += [f"Calls {verb.twin.replace(':', '.')} and returns what that returns."]
    if verb.alone is not None:
        lines += ["", "", help_text(verb.alone)]
    return "\n".join(lines)


def meant(verb: Verb, line: str) -> Verb:
    """Return *verb*, or the one of the same name for a single word, if *line* gives one word besides options."""
    if verb.alone is None:
        return verb
    count, value_follows = 0, False
    for word in split(line):
        flag, equals, _ = word.partition("=")
        if value_follows or not _OPTION.match(word):
            count += not value_follows
            value_follows = False
        else:
            option = verb.option(flag) or verb.alone.option(flag)
            value_follows = option is not None and option.takes_value and not equals
    return verb.alone if count == 1 else verb


class Scope:
    """The names a line may use: those of the function it stands in, then those of the notebook."""

    def __init__(self, user: Mapping[str, Any], local: Mapping[str, Any] | None = None) -> None:
        self.names: dict[str, Any] = {**user, **(local or {})}

    def evaluate(self, expression: str) -> Any:
        """Return the value of a Python *expression*; raise `UsageError` if there is none."""
        try:
            code = compile(expression, "<magic>", "eval")
        except (SyntaxError, ValueError) as exc:
            raise UsageError(f"{expression!r} is not a Python expression") from exc
        try:
            return eval(code, self.names)  # noqa: S307  the cell's own code, as if it stood beside the magic
        except NameError as exc:
            known = [name for name in self.names if not name.startswith("_")]
            raise UsageError(f"no variable named {exc.name!r}", hint=nearest(str(exc.name), known)) from exc
        except Exception as exc:
            raise UsageError(f"{expression!r} gave {type(exc).__name__}: {exc}") from exc

    def expand(self, text: str) -> str:
        """Return *text* with the values of its `{expr}`."""
        return expand(text, self.evaluate)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = message.replace("the following arguments are required: ", "give ")
        raise UsageError(f"%{self.prog}: {message}", hint=f"%{self.prog}? shows what it takes")


def parse(verb: Verb, line: str) -> dict[str, Any] | None:
    """Split *line* into the words of each argument of *verb*; None if it asks for help.

    Arguments that are not given are left out. Raises `UsageError` for what the verb does not take.
    """
    words = split(line)
    if "-h" in words or "--help" in words:
        return None
    _refuse_unknown(verb, words)
    parser = _Parser(prog=verb.name, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for argument in verb.positionals:
        parser.add_argument(argument.name, metavar=argument.metavar)
    for option in verb.all_options:
        if not option.takes_value:
            parser.add_argument(
                option.flag, dest=option.name, action="store_const", const=option.kind == "flag"
            )
        else:
            action = "append" if option.repeats else "store"
            parser.add_argument(option.flag, dest=option.name, action=action, required=option.required)
    return vars(parser.parse_args(words))


def _refuse_unknown(verb: Verb, words: list[str]) -> None:
    known = [o.flag for o in verb.all_options]
    for word in words:
        if word == "--":
            return
        flag = word.partition("=")[0]
        if _OPTION.match(word) and flag not in known:
            hint = nearest(flag, known) or f"%{verb.name}? shows all"
            raise UsageError(f"%{verb.name} has no option {flag}", hint=hint)


def read(argument: Argument, words: Any, scope: Scope) -> Any:
    """Turn what was typed for *argument* into its value. Deployments stay text."""
    match argument.kind:
        case "object":
            return scope.evaluate(words)
        case "source":
            return scope.expand(words) if is_uri(words) else scope.evaluate(words)
        case "text" | "words":
            return [scope.expand(word) for word in words] if argument.kind == "words" else scope.expand(words)
        case "int" | "float":
            return _number(scope.expand(words), argument)
        case "numbers" | "texts":
            return _pairs(words, argument, scope)
        case "variable" | "flag" | "off" | "deployment":
            return _variable(words) if argument.kind == "variable" else words


def _variable(name: str) -> str:
    """Return *name* if a variable can be called so."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{OUT.flag} takes the name of a variable, found {name!r}")
    return name


def is_uri(word: str) -> bool:
    """Say whether *word* is an address of the tracking server, or an image's, rather than Python."""
    return word.startswith(URI_SCHEMES) or _IMAGE.fullmatch(word) is not None


def _number(text: str, argument: Argument) -> int | float:
    try:
        return int(text) if argument.kind == "int" else float(text)
    except ValueError as exc:
        wanted = "a whole number" if argument.kind == "int" else "a number"
        raise UsageError(f"{argument.flag} takes {wanted}, found {text!r}") from exc


def _pairs(words: list[str], argument: Argument, scope: Scope) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for word in words:
        if pair := _PAIR.fullmatch(word):
            pairs[pair[1]] = scope.expand(pair[2])
            continue
        value = scope.evaluate(word)
        if not isinstance(value, Mapping):
            raise UsageError(
                f"{argument.flag} takes KEY=VALUE or a dict, found {word!r} ({type(value).__name__})"
            )
        pairs.update({str(k): v for k, v in value.items()})
    if argument.kind == "numbers":
        return {key: _metric(key, value, argument) for key, value in pairs.items()}
    return pairs


def _metric(key: str, value: Any, argument: Argument) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"{argument.flag}: {key} must be a number, found {value!r}") from exc
