"""Target `kubernetes`: each revision is a Deployment of its own, and one Service says which of them get the traffic.

Everything is in one namespace, and needs no more there than the role `edit` gives. All is found again by its labels; what
is not in the objects, such as revisions that have ended, is in a ConfigMap. A revision is ready before it gets traffic,
and what had traffic serves until nobody sends it any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from mlopsnb import matching
from mlopsnb.errors import DeployError, NotReady, UserError
from mlopsnb.records import Workload
from mlopsnb.rollout import Action, Check, Forget, Gate, Route, Scale, Shift, Start, Stop
from mlopsnb.settings import settings
from mlopsnb.targets import cluster_history, cluster_images, cluster_pods, manifests, rights
from mlopsnb.targets import gateway_manifests as gateway
from mlopsnb.targets.cluster import Cluster, Object
from mlopsnb.targets.cluster_addresses import Addresses
from mlopsnb.targets.cluster_claims import Claim
from mlopsnb.targets.cluster_errors import Forbidden, Rejected
from mlopsnb.targets.cluster_history import Entry, History
from mlopsnb.targets.cluster_seen import Seen, look
from mlopsnb.targets.forwarding import Forward
from mlopsnb.targets.kserve import KServe
from mlopsnb.targets.manifests import HTTP_PORT, MANAGED, NAME, workload_name
from mlopsnb.targets.shares import replicas_for
from mlopsnb.targets.turnover import is_no_room, ready, resize, turn_over
from mlopsnb.targets.watching import wait_ready

if TYPE_CHECKING:
    from mlopsnb.protocols import Delivery
    from mlopsnb.records import Release, Revision

_ENDPOINT_SECONDS = 30.0
_ENDING_SECONDS = 30.0


class Kubernetes:
    """Runs revisions in one namespace of a cluster; by default those of the settings, else of the kubeconfig."""

    def __init__(self, *, context: str | None = None, namespace: str | None = None) -> None:
        chosen = settings(context=context, namespace=namespace)
        self._cluster = Cluster(chosen.context, chosen.namespace)
        self._addresses = Addresses(self._cluster)
        self._kserve = KServe(self._cluster, self._traits)
        self._claims: dict[str, Claim] = {}

    def delivery(self) -> Delivery:
        """Say how images get to its nodes; `DeployError` if they cannot, or if a right is missing to deploy at all."""
        rights.check(self._cluster, rights.ALWAYS)
        return cluster_images.delivery(self._cluster, settings())

    def takes(self) -> frozenset[str]:
        """Name the fields of `Workload` that it gives a revision: all."""
        return frozenset(f.name for f in fields(Workload))

    def check(self, name: str, draft: Revision) -> None:
        """Raise `UserError` or `DeployError` if the cluster has not what *draft* needs, or *name* is of another platform."""
        _check_possible(draft)
        platform = draft.workload.platform
        on_kserve = self._kserve.has(name)
        if on_kserve != (platform == "kserve") and self.observe(name).revisions:
            there = "kserve" if on_kserve else "kubernetes"
            raise UserError(
                f"{name!r} is deployed with platform={there!r}, and cannot move to platform={platform!r} while it serves",
                hint="delete() it first, or deploy under another name",
            )
        if platform == "kserve":
            self._kserve.check(draft)
        if draft.workload.expose == "gateway":
            self._gateway()

    def splits(self, name: str) -> bool:
        """Say whether several revisions can share the traffic: always, but for KServe without Knative."""
        return not self._kserve.has(name) or self._kserve.divides(name)

    def names(self) -> Sequence[str]:
        """List the names that have a history or anything running in the namespace."""
        running = self._cluster.list("apps/v1", "Deployment", labels=MANAGED)
        found = {d["metadata"]["labels"].get(NAME, "") for d in running}
        return sorted((found | cluster_history.names(self._cluster)) - {""})

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Hold *name* against other deploys, of whomever; `DeployError` at once if another one holds it."""
        if not name[:1].isalpha():
            raise UserError(
                f"{name!r} cannot be deployed to Kubernetes, where a Service's name begins with a letter",
                hint=f"for example name={'m-' + name!r}",
            )
        claim = Claim(self._cluster, name)
        with claim.held():
            self._claims[name] = claim
            try:
                yield
            finally:
                self._claims.pop(name, None)

    def observe(self, name: str) -> Release:
        """Return what the history says of *name*, corrected by what the cluster runs."""
        if self._kserve.has(name):
            return self._kserve.observe(name)
        seen = look(self._cluster, name)
        if not seen.weights:
            return seen.release()
        top = seen.revision(max(seen.weights, key=seen.weights.__getitem__))
        return seen.release(self._addresses.url(seen, top), self._addresses.grpc(seen, top))

    def apply(self, name: str, action: Action, *, timeout: float) -> None:
        """Carry out *action*; see `protocols.Target`."""
        if name in self._claims:
            self._claims[name].check()
        if isinstance(action, Start):
            _check_possible(action.revision)
            _check_image(name, action.revision)
            cluster_images.check_pull(self._cluster, action.revision.image)
            on_kserve = action.revision.workload.platform == "kserve"
        else:
            on_kserve = self._kserve.has(name)
        carry_out = self._kserve.apply if on_kserve else self._apply
        carry_out(name, action, timeout)

    def _apply(self, name: str, action: Action, timeout: float) -> None:
        match action:
            case Start(revision):
                self._start(name, revision, timeout)
            case Shift(weights):
                self._shift(name, weights, timeout)
            case Route(revision_id, match):
                self._route(name, revision_id, match, timeout)
            case Scale(revision_id, replicas):
                self._scale(name, revision_id, replicas, timeout)
            case Stop(revision_id, failed):
                self._stop(name, revision_id, failed=failed)
            case Forget():
                self._forget(name, timeout)
            case Check() | Gate():
                raise AssertionError("checks and gates are made by whoever carries out the plan")

    def logs(self, name: str, revision_id: int) -> Iterator[str]:
        """Yield the lines that the revision's pods have written so far; of one that failed, its last ones."""
        entry = self._history(name).read().entries.get(revision_id)
        # Kept when it failed; its pods, where they have not ended yet, may have begun anew.
        if entry and entry.log:
            yield from entry.log
        else:
            yield from cluster_pods.logs(self._cluster, cluster_pods.pods(self._cluster, name, revision_id))

    @contextlib.contextmanager
    def reach(self, name: str, revision_id: int) -> Iterator[str]:
        """Yield a loopback address that leads to a pod of the revision."""
        if not self._connectable(name, revision_id):
            raise DeployError(f"revision {revision_id} of {name!r} does not run", hint="deploy it again")
        forward = Forward(self._cluster, lambda: self._connectable(name, revision_id), HTTP_PORT)
        try:
            yield f"http://{forward.address}"
        finally:
            forward.close()

    def ask(self, name: str, revision_id: int, path: str) -> Mapping[str, bytes]:
        """GET *path* from each pod of the revision that runs."""
        return cluster_pods.ask(self._cluster, cluster_pods.pods(self._cluster, name, revision_id), path)

    def _connectable(self, name: str, revision_id: int) -> list[str]:
        return cluster_pods.connectable(cluster_pods.pods(self._cluster, name, revision_id))

    def _history(self, name: str) -> History:
        return History(self._cluster, name)

    # ------------------------------------------------------------------------------------------ start
    def _start(self, name: str, revision: Revision, timeout: float) -> None:
        traits = self._traits(revision)
        objects = manifests.manifests(name, revision, traits)
        rights.check(self._cluster, rights.to_make(objects))
        seen = look(self._cluster, name)
        started = replace(revision, state="starting")
        self._history(name).update(lambda s: s.with_entry(Entry(revision=started, manifests=objects)))
        try:
            self._cluster.apply(manifests.service_account(name))
            # One pod is enough to be proved; what gets traffic is grown first.
            pool: manifests.Pool = "apart" if seen.shared else "main"
            wanted = manifests.deployment(name, revision, traits, replicas=1, pool=pool, seconds=timeout)
            self._cluster.apply(wanted)
            wait_ready(self._cluster, workload_name(name, revision.id), timeout=timeout)
            self._history(name).update(lambda s: s.with_revision(revision.id, state="running"))
        except BaseException:
            with contextlib.suppress(DeployError):  # the first failure tells more
                self._stop(name, revision.id, failed=True)
            raise

    def _traits(self, revision: Revision) -> manifests.Traits:
        """Return what the revision's objects have to know of the cluster; what they do not need is not asked."""
        work, usual, has = revision.workload, manifests.Traits(), self._cluster.serves
        old_scaling = work.max_replicas is not None and not has(usual.autoscaling)
        old_budget = manifests.least(work) > 1 and not has(usual.disruption)
        return manifests.Traits(
            autoscaling="autoscaling/v2beta2" if old_scaling else usual.autoscaling,
            disruption="policy/v1beta1" if old_budget else usual.disruption,
            pull_policy="Never" if cluster_images.pull_policy(revision.image) == "Never" else "IfNotPresent",
            pull_secret=settings().pull_secret,
            gateway=self._gateway() if work.expose == "gateway" else "",
        )

    def _gateway(self) -> str:
        """Return the name of the one Gateway that the namespace has."""
        if not self._cluster.serves(gateway.API, gateway.KIND):
            raise DeployError(
                "expose='gateway' needs the Gateway API: the cluster of context "
                f"{self._cluster.context!r} has no CRD httproutes.gateway.networking.k8s.io ({gateway.API})",
                hint="ask its administrator for the Gateway API and a controller of it; "
                "expose='ingress', 'loadbalancer' or 'nodeport' need no more than Kubernetes",
            )
        found = [g["metadata"]["name"] for g in self._cluster.list(gateway.API, "Gateway")]
        if len(found) != 1:
            raise DeployError(
                f"expose='gateway' needs one Gateway in namespace {self._cluster.namespace!r}; "
                f"there are: {', '.join(found) or 'none'}",
                hint="ask the cluster's administrator for one",
            )
        return str(found[0])

    # ------------------------------------------------------------------------------------------ traffic
    def _shift(self, name: str, weights: Mapping[int, int], timeout: float) -> None:
        """Ready, then weight, then shrink."""
        seen = look(self._cluster, name)
        weights = {n: w for n, w in weights.items() if w > 0}
        if absent := sorted(set(weights) - set(seen.deployments)):
            raise DeployError(f"revision {absent[0]} of {name!r} does not run", hint="deploy it again")
        top = seen.revision(max(weights, key=weights.__getitem__))
        counts = _counts(seen, weights)
        shared = len(weights) > 1
        if shared:
            self._remove(self._autoscaler(name))
        for number, count in counts.items():
            try:
                self._ready(name, seen, number, count, timeout, join=shared)
            except NotReady as exc:
                if shared or not is_no_room(exc):
                    raise
                self._turn_over(name, seen, top, count, exc, timeout)
        self._cluster.apply(manifests.service(name, top, pinned=not shared))
        self._await_endpoints(name, name, weights)
        self._surround(name, top, shared=shared)
        for number, count in _smaller(seen, counts, shared=shared).items():
            resize(self._cluster, name, number, count)
        self._history(name).update(lambda s: replace(s, weights=dict(weights)))

    def _ready(self, name: str, seen: Seen, number: int, count: int, timeout: float, *, join: bool) -> None:
        """See that a revision has *count* replicas or more, all ready; to *join* others, in their pool."""
        deployment = workload_name(name, number)
        joins = join and seen.pool(number) != "main"
        if joins:
            # It has no traffic yet, so that its pods are replaced does no harm.
            revision = seen.revision(number)
            self._cluster.apply(
                manifests.deployment(name, revision, self._traits(revision), replicas=count, seconds=timeout)
            )
        elif seen.replicas[number] < count:
            resize(self._cluster, name, number, count)
        if joins or seen.deployments[number].get("status", {}).get("readyReplicas", 0) < count:
            wait_ready(self._cluster, deployment, timeout=timeout, step="route")

    def _route(self, name: str, number: int, told: str, timeout: float) -> None:
        """Have the Gateway send a revision what was *told*, beside the one that has the traffic."""
        seen, match = look(self._cluster, name), matching.parse(told)
        if number not in seen.deployments or not seen.weights:
            raise DeployError(f"revision {number} of {name!r} does not run", hint="deploy it again")
        new, top = seen.revision(number), seen.revision(max(seen.weights, key=seen.weights.__getitem__))
        plain = manifests.route(name, top, self._traits(top))
        if plain is None:
            raise DeployError(
                f"{name!r} is served without a Gateway, so nothing can choose among its requests",
                hint="deploy what serves with expose='gateway' first",
            )
        self._ready(name, seen, number, manifests.least(new.workload), timeout, join=False)
        self._cluster.apply(gateway.own_service(name, new))
        self._await_endpoints(workload_name(name, number), name, [number])
        try:
            self._cluster.apply(gateway.beside(plain, name, new, match, told))
        except Rejected as exc:
            if "sessionPersistence" not in exc.message:
                raise
            raise DeployError(
                f"match={told!r} needs HTTPRoute's field sessionPersistence, which the Gateway API of this cluster lacks",
                hint="ask the administrator for its experimental channel, or match a header: match='header:X-Group=b'",
            ) from exc

    def _turn_over(
        self, name: str, seen: Seen, new: Revision, count: int, exc: NotReady, timeout: float
    ) -> None:
        """Give *new* the room of what has the traffic, replica by replica, if some of its own are ready; else raise *exc*."""
        old = {n: seen.replicas[n] for n in seen.weights if n != new.id}
        some = ready(self._cluster, name, new.id)
        if not old or not some or any(seen.pool(n) != "main" for n in (new.id, *old)):
            raise exc
        resize(self._cluster, name, new.id, some)
        self._remove(self._autoscaler(name))
        self._cluster.apply(manifests.service(name, new, pinned=False))
        self._await_endpoints(name, name, {new.id, *old})
        turn_over(self._cluster, name, new=new.id, wanted=count, old=old, timeout=timeout)

    def _await_endpoints(self, service: str, name: str, revisions: Collection[int]) -> None:
        """Wait until the cluster has seen that a Service has pods of these revisions, and if it is one of no other."""
        prefixes = [f"{workload_name(name, n)}-" for n in revisions]

        def routed(endpoints: Sequence[Object]) -> bool:
            subsets = [s for e in endpoints for s in e.get("subsets") or ()]
            ready = [
                a.get("targetRef", {}).get("name", "") for s in subsets for a in s.get("addresses") or ()
            ]
            alone = len(prefixes) > 1 or all(pod.startswith(prefixes[0]) for pod in ready)
            return alone and all(any(pod.startswith(p) for pod in ready) for p in prefixes)

        with contextlib.suppress(TimeoutError, Forbidden):
            one = f"metadata.name={service}"
            self._cluster.until("v1", "Endpoints", routed, fields=one, seconds=_ENDPOINT_SECONDS)

    def _surround(self, name: str, top: Revision, *, shared: bool) -> None:
        """Make what goes with the traffic as *top* wants it, and remove what it does not want."""
        wanted = [
            o
            for o in manifests.around(name, top, self._traits(top))
            if not (shared and o["kind"] == "HorizontalPodAutoscaler")
        ]
        for each in wanted:
            self._cluster.apply(each)
        self._remove(k for k in self._companions(name) if k[1] not in {o["kind"] for o in wanted})

    def _autoscaler(self, name: str) -> list[tuple[str, str, str]]:
        return [("autoscaling/v1", "HorizontalPodAutoscaler", name)]

    def _companions(self, name: str) -> Iterator[tuple[str, str, str]]:
        """Yield what may go with a Service; each of them has its name."""
        yield from self._autoscaler(name)
        budget = "policy/v1" if self._cluster.serves("policy/v1") else "policy/v1beta1"
        yield budget, "PodDisruptionBudget", name
        yield "networking.k8s.io/v1", "NetworkPolicy", name
        yield "networking.k8s.io/v1", "Ingress", name
        if self._cluster.serves(gateway.API, gateway.KIND):
            yield gateway.API, gateway.KIND, name

    def _remove(self, kinds: Iterator[tuple[str, str, str]] | Sequence[tuple[str, str, str]]) -> None:
        """Remove objects if they are there; those of kinds that we may not remove, we cannot have made."""
        for api, kind, name in kinds:
            with contextlib.suppress(Forbidden):
                self._cluster.delete(api, kind, name)

    # ------------------------------------------------------------------------------------------ size, end
    def _scale(self, name: str, number: int, count: int, timeout: float) -> None:
        seen = look(self._cluster, name)
        if number not in seen.deployments:
            raise DeployError(f"revision {number} of {name!r} does not run", hint="deploy it again")
        manifests.check_scalable(name, seen.revision(number))
        work = seen.revision(number).workload
        wanted = replace(work, replicas=count)
        resize(self._cluster, name, number, count)
        wait_ready(self._cluster, workload_name(name, number), timeout=timeout, step="scale")
        self._history(name).update(lambda s: s.with_revision(number, workload=wanted))
        if seen.weights.get(number) == 100:
            self._surround(name, replace(seen.revision(number), workload=wanted), shared=False)

    def _stop(self, name: str, number: int, *, failed: bool) -> None:
        history = self._history(name)
        if failed:
            lines = cluster_pods.last_lines(self._cluster, name, number)
            history.update(lambda s: s.with_failed(number, lines))
        else:
            history.update(lambda s: s.with_revision(number, state="stopped"))
        self._cluster.delete("apps/v1", "Deployment", workload_name(name, number))
        with contextlib.suppress(TimeoutError):
            cluster_pods.await_ending(self._cluster, name, _ENDING_SECONDS, number)
        # If it stood beside another one: a Gateway may need a moment to hear that its route has changed.
        self._cluster.delete("v1", "Service", workload_name(name, number))

    def _forget(self, name: str, timeout: float) -> None:
        self._addresses.close(name)
        self._cluster.delete("v1", "Service", name)
        self._remove(self._companions(name))
        chosen = f"{MANAGED},{NAME}={name}"
        for each in self._cluster.list("apps/v1", "Deployment", labels=chosen):
            for api, kind in (("v1", "Service"), ("apps/v1", "Deployment")):
                self._cluster.delete(api, kind, each["metadata"]["name"])
        cluster_pods.await_end(self._cluster, name, timeout)
        self._cluster.delete("v1", "ServiceAccount", name)
        self._history(name).forget()


