"""Which requests go to a revision that stands beside the one with the traffic, as people write it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mlopsnb.errors import UserError

SHADOW = "shadow"
"""A copy of every request, whose answer nobody gets."""

_FORMS = re.compile(
    r"header:(?P<name>[A-Za-z0-9-]{1,256})(?P<how>=~|=)(?P<value>.{1,4096})|session:(?P<share>\d{1,2})"
)
HINT = "for example match='header:X-Group=b', 'header:X-User=~[0-3]$' (a regular expression), or 'session:20'"
"""What it may look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What of the traffic a revision gets: requests with a *header* of this *value*, a copy of all, or *share* percent.

    A share is by session: who was sent to the revision once stays with it, by a cookie.
    """

    kind: Literal["exact", "pattern", "session", "shadow"]
    header: str = ""
    value: str = ""
    share: int = 0


def parse(text: object) -> Match:
    """Read *text*; `UserError` says what it has to look like."""
    if text == SHADOW:
        return Match(kind="shadow")
    found = _FORMS.fullmatch(text) if isinstance(text, str) else None
    if found is None or (found["share"] is not None and not int(found["share"]) > 0):
        raise UserError(
            f"match must say a header and its value, or a share of the sessions; found {text!r}", hint=HINT
        )
    if found["share"] is not None:
        return Match(kind="session", share=int(found["share"]))
    if found["how"] == "=~":
        try:
            re.compile(found["value"])
        except re.error as exc:
            raise UserError(f"match: {found['value']!r} is no regular expression: {exc}", hint=HINT) from exc
    kind: Literal["exact", "pattern"] = "pattern" if found["how"] == "=~" else "exact"
    return Match(kind=kind, header=found["name"], value=found["value"])
