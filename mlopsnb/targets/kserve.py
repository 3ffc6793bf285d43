"""Names that KServe serves: each is one InferenceService, whose pods, routes and shares of the traffic KServe makes.

What we decide is what it shall run and which share the newest revision gets; what runs is read from its status. Where
KServe works without Knative (its modes Standard and RawDeployment) it knows no shares: there a deploy is an update of
its Deployment, which has the traffic as soon as it is ready.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mlopsnb.errors import DeployError, NotReady, UserError
from mlopsnb.rollout import Check, Forget, Gate, Route, Scale, Shift, Start, Stop
from mlopsnb.targets import cluster_pods, manifests, rights
from mlopsnb.targets.cluster_errors import Forbidden
from mlopsnb.targets.cluster_history import Entry, History
from mlopsnb.targets.kserve_manifests import API, CRD, KIND, inference_service
from mlopsnb.targets.kserve_seen import Served, knative_name
from mlopsnb.targets.manifests import NAME, REVISION
from mlopsnb.targets.watching import wait_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mlopsnb.events import Step
    from mlopsnb.records import Release, Revision
    from mlopsnb.rollout import Action
    from mlopsnb.targets.cluster import Cluster, Object
    from mlopsnb.targets.manifests import Traits

_TAKEN_UP_SECONDS = 60.0
"""For so long KServe may take to make a Deployment of what it is given."""

_RESTORE_SECONDS = 300.0

_NEEDED = {("serving.kserve.io", "inferenceservices"): ("create", "patch", "delete", "get", "list", "watch")}


class KServe:
    """What is served by KServe in a cluster's namespace. *traits* says what its objects have to know of the cluster."""

    def __init__(self, cluster: Cluster, traits: Callable[[Revision], Traits]) -> None:
        self._cluster = cluster
        self._traits = traits

    def check(self, draft: Revision) -> None:
        """Raise `DeployError` if KServe is not there, `UserError` if *draft* asks for what it does not give."""
        if not self._cluster.serves(API, KIND):
            raise DeployError(
                f"platform='kserve' needs KServe: the cluster of context {self._cluster.context!r} has no CRD {CRD} ({API})",
                hint="ask its administrator to install KServe, or leave platform out: Kubernetes' own objects need nothing more",
            )
        rights.check(self._cluster, _NEEDED)
        asked = [name for name in ("port", "grpc_port") if getattr(draft, name) is not None]
        if asked:
            raise UserError(
                f"platform='kserve' takes no {' and no '.join(asked)}: KServe gives a model one port, for HTTP",
                hint="leave it out",
            )

    def has(self, name: str) -> bool:
        """Say whether *name* is served by KServe."""
        state = History(self._cluster, name).read()
        if state.entries:
            return [*state.entries.values()][-1].revision.workload.platform == "kserve"
        if not self._cluster.serves(API, KIND):
            return False
        with contextlib.suppress(Forbidden):
            found = self._cluster.get(API, KIND, name)
            return found is not None and NAME in found["metadata"].get("labels", {})
        return False

    def divides(self, name: str) -> bool:
        """Say whether shares of the traffic of *name* can be given: KServe does so with Knative alone."""
        seen = self._look(name)
        return seen.found is None or seen.divides

    def observe(self, name: str) -> Release:
        """Return what the history says of *name*, corrected by what KServe says."""
        return self._look(name).release(inside=self._cluster.inside)

    def apply(self, name: str, action: Action, timeout: float) -> None:
        """Carry out *action*; see `protocols.Target`."""
        match action:
            case Start(revision):
                self._start(name, revision, timeout)
            case Shift(weights):
                self._shift(name, {n: w for n, w in weights.items() if w > 0}, timeout)
            case Scale(revision_id, replicas):
                self._scale(name, revision_id, replicas, timeout)
            case Stop(revision_id, failed):
                self._stop(name, revision_id, failed=failed)
            case Forget():
                self._forget(name, timeout)
            case Check() | Gate() | Route():
                raise AssertionError("made by whoever carries out the plan, or by none without a Gateway")

    def _look(self, name: str) -> Served:
        state, found = History(self._cluster, name).read(), None
        if self._cluster.serves(API, KIND):
            found = self._cluster.get(API, KIND, name)
        return Served(name=name, state=state, found=found)

    # ------------------------------------------------------------------------------------------ start
    def _start(self, name: str, revision: Revision, timeout: float) -> None:
        self.check(revision)
        history, seen = History(self._cluster, name), self._look(name)
        wanted = inference_service(name, revision, self._traits(revision))
        objects = [manifests.service_account(name), wanted]
        started = replace(revision, state="starting")
        history.update(lambda s: s.with_entry(Entry(revision=started, manifests=objects)))
        try:
            self._cluster.apply(objects[0])
            self._run(name, revision, seen, timeout)
            history.update(lambda s: s.with_revision(revision.id, state="running"))
        except BaseException:
            with contextlib.suppress(DeployError):  # the first failure tells more
                self._stop(name, revision.id, failed=True)
            raise

    def _run(self, name: str, revision: Revision, seen: Served, timeout: float, step: Step = "start") -> None:
        """Have KServe run *revision*: where there are shares, without any, beside what it was *seen* to serve."""
        end = time.monotonic() + timeout
        share = 0 if seen.divides and seen.weights else None
        self._cluster.apply(inference_service(name, revision, self._traits(revision), canary=share))
        made = self._await_made(name, revision.id, seen.known, min(timeout, _TAKEN_UP_SECONDS))
        wait_ready(self._cluster, made["metadata"]["name"], timeout=end - time.monotonic(), step=step)
        own = knative_name(made)
        left = max(1.0, end - time.monotonic())
        self._until(name, lambda found: found.has_ready(own), f"revision {revision.id}", left)
        History(self._cluster, name).update(lambda s: s.with_served_as(revision.id, own))

    def _await_made(self, name: str, number: int, known: Collection[str], seconds: float) -> Object:
        """Return the Deployment that KServe, or Knative for it, has made of a revision, if not one of those *known*."""
        found: list[Object] = []

        def made(deployments: Sequence[Object]) -> bool:
            fresh = [d for d in deployments if knative_name(d) not in known or not knative_name(d)]
            found[:] = sorted(fresh, key=lambda d: str(d["metadata"]["creationTimestamp"]))[-1:]
            return bool(found)

        chosen = cluster_pods.chosen_by({NAME: name, REVISION: str(number)})
        try:
            self._cluster.until("apps/v1", "Deployment", made, labels=chosen, seconds=seconds)
        except TimeoutError as exc:
            raise NotReady(
                f"KServe has made no pods of InferenceService {name!r} within {seconds:g} s{self._look(name).said}",
                hint=f"`kubectl --namespace={self._cluster.namespace} describe inferenceservice {name}` tells more; "
                "if it has no events, KServe's controller does not run",
                reason="Timeout",
            ) from exc
        return found[0]

    def _until(self, name: str, holds: Callable[[Served], bool], what: str, seconds: float) -> None:
        """Wait until KServe's status of *name* is such that *holds*; `NotReady` with its conditions if it is not."""
        state = History(self._cluster, name).read()

        def reached(found: Sequence[Object]) -> bool:
            return any(holds(Served(name=name, state=state, found=each)) for each in found)

        try:
            self._cluster.until(API, KIND, reached, fields=f"metadata.name={name}", seconds=seconds)
        except TimeoutError as exc:
            raise NotReady(
                f"KServe did not give {what} of {name!r} its traffic within {seconds:g} s{self._look(name).said}",
                hint=f"`kubectl --namespace={self._cluster.namespace} describe inferenceservice {name}` tells more",
                reason="Timeout",
            ) from exc

    # ------------------------------------------------------------------------------------------ traffic
    def _shift(self, name: str, weights: Mapping[int, int], timeout: float) -> None:
        seen = self._look(name)
        newest = seen.newest
        if newest is None or (absent := sorted(set(weights) - set(seen.running))):
            number = absent[0] if newest is not None else min(weights)
            raise DeployError(f"revision {number} of {name!r} does not run", hint="deploy it again")
        others = set(weights) - {newest}
        if len(weights) > 1 and not seen.divides:
            raise DeployError(
                f"KServe runs {name!r} without Knative, and gives all traffic to one revision",
                hint="strategy='rolling'; or ask the administrator for KServe's mode Knative",
            )
        if not (others <= seen.pinnable or len(weights) == 1):
            raise DeployError(
                f"KServe divides the traffic of {name!r} between its newest revision, {newest}, and the one before it alone",
                hint="promote() or rollback() first",
            )
        if not others <= seen.pinnable:  # it has ended, or there is no other way back
            [newest] = others
            self._run(name, seen.revision(newest), seen, timeout, step="route")
        revision = seen.revision(newest)
        share = None if weights.get(newest) == 100 else weights.get(newest, 0)
        self._cluster.apply(inference_service(name, revision, self._traits(revision), canary=share))
        who = " and ".join(f"revision {n}" for n in sorted(weights))
        self._until(name, lambda found: found.weights == weights, who, timeout)
        History(self._cluster, name).update(lambda s: replace(s, weights=dict(weights)))

    # ------------------------------------------------------------------------------------------ size, end
    def _scale(self, name: str, number: int, count: int, timeout: float) -> None:
        seen = self._look(name)
        if seen.newest != number:
            raise DeployError(f"revision {number} of {name!r} does not run", hint="deploy it again")
        revision = seen.revision(number)
        manifests.check_scalable(name, revision)
        wanted = replace(revision, workload=replace(revision.workload, replicas=count))
        if seen.divides:  # to Knative that is another revision, which takes over when it is ready
            self._run(name, wanted, seen, timeout, step="scale")
        else:
            self._cluster.apply(inference_service(name, wanted, self._traits(wanted)))
            self._await_size(name, number, count, timeout)
        History(self._cluster, name).update(lambda s: s.with_revision(number, workload=wanted.workload))
        if seen.divides:
            self._shift(name, {number: 100}, timeout)

    def _await_size(self, name: str, number: int, count: int, timeout: float) -> None:
        def sized(found: Sequence[Object]) -> bool:
            return any(d["spec"]["replicas"] == count for d in found)

        chosen = cluster_pods.chosen_by({NAME: name, REVISION: str(number)})
        with contextlib.suppress(TimeoutError):
            self._cluster.until("apps/v1", "Deployment", sized, labels=chosen, seconds=_TAKEN_UP_SECONDS)
        made = self._await_made(name, number, (), _TAKEN_UP_SECONDS)
        wait_ready(self._cluster, made["metadata"]["name"], timeout=timeout, step="scale")

    def _stop(self, name: str, number: int, *, failed: bool) -> None:
        """End a revision. KServe ends what has no traffic by itself, unless it is the newest: then another one has to be."""
        history, seen = History(self._cluster, name), self._look(name)
        if failed:
            lines = cluster_pods.last_lines(self._cluster, name, number)
            history.update(lambda s: s.with_failed(number, lines))
        else:
            history.update(lambda s: s.with_revision(number, state="stopped"))
        if seen.newest != number:
            return
        if (before := seen.beside(number)) is None:
            self._cluster.delete(API, KIND, name)
            return
        self._run(name, seen.revision(before), seen, _RESTORE_SECONDS, step="restore")
        self._shift(name, {before: 100}, _RESTORE_SECONDS)

    def _forget(self, name: str, timeout: float) -> None:
        self._cluster.delete(API, KIND, name)
        cluster_pods.await_end(self._cluster, name, timeout)
        self._cluster.delete("v1", "ServiceAccount", name)
        History(self._cluster, name).forget()
