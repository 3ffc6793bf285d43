"""Wheels of a lock in a directory, served over HTTP, so that no peer waits for an index."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from images_peers.common import CannotBuild


def download(into: Path, *what: str) -> None:
    """Put the wheels of *what* (as pip takes it) and of all they need into the directory *into*."""
    into.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:"]
    command = [*pip, "--dest", str(into), "--find-links", str(into), *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuild(f"the wheels cannot be had: {done.stderr.strip()[-600:]}")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(directory: Path, host: str) -> Iterator[str]:
    """Serve the files of *directory* on a free port of *host*; yield the address."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def bridge() -> str:
    """Return the address under which containers of the engine reach this machine."""
    template = "{{range .IPAM.Config}}{{.Gateway}} {{end}}"
    said = subprocess.run(
        ["docker", "network", "inspect", "bridge", "--format", template],
        capture_output=True,
        text=True,
        check=False,
    )
    found = said.stdout.split()
    if found and found[0] != "<no value>":
        return found[0]
    address = subprocess.run(
        ["ip", "-4", "-o", "addr", "show", "docker0"], capture_output=True, text=True, check=False
    )
    for word in address.stdout.split():
        if "/" in word and word[0].isdigit():
            return word.partition("/")[0]
    raise CannotBuild("the engine has no bridge by which containers reach this machine")
