"""The Jupyter server's side of the JupyterLab panel: what is deployed, and logs. Reads only, for whoever is logged in.

What it tells is what the server's own environment sees: its settings, its kubeconfig, its machine. Targets are asked in
threads, so that a cluster that does not answer never keeps the server from anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado.web import HTTPError, authenticated

from mlopsnb.errors import MlopsnbError, UserError
from mlopsnb.masking import masked
from mlopsnb.notebook import documents

PATIENCE = 8.0
"""Seconds that an answer waits for a target; one that takes longer is told of when it has answered."""

LOG_LINES = 500
"""Last lines of a log that are sent."""

_MOST = 32
"""Calls that may be under way at the same time."""


class Asking:
    """Calls that may take long, each made once however many ask for it at the same time."""

    def __init__(self) -> None:
        self._running: dict[object, Future[Any]] = {}

    async def ask(self, calls: dict[Any, Callable[[], Any]]) -> dict[Any, Any]:
        """Return what the *calls* return, or raise, by their keys; `TimeoutError` for those that take too long."""
        self._running = {key: future for key, future in self._running.items() if not future.done()}
        for key, call in calls.items():
            if key not in self._running:
                if len(self._running) >= _MOST:
                    raise HTTPError(503, "too many targets have not answered yet")
                self._running[key] = _started(call)
        asked = {key: asyncio.wrap_future(self._running[key]) for key in calls}
        if asked:
            await asyncio.wait(asked.values(), timeout=PATIENCE)
        return {key: _outcome(future) for key, future in asked.items()}


def _started(call: Callable[[], Any]) -> Future[Any]:
    """Run *call* in a thread that the server does not wait for when it ends."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001  whoever asks hears of it
            future.set_exception(exc)

    Thread(target=run, name="mlopsnb-server", daemon=True).start()
    return future


def _outcome(future: asyncio.Future[Any]) -> Any:
    if not future.done():
        future.add_done_callback(asyncio.Future.exception)  # heard, so that nobody warns of it
        return TimeoutError()
    return future.exception() or future.result()


def listing(target: str) -> list[dict[str, Any]]:
    """Return what is deployed on *target*, as JSON has it."""
    from mlopsnb.deployment import deployments

    return [documents.deployment(found) for found in deployments(target=target)]


def log(name: str, target: str) -> list[str]:
    """Return the log of a deployment, without what looks secret."""
    from mlopsnb.deployment import get

    return masked(get(name, target=target).logs()).splitlines()


def said(exc: BaseException) -> str:
    """Return what may be told of *exc*."""
    if isinstance(exc, TimeoutError):
        return f"has not answered within {PATIENCE:g} s"
    return masked(exc.message if isinstance(exc, MlopsnbError) else type(exc).__name__)


class _Handler(APIHandler):
    auth_resource = "mlopsnb"

    def initialize(self, asking: Asking) -> None:
        self.asking = asking

    def tell(self, status: int, answer: dict[str, Any]) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_status(status)
        self.finish(answer)


class DeploymentsHandler(_Handler):
    """GET mlopsnb/deployments: what is deployed on all targets, and which of them could not be asked."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """Answer with `deployments` and `problems`."""
        from mlopsnb.plugins import available

        found = await self.asking.ask({kind: partial(listing, kind) for kind in available("target")})
        told: dict[str, list[Any]] = {"deployments": [], "problems": []}
        for kind, outcome in found.items():
            if isinstance(outcome, BaseException):
                self.log.debug("mlopsnb: target %s", kind, exc_info=outcome)
                told["problems"].append({"target": kind, "message": said(outcome)})
            else:
                told["deployments"] += outcome
        self.tell(200, told)


class LogsHandler(_Handler):
    """GET mlopsnb/deployments/TARGET/NAME/logs: the last lines of a log."""

    @authenticated
    @authorized
    async def get(self, target: str, name: str) -> None:
        """Answer with `lines`, and with how many earlier ones are `left_out`."""
        key = ("log", target, name)
        outcome = (await self.asking.ask({key: partial(log, name, target)}))[key]
        if isinstance(outcome, BaseException):
            self.log.debug("mlopsnb: log of %s on %s", name, target, exc_info=outcome)
            status = 404 if isinstance(outcome, UserError) else 502
            self.tell(status, {"message": said(outcome)})
            return
        left_out = max(0, len(outcome) - LOG_LINES)
        self.tell(200, {"lines": outcome[left_out:], "left_out": left_out})


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "mlopsnb.notebook.server"}]


def _load_jupyter_server_extension(server: Any) -> None:
    base, options = server.web_app.settings["base_url"], {"asking": Asking()}
    part = r"([^/]{1,253})"
    server.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, r"/mlopsnb/deployments"), DeploymentsHandler, options),
            (
                url_path_join(base, rf"/mlopsnb/deployments/{part}/{part}/logs"),
                LogsHandler,
                options,
            ),
        ],
    )
