"""The protocol by which the public listening socket goes from process to process. One step of it, without waiting.

A control socket takes one command a connection, one byte, and answers `ok` or `no`:

* `G` give: the answer carries the public socket's descriptor (`no` if there is none)
* `T` take: comes with a descriptor; from now on connections are accepted on it, and gRPC's port is open too
* `R` release: no more connections are accepted, and gRPC's port is closed; those that are open are answered, and a
  server of one process closes them with the next answer

Who waits until a connection can be read, by an event loop or a selector, is in `handover` and `dispatch`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol

from mlopsnb.serving.errors import CannotListen
from mlopsnb.serving.listen import inherit_tcp

OK, NO = b"ok", b"no"
BACKLOG = 16
"""Connections that may wait at a control socket."""

_MOST_DESCRIPTORS = 4
_log = logging.getLogger("mlopsnb.serving")


class Holder(Protocol):
    """Has the public socket, or may get it."""

    @property
    def public(self) -> socket.socket | None:
        """The public socket, which stays ours if it is given."""

    def take(self, sock: socket.socket, done: Callable[[bool], None]) -> None:
        """Accept connections on *sock*, which is ours from now on; call *done*, now or later, once.

        True if they are accepted; else it was closed, as there is another one already.
        """

    def release(self) -> None:
        """Stop accepting, by closing our copy alone."""


def meet(control: socket.socket) -> socket.socket | None:
    """Return who connects to *control*, if that is still there."""
    try:
        peer, _ = control.accept()
    except OSError as exc:  # gone again, or out of descriptors
        _log.warning("control socket: %s", exc)
        return None
    peer.setblocking(False)
    return peer


def converse(peer: socket.socket, holder: Holder) -> None:
    """Let *holder* carry out the command that *peer*, which can be read, has sent; answer, and close *peer*."""
    try:
        command, fds, _, _ = socket.recv_fds(peer, 1, _MOST_DESCRIPTORS)
    except OSError as exc:
        _log.warning("control socket: %s", exc)
        peer.close()
        return
    carry_out(holder, command, fds, partial(_answer, peer))


def carry_out(
    holder: Holder, command: bytes, fds: list[int], answer: Callable[[bytes, list[int]], None]
) -> None:
    """Let *holder* carry out *command*, with which *fds* came, ours from now on; call *answer* once, now or later.

    It gets what goes back: some bytes, and descriptors, which stay ours.
    """
    if command == b"T" and len(fds) == 1:
        _take(holder, fds[0], answer)
        return
    for fd in fds:
        os.close(fd)
    if command == b"G" and holder.public is not None:
        answer(OK, [holder.public.fileno()])
    elif command == b"R":
        holder.release()
        answer(OK, [])
    else:
        answer(NO if command else b"", [])


def _take(holder: Holder, fd: int, answer: Callable[[bytes, list[int]], None]) -> None:
    try:
        sock = inherit_tcp(fd)
    except CannotListen as exc:
        os.close(fd)
        _log.warning("control socket: %s", exc)
        answer(NO, [])
        return
    if holder.public is not None and os.path.sameopenfile(fd, holder.public.fileno()):
        sock.close()  # we have it: whoever asks was interrupted before, or asks twice
        answer(OK, [])
        return
    holder.take(sock, lambda taken: answer(OK if taken else NO, []))


def _answer(peer: socket.socket, content: bytes, fds: list[int]) -> None:
    with peer:
        try:
            if content:
                socket.send_fds(peer, [content], fds)
        except OSError as exc:
            _log.warning("control socket: %s", exc)
