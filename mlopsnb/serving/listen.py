"""Opens the sockets that the runtime listens on: addresses, inherited descriptors, unix paths of any length.

Sockets are bound here and accept nothing yet: whoever connects before the model is loaded is refused at once
instead of being kept waiting.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from mlopsnb.serving.errors import CannotListen

BACKLOG = 2048


def bind_tcp(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address; port 0 takes any that is free. `CannotListen` if it is taken."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as exc:
        raise CannotListen(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise CannotListen(
            f"cannot listen on {host}:{port}: {exc.strerror or exc}",
            hint="choose another port with --port, or 0 for any that is free",
        ) from exc
    return sock


def bind_grpc(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address for the workers, which bind to it as well (SO_REUSEPORT).

    Nobody else has it: a socket that shares nothing was bound there just before.
    """
    try:
        with bind_tcp(host, port) as alone:
            family, address = alone.family, alone.getsockname()
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except (CannotListen, OSError) as exc:
        raise CannotListen(
            f"cannot listen on {host}:{port} for gRPC",
            hint="choose another port with --grpc-port, or 0 for any that is free",
        ) from exc
    return sock


def inherit_tcp(fd: int) -> socket.socket:
    """Return the bound TCP socket that was inherited as *fd*; `CannotListen` if it is none."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise CannotListen(f"file descriptor {fd} is no socket: {exc.strerror or exc}") from exc
    if not _is_bound_tcp(sock):
        sock.detach()
        raise CannotListen(f"file descriptor {fd} is no bound TCP socket")
    sock.set_inheritable(False)
    return sock


def _is_bound_tcp(sock: socket.socket) -> bool:
    """Say whether *sock* could be listened on by HTTP clients."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    return bool(sock.getsockname()[1])


def url_of(sock: socket.socket, scheme: str) -> str:
    """Return where clients on this machine reach the TCP socket *sock* by *scheme*, http or https."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not bound
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A bound unix socket and the file that names it."""

    sock: socket.socket
    path: Path
    inode: int

    def close(self) -> None:
        """Close it and remove its file, unless another process has put its own there."""
        self.sock.close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self.inode:
                self.path.unlink()


def bind_unix(path: Path) -> UnixSocket:
    """Return a unix socket bound to *path*, for its owner alone; replaces what a dead process left there.

    A unix address holds about 100 bytes, so the name is bound from inside its directory. For that the working
    directory and the umask are changed for a moment: call it before threads start.
    """
    path = path.absolute()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        with contextlib.chdir(path.parent):
            _remove_dead(Path(path.name))
            sock.bind(path.name)
    except OSError as exc:
        sock.close()
        raise CannotListen(f"cannot listen on {path}: {exc.strerror or exc}") from exc
    finally:
        os.umask(mask)
    return UnixSocket(sock, path, path.stat().st_ino)


def _remove_dead(path: Path) -> None:
    """Remove the socket file *path* if nobody listens on it. What is no socket stays, and binding fails."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """What to listen on: bound, not yet listening. Without `public`, one may be handed over later.

    `scheme` is spoken on the public one; the private one is for the owner, and plain.
    """

    public: socket.socket | None = None
    private: UnixSocket | None = None
    control: UnixSocket | None = None
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Where the server is reached: its public address, or else its private one."""
        if self.public is not None:
            return url_of(self.public, self.scheme)
        return f"unix:{self.private.path}" if self.private is not None else ""

    def close(self) -> None:
        """Close them all and remove the files of the unix ones."""
        for sock in (self.public, self.private, self.control):
            if sock is not None:
                sock.close()


def open_sockets(
    *,
    host: str,
    port: int | None,
    fd: int | None,
    uds: Path | None,
    control: Path | None,
    scheme: str = "http",
) -> Sockets:
    """Bind what is asked for; `CannotListen` and nothing bound if one of them cannot be."""
    with contextlib.ExitStack() as opened:
        public: socket.socket | None = None
        if fd is not None:
            public = inherit_tcp(fd)
        elif port is not None:
            public = bind_tcp(host, port)
        if public is not None:
            opened.callback(public.close)
        unix = []
        for path in (uds, control):
            unix.append(bind_unix(path) if path is not None else None)
            if unix[-1] is not None:
                opened.callback(unix[-1].close)
        opened.pop_all()
    return Sockets(public=public, private=unix[0], control=unix[1], scheme=scheme)
