"""The containers that serve a revision: started and waited for, and reached one by one."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import DeployError, NotReady
from mlopsnb.events import report_progress
from mlopsnb.targets import docker_spec as spec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mlopsnb.records import Revision
    from mlopsnb.targets.docker_engine import Container, Daemon, Ended
    from mlopsnb.targets.docker_spec import Home, Runtime

_SLICE = 0.2
_ENDS_SECONDS = 1.0
_LAST_LINES = 15
_ERROR = "mlopsnb.serving: error: "

_WAIT = f"""
import socket, time
while True:
    try:
        line = socket.create_connection(("127.0.0.1", {spec.HTTP_PORT}), 5)
        line.sendall(b"GET /v2/health/ready HTTP/1.0\\r\\n\\r\\n")
        if b" 200 " in line.recv(64):
            print("ready")
            break
    except OSError:
        pass
    time.sleep(0.05)
"""
"""Runs beside the server in its container until that is ready: no port need be open to us, whatever engine it is."""

_RELAY = f"""
import os, socket, threading
line = socket.create_connection(("127.0.0.1", {spec.HTTP_PORT}))
def ask():
    while data := os.read(0, 65536):
        line.sendall(data)
    line.shutdown(socket.SHUT_WR)
threading.Thread(target=ask, daemon=True).start()
with open(1, "wb", buffering=0, closefd=False) as out:
    while data := line.recv(65536):
        view = memoryview(data)
        while view:
            view = view[out.write(view):]
"""


def launch(
    daemon: Daemon,
    home: Home,
    revision: Revision,
    runtime: Runtime,
    numbers: Collection[int],
    *,
    timeout: float,
) -> None:
    """Start replicas *numbers* of *revision* and wait until all are ready; `NotReady` when one ends or takes too long."""
    made = {}
    for number in numbers:
        name = home.called(spec.alias(revision.id, number))
        made[number] = daemon.create(name, spec.replica(home, revision, number, runtime))
        daemon.write(made[number], spec.STATE, {"data": None}, runtime.ids)
    for container in made.values():
        daemon.start(container)
    _Launch(daemon, home.name, revision, runtime).wait(made.values(), timeout)
    for container in made.values():
        daemon.restart_always(container)


class _Launch:
    """Containers being started. In each a command ends when its server is ready, or with the container."""

    def __init__(self, daemon: Daemon, name: str, revision: Revision, runtime: Runtime) -> None:
        self._daemon, self._name, self._revision = daemon, name, revision
        self._command = [runtime.python, "-I", "-S", "-c", _WAIT]

    def wait(self, containers: Collection[str], timeout: float) -> None:
        """Return when all are ready."""
        started = time.monotonic()
        with contextlib.ExitStack() as opened:
            waiting = {self._watch(container, opened): container for container in containers}
            while waiting:
                waited = time.monotonic() - started
                if waited > timeout:
                    raise self._not_ready(next(iter(waiting.values())), f"was not ready after {timeout:g} s")
                # Short slices: an interrupt is seen at once, and the person sees that time passes.
                for line in select.select(list(waiting), [], [], _SLICE)[0]:
                    container = waiting.pop(line)
                    if b"ready" not in line.recv(4096):
                        self._check_alive(container)
                        waiting[self._watch(container, opened)] = container
                count = (
                    f"{len(containers) - len(waiting)} of {len(containers)} ready, "
                    if len(containers) > 1
                    else ""
                )
                report_progress("start", f"revision {self._revision.id}, {count}{waited:.1f} s")

    def _watch(self, container: str, opened: contextlib.ExitStack) -> Any:
        try:
            return opened.enter_context(self._daemon.running(container, self._command))
        except DeployError:
            self._check_alive(container)
            raise

    def _check_alive(self, container: str) -> None:
        """Raise `NotReady` if the container has ended, or ends within a moment."""
        end = time.monotonic() + _ENDS_SECONDS
        while time.monotonic() < end:
            if (ended := self._daemon.ended(container)) is not None:
                raise self._ended(container, ended)
            time.sleep(0.02)

    def _ended(self, container: str, ended: Ended) -> NotReady:
        memory = self._revision.workload.memory
        said = [line for _, line in self._daemon.logs(container) if line.startswith(_ERROR)]
        if ended.out_of_memory:
            limit = f"its limit is {memory / (1 << 20):g} MiB" if memory else "the machine has no more"
            hint = (
                f"give it more, for example memory='{max(1, (memory or 0) >> 19)}Mi'"
                if memory
                else "free some"
            )
            return self._not_ready(container, f"ran out of memory while starting: {limit}", hint=hint)
        if said:
            return self._not_ready(container, f"could not start: {said[-1].removeprefix(_ERROR)}")
        why = f": {ended.error}" if ended.error else ""
        return self._not_ready(container, f"ended while starting, with exit code {ended.code}{why}")

    def _not_ready(self, container: str, what: str, *, hint: str = "") -> NotReady:
        lines = [line for _, line in self._daemon.logs(container)][-_LAST_LINES:]
        log = "\n  last lines of its log:\n    " + "\n    ".join(lines) if lines else ""
        return NotReady(f"revision {self._revision.id} of {self._name!r} {what}{log}", hint=hint)


@contextlib.contextmanager
def reached(daemon: Daemon, container: Container) -> Iterator[str]:
    """Yield an address of a container's server.

    That is its own where the engine's network is this machine's; else a port here, through the engine.
    """
    if daemon.is_here:
        yield f"http://{container.address}:{spec.HTTP_PORT}"
        return
    with _Tunnel(daemon, container) as port:
        yield f"http://{spec.HOST}:{port}"


class _Tunnel:
    """A port of the loopback interface; each connection to it is a command in the container that passes it on."""

    def __init__(self, daemon: Daemon, container: Container) -> None:
        self._daemon, self._container = daemon, container
        self._listener = socket.create_server((spec.HOST, 0))

    def __enter__(self) -> int:
        threading.Thread(target=self._accept, daemon=True).start()
        port: int = self._listener.getsockname()[1]
        return port

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=[client], daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        python = self._daemon.runtime_of(self._container.id).python
        with (
            client,
            contextlib.suppress(OSError, DeployError),
            self._daemon.running(self._container.id, [python, "-I", "-S", "-c", _RELAY]) as line,
        ):
            asking = threading.Thread(target=_copy, args=[client, line], daemon=True)
            asking.start()
            while head := _exactly(line, 8):
                kind, size = struct.unpack(">BxxxL", head)
                content = _exactly(line, size)
                if kind == 1:
                    client.sendall(content)
            client.shutdown(socket.SHUT_RDWR)
            asking.join()


def _copy(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)


def _exactly(line: socket.socket, size: int) -> bytes:
    """Return so many bytes, or fewer at the end."""
    pieces = b""
    while len(pieces) < size and (piece := line.recv(size - len(pieces))):
        pieces += piece
    return pieces
