"""
What can go wrong while serving, in words that know nothing of HTTP; `app` maps them to statuses.

* UserError
  x BadRequest           the client's fault; `kind` says how
* StepError
  x ModelFailure         the model is at fault
  x CannotListen         an address is taken or not ours
"""

from __future__ import annotations

from typing import Literal

from mlopsnb.errors import StepError, UserError

Kind = Literal["malformed", "mismatch", "rejected", "too large", "unsupported"]
"""malformed: not the protocol; mismatch: not the signature; rejected: the model raised on it."""


class BadRequest(UserError):
    """A request that cannot be answered, and why: what was expected and what came."""

    def __init__(self, message: str, *, kind: Kind = "mismatch") -> None:
        super().__init__(message)
        self.kind: Kind = kind


class ModelFailure(StepError):
    """The model cannot be loaded, does not run, or does not answer as its signature says."""


class CannotListen(StepError):
    """A socket could not be opened."""


def summary(exc: BaseException) -> str:
    """Return a foreign exception as one line: its type and the line of its message that says most.

    Frameworks put a stack into the message and the reason last; others put the reason first.
    """
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    if not lines:
        return type(exc).__name__
    first, _, _ = lines[-1].partition(":")
    if len(lines) > 1 and first.isidentifier() and first.endswith(("Error", "Exception")):
        return lines[-1][:300]
    return f"{type(exc).__name__}: {lines[0][:300]}"
