"""Seconds from the cluster's first sign of a failure to our word of it.

    python benchmarks/diagnosis.py

Each deployment of `tests/support/failing_deployments.py` is started on the cluster of the current context (or
MLOPSNB_CONTEXT) and waited for with `wait_ready`. Beside it, connections of their own watch the namespace raw: the first
sign is when these have the status or the event of which the failure can be known. Both times are of one clock, this
process's. What an administrator forbids (a quota, a limit range, admission webhooks, Pod Security in the words of its
own webhook) is set up in a namespace of its own, if MLOPSNB_TEST_CONTEXT names the context of one; a right that is missing
is told by the answer to the request itself, which is timed. Printed are, for each: how long after the first sign the failure was told (shown as progress), and how long
after it the wait was given up. What may pass by itself is given up later than it is told, by the grace of its verdict.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import administrator
import failing_deployments as failing

from mlopsnb.errors import DeployError, NotReady
from mlopsnb.events import reporting_to
from mlopsnb.settings import settings
from mlopsnb.targets.cluster import Cluster
from mlopsnb.targets.cluster_errors import Forbidden
from mlopsnb.targets.kubernetes import Kubernetes
from mlopsnb.targets.verdicts import condition, items, name_of, text
from mlopsnb.targets.watching import wait_ready

TARGET_SECONDS = 3.0
TIMEOUT = 300.0

WAITS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "RunContainerError",
    "CrashLoopBackOff",
}
"""Reasons for which a container waits that are signs of a failure."""


def sign(case, kind, found):
    """Say whether an object of *kind* is a sign of the failure of *case*."""
    if kind == "Event":
        wanted = {
            "FailedMount": ("FailedMount",),
            "LivenessFailed": ("Killing",),
            "StartupFailed": ("Unhealthy", "Killing"),
            "ReadinessFailed": ("Unhealthy",),
        }.get(case.kind, ())
        # A server that has just been started refuses connections; that is no failure.
        return text(found, "reason") in wanted and "refused" not in text(found, "message")
    if kind in ("Deployment", "ReplicaSet"):
        late = text(condition(found, "Progressing"), "reason") == "ProgressDeadlineExceeded"
        refused = condition(found, "ReplicaFailure").get("status") == "True"
        return refused or (late and case.kind == "ProgressDeadlineExceeded")
    if case.kind == "Unschedulable":
        return text(condition(found, "PodScheduled"), "reason") == "Unschedulable"
    if case.kind == "Evicted":
        return text(found, "status", "reason") == "Evicted"
    if case.kind in ("CrashLoopBackOff", "OOMKilled", "StartError", "ImagePullBackOff", *WAITS):
        return any(
            text(s, "state", "waiting", "reason") in WAITS or "terminated" in s.get("state", {})
            for s in items(found, "status", "containerStatuses")
        )
    return False


class Raw:
    """The first sign of each failure, as connections of their own have it."""

    def __init__(self, context, cases, namespace):
        self.cases, self.first, self.ended = cases, {}, threading.Event()
        self.threads = [
            threading.Thread(target=self.follow, args=[Cluster(context, namespace), api, kind], daemon=True)
            for api, kind in (
                ("v1", "Pod"),
                ("v1", "Event"),
                ("apps/v1", "Deployment"),
                ("apps/v1", "ReplicaSet"),
            )
        ]
        for thread in self.threads:
            thread.start()

    def follow(self, cluster, api, kind):
        while not self.ended.is_set():
            listed = cluster.request("GET", cluster.path(api, kind))
            version = listed["metadata"]["resourceVersion"]
            with suppress(DeployError), cluster.watch(api, kind, version=version, seconds=10) as events:
                for _, found in events:
                    now = time.monotonic()
                    name = text(found, "involvedObject", "name") if kind == "Event" else name_of(found)
                    for case in self.cases:
                        if f"{name}-".startswith(f"{case.name}-") and sign(case, kind, found):
                            self.first.setdefault(case.name, now)


def waited(cluster, case):
    """Return when the failure of *case* was told and when the wait was given up, and the error."""
    told = []

    def reporter(event):
        if any(word in event.message for word in case.words) or case.kind in event.message:
            told.append(time.monotonic())

    with reporting_to(reporter):
        try:
            wait_ready(cluster, case.name, timeout=TIMEOUT)
        except NotReady as exc:
            ended = time.monotonic()
            return min([*told, ended]), ended, exc
    raise AssertionError(f"{case.name} got ready")


def main():
    context = settings().context
    base = os.environ.get("MLOPSNB_BASE_IMAGE", "python:3.11-slim")
    prefix = f"bench-{secrets.token_hex(3)}"
    cluster = Cluster(context)
    some = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{prefix}-some"},
        "stringData": {"k": "v"},
    }
    cluster.apply(some)
    print(f"{'failure':12} {'verdict':28} {'told after':>10} {'given up after':>15}")
    worst = 0.0
    try:
        for makers in failing.GROUPS.values():
            for make in makers:
                worst = max(worst, run(context, cluster, make(prefix, base), prefix))
    finally:
        cluster.delete("v1", "Secret", f"{prefix}-some")
    if admin := os.environ.get("MLOPSNB_TEST_CONTEXT"):
        with administrator.space(admin, prefix) as forbidding, tempfile.TemporaryDirectory() as place:
            with administrator.rules(forbidding, prefix, Path(place)):
                cases = administrator.forbidden(prefix, base)
                worst = max(worst, run(admin, forbidding, cases, prefix, prefix))
            worst = max(worst, missing_right(context, prefix))
    print(f"slowest: {worst:.2f} s after the first sign (target: under {TARGET_SECONDS:g} s)")


def missing_right(context, namespace):
    """Deploy where that is not allowed; print and return the seconds until it was told."""
    target = Kubernetes(context=context, namespace=namespace)
    began = time.monotonic()
    try:
        target.delivery()
    except Forbidden as exc:
        told = time.monotonic() - began
        print(f"{'right':12} {type(exc).__name__:28} {told:9.2f}s {told:14.2f}s", flush=True)
        return told
    print(f"{'right':12} (whoever runs this may do everything)")
    return 0.0


def run(context, cluster, cases, prefix, namespace=""):
    """Start *cases* together; print a line for each, and return the longest time until one was told."""
    raw = Raw(context, cases, namespace)
    own = [
        Cluster(context, namespace) for _ in cases
    ]  # as in a deploy, where it is there before anything is started
    for each in own:
        each.request("GET", "/version")
    try:
        for case in cases:
            cluster.apply(case.manifest)
        with ThreadPoolExecutor(len(cases)) as pool:
            found = list(pool.map(waited, own, cases))
    finally:
        raw.ended.set()
        for case in cases:
            cluster.delete("apps/v1", "Deployment", case.name)
        for thread in raw.threads:
            thread.join()
    worst = 0.0
    for case, (told, ended, exc) in zip(cases, found, strict=True):
        first = raw.first.get(case.name, told)
        worst = max(worst, told - first)
        mark = "" if exc.reason == case.kind else f"  (wanted: {case.kind})"
        print(
            f"{case.name.removeprefix(prefix + '-'):12} {exc.reason:28} {told - first:9.2f}s {ended - first:14.2f}s{mark}",
            flush=True,
        )
    return worst


if __name__ == "__main__":
    main()
