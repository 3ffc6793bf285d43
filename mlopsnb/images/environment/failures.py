"""What uv and pip say when they fail, as errors of ours. Pure: from text to an exception."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlopsnb.errors import BuildError
from mlopsnb.images.errors import DiskFull, IndexFailed, NoWheel, Unresolvable

if TYPE_CHECKING:
    from mlopsnb.images.environment.request import Request

_FRAME = re.compile(r"[\u2500-\u257f\u25b6\u00d7]+")
_NO_SOLUTION = re.compile(r"No solution found(?: when resolving dependencies)?\S*\s+(?:cause:\s*)?(.*)")
_NO_WHEEL = re.compile(
    r"([A-Za-z0-9][\w.-]*(?:==[^\s,]*[^\s,.])?)\s+has\s+no\s+(?:usable\s+)?wheels", re.IGNORECASE
)
_PIP_MISSING = re.compile(
    r"Could not find a version that satisfies the requirement (\S+).*?\(from versions: (.*?)\)"
)
_PIP_CONFLICT = re.compile(r"The conflict is caused by:\n(?P<who>(?:\s{4,}.*\n?)+)")
_DENIED = re.compile(r"\b(401|403|407)\b|Unauthorized|Forbidden|authentication", re.IGNORECASE)
_FULL = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded|Errno 28\b")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?=\s*(?:[=<>!~]=|[<>]|\s+depends on))")
_LONGEST = 1500


def failed(said: str, request: Request) -> BuildError:
    """Return what it means that uv said *said* when it was asked for *request*."""
    lines = (line for line in _FRAME.sub(" ", said).splitlines() if not line.startswith("warning:"))
    text = " ".join("\n".join(lines).split())
    if _FULL.search(text):
        return DiskFull("the cache of packages")
    found = _NO_SOLUTION.search(text)
    if found is None:
        return _index(text)
    prose, _, hint = (part.strip() for part in found[1].partition("hint:"))
    if wheel := _NO_WHEEL.search(prose):
        return NoWheel(wheel[1], request.platform, request.python, _wheels(hint))
    return unresolvable(prose, request)


def _wheels(hint: str) -> str:
    """Return what uv says of the wheels that there are, if it says any more than that none will do."""
    return "" if hint.startswith("Wheels are required") else _short(hint)


def pip_failed(said: str, request: Request) -> BuildError:
    """Return what it means that pip said *said* when it was asked for *request*."""
    if _FULL.search(said):
        return DiskFull("the cache of packages")
    if conflict := _PIP_CONFLICT.search(said):
        who = "; ".join(line.strip() for line in conflict["who"].splitlines() if line.strip())
        return unresolvable(f"{who}.", request)
    if missing := _PIP_MISSING.search(said):
        if missing[2] == "none" and not re.search(r"connection|SSLError|ProxyError", said, re.IGNORECASE):
            return NoWheel(missing[1], request.platform, request.python, "none on the index")
        if missing[2] != "none":
            return unresolvable(f"{missing[1]} is asked for, and the index has {missing[2]}.", request)
    lines = [line for line in said.splitlines() if not line.startswith("WARNING: Location")]
    return _index(" ".join("\n".join(lines).split()))


def unresolvable(prose: str, request: Request) -> Unresolvable:
    """Return the error for the reason *prose*, with the versions in it that are only held because they are here."""
    named = {name.lower().replace("_", "-") for name in _NAME.findall(prose)}
    held = [f"{name}{request.held[name]}" for name in sorted(named & request.held.keys())]
    also = f" Held to what is installed here: {', '.join(held)}." if held else ""
    return Unresolvable(
        f"no set of packages meets all requirements: {_short(prose)}{also}",
        hint="pip check shows whether the notebook's own packages agree; install versions that do, or ask for others"
        " of the package that is named first",
    )


def _index(text: str) -> BuildError:
    if _DENIED.search(text):
        hint = "check the credentials that pip or uv are configured with (pip config list, UV_INDEX, .netrc, keyring)"
    else:
        hint = "check the network, the proxy (HTTPS_PROXY) and the index that pip or uv are configured with"
    return IndexFailed(
        f"the packages cannot be had from the index: {_short(text.removeprefix('error: '))}", hint=hint
    )


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def installation_failed(said: str, where: Mapping[str, str]) -> BuildError:
    """Return what it means that a tool said *said* when it installed the locked packages, *where* saying for what."""
    if _FULL.search(said):
        return DiskFull(where["path"])
    text = " ".join(_FRAME.sub(" ", said).split())
    if re.search(r"hash mismatch|do not match", text, re.IGNORECASE):
        return BuildError(
            f"a package is not what was locked: {_short(text)}",
            hint="the index serves another file under the same name; remove the lock with ml.cleanup(images=True)",
        )
    return _index(text)
