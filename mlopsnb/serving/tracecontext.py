"""W3C Trace Context: reads `traceparent` and `tracestate`, and writes the `traceparent` of our answer. Pure.

What is not valid counts as not sent, as the specification asks. Makes no spans and needs no tracing library.
Source: https://www.w3.org/TR/trace-context/ (the flag of random ids: https://www.w3.org/TR/trace-context-2/).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

_KNOWN_FLAGS = 0x01 | 0x02  # sampled, random trace id
_LONGEST_STATE = 512
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


@dataclass(slots=True)
class Trace:
    """Where a request stands in its trace: ids in hexadecimal, as they are written.

    `span_id` is ours, `parent_id` the caller's, empty if it sent none. `state` is the caller's `tracestate`.
    """

    trace_id: str
    span_id: str
    flags: int
    parent_id: str = ""
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The header by which others name our span as their parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def accept(fields: Iterable[tuple[bytes, bytes]]) -> Trace | None:
    """Return the trace that the header *fields* of a request name, with a span of our own; None if none is valid.

    A version above ours is read as ours, so far as that goes; of the flags, those that we know are passed on.
    """
    parents = [value for name, value in fields if name == b"traceparent"]
    found = _PARENT.fullmatch(parents[0].strip(b" \t")) if len(parents) == 1 else None
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if (
        version == b"ff"
        or (version == b"00" and more)
        or not trace_id.strip(b"0")
        or not parent_id.strip(b"0")
    ):
        return None
    state = b",".join(value for name, value in fields if name == b"tracestate")
    return Trace(
        trace_id=trace_id.decode(),
        span_id=os.urandom(8).hex(),
        flags=int(flags, 16) & _KNOWN_FLAGS,
        parent_id=parent_id.decode(),
        state=state.decode("latin-1") if len(state) <= _LONGEST_STATE else "",
    )
