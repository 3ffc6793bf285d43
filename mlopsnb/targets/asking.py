"""Ask one server of ours for a page, over TCP or its own socket. Clients that predict use `mlopsnb.client`."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from urllib.parse import urlsplit

from mlopsnb.targets.process_control import short

_SECONDS = 5.0


def get(address: str, path: str, *, seconds: float = _SECONDS) -> bytes | None:
    """GET *path* at *address* (`http://HOST:PORT` or `unix:PATH`); None if no answer with 200 comes in time."""
    line = _Unix(address, seconds) if address.startswith("unix:") else _tcp(address, seconds)
    try:
        line.request("GET", path)
        answer = line.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        line.close()
    return body if answer.status == 200 else None


def _tcp(address: str, seconds: float) -> http.client.HTTPConnection:
    place = urlsplit(address)
    return http.client.HTTPConnection(place.hostname or "", place.port, timeout=seconds)


class _Unix(http.client.HTTPConnection):
    def __init__(self, address: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = Path(address.removeprefix("unix:"))

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with short(self._path) as path:
            self.sock.connect(str(path))
