"""Target `docker`: each revision is one or several containers of its image, in the engine of this machine.

A deployment is a network of its own with the containers of its revisions and, before them, a gateway container, which
has the port. All are found again by their labels; the history is in the gateway's volume. Revisions come and go behind the
gateway, which passes connections on, so the port stays and no connection is refused while traffic moves.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.errors import DeployError
from mlopsnb.records import Release
from mlopsnb.rollout import Action, Check, Forget, Gate, Route, Scale, Shift, Start, Stop
from mlopsnb.settings import settings
from mlopsnb.targets import claims
from mlopsnb.targets.asking import get
from mlopsnb.targets.docker_engine import Container, Daemon
from mlopsnb.targets.docker_gateways import Gateways, State
from mlopsnb.targets.docker_replicas import launch, reached
from mlopsnb.targets.docker_spec import HOST, HTTP_PORT, Home, alias
from mlopsnb.targets.revisions import restored

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from mlopsnb.protocols import Delivery
    from mlopsnb.records import Revision, RevisionState

KEEP_REVISIONS = 10
"""How many revisions stay for rollback and logs."""

_STOP_SECONDS = 10.0
_DRAIN_SECONDS = 70.0
"""A request may wait for the model for a minute; a server that has no more ends at once."""

_SERVES = frozenset({"replicas", "cpu", "memory", "gpu", "ttl"})


class Docker:
    """Runs revisions as containers. *state_dir*, by default the setting, holds the locks and says whose they are."""

    def __init__(self, *, state_dir: Path | None = None) -> None:
        self.root = (state_dir or settings().state_dir) / "docker"
        self._owner = hashlib.sha256(f"{os.geteuid()} {self.root}".encode()).hexdigest()[:8]
        self._connected: Daemon | None = None

    def delivery(self) -> Delivery:
        """Say that it runs images of the engine; `DeployError` if none answers."""
        self._daemon()
        return "engine"

    def check(self, name: str, draft: Revision) -> None:
        """Find nothing wrong: what an engine cannot do is not among the fields that it takes."""

    def splits(self, name: str) -> bool:
        """Say that it gives shares to several revisions: of the connections, not of the requests on them."""
        return True

    def takes(self) -> Collection[str]:
        """Name the fields of `Workload` that it gives a revision."""
        return _SERVES

    def names(self) -> Sequence[str]:
        """List the names that have containers of this user here."""
        return sorted(
            {c.labels["mlopsnb.name"] for c in self._daemon().containers({"mlopsnb.owner": self._owner})}
        )

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Hold *name* against other deploys from this machine; `DeployError` at once if one runs."""
        directory = self.root / name
        with claims.claim(directory, name):
            try:
                yield
            finally:
                shutil.rmtree(directory, ignore_errors=True)

    def observe(self, name: str) -> Release:
        """Return what the history says of *name*, corrected by which containers live."""
        return self._seen(name).release()

    def apply(self, name: str, action: Action, *, timeout: float) -> None:
        """Carry out *action*; see `protocols.Target`."""
        match action:
            case Start(revision):
                self._start(name, revision, timeout)
            case Shift(weights):
                self._shift(name, weights)
            case Scale(revision_id, replicas):
                self._scale(name, revision_id, replicas, timeout)
            case Stop(revision_id, failed):
                self._stop(name, revision_id, failed=failed)
            case Forget():
                self._forget(name)
            case Check() | Gate() | Route():
                raise AssertionError("made by whoever carries out the plan, or by none without a Gateway")

    # ------------------------------------------------------------------------------------------ look
    def logs(self, name: str, revision_id: int) -> Iterator[str]:
        """Yield the lines that the revision's containers have written; of several, each says which in front."""
        replicas = self._seen(name).replicas(revision_id)
        several = len(replicas) > 1
        told = (
            [(time, f"[{c.number}] {line}" if several else line) for time, line in self._daemon().logs(c.id)]
            for c in replicas
        )
        return (line for _, line in heapq.merge(*told, key=lambda entry: entry[0]))

    @contextlib.contextmanager
    def reach(self, name: str, revision_id: int) -> Iterator[str]:
        """Yield the address of one of the revision's servers."""
        alive = [c for c in self._seen(name).replicas(revision_id) if c.runs]
        if not alive:
            raise DeployError(f"revision {revision_id} of {name!r} does not run", hint="deploy it again")
        with reached(self._daemon(), alive[0]) as address:
            yield address

    def ask(self, name: str, revision_id: int, path: str) -> Mapping[str, bytes]:
        """GET *path* from each of the revision's servers."""
        alive = [c for c in self._seen(name).replicas(revision_id) if c.runs]
        with ThreadPoolExecutor(max_workers=max(1, len(alive))) as pool:
            answers = list(pool.map(lambda c: self._get(c, path), alive))
        return {alias(c.revision, c.number): a for c, a in zip(alive, answers, strict=True) if a is not None}

    def _get(self, container: Container, path: str) -> bytes | None:
        with reached(self._daemon(), container) as address:
            return get(address, path)

    def _daemon(self) -> Daemon:
        if self._connected is None:
            self._connected = Daemon()
        return self._connected

    def _home(self, name: str) -> Home:
        return Home(owner=self._owner, name=name)

    def _gateways(self, name: str) -> Gateways:
        return Gateways(self._daemon(), self._home(name))

    def _seen(self, name: str) -> _Seen:
        containers = self._daemon().containers(self._home(name).labels)
        state, port = self._gateways(name).read(containers)
        return _Seen(
            name=name, containers=containers, state=state, port=port, has_addresses=self._daemon().is_here
        )

    # ------------------------------------------------------------------------------------------ start
    def _start(self, name: str, revision: Revision, timeout: float) -> None:
        if not revision.image:
            raise DeployError(
                f"revision {revision.id} of {name!r} has no image",
                hint="deploy(…, target='docker') builds one",
            )
        if revision.weights:
            raise DeployError(
                f"the image of revision {revision.id} of {name!r} has its weights in an image of their own,"
                " which the docker target does not mount",
                hint="build it with separate_weights=False",
            )
        runtime = self._daemon().runtime(revision.image)
        here = self._seen(name)
        self._daemon().network(self._home(name))
        gateways = self._gateways(name)
        gateways.open("http", revision.port or here.port, runtime)
        grpc = revision.grpc_port
        if grpc is not None:
            grpc = gateways.open("grpc", grpc or here.grpc_port, runtime)
        new = replace(revision, grpc_port=grpc, state="starting", fallback=None)
        numbers = range(1, new.workload.replicas + 1)
        try:
            launch(self._daemon(), self._home(name), new, runtime, numbers, timeout=timeout)
            self._write(name, self._seen(name).state.with_revision(replace(new, state="running")))
        except BaseException:
            self._write(name, self._seen(name).state.with_revision(new))
            self._stop(name, revision.id, failed=True)
            raise

    def _write(
        self, name: str, state: State, *, port: int | None = None, leaving: Collection[str] = ()
    ) -> None:
        """Write *state*, and have the gateways go by it; *leaving* are containers that get no more connections.

        The gateway on *port* gets it, by default that which has the state now.
        """
        here = self._seen(name)
        replicas = {
            number: [alias(number, c.number) for c in here.replicas(number) if c.id not in leaving]
            for number in state.weights
        }
        if (http := port or here.port) is not None:
            self._gateways(name).write(state, replicas, http=http, grpc=_grpc_port(state))

    # ------------------------------------------------------------------------------------------ traffic
    def _shift(self, name: str, weights: Mapping[int, int]) -> None:
        here = self._seen(name)
        running = {r.id: r for r in here.release().revisions if r.state == "running"}
        if missing := [number for number in weights if number not in running]:
            raise DeployError(f"revision {missing[0]} of {name!r} does not run", hint="deploy it again")
        state = replace(here.state, weights={k: v for k, v in weights.items() if v})
        port = running[max(weights)].port or here.port
        self._write(name, state, port=port)
        self._gateways(name).close_others(http=port, grpc=_grpc_port(state))

    def _scale(self, name: str, revision_id: int, replicas: int, timeout: float) -> None:
        if replicas < 1:
            raise DeployError(
                f"a revision runs in 1 replica or more, found {replicas}", hint="delete() ends it"
            )
        here = self._seen(name)
        revision = next((r for r in here.release().revisions if r.id == revision_id), None)
        if revision is None or revision.state != "running":
            raise DeployError(f"revision {revision_id} of {name!r} does not run", hint="deploy it again")
        present = here.replicas(revision_id)
        kept = [c for c in present if c.is_alive][:replicas]
        surplus = [c.id for c in present if c not in kept]
        after = max(c.number for c in present) + 1
        numbers = range(after, after + replicas - len(kept))
        try:
            if numbers:
                runtime = self._daemon().runtime(revision.image)
                launch(self._daemon(), self._home(name), revision, runtime, numbers, timeout=timeout)
            scaled = replace(revision, workload=replace(revision.workload, replicas=replicas), address="")
            self._write(name, self._seen(name).state.with_revision(scaled), leaving=surplus)
        except BaseException:
            new = (c.id for c in self._seen(name).replicas(revision_id) if c.number in numbers)
            self._end(new, remove=True, seconds=_STOP_SECONDS)
            raise
        self._end(surplus, remove=True, seconds=_DRAIN_SECONDS)

    # ------------------------------------------------------------------------------------------ stop
    def _stop(self, name: str, revision_id: int, *, failed: bool) -> None:
        here = self._seen(name)
        ending: RevisionState = "failed" if failed else "stopped"
        state = replace(
            here.state,
            revisions=tuple(
                replace(r, state=ending) if r.id == revision_id else r for r in here.state.revisions
            ),
            weights={k: v for k, v in here.state.weights.items() if k != revision_id},
        )
        old = [r.id for r in state.revisions[:-KEEP_REVISIONS] if not here.is_alive(r.id)]
        state = replace(state, revisions=tuple(r for r in state.revisions if r.id not in old))
        self._write(name, state)
        containers = [c.id for c in here.replicas(revision_id)]
        if failed:
            self._end(containers, remove=False, seconds=_STOP_SECONDS)
            self._gateways(name).close_others(http=here.port, grpc=here.grpc_port)
        else:
            for container in containers:
                self._daemon().signal(container, "SIGTERM")
        for number in old:
            self._end([c.id for c in here.replicas(number)], remove=True, seconds=1)

    def _end(self, containers: Iterable[str], *, remove: bool, seconds: float) -> None:
        """Let containers end what they have in flight, all at once; kill those that have not ended by then."""

        def end(container: str) -> None:
            self._daemon().wait_end(container, seconds=seconds)
            if remove:
                self._daemon().remove(container)

        with ThreadPoolExecutor() as pool:
            list(pool.map(end, containers))

    def _forget(self, name: str) -> None:
        containers = self._daemon().containers(self._home(name).labels)
        serving = [c.id for c in containers if c.role == "replica"]
        for replica in serving:  # nobody takes over: requests in flight end, idle clients are not waited for
            self._daemon().signal(replica, "SIGINT")
        self._end(serving, remove=False, seconds=_STOP_SECONDS)
        for container in containers:
            self._daemon().remove(container.id)
        self._daemon().clear(self._home(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A deployment as the engine shows it: its containers, and the state in the gateway that has *port*."""

    name: str
    containers: Sequence[Container]
    state: State
    port: int | None
    has_addresses: bool

    @property
    def grpc_port(self) -> int | None:
        """The port for gRPC, if the revisions with traffic have one."""
        return _grpc_port(self.state)

    def replicas(self, revision_id: int) -> list[Container]:
        """Return the containers of a revision."""
        return [c for c in self.containers if c.role == "replica" and c.revision == revision_id]

    def is_alive(self, revision_id: int) -> bool:
        """Say whether any of a revision's containers lives."""
        return any(c.is_alive for c in self.replicas(revision_id))

    def release(self) -> Release:
        """Return what this shows. A revision that is not in the history yet is known by its containers."""
        known = {revision.id: revision for revision in self.state.revisions}
        for container in self.containers:
            if container.role == "replica" and container.revision not in known:
                known[container.revision] = restored(json.loads(container.labels["mlopsnb.record"]))
        revisions = tuple(self._observed(known[number]) for number in sorted(known))
        running = {r.id for r in revisions if r.state == "running"}
        weights = {k: v for k, v in self.state.weights.items() if k in running}
        gateways = {c.role: c for c in self.containers if c.runs and c.port in (self.port, self.grpc_port)}
        url = f"http://{HOST}:{self.port}" if weights and "http" in gateways else None
        grpc = f"{HOST}:{self.grpc_port}" if weights and "grpc" in gateways else None
        return Release(
            name=self.name, target="docker", revisions=revisions, weights=weights, url=url, grpc=grpc
        )

    def _observed(self, revision: Revision) -> Revision:
        if revision.state not in ("starting", "running"):
            return revision
        if not self.is_alive(revision.id):
            return replace(revision, state="stopped" if revision.state == "running" else "failed")
        first = next((c for c in self.replicas(revision.id) if c.runs), None)
        if first is None or not self.has_addresses:
            return revision
        return replace(revision, address=f"http://{first.address}:{HTTP_PORT}")


def _grpc_port(state: State) -> int | None:
    """Return the port for gRPC that the revisions with traffic want."""
    return next(
        (r.grpc_port for r in reversed(state.revisions) if r.id in state.weights and r.grpc_port), None
    )
