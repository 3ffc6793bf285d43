"""What works here and how to mend what does not: `%mlopsnb doctor` and `mlopsnb.doctor()`.

Every check runs in a thread of its own and is given up after a while, so that one dead server delays the table by
seconds and no more. A check changes nothing, and whatever it raises is a line of the table.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlopsnb.errors import MissingExtra, MlopsnbError, telling_line
from mlopsnb.masking import masked
from mlopsnb.notebook.tables import Badge, card, html_table, text_table

State = Literal["works", "limited", "missing", "broken"]

PATIENCE = 20.0
"""Seconds that all checks together may take, imports included; one that takes longer is told to be broken."""

_SYMBOLS: Mapping[State, str] = {"works": "✓", "limited": "!", "missing": "○", "broken": "✗"}
_HEADER = ("what", "state", "found", "what to do")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `missing` is what is not set up and may not be wanted; `broken` is set up and does not work."""

    state: State
    found: str
    hint: str = ""


_LATE = Finding("broken", f"no answer within {PATIENCE:g} s", "is it running, and can this machine reach it?")


@dataclass(frozen=True, slots=True)
class Check:
    """One row: what was looked at, and what was found."""

    name: str
    state: State
    found: str
    hint: str


class Checkup(tuple[Check, ...]):
    """All checks: a tuple that shows itself as a table."""

    __slots__ = ()

    @property
    def ok(self) -> bool:
        """Say whether nothing that is set up is broken."""
        return all(check.state != "broken" for check in self)

    @property
    def _title(self) -> str:
        broken = [check.name for check in self if check.state == "broken"]
        return f"does not work here: {', '.join(broken)}" if broken else "what is set up here works"

    def _rows(self) -> list[tuple[object, ...]]:
        return [(c.name, Badge(_SYMBOLS[c.state], c.state), c.found, c.hint) for c in self]

    def __str__(self) -> str:
        # A line for each hint: a table of four long columns cannot be read as text.
        table = text_table([row[:3] for row in self._rows()]).splitlines()
        lines = [self._title]
        for line, check in zip(table, self, strict=True):
            lines += [f"  {line}", *([f"      {check.hint}"] if check.hint else [])]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return card(self._title, html_table(self._rows(), _HEADER, label="what works here"))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def doctor() -> Checkup:
    """Look at what mlopsnb needs or can use here: kernel, widgets, MLflow, engine, builder, cluster, registry, base image.

    Takes some seconds at most, changes nothing and never raises. Addresses are shown without the user in them.
    """
    from mlopsnb.notebook import doctor_checks

    return run(doctor_checks.checks())


def run(checks: Iterable[tuple[str, Callable[[], Finding]]]) -> Checkup:
    """Run the *checks* at the same time and return what they found, in their order."""
    running = [(name, _Running(name, check)) for name, check in checks]
    end = time.monotonic() + PATIENCE
    return Checkup(_row(name, one.result(end - time.monotonic())) for name, one in running)


def _row(name: str, found: Finding) -> Check:
    return Check(name, found.state, masked(found.found), masked(found.hint))


class _Running:
    """A check in a thread that nobody waits for at the end of the kernel."""

    def __init__(self, name: str, check: Callable[[], Finding]) -> None:
        self._found: Finding | None = None
        # The context says which cell asks, which the check of the front end has to know.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=run, args=[self._look, check], name=f"mlopsnb-doctor-{name}", daemon=True
        )
        self._thread.start()

    def _look(self, check: Callable[[], Finding]) -> None:
        self._found = _outcome(check)

    def result(self, seconds: float) -> Finding:
        self._thread.join(max(0.0, seconds))
        return self._found or _LATE


def _outcome(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except MissingExtra as exc:
        return Finding("missing", exc.message, exc.hint)
    except MlopsnbError as exc:
        return Finding("broken", exc.message, exc.hint)
    except Exception as exc:  # noqa: BLE001  a row, whatever it is
        return Finding("broken", telling_line(exc))
