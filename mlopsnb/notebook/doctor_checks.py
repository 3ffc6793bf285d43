"""The single checks of the doctor: each looks at one thing and says what it found. They import what they look at late."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlopsnb.errors import MlopsnbError
from mlopsnb.notebook.doctor import Finding
from mlopsnb.notebook.views import choose
from mlopsnb.settings import settings

_ANSWER_SECONDS = 5.0


def checks() -> list[tuple[str, Callable[[], Finding]]]:
    """Return all checks with their names. What only the cell's own thread can know is asked here."""
    shell = _shell()
    mode = choose("auto", shell)
    return [
        ("kernel", lambda: kernel(shell)),
        ("widgets", lambda: widgets(shell, mode)),
        ("MLflow", mlflow),
        ("engine", engine),
        ("builder", builder),
        ("cluster", cluster),
        ("registry", registry),
        ("base image", base_image),
    ]


def _shell() -> Any:
    if "IPython" not in sys.modules:
        return None
    return sys.modules["IPython"].get_ipython()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers with which a version begins: (7, 0, 1) of `7.0.1rc2`."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def kernel(shell: Any) -> Finding:
    """Look at Python, and at the kernel if there is one."""
    python = f"Python {platform.python_version()}"
    if getattr(shell, "kernel", None) is None:
        return Finding("works", f"{python}, no notebook: {'IPython' if shell else 'plain Python'}")
    installed = _version("ipykernel")
    found = f"{python}, ipykernel {installed}, IPython {_version('ipython')}"
    if numbers(installed)[:2] == (7, 0) or numbers(installed) < (6, 29):
        return Finding(
            "limited", found, "pip install -U ipykernel, then restart: this one loses updates from threads"
        )
    return Finding("works", found)


def widgets(shell: Any, mode: str) -> Finding:
    """Look at how progress is shown."""
    wanted = settings().status
    if wanted != "auto":
        return Finding("works", f"progress is shown as the setting status={wanted} says")
    if getattr(shell, "kernel", None) is None:
        return Finding("works", "progress is printed in lines")
    installed = _version("ipywidgets")
    if not installed:
        return Finding("missing", "no ipywidgets: outputs are updated instead", "pip install ipywidgets")
    if mode == "widget":
        return Finding("works", f"ipywidgets {installed}")
    return Finding("works", f"ipywidgets {installed}; outputs are updated, as this front end or run asks for")


def mlflow() -> Finding:
    """Look at MLflow and its tracking server, without importing it."""
    installed = _version("mlflow") or _version("mlflow-skinny")
    if not installed:
        return Finding("missing", "MLflow is not installed", "pip install 'mlopsnb[mlflow]'")
    loaded = sys.modules.get("mlflow")
    known = getattr(loaded, "get_tracking_uri", None)
    uri = str(known()) if known else os.environ.get("MLFLOW_TRACKING_URI", "")
    found = f"MLflow {installed}, {uri or 'its local store'}"
    if urlsplit(uri).scheme not in ("http", "https"):
        return Finding("works", found)
    import httpx

    try:
        status = httpx.get(uri.rstrip("/") + "/health", timeout=_ANSWER_SECONDS).status_code
    except httpx.HTTPError as exc:
        return Finding("broken", f"{found}: {exc}", "is it running, and is MLFLOW_TRACKING_URI right?")
    if status in (401, 403):
        return Finding(
            "limited",
            f"{found}: it wants a login (HTTP {status})",
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, name one",
        )
    if status >= 500:
        return Finding("broken", f"{found}: HTTP {status}", "its own log says why")
    return Finding("works", found)


def engine() -> Finding:
    """Look for a container engine; none is needed to build."""
    from mlopsnb.images.engine import Engine
    from mlopsnb.images.errors import EngineNotRunning

    try:
        Engine().close()
    except EngineNotRunning as exc:
        if os.environ.get("DOCKER_HOST"):
            raise
        return Finding("missing", exc.message, "only --target docker and --builder docker need one")
    return Finding("works", os.environ.get("DOCKER_HOST") or "the local Docker engine answers")


def builder() -> Finding:
    """Look at what resolves and installs an image's environment."""
    from mlopsnb.images.environment import pip, uv
    from mlopsnb.plugins import available

    names = ", ".join(available("builder")) or "none"
    if program := uv.find():
        return Finding("works", f"{names}; environments by uv ({program})")
    if pip.available():
        return Finding(
            "limited",
            f"{names}; environments by pip",
            "pip install uv is faster, and builds for other platforms",
        )
    return Finding("broken", f"{names}; neither uv nor pip is here", "pip install 'mlopsnb[images]'")


def cluster() -> Finding:
    """Look at the cluster of the settings and at one's rights in its namespace."""
    configured = os.environ.get("KUBECONFIG") or Path.home().joinpath(".kube", "config").is_file()
    if not configured and "KUBERNETES_SERVICE_HOST" not in os.environ:
        return Finding("missing", "no kubeconfig", "only --target kubernetes needs one; KUBECONFIG names it")
    from mlopsnb.targets import rights
    from mlopsnb.targets.cluster import Cluster

    chosen = settings()
    found = Cluster(chosen.context, chosen.namespace)
    where = f"context {found.context}, namespace {found.namespace}, {found.server}"
    rights.check(found, rights.ALWAYS)
    return Finding("works", f"{where}; all rights that a deployment needs")


def registry() -> Finding:
    """Look whether the registry of the settings answers and knows us."""
    from mlopsnb.images.errors import NotInRegistry, Unauthorized
    from mlopsnb.images.references import parse_registry
    from mlopsnb.images.registry import connect

    chosen = settings().registry
    if not chosen:
        return Finding(
            "missing",
            "none is set: images stay on this machine",
            "%mlopsnb set registry=ghcr.io/team, for example",
        )
    host, namespace = parse_registry(chosen)
    probe = f"{namespace}/mlopsnb-doctor" if namespace else "mlopsnb-doctor"
    with connect(host) as client, suppress(NotInRegistry):
        try:
            client.resolve(probe, "none")
        except Unauthorized:
            return Finding(
                "limited",
                f"{chosen} answers, and does not let this machine read {probe}",
                f"docker login {host}, if pushing fails too",
            )
    return Finding("works", f"{chosen} answers")


def base_image() -> Finding:
    """Look whether the image that serving images stand on can be had."""
    from mlopsnb.images.errors import RegistryError
    from mlopsnb.images.references import parse
    from mlopsnb.images.registry import connect
    from mlopsnb.images.wish import default_base

    reference = settings().base_image or default_base()
    name = parse(reference)
    try:
        with connect(name.registry) as client:
            digest = client.resolve(name.repository, name.target)
    except RegistryError:
        if not _engine_has(reference):
            raise
        return Finding("works", f"{reference}, which the engine has")
    return Finding("works", f"{reference} ({digest[:19]})")


def _engine_has(reference: str) -> bool:
    from mlopsnb.images.engine import Engine

    with suppress(MlopsnbError), Engine() as found:
        return found.image(reference) is not None
    return False
