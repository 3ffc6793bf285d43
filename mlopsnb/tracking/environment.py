"""The environment lock: every installed distribution at its exact version. Looks only; never asks an index."""

from __future__ import annotations

import json
import platform
import re
import sysconfig
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from urllib.parse import urlsplit, urlunsplit

_USER = re.compile(r"(?<=://)[^/?#\s]*@")


def lock(installed: Iterable[Distribution] | None = None) -> str:
    """Return what is installed, one `name==version` a line, sorted by canonical name.

    Versions keep their local part (`torch==2.13.0+cpu`). An install from a URL, a repository or a directory ends
    in a comment that says so. The text is the same whenever the environment is; it names no host.
    """
    found: dict[str, str] = {}
    for distribution in distributions() if installed is None else installed:
        metadata = distribution.metadata
        if "Name" in metadata:  # a half-removed distribution has none
            name = metadata["Name"]
            found.setdefault(
                canonical(name), _line(name, distribution)
            )  # the first on sys.path is the one imported
    libc = "-".join(filter(None, platform.libc_ver()))
    header = [
        f"# python {platform.python_version()} ({platform.python_implementation()})",
        f"# platform {' '.join(filter(None, (sysconfig.get_platform(), libc)))}",
    ]
    return "\n".join([*header, *(found[name] for name in sorted(found))]) + "\n"


def canonical(name: str) -> str:
    """Return the name of a distribution as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installable(requirement: str) -> str:
    """Return *requirement* without the local part of its version, which package indexes do not carry.

    `torch==2.13.0+cpu` becomes `torch==2.13.0`; the lock keeps the whole version.
    """
    return re.sub(r"(==\s*[^\s;,+]+)\+[A-Za-z0-9.]+", r"\1", requirement)


def without_user(text: str) -> str:
    """Return *text* with the user and password taken out of every URL in it."""
    return _USER.sub("", text)


def _line(name: str, distribution: Distribution) -> str:
    pinned = f"{canonical(name)}=={distribution.version}"
    origin = _origin(distribution.read_text("direct_url.json"))
    return f"{pinned}  # {origin}" if origin else pinned


def _origin(record: str | None) -> str:
    """Read a PEP 610 record (https://packaging.python.org/specifications/direct-url) for people."""
    try:
        data = json.loads(record) if record else None
    except ValueError:
        return "installed from an unknown URL"
    if not isinstance(data, dict) or not isinstance(data.get("url"), str):
        return ""
    url = _plain(data["url"])
    vcs, directory = data.get("vcs_info"), data.get("dir_info")
    if isinstance(vcs, dict):
        return f"{vcs.get('vcs', 'vcs')}+{url}@{vcs.get('commit_id', '')}"
    if isinstance(directory, dict) and directory.get("editable"):
        return f"editable {url}"
    return url


def _plain(url: str) -> str:
    """Drop what may hold a secret: the user before the host, the query and the fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
