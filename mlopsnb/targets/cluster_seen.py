"""What runs under a name, put together from its history and from what the cluster says. The cluster is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlopsnb.records import Origin, Release, Revision, RevisionState, Workload
from mlopsnb.targets import gateway_manifests as gateway
from mlopsnb.targets.cluster_history import History, State
from mlopsnb.targets.gateway_manifests import BESIDE
from mlopsnb.targets.manifests import MANAGED, NAME, POOL, REVISION
from mlopsnb.targets.shares import percent_of

if TYPE_CHECKING:
    from mlopsnb.targets.cluster import Cluster, Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at a name: its history, its Deployments by revision, and its Service if there is one."""

    name: str
    state: State
    deployments: Mapping[int, Object]
    service: Object | None
    route: Object | None = None

    @property
    def replicas(self) -> dict[int, int]:
        """How many replicas each revision is meant to have, of those that have a Deployment."""
        return {n: int(d["spec"].get("replicas", 1)) for n, d in self.deployments.items()}

    @property
    def alive(self) -> dict[int, int]:
        """Those that have some."""
        return {n: count for n, count in self.replicas.items() if count > 0}

    @property
    def shared(self) -> bool:
        """Whether the Service takes the pods of several revisions."""
        return self.service is not None and REVISION not in self._selector

    @property
    def weights(self) -> dict[int, int]:
        """Who gets the traffic, in percent, as the Service and the replicas have it."""
        if self.service is None:
            return {}
        if not self.shared:
            pinned = int(self._selector[REVISION])
            return {pinned: 100} if pinned in self.alive else {}
        return percent_of({n: count for n, count in self.alive.items() if self.pool(n) == "main"})

    @property
    def routes(self) -> dict[int, str]:
        """Who stands beside those with the traffic, and what the Gateway sends it of that."""
        said = ((self.route or {}).get("metadata", {}).get("annotations") or {}).get(BESIDE, "")
        number, _, match = said.partition(" ")
        return {int(number): match} if number.isdecimal() and int(number) in self.alive else {}

    def pool(self, revision_id: int) -> str:
        """Return the pool that the pods of a revision are in."""
        found = self.deployments[revision_id]["spec"]["template"]["metadata"]["labels"]
        return str(found.get(POOL, "main"))

    def revision(self, revision_id: int) -> Revision:
        """Return one of the revisions that have a Deployment or are in the history; KeyError if it is neither."""
        entry = self.state.entries.get(revision_id)
        return entry.revision if entry else _unwritten(revision_id, self.deployments[revision_id])

    def release(self, url: str | None = None, grpc: str | None = None) -> Release:
        """Return it as the record."""
        numbers = sorted({*self.state.entries, *self.alive})
        revisions = tuple(replace(self.revision(n), state=self._state_of(n)) for n in numbers)
        return Release(
            name=self.name,
            target="kubernetes",
            revisions=revisions,
            weights=self.weights,
            routes=self.routes,
            url=url,
            grpc=grpc,
        )

    @property
    def _selector(self) -> Mapping[str, str]:
        found: Mapping[str, str] = (self.service or {}).get("spec", {}).get("selector") or {}
        return found

    def _state_of(self, revision_id: int) -> RevisionState:
        if revision_id in self.alive:
            ready = self.deployments[revision_id].get("status", {}).get("readyReplicas", 0)
            return "running" if ready else "starting"
        written = self.state.entries[revision_id].revision.state
        return "failed" if written in ("starting", "failed") else "stopped"


def look(cluster: Cluster, name: str) -> Seen:
    """Look at *name* once."""
    found = cluster.list("apps/v1", "Deployment", labels=f"{MANAGED},{NAME}={name}")
    mine = {_number(d): d for d in found if "deletionTimestamp" not in d["metadata"]}
    seen = Seen(
        name=name,
        state=History(cluster, name).read(),
        deployments=dict(sorted(mine.items())),
        service=cluster.get("v1", "Service", name),
    )
    if any(seen.revision(n).workload.expose == "gateway" for n in seen.weights):
        return replace(seen, route=cluster.get(gateway.API, gateway.KIND, name))
    return seen


def _number(deployment: Object) -> int:
    return int(deployment["metadata"]["labels"][REVISION])


def _unwritten(revision_id: int, deployment: Object) -> Revision:
    """Return what a Deployment tells of a revision whose history is lost."""
    said = deployment["metadata"].get("annotations") or {}
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return Revision(
        id=revision_id,
        source=said.get("mlopsnb.io/source", ""),
        digest=said.get("mlopsnb.io/package-digest", ""),
        image=container["image"],
        created=said.get("mlopsnb.io/created", ""),
        env={v["name"]: v.get("value", "") for v in container.get("env", ())},
        workload=Workload(replicas=int(deployment["spec"].get("replicas", 1))),
        origin=Origin(user=said.get("mlopsnb.io/user", ""), machine=said.get("mlopsnb.io/machine", "")),
    )
