"""The engine as the docker target needs it: plain calls, plain records, and its refusals in our words."""

from __future__ import annotations

import io
import re
import sys
import tarfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlopsnb import dockerd
from mlopsnb.errors import DeployError, UserError
from mlopsnb.events import report_bytes
from mlopsnb.extras import need
from mlopsnb.targets.docker_spec import HOST, Runtime

if TYPE_CHECKING:
    from mlopsnb.targets.docker_spec import Home, Role

_SECONDS = 60.0
_TAKEN = re.compile(r"port is already allocated|address already in use", re.IGNORECASE)
_NO_SUBNET = re.compile(r"non-overlapping IPv4 address pool|predefined address pools", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container of a deployment, as the engine lists it. `number`, `revision` and `port` are 0 where there is none."""

    id: str
    name: str
    role: Role
    revision: int
    number: int
    port: int
    state: str
    address: str
    labels: Mapping[str, str]

    @property
    def runs(self) -> bool:
        """Say whether its process lives."""
        return self.state in ("running", "paused")

    @property
    def is_alive(self) -> bool:
        """Say whether its process lives, or is being started again by the engine."""
        return self.runs or self.state == "restarting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container's process ended: its exit `code`, whether memory ran out, and what the engine says of it."""

    code: int
    out_of_memory: bool
    error: str


class Daemon:
    """One engine. Calls raise `DeployError`; the constructor too, if there is none that answers."""

    def __init__(self) -> None:
        self._docker = need("docker", extra="docker")
        try:
            self._client = dockerd.connect(seconds=_SECONDS)
        except dockerd.Unavailable as exc:
            raise _unavailable(exc.trouble) from exc.__cause__
        self._api = self._client.api
        weakref.finalize(self, self._client.close)  # a target is dropped, never closed

    @cached_property
    def is_here(self) -> bool:
        """Say whether the addresses of its containers are this machine's: not if it runs in a machine of its own."""
        if sys.platform != "linux" or not self._api.base_url.startswith("http+docker://"):
            return False
        with self._translated("describe itself"):
            return bool(self._api.info().get("OperatingSystem") != "Docker Desktop")

    # ------------------------------------------------------------------------------------------ containers
    def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """Return the containers with these labels, whatever state they are in."""
        wanted = [f"{name}={value}" for name, value in labels.items()]
        with self._translated("list its containers"):
            listed = self._api.containers(all=True, filters={"label": wanted})
        return sorted(map(_container, listed), key=lambda c: (c.role, c.revision, c.number))

    def create(self, name: str, spec: Mapping[str, Any]) -> str:
        """Make a container; return its id."""
        with self._translated(f"make the container {name}"):
            return str(self._api.create_container_from_config(spec, name)["Id"])

    def start(self, container: str, *, port: int | None = None) -> None:
        """Start a container; *port* is the one that it publishes, for the message if it is taken."""
        try:
            with self._translated("start a container"):
                self._api.start(container)
        except DeployError as exc:
            if port and _TAKEN.search(exc.message):
                raise taken(port) from exc
            raise

    def restart_always(self, container: str) -> None:
        """Have the engine start it again if it ends, unless somebody stops it."""
        with self._translated("look after a container"), suppress(self._docker.errors.NotFound):
            self._api.update_container(container, restart_policy={"Name": "unless-stopped"})

    def signal(self, container: str, name: str) -> None:
        """Send a signal to a container's process; nothing if it has ended."""
        with self._translated(f"send {name} to a container"):
            try:
                self._api.kill(container, name)
            except self._docker.errors.APIError as exc:
                if exc.status_code not in (404, 409):
                    raise

    def remove(self, container: str) -> None:
        """Kill and remove a container, if it is there."""
        with self._translated("remove a container"):
            try:
                self._api.remove_container(container, v=True, force=True)
            except self._docker.errors.APIError as exc:
                if exc.status_code not in (404, 409):  # 409: somebody else removes it
                    raise

    def wait_end(self, container: str, *, seconds: float) -> None:
        """Wait until a container's process has ended; kill it if it does not within so many seconds."""
        with self._translated("wait for a container"), suppress(self._docker.errors.NotFound):
            self._api.stop(container, timeout=max(1, round(seconds)))

    def ended(self, container: str) -> Ended | None:
        """Say how a container's process ended; None if it lives."""
        with self._translated("look at a container"):
            try:
                state = self._api.inspect_container(container)["State"]
            except self._docker.errors.NotFound:
                return Ended(code=0, out_of_memory=False, error="somebody has removed its container")
        if state["Running"] and not state["Restarting"]:
            return None
        return Ended(code=state["ExitCode"], out_of_memory=state["OOMKilled"], error=state.get("Error") or "")

    def runtime_of(self, container: str) -> Runtime:
        """Return what a container was made from."""
        with self._translated("look at a container"):
            found = self._api.inspect_container(container)
        return Runtime(
            id=found["Image"], python=found["Config"]["Entrypoint"][0], user=found["Config"]["User"]
        )

    def logs(self, container: str) -> list[tuple[str, str]]:
        """Return the lines that a container has written, each after the time (RFC 3339) at which it did."""
        with self._translated("show a container's log"):
            try:
                raw: bytes = self._api.logs(container, timestamps=True)
            except self._docker.errors.NotFound:
                return []
        lines = raw.decode(errors="replace").splitlines()
        return [(time, line) for time, _, line in (line.partition(" ") for line in lines)]

    # ------------------------------------------------------------------------------------------ files
    def read(self, container: str, path: str) -> bytes | None:
        """Return a file in a container, running or not; None if there is none."""
        with self._translated(f"read {path} in a container"):
            try:
                pieces, _ = self._api.get_archive(container, path)
                archive = b"".join(pieces)
            except self._docker.errors.NotFound:
                return None
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.extractfile(tar.next() or tarfile.TarInfo())
            return file.read() if file else None

    def write(
        self, container: str, place: str, files: Mapping[str, bytes | None], ids: tuple[int, int]
    ) -> None:
        """Write *files* (None: a directory) into the directory *place* of a container, for that user alone."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
                info.mode = 0o700 if content is None else 0o600
                info.size = len(content or b"")
                info.uid, info.gid = ids
                tar.addfile(info, io.BytesIO(content or b""))
        with self._translated(f"write into {place} of a container"):
            self._api.put_archive(container, place, out.getvalue())

    # ------------------------------------------------------------------------------------------ commands
    @contextmanager
    def running(self, container: str, command: Sequence[str]) -> Iterator[Any]:
        """Run *command* in a container, and yield the socket of its standard input and output.

        What comes from there is in frames with a header of eight bytes, as the engine's API has it.
        """
        with self._translated("run a command in a container"):
            made = self._api.exec_create(container, list(command), stdin=True)
            stream = self._api.exec_start(made["Id"], socket=True)
        line = getattr(stream, "_sock", stream)
        try:
            yield line
        finally:
            stream.close()
            line.close()

    # ------------------------------------------------------------------------------------------ surroundings
    def network(self, home: Home) -> None:
        """See that the deployment's network is there."""
        with self._translated("make a network"):
            if not self._api.networks(names=[f"^{home.called()}$"]):
                self._api.create_network(
                    home.called(), driver="bridge", labels=home.labels, check_duplicate=True
                )

    def volume(self, home: Home, name: str) -> None:
        """See that a volume of the deployment is there."""
        with self._translated("make a volume"):
            self._api.create_volume(name, labels=home.labels)

    def remove_volume(self, name: str) -> None:
        """Remove a volume, if it is there."""
        with self._translated("remove a volume"), suppress(self._docker.errors.NotFound):
            self._api.remove_volume(name, force=True)

    def clear(self, home: Home) -> None:
        """Remove the deployment's network and volumes; its containers are gone."""
        wanted = {"label": [f"{name}={value}" for name, value in home.labels.items()]}
        with self._translated("remove networks and volumes"):
            for volume in self._api.volumes(filters=wanted)["Volumes"] or ():
                self.remove_volume(volume["Name"])
            for network in self._api.networks(filters=wanted):
                with suppress(self._docker.errors.NotFound):
                    self._api.remove_network(network["Id"])

    def runtime(self, reference: str) -> Runtime:
        """Return what containers of an image are made from, which is pulled if it is not here.

        *reference* is a name, or `NAME@sha256:…` where the digest is that of a manifest or the image's id.
        """
        found = self._inspect(reference) or self._inspect(reference.rpartition("@")[2])
        if found is None:
            self._pull(reference)
            found = self._inspect(reference)
        if found is None:
            raise DeployError(f"the container engine has no image {reference}", hint="deploy the model again")
        config = found["Config"]
        if "mlopsnb.package" not in (config.get("Labels") or {}):
            raise UserError(
                f"{reference} is no serving image of mlopsnb", hint="build one: ml.build(model, …)"
            )
        return Runtime(id=found["Id"], python=config["Entrypoint"][0], user=config["User"])

    def _inspect(self, reference: str) -> Mapping[str, Any] | None:
        with self._translated(f"look at the image {reference}"):
            try:
                found: Mapping[str, Any] = self._api.inspect_image(reference)
            except self._docker.errors.APIError as exc:
                if exc.status_code not in (
                    400,
                    404,
                ):  # 400: `NAME:TAG@sha256:…` of an image that was never in a registry
                    raise
                return None
        return found

    def _pull(self, reference: str) -> None:
        """Have the engine pull an image; `DeployError` if it cannot."""
        name, _, digest = reference.partition("@")
        host = name.partition("/")[0]
        if "/" not in name or not re.search(r"[.:]|^localhost$", host):
            raise DeployError(
                f"the container engine has no image {reference}",
                hint="it was removed; deploy the model again, or another revision",
            )
        with self._translated(f"pull {reference}"):
            for line in self._api.pull(name if not digest else reference, stream=True, decode=True):
                if said := line.get("error"):
                    raise DeployError(
                        f"the container engine could not pull {reference}: {said}",
                        hint=f"docker login {host}, if the registry wants to know who asks",
                    )
                detail = line.get("progressDetail") or {}
                if detail.get("total"):
                    report_bytes("fetch", reference, detail["current"], detail["total"])

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._docker.errors.APIError as exc:
            said = " ".join(str(exc.explanation or exc).split())[:400]
            hint = "docker network ls shows those there are; docker network prune removes the unused ones"
            raise DeployError(
                f"the container engine did not {doing}: {said}", hint=hint if _NO_SUBNET.search(said) else ""
            ) from exc
        except dockerd.transport_errors() as exc:
            trouble = dockerd.trouble(exc, connected=True)
            raise DeployError(
                f"the container engine at {trouble.where} did not {doing}: {trouble.found}",
                hint="does it still run? docker info tells",
            ) from exc


def taken(port: int) -> DeployError:
    """Return what to raise if *port* is another's."""
    return DeployError(
        f"port {port} of {HOST} cannot be used: Address already in use",
        hint="choose another port, or leave port out",
    )


def _unavailable(trouble: dockerd.Trouble) -> DeployError:
    if trouble.forbidden:
        return DeployError(
            f"no permission to use the container engine at {trouble.where}",
            hint="add the user to the group docker and log in again, or deploy with target='process'",
        )
    return DeployError(
        f"no container engine answers at {trouble.where}: {trouble.found}",
        hint="start Docker or set DOCKER_HOST, or deploy with target='process', which needs no engine",
    )


def _container(listed: Mapping[str, Any]) -> Container:
    labels = listed["Labels"]
    networks = listed["NetworkSettings"]["Networks"].values()
    return Container(
        id=listed["Id"],
        name=listed["Names"][0].lstrip("/") if listed["Names"] else listed["Id"][:12],
        role=labels["mlopsnb.role"],
        revision=int(labels.get("mlopsnb.revision", 0)),
        number=int(labels.get("mlopsnb.replica", 0)),
        port=int(labels.get("mlopsnb.port", 0)),
        state=listed["State"],
        address=next((n["IPAddress"] for n in networks if n["IPAddress"]), ""),
        labels=labels,
    )
