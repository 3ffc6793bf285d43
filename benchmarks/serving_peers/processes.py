"""One server process and its children: start, wait until it answers, what it costs, and its certain end."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

READY_SECONDS = 60
Ask = Callable[..., tuple[int, bytes]]
"""Sends a body to a URL; returns the status and the answer."""

JSON = {"Content-Type": "application/json"}
_GRACE_SECONDS = 10
_START_SECONDS = 20
_REST_SECONDS, _RESTS, _REST_SHARE = 0.25, 3, 0.1
"""A server rests if for so long, so often in a row, it takes no more than this share of a processor."""


class CannotServe(Exception):
    """The server did not start, ended, or answers wrongly; the message says which."""


class Running:
    """A started server. It leads a session of its own, so that its whole tree can be found and ended."""

    def __init__(
        self, command: list[str], *, env: dict[str, str], cwd: Path, log: Path, silent: bool
    ) -> None:
        self._log = log
        self._seen: dict[int, psutil.Process] = {}
        self.started = time.perf_counter()
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if silent else out,
                stderr=out,
                start_new_session=True,
            )

    def wait_ready(self, url: str, body: bytes, *, ask: Ask | None = None, pause: float = 0.02) -> float:
        """Return the seconds from the start to the first good answer to *body*, asked for every *pause* seconds.

        *ask* sends it, `post` by default.
        """
        ask = ask or post
        last = "nothing listens"
        while time.perf_counter() - self.started < READY_SECONDS:
            if self._process.poll() is not None:
                raise CannotServe(f"it ended with {self._process.returncode}: {self.last_words()}")
            try:
                status, answer = ask(url, body, timeout=READY_SECONDS)
                if status == 200:
                    return time.perf_counter() - self.started
                last = f"status {status}: {answer[:300]!r}"
            except (OSError, http.client.HTTPException) as exc:
                last = f"{type(exc).__name__}: {exc}"
            time.sleep(pause)
        raise CannotServe(
            f"no good answer in {READY_SECONDS} s; last {last}; its log ends: {self.last_words()}"
        )

    def wait_started(self) -> None:
        """Wait until the tree rests: one that answers may still be starting workers, which is not to be measured."""
        end = time.perf_counter() + _START_SECONDS
        before = self.cpu_seconds()
        rests = 0
        while rests < _RESTS and time.perf_counter() < end:
            time.sleep(_REST_SECONDS)
            now = self.cpu_seconds()
            rests = rests + 1 if now - before < _REST_SHARE * _REST_SECONDS else 0
            before = now

    def last_words(self) -> str:
        lines = [x for x in self._log.read_text(errors="replace").splitlines() if x.strip()]
        return " | ".join(lines[-4:])[-600:] or "it said nothing"

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = self._seen.setdefault(self._process.pid, psutil.Process(self._process.pid))
            for child in root.children(recursive=True):
                self._seen.setdefault(child.pid, child)
        return [p for p in self._seen.values() if p.is_running()]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the tree so far, ended children included as far as their parents know."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def pss_mb(self) -> float:
        """Return the proportional set size of the tree: shared pages count once."""
        total = 0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 1e6

    def stop(self) -> None:
        """End the whole tree: politely, then for certain."""
        tree = self._tree()
        for process in tree[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, left = psutil.wait_procs([p for p in tree if p.pid != self._process.pid], timeout=2)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def running(
    command: list[str], *, env: dict[str, str], cwd: Path, log: Path, silent: bool
) -> Iterator[Running]:
    """Start *command*; whatever happens, Ctrl-C included, it is ended with all its children."""
    server = Running(command, env=env, cwd=cwd, log=log, silent=silent)
    try:
        yield server
    finally:
        before = signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # a second Ctrl-C must not leave processes behind
        try:
            server.stop()
        finally:
            signal.signal(signal.SIGINT, before)


def post(
    url: str, body: bytes, *, timeout: float = 30, headers: Mapping[str, str] = JSON
) -> tuple[int, bytes]:
    """Send *body* to *url* over a connection of its own; return the status and the answer."""
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=timeout)) as connection:
        connection.request("POST", parts.path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