def _check_image(name: str, revision: Revision) -> None:
    if not revision.image:
        raise DeployError(
            f"revision {revision.id} of {name!r} has no image, and Kubernetes runs nothing else",
            hint="deploy builds one by itself; build(…) does it beforehand",
        )


def _check_possible(revision: Revision) -> None:
    if revision.fallback is not None:
        raise DeployError(
            "the kubernetes target cannot give a server a fallback: it is not in the image",
            hint="leave fallback out, or use target='process'",
        )
    work = revision.workload
    if work.max_replicas is not None and work.cpu is None:
        raise UserError(
            "min_replicas and max_replicas scale by the use of the processor, and need to know how much there is",
            hint="say how much a replica gets, for example cpu=1",
        )


def _counts(seen: Seen, weights: Mapping[int, int]) -> dict[int, int]:
    """Return how many replicas each revision needs for its share, so that together they are as many as were wanted."""
    now = sum(seen.alive.get(n, 0) for n in seen.weights)
    if len(weights) == 1:
        [only] = weights
        work = seen.revision(only).workload
        if work.max_replicas is None:
            return {only: work.replicas}
        # What it takes over from may have been scaled up, for a reason.
        return {only: max(manifests.least(work), min(now, work.max_replicas))}
    total = max(manifests.least(seen.revision(n).workload) for n in weights)
    scaled = any(seen.revision(n).workload.max_replicas is not None for n in weights)
    return replicas_for(weights, max(total, now) if scaled else total)


def _smaller(seen: Seen, counts: Mapping[int, int], *, shared: bool) -> dict[int, int]:
    """Return who gives replicas up once the traffic has moved. Who has none left is stopped by a step of its own."""
    fewer = {n: c for n, c in counts.items() if seen.replicas[n] > c}
    if not shared:
        [only] = counts
        return fewer if seen.revision(only).workload.max_replicas is None else {}
    others = {n: 0 for n in seen.alive if n not in counts and seen.pool(n) == "main"}
    return fewer | others
