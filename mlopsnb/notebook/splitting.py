"""Split a magic's line into words, and put values in for `{expr}`. Knows neither verbs nor options."""

from __future__ import annotations

from collections.abc import Callable

from IPython.core import error

from mlopsnb.errors import UserError

_BLANKS = " \t\r\n"
_OPENERS = {"(": ")", "[": "]", "{": "}"}


class UsageError(UserError, error.UsageError):
    """A magic's line is wrong. Shown as its message and hint, without a stack."""


def split(line: str) -> list[str]:
    """Split *line* as a POSIX shell does, but keep what stands in brackets as it is, quotes and blanks included.

    So `X[["a", "b"]]` and `(x, y)` are one word each. Raises `UsageError` for what is not closed.
    """
    words: list[str] = []
    word: str | None = None
    at = 0
    while at < len(line):
        char = line[at]
        if char in _BLANKS:
            if word is not None:
                words.append(word)
                word = None
            at += 1
            continue
        piece, at = _piece(line, at)
        word = (word or "") + piece
    return words if word is None else [*words, word]


def _piece(line: str, at: int) -> tuple[str, int]:
    """Return what stands at *at* (a character, a quoted text, a bracket), and where it ends."""
    char = line[at]
    if char in _OPENERS:
        end = bracket_end(line, at)
        return line[at:end], end
    if char == "\\":
        if at + 1 == len(line):
            raise UsageError("the line ends with a backslash")
        return line[at + 1], at + 2
    if char in "'\"":
        return _quoted(line, at)
    return char, at + 1


def _quoted(line: str, at: int) -> tuple[str, int]:
    quote, text, here = line[at], "", at + 1
    while here < len(line) and line[here] != quote:
        # In double quotes a backslash only escapes the quote and itself, as in a POSIX shell.
        if quote == '"' and line[here] == "\\" and line[here + 1 : here + 2] in ('"', "\\"):
            here += 1
        text += line[here]
        here += 1
    if here >= len(line):
        raise UsageError(f"a quotation is not closed: {line[at:]}")
    return text, here + 1


def bracket_end(text: str, at: int) -> int:
    """Return where the bracket that opens at *at* is closed, plus one. Python strings inside may hold brackets."""
    stack: list[str] = []
    here = at
    while here < len(text):
        char = text[here]
        if char in _OPENERS:
            stack.append(_OPENERS[char])
        elif char in "'\"":
            here = _string_end(text, here)
        elif stack and char == stack[-1]:
            stack.pop()
            if not stack:
                return here + 1
        elif char in ")]}":
            raise UsageError(f"{char!r} does not close {text[at]!r}: {text[at:]}")
        here += 1
    raise UsageError(f"{text[at]!r} is not closed: {text[at:]}")


def _string_end(text: str, at: int) -> int:
    here = at + 1
    while here < len(text) and text[here] != text[at]:
        here += 2 if text[here] == "\\" else 1
    return here


def expand(text: str, evaluate: Callable[[str], object]) -> str:
    """Replace each `{expr}` in *text* by its value; `{{` and `}}` stand for the braces themselves."""
    out, at = "", 0
    while at < len(text):
        char = text[at]
        if char in "{}" and text[at + 1 : at + 2] == char:
            out, at = out + char, at + 2
        elif char == "{":
            end = bracket_end(text, at)
            out, at = out + str(evaluate(text[at + 1 : end - 1].strip())), end
        elif char == "}":
            raise UsageError(f"'}}' closes nothing in {text!r}", hint="write '}}' for the brace itself")
        else:
            out, at = out + char, at + 1
    return out
