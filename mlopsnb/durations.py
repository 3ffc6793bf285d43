"""Spans of time as people write them: `30s`, `5m`, `1.5h`, `7d`, or a number of seconds."""

from __future__ import annotations

import math
import re

from mlopsnb.errors import UserError

_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*")


def seconds(span: object, *, of: str) -> float:
    """Return *span* in seconds; `UserError` if it is none. *of* is what takes so long, for the message."""
    if isinstance(span, (int, float)) and not isinstance(span, bool) and 0 <= span < math.inf:
        return float(span)
    found = _SPAN.fullmatch(span) if isinstance(span, str) else None
    if found and found[2] in _UNITS:
        return float(found[1]) * _UNITS[found[2]]
    raise UserError(
        f"{of} must be a span of time, found {span!r}", hint="for example 30s, 5m, 2h or 7d, or seconds"
    )
