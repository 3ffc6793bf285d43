"""What may be shown and saved of a text that others wrote: no control characters, and nothing that looks secret."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours and cursor movements of terminals (ECMA-48), and other control characters but tab and line feed."""

_SECRETS = (
    re.compile(r"(?<=://)[^/?#\s]*@"),
    re.compile(r"(?i)(?<=\bbearer )\S+|(?<=\bbasic )[\w+/=]{8,}"),
    re.compile(
        r"(?i)\b(?:\w*(?:password|passwd|secret|api[_-]?key)\w*|\w*token)[\"']?\s*[=:]\s*[\"']?(?!\s)([^\s\"',;&]+)"
    ),
)
"""The user of an address, credentials of an Authorization header, and values whose name says that they are secret."""


def masked(text: str) -> str:
    """Return *text* as it may be shown and saved: without control characters, and with `•••` for what looks secret."""
    text = _CONTROL.sub("", text)
    text = _SECRETS[1].sub("•••", _SECRETS[0].sub("", text))
    return _SECRETS[2].sub(lambda found: found[0][: found.start(1) - found.start()] + "•••", text)
