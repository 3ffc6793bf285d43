"""TLS from files: a certificate with its key, and whose clients are taken. Checked at start, read again when changed.

Versions from 1.2 on. With a client CA, only clients with a certificate of it get through the handshake (mTLS). What
the server would present is tried out in memory first, so that an expired or foreign certificate is a message at
start and no riddle for clients.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.serving.errors import BadSecret
from mlopsnb.serving.listen import BACKLOG

if TYPE_CHECKING:
    from mlopsnb.serving.connections import Door

_AT_ONCE = 64
_PAUSE_SECONDS = 0.5
_Stamp = tuple[tuple[int, int, int], ...]
_log = logging.getLogger("mlopsnb.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the parts are, in PEM: the certificate with what links it to its CA, its key, and the clients' CA."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> _Stamp:
        """Return what changes when a file does."""
        paths = [p for p in (self.certificate, self.key, self.client_ca) if p is not None]
        return tuple((about.st_ino, about.st_mtime_ns, about.st_size) for about in map(Path.stat, paths))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the files held when they were read: for sockets of ours, and as PEM for libraries with their own TLS."""

    context: ssl.SSLContext
    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Tls:
    """The identity of the server, as the files have it now. Raises `BadSecret` if they cannot be used."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._told = ""
        self._stamp, self.identity = _read(files)

    def refresh(self) -> None:
        """Read the files again if one has changed; connections that are open keep what they have.

        Files that cannot be used leave the identity as it is, and the log says so.
        """
        try:
            if self._files.stamp() == self._stamp:
                return
            self._stamp, self.identity = _read(self._files)
        except (OSError, BadSecret) as exc:
            problem = exc.message if isinstance(exc, BadSecret) else f"{exc.filename}: {exc.strerror or exc}"
            if problem != self._told:
                _log.error("the certificate stays as it was: %s", problem)
            self._told = problem
            return
        self._told = ""
        _log.warning("the TLS files were read again")

    async def connect(
        self, make: Callable[[], asyncio.Protocol], peer: socket.socket, seconds: float
    ) -> object:
        """Shake hands with *peer* within *seconds*, and serve it by what *make* makes. Raises `OSError` if that fails."""
        return await asyncio.get_running_loop().connect_accepted_socket(
            make,
            peer,
            ssl=self.identity.context,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=seconds,
        )


def _read(files: TlsFiles) -> tuple[_Stamp, Identity]:
    """Read and check the files; they must not change meanwhile, as they belong together."""
    for path in (files.certificate, files.key, files.client_ca):
        _readable(path)
    stamp = files.stamp()
    identity = Identity(
        context=_context(files),
        certificate=files.certificate.read_bytes(),
        key=files.key.read_bytes(),
        client_ca=files.client_ca.read_bytes() if files.client_ca else None,
    )
    if files.stamp() != stamp:
        raise BadSecret("the TLS files changed while they were read", hint="try again")
    return stamp, identity


def _readable(path: Path | None) -> None:
    try:
        if path is not None:
            path.open("rb").close()
    except OSError as exc:
        raise BadSecret(f"the TLS file {path} cannot be read: {exc.strerror or exc}") from exc


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _trust(client, files.certificate, "the TLS certificate")
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except _Encrypted:
        raise BadSecret(
            f"the TLS key {files.key} is encrypted", hint="decrypt it: openssl pkey -in KEY -out PLAIN"
        ) from None
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            message = f"the TLS key {files.key} does not belong to the certificate {files.certificate}"
        else:
            message = f"the TLS key {files.key} is no key in PEM: {exc.reason or exc}"
        raise BadSecret(message) from exc
    try:
        _try_out(context, client)
    except ssl.SSLCertVerificationError as exc:
        raise BadSecret(
            f"the TLS certificate {files.certificate} would be refused: {exc.verify_message}"
        ) from exc
    except ssl.SSLError as exc:
        raise BadSecret(
            f"the TLS certificate {files.certificate} does not work: {exc.reason or exc}"
        ) from exc
    if files.client_ca is not None:
        _trust(context, files.client_ca, "the clients' CA")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _Encrypted(Exception):
    """A key wants a password."""


def _no_password() -> bytes:
    raise _Encrypted


def _trust(context: ssl.SSLContext, path: Path, what: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as exc:
        raise BadSecret(f"{what} {path} is no certificate in PEM: {exc.reason or exc}") from exc


def _try_out(context: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Shake hands in memory with a client that trusts this certificate alone; raises what the client would say."""
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:  # each round, one of them has something to read
        for side in list(sides):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sides.remove(side)


class Acceptor:
    """Accepts connections on *sock*, each with the identity that the server has then, and counts them at *door*.

    Unlike a server of the event loop's, it knows those whose handshake is not done yet, which cost a descriptor too.
    """

    def __init__(
        self,
        sock: socket.socket,
        tls: Tls,
        make: Callable[[], asyncio.Protocol],
        *,
        door: Door,
        seconds: float,
    ) -> None:
        self._sock = sock
        self._tls = tls
        self._make = make
        self._door = door
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                peer, _ = self._sock.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return
            except OSError as exc:  # out of descriptors or memory; others may give some back
                _log.warning("no connection can be accepted: %s", exc)
                self._loop.remove_reader(self._sock)
                self._loop.call_later(_PAUSE_SECONDS, self._go_on)
                return
            if not self._door.enter():  # it could not be told so without a handshake
                peer.close()
                continue
            task = self._loop.create_task(self._shake(peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _go_on(self) -> None:
        if self._sock.fileno() != -1:
            self._loop.add_reader(self._sock, self._accept)

    async def _shake(self, peer: socket.socket) -> None:
        """Shake hands; from then on it is a connection like others, which leaves by itself."""
        try:
            peer.setblocking(False)
            await self._tls.connect(self._make, peer, self._seconds)
        except OSError:  # no TLS, no certificate that we take, gone, or too slow
            self._door.leave()

    def close(self) -> None:
        """Accept no more. Connections that are open live on."""
        self._loop.remove_reader(self._sock)
        self._sock.close()
