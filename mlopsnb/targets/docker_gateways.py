"""The gateways of a deployment: containers that have its ports, and in their volumes the history and the weights.

A gateway is made once and stays while revisions come and go, so the port never closes. It is told of new routes by a file
in its volume and a signal; it moves the file when it has taken them, and so is known to have. See `serving.gateway`.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import DeployError
from mlopsnb.targets import docker_spec as spec
from mlopsnb.targets.revisions import plain, restored

if TYPE_CHECKING:
    from mlopsnb.records import Revision
    from mlopsnb.targets.docker_engine import Container, Daemon
    from mlopsnb.targets.docker_spec import Home, Role, Runtime

_PROTOCOL = 1
_STATE, _INCOMING = f"{spec.DATA}/state.json", "incoming.json"
_TAKES_SECONDS = 20.0
_POLL_SECONDS = 0.01
_AGAIN_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is kept of a deployment: its revisions, oldest first, and their weights. `serial` grows with every change."""

    serial: int = 0
    revisions: tuple[Revision, ...] = ()
    weights: Mapping[int, int] = field(default_factory=dict)

    def with_revision(self, revision: Revision) -> State:
        """Return it with *revision* in the place of the one with its number, or as the newest."""
        others = [r for r in self.revisions if r.id != revision.id]
        return replace(self, revisions=tuple(sorted([*others, revision], key=lambda r: r.id)))


def encode(state: State, routes: Sequence[Mapping[str, Any]]) -> bytes:
    """Return *state* and a gateway's *routes* as the gateway's file has them."""
    data = {
        "protocol": _PROTOCOL,
        "serial": state.serial,
        "weights": dict(state.weights),
        "revisions": [plain(revision) for revision in state.revisions],
        "routes": list(routes),
    }
    return json.dumps(data, indent=1).encode()


def decode(name: str, raw: bytes | None) -> State:
    """Return the state in a gateway's file; an empty one if there is none yet."""
    if raw is None:
        return State()
    data = json.loads(raw)
    if data.get("protocol") != _PROTOCOL:
        raise DeployError(
            f"the history of {name!r} was written by another version of mlopsnb",
            hint="use that version, or delete the deployment with it and deploy again",
        )
    return State(
        serial=data["serial"],
        revisions=tuple(restored(revision) for revision in data["revisions"]),
        weights={int(number): weight for number, weight in data["weights"].items()},
    )


class Gateways:
    """The gateways of one deployment, in one engine."""

    def __init__(self, daemon: Daemon, home: Home) -> None:
        self._daemon, self._home = daemon, home

    def read(self, containers: Sequence[Container]) -> tuple[State, int | None]:
        """Return the state, and the port of the gateway for HTTP that has it. *containers* are the deployment's."""
        found = [
            (decode(self._home.name, self._daemon.read(c.id, _STATE)), c.port)
            for c in containers
            if c.role == "http"
        ]
        if not found:
            return State(), None
        state, port = max(found, key=lambda one: one[0].serial)
        return state, port

    def open(self, role: Role, port: int | None, runtime: Runtime) -> int:
        """See that a gateway has *port*, or a free one, and runs; return the port. `DeployError` if it is another's."""
        present = [c for c in self._containers() if c.role == role and port in (None, c.port)]
        if present:
            if not present[0].runs:
                self._daemon.start(present[0].id, port=present[0].port)
            return present[0].port
        number = port or _free()
        name = self._home.called(role, number)
        self._daemon.volume(self._home, name)
        made = self._daemon.create(name, spec.gateway(self._home, role, number, runtime))
        try:
            self._daemon.write(made, spec.STATE, {"data": None}, runtime.ids)
            self._daemon.start(made, port=number)
        except BaseException:
            self._remove(made, name)
            raise
        return number

    def write(
        self, state: State, replicas: Mapping[int, Sequence[str]], *, http: int, grpc: int | None
    ) -> State:
        """Give the gateways that have these ports the new *state*; return it as it was written.

        New connections go by it when this returns. *replicas* are the names of the servers of each revision.
        """
        new = replace(state, serial=state.serial + 1)
        ports = {"http": http, "grpc": grpc}
        for gateway in self._containers():
            if gateway.role != "replica" and gateway.port == ports[gateway.role]:
                routes = spec.routes(new.weights, replicas, gateway.role)
                self._hand_over(gateway, encode(new, routes), new.serial)
        return new

    def _hand_over(self, gateway: Container, content: bytes, serial: int) -> None:
        """Write a gateway's new state, and wait until it goes by it."""
        ids = self._daemon.runtime_of(gateway.id).ids
        if not gateway.runs:
            self._daemon.start(gateway.id, port=gateway.port)
        self._daemon.write(gateway.id, spec.DATA, {_INCOMING: content}, ids)
        end, again = time.monotonic() + _TAKES_SECONDS, 0.0
        while time.monotonic() < end:
            if time.monotonic() > again:  # until it has come to listen for the signal, that does nothing
                self._daemon.signal(gateway.id, "SIGHUP")
                again = time.monotonic() + _AGAIN_SECONDS
            if decode(self._home.name, self._daemon.read(gateway.id, _STATE)).serial == serial:
                return
            time.sleep(_POLL_SECONDS)
        lines = [line for _, line in self._daemon.logs(gateway.id)][-8:]
        raise DeployError(
            f"the gateway of {self._home.name!r} did not take its new routes in {_TAKES_SECONDS:g} s\n"
            "  last lines of its log:\n    " + "\n    ".join(lines)
        )

    def close_others(self, *, http: int | None, grpc: int | None) -> None:
        """Remove the gateways on other ports than these, with their volumes."""
        ports = {"http": http, "grpc": grpc}
        for gateway in self._containers():
            if gateway.role != "replica" and gateway.port != ports[gateway.role]:
                self._remove(gateway.id, gateway.name)

    def _remove(self, container: str, volume: str) -> None:
        self._daemon.remove(container)
        self._daemon.remove_volume(volume)

    def _containers(self) -> list[Container]:
        return self._daemon.containers(self._home.labels)


def _free() -> int:
    """Return a port of the loopback interface that nobody has."""
    with socket.socket() as sock:
        sock.bind((spec.HOST, 0))
        number: int = sock.getsockname()[1]
    return number
