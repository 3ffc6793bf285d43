"""Loopback ports whose connections end in a pod, through the API server: for notebooks outside the cluster's network.

Each connection goes to a pod that is chosen when it is made, so the port stays while pods come and go. Nothing is opened
in the cluster until somebody connects. A connection is a WebSocket of the API server's `portforward`.
Source: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/ and the protocol
`v4.channel.k8s.io` in https://github.com/kubernetes/kubernetes/blob/v1.20.0/pkg/kubelet/cri/streaming/portforward.
"""

from __future__ import annotations

import atexit
import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import DeployError
from mlopsnb.extras import need

if TYPE_CHECKING:
    from mlopsnb.targets.cluster import Cluster

HOST = "127.0.0.1"
_DATA, _ERROR = 0, 1
"""The two channels that a forwarded port has."""

_CHUNK = 1 << 16
_POD_SECONDS = 20.0
"""For so long a connection waits for a pod to be there, and ready."""

_PAUSE_SECONDS = 0.2
_HANDSHAKE_SECONDS = 10.0

Pods = Callable[[], Sequence[str]]
"""Names the pods that can be connected to now, the best first."""


class Forward:
    """A loopback port that leads to *port* of one of *pods*, until it is closed."""

    def __init__(self, cluster: Cluster, pods: Pods, port: int) -> None:
        self._cluster, self._pods, self._port = cluster, pods, port
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._open: set[socket.socket] = set()
        self._closed = threading.Event()
        self.port: int = self._listener.getsockname()[1]
        name = f"mlopsnb port-forward {self.port}"
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, as `HOST:PORT`."""
        return f"{HOST}:{self.port}"

    def close(self) -> None:
        """Listen no more, and end what is connected."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in tuple(self._open):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            name = f"{self._thread.name} connection"
            threading.Thread(target=self._serve, args=(client,), name=name, daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                line = self._connect()
                if line is not None:
                    try:
                        _carry(client, line)
                    finally:
                        line.shutdown()  # without a farewell: whoever waits for one waits for seconds
        except OSError:
            pass  # one of the two has gone
        finally:
            self._open.discard(client)

    def _connect(self) -> Any:
        """Return a WebSocket to a pod; None if none can be had, and then the client is hung up on."""
        end = time.monotonic() + _POD_SECONDS
        while not self._closed.is_set():
            with contextlib.suppress(DeployError):
                for pod in self._pods():
                    if (line := _line(self._cluster, pod, self._port)) is not None:
                        return line
            if time.monotonic() > end:
                return None
            self._closed.wait(_PAUSE_SECONDS)
        return None


def _line(cluster: Cluster, pod: str, port: int) -> Any:
    """Return a WebSocket to *port* of *pod* on which data may be sent, or None if the pod cannot be connected to."""
    ws_client = need("kubernetes.stream.ws_client", extra="kubernetes")
    websocket = need("websocket", extra="kubernetes")
    server = cluster.server.replace("http", "ws", 1)
    url = f"{server}{cluster.path('v1', 'Pod', pod)}/portforward?ports={port}"
    headers = {**cluster.headers(), "sec-websocket-protocol": "v4.channel.k8s.io"}
    try:
        line = ws_client.create_websocket(cluster.configuration, url, headers)
    except (websocket.WebSocketException, OSError):
        return None
    try:
        line.settimeout(_HANDSHAKE_SECONDS)
        for _ in (_DATA, _ERROR):  # each channel begins with the number of the port
            line.recv_data_frame(True)
        line.settimeout(None)
    except (websocket.WebSocketException, OSError):
        line.shutdown()
        return None
    return line


def _carry(client: socket.socket, line: Any) -> None:
    """Carry bytes both ways until one side ends. One thread does: TLS takes no two."""
    websocket = need("websocket", extra="kubernetes")
    binary = websocket.ABNF.OPCODE_BINARY
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ)
        selector.register(line.sock, selectors.EVENT_READ)
        while True:
            # What TLS has decrypted already is not seen in the socket.
            waiting = getattr(line.sock, "pending", int)() > 0
            ready = {key.fileobj for key, _ in selector.select(0 if waiting else None)}
            if waiting or line.sock in ready:
                try:
                    code, frame = line.recv_data_frame(True)
                except websocket.WebSocketException:
                    return
                data = frame.data if code == binary else b""
                if code == websocket.ABNF.OPCODE_CLOSE or (data and data[0] == _ERROR):
                    return
                if data:
                    client.sendall(data[1:])
            if client in ready:
                data = client.recv(_CHUNK)
                if not data:
                    return
                line.send(bytes((_DATA,)) + data, opcode=binary)


class Forwards:
    """The forwards of this process, each kept as long as its name is there, so that its address stays."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, ...], Forward] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def get(self, key: tuple[str, ...], make: Callable[[], Forward]) -> Forward:
        """Return the forward of that *key*, which *make* makes the first time."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def close(self, prefix: tuple[str, ...] = ()) -> None:
        """Close those whose key begins with *prefix*."""
        with self._lock:
            for key in [k for k in self._made if k[: len(prefix)] == prefix]:
                self._made.pop(key).close()


FORWARDS = Forwards()
