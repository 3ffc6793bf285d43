"""Where packages come from: the user's own settings for pip and uv, handed on to the tool that asks. Never stored.

pip reads its configuration itself. uv does not know pip's, so what only pip was told is put into uv's variables, in the
environment of that one process: a command line would show it to everybody on the machine.
Sources: https://pip.pypa.io/en/stable/topics/configuration, https://docs.astral.sh/uv/reference/environment.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlopsnb.images.environment.tools import clean

NO_INDEX = "MLOPSNB_UV_NO_INDEX"
"""Set in the environment for uv if it shall ask no index: an option of its command alone says so."""

_KEPT = ("timeout", "cert", "client-cert", "proxy", "keyring-provider")
_SECTIONS = ("global", "install")
_ADDRESSES: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "index-url": ("UV_DEFAULT_INDEX", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), ("index-url", "index")),
    "extra-index-url": ("UV_INDEX", ("UV_INDEX", "UV_EXTRA_INDEX_URL"), ("extra-index-url", "index")),
    "find-links": ("UV_FIND_LINKS", ("UV_FIND_LINKS",), ("find-links",)),
    "no-index": (NO_INDEX, (), ("no-index",)),
    "trusted-host": ("UV_INSECURE_HOST", ("UV_INSECURE_HOST",), ("allow-insecure-host",)),
}
"""By pip's option: the variable that tells uv the same, and the variables and settings by which uv knows already."""

_INDEXES = ("index-url", "extra-index-url")
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_SECRET = ("PASSWORD", "USERNAME", "TOKEN", "CREDENTIAL")


def for_uv(environ: Mapping[str, str] | None = None, *, accelerator: str = "cpu") -> dict[str, str]:
    """Return the environment to run uv in: *environ* and what pip's configuration adds to it.

    Where uv has a setting of its own, that one counts.
    """
    found = dict(os.environ if environ is None else environ)
    pip, uv = pip_options(found), _uv_settings(found)
    for option, (variable, variables, settings) in _ADDRESSES.items():
        value = pip.get(option)
        if value and not any(found.get(v) for v in variables) and not any(s in uv for s in settings):
            found[variable] = ("," if option == "find-links" else " ").join(value.split())
            if option == "extra-index-url" and "index-strategy" not in uv:
                found.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # as pip chooses among its indexes
    _add_network(found, pip)
    if accelerator == "cpu":
        found.pop("UV_TORCH_BACKEND", None)
    return found


def _add_network(found: dict[str, str], pip: Mapping[str, str]) -> None:
    certificates = [pip.get("cert", ""), *(found.get(name, "") for name in _CERTIFICATES)]
    given = {
        "SSL_CERT_FILE": next(filter(None, certificates), ""),
        "SSL_CLIENT_CERT": pip.get("client-cert", ""),
        "UV_HTTP_TIMEOUT": pip.get("timeout", ""),
        "UV_KEYRING_PROVIDER": "subprocess"
        if pip.get("keyring-provider") in ("subprocess", "import")
        else "",
    }
    for variable, value in given.items():
        if value:
            found.setdefault(variable, value)
    if proxy := pip.get("proxy"):
        address = proxy if "://" in proxy else f"http://{proxy}"
        for variable in ("HTTP_PROXY", "HTTPS_PROXY"):
            if variable.lower() not in found:
                found.setdefault(variable, address)


def has_own_index(environ: Mapping[str, str] | None = None) -> bool:
    """Say whether packages are looked for anywhere but on PyPI and in directories of this machine."""
    found = for_uv(environ)
    named = {name for option in _INDEXES for name in _ADDRESSES[option][1]} & {
        k for k, v in found.items() if v
    }
    settings = {name for option in _INDEXES for name in _ADDRESSES[option][2]} & _uv_settings(found).keys()
    return bool(named or settings) or "://" in found.get("UV_FIND_LINKS", "")


def for_pip(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment to run pip in: *environ* without what would lead its result elsewhere."""
    found = dict(os.environ if environ is None else environ)
    for name in ("TARGET", "PREFIX", "ROOT", "REQUIREMENT", "CONSTRAINT", "REPORT", "LOG"):
        found.pop(f"PIP_{name}", None)
    return {**found, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_INPUT": "1"}


def key(environ: Mapping[str, str], *, tool: str) -> str:
    """Return a digest of the settings by which *tool* would find packages; of secrets it holds nothing."""
    told = {k: clean(v) for k, v in environ.items() if k.startswith(("PIP_", "UV_")) and not _is_secret(k)}
    said = [tool, told, {k: clean(v) for k, v in pip_options(environ).items()}]
    if tool == "uv":
        said.append(clean(json.dumps(_uv_settings(environ), sort_keys=True, default=str)))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _is_secret(name: str) -> bool:
    return any(word in name for word in _SECRET)


def pip_options(environ: Mapping[str, str]) -> dict[str, str]:
    """Return pip's options by their long names, as its files and variables give them to `pip install`."""
    sections: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for path in _pip_files(environ):
        parser = configparser.RawConfigParser()
        with suppress(OSError, UnicodeDecodeError, configparser.Error):  # pip itself tells of a broken file
            parser.read_string(path.read_text(encoding="utf-8"))
            for name in _SECTIONS:
                if parser.has_section(name):
                    sections[name].update({k.replace("_", "-"): v for k, v in parser.items(name)})
    variables = {
        k.removeprefix("PIP_").lower().replace("_", "-"): v
        for k, v in environ.items()
        if k.startswith("PIP_") and v
    }
    found = {**sections["global"], **sections["install"], **variables}
    found.setdefault("timeout", found.get("default-timeout", ""))
    known = {*_ADDRESSES, *_KEPT}
    given = {k: v.strip() for k, v in found.items() if k in known and v.strip()}
    if given.get("no-index", "").lower() in ("0", "false", "no", "off"):
        del given["no-index"]
    return given


def _pip_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield pip's files, that which counts most last: of the machine, of the user, of the environment."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    home = Path(environ.get("HOME") or Path.home())
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    machine = [Path(d) for d in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep) if d]
    if sys.platform == "darwin":
        support = home / "Library/Application Support"
        machine, user = (
            [Path("/Library/Application Support")],
            support if (support / "pip").is_dir() else user,
        )
    yield from (directory / "pip/pip.conf" for directory in machine)
    yield Path("/etc/pip.conf")
    yield home / ".pip/pip.conf"
    yield user / "pip/pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if named:
        yield Path(named)


def _uv_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what uv's own files set: those of the user and the machine, and above them the project's."""
    named = environ.get("UV_CONFIG_FILE")
    if named:
        return _flat(_read(Path(named)))
    if environ.get("UV_NO_CONFIG", "0").lower() not in ("", "0", "false"):
        return {}
    home = Path(environ.get("HOME") or Path.home())
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "uv/uv.toml"
    return {**_flat(_read(Path("/etc/uv/uv.toml"))), **_flat(_read(user)), **_project_settings()}


def _project_settings() -> dict[str, Any]:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the directory the kernel was started in is gone
        return {}
    for directory in (here, *here.parents):
        if (directory / "uv.toml").is_file():
            return _flat(_read(directory / "uv.toml"))
        table = _read(directory / "pyproject.toml").get("tool", {}).get("uv")
        if isinstance(table, dict):
            return _flat(table)
    return {}


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that count for `uv pip`, which has a table of its own for some of them."""
    return {**table, **table.get("pip", {})}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # uv itself tells of a broken file
        return {}
