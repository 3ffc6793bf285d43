"""The one door to MLflow: asks whether it is there, keeps it quiet, and turns its errors into ours.

Decides nothing about models. MLflow is silenced only inside the block, and only MLflow is: its loggers, and Python's
warnings, are as they were afterwards.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mlopsnb.errors import MlopsnbError, TrackingError
from mlopsnb.extras import need
from mlopsnb.tracking.environment import without_user

PROBE_TIMEOUT = 5.0
"""Seconds that a server may take to say that it is there. MLflow's own calls retry for minutes."""

_QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_START = "start it, or unset MLFLOW_TRACKING_URI to use the local store"
_CREDENTIALS = "credentials are read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


@contextmanager
def seam(doing: str) -> Iterator[Any]:
    """Yield the module `mlflow`, quiet, its stores known to be there; whatever it raises comes as `TrackingError`.

    *doing* says in the message what failed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow = need("mlflow", extra="mlflow")
        with _muted():
            try:
                for uri in dict.fromkeys((mlflow.get_tracking_uri(), mlflow.get_registry_uri())):
                    _probe(uri)
                yield mlflow
            except MlopsnbError:
                raise
            except Exception as exc:
                if type(exc).__module__ == "builtins" and not isinstance(exc, OSError):
                    raise  # a mistake of ours or in the call, not an answer of MLflow or of its storage
                raise _translated(exc, doing, mlflow.get_tracking_uri()) from exc


@contextmanager
def _muted() -> Iterator[None]:
    """Stop the stream that log lines and most prints of MLflow go through, its links and its progress bars."""
    need("mlflow.pyfunc", extra="mlflow")  # its import switches the stream on
    stream = need("mlflow.utils.logging_utils", extra="mlflow").MLFLOW_LOGGING_STREAM
    was = stream.enabled
    before = {name: os.environ.get(name) for name in _QUIET}
    stream.enabled = False
    os.environ |= _QUIET
    try:
        yield
    finally:
        stream.enabled = was
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _probe(uri: str) -> None:
    """Raise `TrackingError` at once where MLflow would retry for minutes."""
    if uri.startswith(("http://", "https://")):
        _probe_server(uri)
    elif uri.startswith("sqlite:///"):
        _probe_file(Path(unquote(uri.removeprefix("sqlite:///"))))


def _probe_server(uri: str) -> None:
    rest = need("mlflow.utils.rest_utils", extra="mlflow")
    credentials = need("mlflow.utils.credentials", extra="mlflow").get_default_host_creds(uri)
    where = f"the MLflow server at {without_user(uri)}"
    try:
        response = rest.http_request(
            credentials, "/health", "GET", max_retries=0, timeout=PROBE_TIMEOUT, raise_on_status=False
        )
    except Exception as exc:
        raise TrackingError(f"{where} does not answer: {_reason(exc)}", hint=_START) from exc
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise _refused(where, response.status_code)
    if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise TrackingError(
            f"{where} is not healthy: it answers {response.status_code}", hint="look at its log"
        )


def _probe_file(path: Path) -> None:
    """A database that cannot be opened is retried by MLflow for the better part of an hour."""
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK) or (path.exists() and not path.is_file()):
        raise TrackingError(
            f"MLflow's local store {path} cannot be written",
            hint="start the kernel in a directory of yours, or set MLFLOW_TRACKING_URI",
        )


def _reason(exc: BaseException) -> str:
    """Say in two words why there was no answer: the cause is four exceptions down."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, ConnectionRefusedError):
            return "connection refused"
        if isinstance(seen, socket.gaierror):
            return "no host of that name"
        if isinstance(seen, TimeoutError):
            return f"nothing came in {PROBE_TIMEOUT:g} s"
        if isinstance(seen, ssl.SSLError):
            return f"TLS failed: {seen.reason}"
        seen = seen.__cause__ or seen.__context__
    return _line(exc)


def _translated(exc: Exception, doing: str, uri: str) -> TrackingError:
    status = re.search(r"error code (401|403)\b", str(exc))
    code = getattr(exc, "error_code", "")
    if status or code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"):
        where = f"the MLflow server at {without_user(uri)}"
        return _refused(where, int(status[1]) if status else (403 if code == "PERMISSION_DENIED" else 401))
    return TrackingError(f"{doing} failed: {_line(exc)}")


def _refused(where: str, status: int) -> TrackingError:
    return TrackingError(f"{where} refused: {status} {HTTPStatus(status).phrase}", hint=_CREDENTIALS)


def _line(exc: BaseException) -> str:
    """Return the first line of a message, short, and without anyone's password."""
    text = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
    return without_user(text)[:300]
