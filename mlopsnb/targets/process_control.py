"""Hand a listening socket from one server process to another, through the control socket that each has.

One connection carries one command of one byte: `G` gives us the listener, `T` makes the server take ours, `R` makes
it stop accepting. The listener itself travels as a file descriptor (SCM_RIGHTS, see unix(7)).
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = 10.0


def give(control: Path) -> socket.socket | None:
    """Return the server's public listener, still open there too; None if it has none or cannot be reached."""
    with contextlib.suppress(OSError), _connect(control) as line:
        line.sendall(b"G")
        answer, fds, _, _ = socket.recv_fds(line, 2, 1)
        if answer == b"ok" and fds:
            return socket.socket(fileno=fds[0])
    return None


def take(control: Path, listener: socket.socket) -> None:
    """Make the server accept connections on *listener* too."""
    with _connect(control) as line:
        socket.send_fds(line, [b"T"], [listener.fileno()])
        if line.recv(2) != b"ok":
            raise DeployError(
                f"the server at {control} did not take over the port", hint="its log tells why: .logs()"
            )


def release(control: Path) -> None:
    """Make the server stop accepting connections; those it has go on. One that is gone has stopped already."""
    with contextlib.suppress(OSError), _connect(control) as line:
        line.sendall(b"R")
        line.recv(2)


@contextlib.contextmanager
def _connect(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line, short(path) as address:
        line.settimeout(_SECONDS)
        line.connect(str(address))
        yield line


@contextlib.contextmanager
def short(path: Path) -> Iterator[Path]:
    """Yield a path of the same socket that fits into its address, which holds 107 bytes at most."""
    if len(bytes(path)) < 100:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mlopsnb-") as directory:
        link = Path(directory) / "s"
        link.symlink_to(path.parent)
        yield link / path.name
