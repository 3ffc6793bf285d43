"""
What can go wrong while serving, in words that know nothing of HTTP; `app` maps them to statuses.

* UserError
  x BadRequest           the client's fault; `kind` says how
  x BadOption            the fault of who started the server
  x BadSecret            a file with tokens, a certificate or a key cannot be used
* StepError
  x ModelFailure         the model is at fault
  x Overloaded           too much waits already; `retry_after` says when to come back
  x DeadlineExceeded     the time that the request was given has passed
  x NotCached            the answer is not kept, and the request allows nothing else
  x CannotListen         an address is taken or not ours
"""

from __future__ import annotations

import traceback
from typing import Literal

from mlopsnb.errors import StepError, UserError

Kind = Literal["malformed", "mismatch", "rejected", "too large", "unsupported"]
"""malformed: not the protocol; mismatch: not the signature; rejected: the model raised on it."""


_MOST_CAUSES = 10


class BadRequest(UserError):
    """A request that cannot be answered, and why: what was expected and what came."""

    def __init__(self, message: str, *, kind: Kind = "mismatch") -> None:
        super().__init__(message)
        self.kind: Kind = kind


class BadOption(UserError):
    """An option or a variable of the environment that the server cannot do with this model, or here."""


class BadSecret(UserError):
    """A file with tokens, a certificate or a key cannot be used. Says nothing of what it holds."""


class ModelFailure(StepError):
    """The model cannot be loaded, does not run, or does not answer as its signature says."""


class Overloaded(StepError):
    """Nothing more is taken in for now. `retry_after` is the seconds, 1 or more, after which it may be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            f"the server is overloaded; try again in {retry_after} s",
            hint="send fewer requests at a time, or run more replicas",
        )
        self.retry_after = retry_after


class DeadlineExceeded(StepError):
    """A request waited for the model longer than it was given; the model was not called."""

    def __init__(self, waited: float) -> None:
        super().__init__(f"the deadline passed after {waited:.3g} s in the queue; the model was not called")


class NotCached(StepError):
    """A request allows the use of kept answers alone, and *missing* of its *rows* have none."""

    def __init__(self, missing: int, rows: int) -> None:
        super().__init__(f"only-if-cached, but the answers to {missing} of {rows} rows are not kept")


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


def stack(exc: BaseException) -> str:
    """Return *exc* and its causes as a traceback for the server's log, without the words of foreign exceptions.

    Those may show values of a request, which do not belong into a log; where they arose and their types say enough.
    """
    found: list[str] = []
    part: BaseException | None = exc
    while part is not None and len(found) < _MOST_CAUSES:
        frames = "".join(traceback.format_tb(part.__traceback__))
        said = f": {part.message}" if isinstance(part, StepError) else ""
        found.append(f"{frames}{type(part).__module__}.{type(part).__qualname__}{said}")
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
    return "\n\ncaused\n\n".join(reversed(found))
