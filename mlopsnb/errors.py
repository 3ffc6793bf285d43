"""
Our exception hierarchy:

* MlopsnbError
  x UserError            the call is wrong; fix the cell
    + UnknownBackend
    + UnsupportedModel
    + InvalidSettings
  x MissingExtra         a package is not installed; also an ImportError
  x StepError            an outside tool or the model failed
    + ExportError
      - ParityError      the export does not equal the original
    + TrackingError
    + BuildError
    + DeployError
      - NotReady         the revision did not become ready
  x GateRejected         an evaluation gate said no
    + NotEnoughRequests  too few came to say anything

A message says what happened and what was found; `hint` says what to do next.
Foreign errors are translated where they arise, `from` their cause.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


class MlopsnbError(Exception):
    """Base class of everything mlopsnb raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython shows in place of a stack; ours say all that a stack would."""
        lines = f"{type(self).__name__}: {self}".splitlines()
        return [*lines, *(f"  note: {note}" for note in getattr(self, "__notes__", ()))]


class UserError(MlopsnbError):
    """The call itself is wrong."""


def nearest(name: str, known: Collection[str]) -> str:
    """Return ``did you mean 'x'?`` for the known name nearest to *name*, or an empty string."""
    from difflib import get_close_matches  # seldom needed, and slow to import

    close = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


_FRAME = re.compile(r"•|Arguments received|Exception encountered|$")
"""Lines with which a framework frames what went wrong."""


def telling_line(exc: BaseException, *, first: bool = False) -> str:
    """Return the kind of a foreign error and the one line of it that tells most.

    That is its last line, after whatever stack the framework put into it; with *first*, the one before such a stack.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(exc))
    lines = [line for line in map(str.strip, text.splitlines()) if not _FRAME.match(line)]
    line, kind = (lines[0] if first else lines[-1]) if lines else "", type(exc).__name__
    return (line if line.startswith(f"{kind}:") else f"{kind}: {line}")[:300]


class UnknownBackend(UserError):
    """No installed back end has that name."""

    def __init__(self, kind: str, name: str, known: Collection[str]) -> None:
        super().__init__(
            f"no {kind} named {name!r}; installed: {', '.join(sorted(known)) or 'none'}",
            hint=nearest(name, known),
        )
        self.kind, self.name, self.known = kind, name, tuple(known)


class UnsupportedModel(UserError):
    """No format knows what to do with the model."""

    def __init__(self, model: object, *, asked: str = "", supported: str = "") -> None:
        cls = type(model)
        who = f"format {asked!r} does not accept" if asked else "no installed format accepts"
        super().__init__(
            f"{who} {cls.__module__}.{cls.__qualname__}",
            hint=supported
            or "give a torch.nn.Module, a Keras model, a tf.Module or a scikit-learn estimator",
        )


class InvalidSettings(UserError):
    """A setting has an unknown name or an impossible value."""


class MissingExtra(MlopsnbError, ImportError):
    """An optional package is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module!r} is not installed", hint=f"pip install 'mlopsnb[{extra}]'")
        self.extra = extra


class StepError(MlopsnbError):
    """A step failed in a tool that is not ours, or in the user's model."""


class ExportError(StepError):
    """The model could not be exported; nothing was kept."""


class ParityError(ExportError):
    """The exported model does not answer as the original does; nothing was kept."""


class TrackingError(StepError):
    """The tracking server could not be reached, or refused."""


class BuildError(StepError):
    """The image could not be built."""


class DeployError(StepError):
    """The target refused or failed an action; what served before serves on."""


class NotReady(DeployError):
    """The revision did not become ready; its last log lines are in the message.

    `reason` is what the target found, in its own words where it has one: `OOMKilled`, `ImagePullBackOff`.
    """

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class GateRejected(MlopsnbError):
    """An evaluation gate said no; what served before serves on."""


class NotEnoughRequests(GateRejected):
    """Too few requests came for a gate to say anything; what served before serves on."""
