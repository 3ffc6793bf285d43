"""A TCP proxy on the loopback interface that ends connections after so many bytes."""

from __future__ import annotations

import contextlib
import socket
import threading


class Cutter:
    """Passes connections on to *host*; `cuts` says after how many bytes from the client each next one ends.

    `sent` counts the bytes that clients sent. It listens on *own*, or on any free port.
    """

    def __init__(self, host, own=0):
        self.own = own
        name, port = host.split(":")
        self.target, self.cuts, self.connections, self.sent = (name, int(port)), [], 0, 0

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", self.own))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets, self.threads = [self.listener], []
        self._start(self._accept)
        return self

    def __exit__(self, *exc):
        for sock in self.sockets:
            with contextlib.suppress(OSError):  # ended already
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self.threads:
            thread.join(10)

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                self.sockets += [near, far]
                self.connections += 1
                limit = self.cuts.pop(0) if self.cuts else None
                self._start(self._copy, near, far, limit, True)
                self._start(self._copy, far, near, None, False)

    def _copy(self, source, target, limit, counted):
        with contextlib.suppress(OSError):
            while data := source.recv(65536 if limit is None else min(65536, limit)):
                target.sendall(data)
                self.sent += len(data) if counted else 0
                if limit is not None:
                    limit -= len(data)
                    if limit <= 0:
                        break
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
