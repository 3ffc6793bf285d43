"""One revision gives its room to the next, replica by replica, where the cluster has none for both.

As a Deployment's own rolling update with maxSurge 1 and maxUnavailable 0 does, but between Deployments: meanwhile the
Service takes the pods of both. At no time are fewer ready than served before, and one more is asked for at the most.
Source: https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#rolling-update-deployment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.errors import NotReady
from mlopsnb.events import report_progress
from mlopsnb.targets import cluster_pods
from mlopsnb.targets.manifests import GRACE_SECONDS, NAME, REVISION, workload_name
from mlopsnb.targets.watching import wait_ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlopsnb.targets.cluster import Cluster, Object

_NO_ROOM = ("Unschedulable", "QuotaExceeded")


def is_no_room(exc: NotReady) -> bool:
    """Say whether a revision could not grow because the cluster has no more room for it."""
    return exc.reason in _NO_ROOM


def resize(cluster: Cluster, name: str, revision_id: int, count: int) -> None:
    """Have a revision run in *count* replicas."""
    changes = {"spec": {"replicas": count}}
    cluster.merge("apps/v1", "Deployment", workload_name(name, revision_id), changes, part="scale")


def ready(cluster: Cluster, name: str, revision_id: int) -> int:
    """Return how many of a revision's pods are ready."""
    found = cluster_pods.pods(cluster, name, revision_id)
    return sum(cluster_pods.is_ready(p) and "deletionTimestamp" not in p["metadata"] for p in found)


def turn_over(
    cluster: Cluster, name: str, *, new: int, wanted: int, old: dict[int, int], timeout: float
) -> None:
    """Let the revision *new* grow to *wanted* replicas as those of *old* (revisions and their replicas) shrink.

    All of them serve already. A replica ends before the next one is asked for: until it has, its room is not free.
    """
    grown, left = ready(cluster, name, new), dict(old)
    while grown < wanted:
        if leaving := max(left, key=left.__getitem__, default=None):
            left[leaving] -= 1
            report_progress("route", f"no room for both: revision {leaving} gives a replica to {new}")
            resize(cluster, name, leaving, left[leaving])
            _await_fewer(cluster, name, leaving, left[leaving])
            left = {number: count for number, count in left.items() if count}
        grown += 1
        resize(cluster, name, new, grown)
        wait_ready(cluster, workload_name(name, new), timeout=timeout, step="route")


def _await_fewer(cluster: Cluster, name: str, revision_id: int, count: int) -> None:
    """Wait until a revision has *count* pods, those that are ending included."""

    def holds(pods: Sequence[Object]) -> bool:
        return len(pods) <= count

    chosen = cluster_pods.chosen_by({NAME: name, REVISION: str(revision_id)})
    try:
        cluster.until("v1", "Pod", holds, labels=chosen, seconds=2 * GRACE_SECONDS)
    except TimeoutError as exc:
        raise NotReady(
            f"a replica of revision {revision_id} of {name!r} does not end, and the next one needs its room: {exc}",
            hint="see what holds it: kubectl describe pod",
            reason="Timeout",
        ) from exc
