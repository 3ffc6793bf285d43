"""Takes the port from a gRPC server that goes on answering. gRPC itself knows one end alone, of port and calls together.

Then connections that it has just accepted are told to go in the same breath as they are welcomed. grpc's clients (1.85,
C core) may not survive that: a call that is about to begin there is tried on this very connection again and again, until
its deadline, and what would end the connection never has its turn. So the port goes first, and whoever came through it
is told a little later, when his connection stands.

gRPC does not tell its sockets; those of this process are looked through for them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


def close_port(port: int) -> None:
    """Stop listening on TCP *port* in this process; connections stay. Nothing is done but on Linux.

    In the place of each listening socket there is one to which nobody can connect, as its number is still gRPC's.
    """
    for fd, listens in _sockets(port):
        if listens:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
                silent.bind("")  # to a name that the kernel chooses
                silent.setblocking(False)
                silent.listen(1)
                os.dup2(silent.fileno(), fd, inheritable=False)


def has_clients(port: int) -> bool:
    """Say whether this process has connections that came to TCP *port*."""
    return any(not listens for _, listens in _sockets(port))


def _sockets(port: int) -> Iterator[tuple[int, bool]]:
    """Yield the descriptors of this process's sockets on *port*, and whether they listen."""
    if not _DESCRIPTORS.exists():  # then the port ends with its server, as gRPC has it
        return
    for fd in [int(entry.name) for entry in _DESCRIPTORS.iterdir()]:
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # something else, or closed meanwhile
            continue
        try:
            inet = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
            if inet and sock.getsockname()[1] == port:
                yield fd, bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError:
            continue
        finally:
            sock.detach()
