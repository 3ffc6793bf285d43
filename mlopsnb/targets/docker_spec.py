"""What the engine is asked to make for a deployment: containers, a network, volumes. Pure; as the engine's API has it.

Source: https://docs.docker.com/reference/api/engine/version/v1.41/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mlopsnb.rollout import version
from mlopsnb.targets.revisions import plain

if TYPE_CHECKING:
    from mlopsnb.records import Revision

HTTP_PORT, GRPC_PORT = 8080, 8081
"""The ports of the model server in its container, and of gateways in theirs."""

HOST = "127.0.0.1"
STATE = "/var/lib/mlopsnb"
"""Where a container's volume is mounted: of a gateway its state, of a replica what it counts of live rows."""

DATA = f"{STATE}/data"
"""The directory in it that is the server's own."""

Role = Literal["replica", "http", "grpc"]
"""What a container is for: to serve a revision, or to be the port for HTTP or gRPC."""

_STOP_SECONDS = 15
_LOGS = {"Type": "json-file", "Config": {"max-size": "64m", "max-file": "2"}}
_TMP = "rw,noexec,nosuid,nodev,size=256m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Whose deployments they are, and the *name* of one: what belongs to it is found by these labels.

    `owner` tells apart who share an engine.
    """

    owner: str
    name: str

    @property
    def labels(self) -> dict[str, str]:
        """The labels of everything that belongs to it."""
        return {"mlopsnb.owner": self.owner, "mlopsnb.name": self.name}

    def called(self, *what: object) -> str:
        """Return what a part of it is called in the engine."""
        return "-".join(["mlopsnb", self.owner, self.name, *map(str, what)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What containers of an image are made from: its `id`, the path of its `python`, its numeric `user` (`uid:gid`)."""

    id: str
    python: str
    user: str

    @property
    def ids(self) -> tuple[int, int]:
        """The user's number and the group's."""
        user, _, group = self.user.partition(":")
        return int(user), int(group or 0)


def alias(revision_id: int, number: int) -> str:
    """Return the name of a replica in the deployment's network."""
    return f"r{revision_id}-{number}"


def replica(home: Home, revision: Revision, number: int, runtime: Runtime) -> dict[str, Any]:
    """Return the container for replica *number* of *revision*.

    It is started again by nobody until it was ready once: a server that cannot start shall say so.
    """
    work = revision.workload
    limits: dict[str, Any] = {}
    if work.cpu is not None:
        limits["NanoCpus"] = round(work.cpu * 1e9)
    if work.memory is not None:
        limits |= {"Memory": work.memory, "MemorySwap": work.memory}
    if work.gpu:
        limits["DeviceRequests"] = [{"Count": work.gpu, "Capabilities": [["gpu"]]}]
    return {
        "Image": runtime.id,
        "Cmd": _arguments(home.name, revision),
        "Env": [f"{name}={value}" for name, value in revision.env.items()],
        "Labels": {**home.labels, **_labels(revision, number)},
        "StopTimeout": _STOP_SECONDS,
        "HostConfig": {
            **_safe(home),
            **limits,
            "Tmpfs": {"/tmp": _TMP},  # noqa: S108  of the container
            # Without a name it goes with the container, and outlives that one's restarts, unlike what is in memory.
            "Mounts": [{"Type": "volume", "Target": STATE}],
            "RestartPolicy": {"Name": "no"},
        },
        "NetworkingConfig": _network(home, alias(revision.id, number)),
    }


def gateway(home: Home, role: Role, port: int, runtime: Runtime) -> dict[str, Any]:
    """Return the container that has *port* of this machine's loopback interface for the deployment.

    It comes back whenever it ends. The engine takes SIGHUP for a sign that somebody stops it by hand, so nothing less
    than `always` would do.
    """
    inside = HTTP_PORT if role == "http" else GRPC_PORT
    return {
        "Image": runtime.id,
        "Entrypoint": [runtime.python, "-m", "mlopsnb.serving.gateway"],
        "Cmd": ["--port", str(inside), "--state", DATA],
        "Labels": {**home.labels, "mlopsnb.role": role, "mlopsnb.port": str(port)},
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": _STOP_SECONDS,
        "ExposedPorts": {f"{inside}/tcp": {}},
        "HostConfig": {
            **_safe(home),
            "PortBindings": {f"{inside}/tcp": [{"HostIp": HOST, "HostPort": str(port)}]},
            "Mounts": [{"Type": "volume", "Source": home.called(role, port), "Target": STATE}],
            "RestartPolicy": {"Name": "always"},
        },
        "NetworkingConfig": _network(home, f"{role}-{port}"),
    }


def _safe(home: Home) -> dict[str, Any]:
    return {
        "NetworkMode": home.called(),
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "LogConfig": _LOGS,
    }


def _network(home: Home, name: str) -> dict[str, Any]:
    return {"EndpointsConfig": {home.called(): {"Aliases": [name]}}}


def _labels(revision: Revision, number: int) -> dict[str, str]:
    """Return what a replica says of itself. Its environment is not among it, which may hold secrets."""
    return {
        "mlopsnb.role": "replica",
        "mlopsnb.revision": str(revision.id),
        "mlopsnb.replica": str(number),
        "mlopsnb.source": revision.source,
        "mlopsnb.digest": revision.digest,
        **{f"mlopsnb.origin.{key}": value for key, value in asdict(revision.origin).items() if value},
        "mlopsnb.record": json.dumps(plain(replace(revision, env={}, package=None, state="starting"))),
    }


def _arguments(name: str, revision: Revision) -> list[str]:
    """Return what is added to the image's own command. An option that comes twice counts as it came last."""
    words = ["--name", name, "--version", version(revision), "--workers", str(revision.workers)]
    words += ["--profile-dir", DATA]
    if revision.cache_bytes:
        words += ["--cache-bytes", str(revision.cache_bytes)]
    return words


def routes(
    weights: Mapping[int, int], replicas: Mapping[int, Sequence[str]], role: Role
) -> list[dict[str, Any]]:
    """Return a gateway's routes: *replicas* are the names of the servers of each revision."""
    port = HTTP_PORT if role == "http" else GRPC_PORT
    return [
        {"weight": weight, "servers": [f"{name}:{port}" for name in replicas.get(number, ())]}
        for number, weight in weights.items()
    ]
