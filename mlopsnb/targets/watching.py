"""Wait until a revision's pods are ready: say how each of them is, and give up as soon as it is certain that one fails.

Watches the deployment, its replica sets, pods and events; nothing is polled. It goes on without events and replica
sets where those may not be read, and while the API server is away for a while.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from mlopsnb.errors import DeployError, NotReady
from mlopsnb.events import Event, Replica, Step, report
from mlopsnb.targets.cluster_errors import ClusterUnreachable, Forbidden
from mlopsnb.targets.diagnosis import diagnose
from mlopsnb.targets.diagnosis_containers import LAST_LINES, with_last_words
from mlopsnb.targets.pod_phases import replica
from mlopsnb.targets.reflector import Changed, Listed, Lost, News, Reflector
from mlopsnb.targets.verdicts import NEVER, Observed, at, labels, name_of, number, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlopsnb.targets.cluster import Cluster
    from mlopsnb.targets.verdicts import Object, Verdict

AWAY_SECONDS = 60.0
"""For so long the API server may be away, to be restarted."""

_LOG_SECONDS = 5.0
_SLICE = 0.5


def wait_ready(cluster: Cluster, deployment: str, *, timeout: float, step: Step = "start") -> None:
    """Return when all pods of *deployment* are ready, reporting as progress of *step* how they are.

    Raises `NotReady` as soon as it is certain that they will not be, or after *timeout* seconds; `DeployError` if the
    deployment is not there, may not be watched, or the API server stays away for a minute.
    """
    found = cluster.get("apps/v1", "Deployment", deployment)
    if found is None:
        raise _gone(deployment)
    seen = _Seen(deployment)
    with _following(cluster, found, seen):
        _Wait(cluster, seen, step, timeout).until_ready()


@contextlib.contextmanager
def _following(cluster: Cluster, deployment: Object, seen: _Seen) -> Iterator[None]:
    """Fill *seen*, and its queue of news, with what belongs to *deployment*."""
    chosen = ",".join(f"{k}={v}" for k, v in labels(deployment, "spec", "selector", "matchLabels").items())
    reflectors = (
        Reflector(cluster, "apps/v1", "Deployment", seen.news, fields=f"metadata.name={seen.name}"),
        Reflector(cluster, "v1", "Pod", seen.news, labels=chosen),
        Reflector(cluster, "apps/v1", "ReplicaSet", seen.news, labels=chosen),
        Reflector(cluster, "v1", "Event", seen.news, ahead=True),
    )
    try:
        for reflector in reflectors:
            try:
                reflector.start()
            except Forbidden:
                if reflector.kind in ("Deployment", "Pod"):
                    raise
                seen.hidden.add(reflector.kind)
        yield
    finally:
        for reflector in reflectors:
            reflector.stop()


@dataclass(slots=True)
class _Seen:
    """What has been heard of the deployment *name* so far."""

    name: str
    news: SimpleQueue[News] = field(default_factory=SimpleQueue)
    objects: dict[str, dict[str, Object]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    """The pods whose earlier events have been asked for."""
    lost: dict[str, str] = field(default_factory=dict)
    nodes: list[Object] = field(default_factory=list)
    logs: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def take(self, news: News) -> None:
        """Take note of *news*."""
        match news:
            case Listed("Event", _):
                self.lost.pop("Event", None)
                self.objects.setdefault("Event", {})
                self.asked.clear()  # some may have been missed
            case Listed(kind, objects):
                self.lost.pop(kind, None)
                self.objects[kind] = {_key(o): o for o in objects if self._concerns(kind, o)}
            case Changed(kind, "DELETED", found):
                self.objects[kind].pop(_key(found), None)
            case Changed(kind, _, found):
                if self._concerns(kind, found):
                    self.objects[kind][_key(found)] = found
            case Lost(kind, error):
                self.lost[kind] = error

    def _concerns(self, kind: str, found: Object) -> bool:
        return kind != "Event" or text(found, "involvedObject", "name").startswith(f"{self.name}-")

    @property
    def deployment(self) -> Object | None:
        """The deployment as it is now, or None if it has gone."""
        return next(iter(self.objects.get("Deployment", {}).values()), None)

    @property
    def pods(self) -> list[Object]:
        """The pods that are not being deleted, by name."""
        alive = (
            p for p in self.objects.get("Pod", {}).values() if not at(p, "metadata", "deletionTimestamp")
        )
        return sorted(alive, key=name_of)

    def observed(self) -> Observed:
        """Return all of it, for the diagnosis."""
        return Observed(
            deployment=self.deployment,
            replica_sets=tuple(self.objects.get("ReplicaSet", {}).values()),
            pods=self.pods,
            events=None if "Event" in self.hidden else tuple(self.objects.get("Event", {}).values()),
            nodes=self.nodes,
            logs=self.logs,
        )


class _Wait:
    """The wait itself: takes the news, reports, and decides when it is over."""

    def __init__(self, cluster: Cluster, seen: _Seen, step: Step, timeout: float) -> None:
        self._cluster, self._seen, self._step = cluster, seen, step
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._suspected: tuple[str, float] = ("", 0.0)
        self._away_since: float | None = None
        self._fetched: set[tuple[str, str, int]] = set()
        self._asked_nodes = False
        self._told: Event | None = None

    def until_ready(self) -> None:
        """Return when the deployment is ready."""
        self._take_news(0.0)
        while not self._is_ready():
            now = time.monotonic()
            verdict = self._diagnose()
            until = self._certain_at(verdict, now)
            self._report(verdict)
            if verdict and until <= now:
                raise self._not_ready("did not become ready", verdict)
            if now >= self._end:
                raise self._not_ready(f"was not ready after {self._timeout:g} s", verdict)
            self._take_news(min(until, self._end, self._away_end(now)) - now)
        self._report(None)

    def _take_news(self, seconds: float) -> None:
        """Take note of all news there is; wait up to *seconds* for the first."""
        with contextlib.suppress(Empty):
            self._seen.take(self._first_news(time.monotonic() + seconds))
            while True:
                self._seen.take(self._seen.news.get_nowait())
        if self._seen.deployment is None and "Deployment" in self._seen.objects:
            raise _gone(self._seen.name)

    def _first_news(self, end: float) -> News:
        """Return the first news that comes until *end*, else raise `Empty`; say again how it stands while nothing does.

        Whoever wants the wait to end says so when it is told something.
        """
        while (left := end - time.monotonic()) > _SLICE:
            with contextlib.suppress(Empty):
                return self._seen.news.get(timeout=_SLICE)
            if self._told is not None:
                report(self._told)
        return self._seen.news.get(timeout=max(0.0, left))

    def _away_end(self, now: float) -> float:
        """Return when the API server has been away for too long; raise `ClusterUnreachable` when that is over."""
        if not self._seen.lost:
            self._away_since = None
            return NEVER
        if self._away_since is None:
            self._away_since = now
        end = self._away_since + AWAY_SECONDS
        if now >= end:
            raise ClusterUnreachable(
                f"the API server has been away for {AWAY_SECONDS:g} s: {next(iter(self._seen.lost.values()))}",
                hint=f"what was started goes on without us: kubectl get pods shows whether {self._seen.name} is ready",
            )
        return end

    def _is_ready(self) -> bool:
        """Say whether the newest pods are all that there is, and available: as `kubectl rollout status` does."""
        found = self._seen.deployment
        if found is None or number(found, "status", "observedGeneration") < number(
            found, "metadata", "generation"
        ):
            return False
        updated = number(found, "status", "updatedReplicas")
        return (
            updated >= self._wanted()
            and number(found, "status", "replicas") <= updated
            and number(found, "status", "availableReplicas") >= updated
        )

    def _wanted(self) -> int:
        wanted = at(self._seen.deployment, "spec", "replicas")
        return wanted if isinstance(wanted, int) else 1

    # ------------------------------------------------------------------------------------------ diagnosis
    def _diagnose(self) -> Verdict | None:
        self._fetch_events()
        self._fetch_logs()
        verdict = diagnose(self._seen.observed())
        if verdict and verdict.kind == "Unschedulable" and not self._asked_nodes:
            self._asked_nodes = True
            self._seen.nodes = (self._get("/api/v1/nodes") or {}).get("items", [])
            verdict = diagnose(self._seen.observed())
        return verdict

    def _certain_at(self, verdict: Verdict | None, now: float) -> float:
        """Return when *verdict* becomes certain, if it goes on being found."""
        if verdict is None:
            self._suspected = ("", 0.0)
            return NEVER
        kind, since = self._suspected
        if kind != verdict.kind:
            since = now
            self._suspected = (verdict.kind, now)
        return since + verdict.grace

    def _fetch_events(self) -> None:
        """Fetch what has been said of each pod before we listened."""
        if "Event" in self._seen.hidden:
            return
        for pod in self._seen.pods:
            if name_of(pod) not in self._seen.asked:
                self._seen.asked.add(name_of(pod))
                query = urlencode({"fieldSelector": f"involvedObject.name={name_of(pod)}"})
                found = self._get(f"{self._cluster.path('v1', 'Event')}?{query}") or {}
                for event in found.get("items") or ():
                    self._seen.take(Changed("Event", "ADDED", event))

    def _fetch_logs(self) -> None:
        """Fetch the last lines of containers that end, once for each time; they are gone with the next."""
        space, observed = self._cluster.namespace, self._seen.observed()
        for pod in self._seen.pods:
            for container, replaced, restarts in with_last_words(observed, pod):
                key = (name_of(pod), container, restarts)
                if key in self._fetched:
                    continue
                self._fetched.add(key)
                path = f"/api/v1/namespaces/{space}/pods/{name_of(pod)}/log"
                query = {"container": container, "tailLines": str(LAST_LINES)}
                # One that has ended may have been replaced by now, and the other way round.
                for previous in (replaced, not replaced):
                    chosen = query | ({"previous": "true"} if previous else {})
                    if lines := _lines(self._read(f"{path}?{urlencode(chosen)}")):
                        self._seen.logs[name_of(pod), container] = lines
                        break

    def _get(self, path: str) -> Any:
        return json.loads(self._read(path) or b"null")

    def _read(self, path: str) -> bytes:
        """Return what is at *path*; nothing if it may not be read, or is not there."""
        try:
            status, body = self._cluster.raw(path, seconds=_LOG_SECONDS)
        except DeployError:
            return b""
        return body if status == 200 else b""

    # ------------------------------------------------------------------------------------------ words
    def _report(self, verdict: Verdict | None) -> None:
        """Report how the pods are, if that has changed, and what may become a failure."""
        rows = tuple(replica(pod, self._seen.observed()) for pod in self._seen.pods)
        line = self._line(rows)
        if verdict and not verdict.usual:
            line += f"; {verdict.message}"
        if self._seen.lost:
            line += "; the API server does not answer, waiting for it"
        event = Event(step=self._step, state="progress", message=line, replicas=rows)
        if event != self._told:
            self._told = event
            report(event)

    def _line(self, rows: tuple[Replica, ...]) -> str:
        wanted = self._wanted()
        waiting = [f"{r.name} {r.phase}" for r in rows if not r.ready]
        more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
        tail = f": {', '.join(waiting[:3])}{more}" if waiting else ""
        return f"{sum(r.ready for r in rows)} of {wanted} pod{'s' if wanted != 1 else ''} ready{tail}"

    def _not_ready(self, what: str, verdict: Verdict | None) -> NotReady:
        if verdict:
            return NotReady(
                f"{self._seen.name} {what}: {verdict.told}", hint=verdict.hint, reason=verdict.kind
            )
        rows = tuple(replica(pod, self._seen.observed()) for pod in self._seen.pods)
        blind = "; events, which may say why, may not be read" if "Event" in self._seen.hidden else ""
        return NotReady(
            f"{self._seen.name} {what}: {self._line(rows)}{blind}",
            hint="a longer timeout= gives it more time",
            reason="Timeout",
        )


def _lines(log: bytes) -> list[str]:
    """Return the lines of a log; none if all it says is that the container's files are gone."""
    lines = log.decode(errors="replace").splitlines()
    return [line for line in lines if not line.startswith("unable to retrieve container logs for ")]


def _key(found: Object) -> str:
    return text(found, "metadata", "uid") or name_of(found)


def _gone(deployment: str) -> DeployError:
    return DeployError(
        f"the deployment {deployment} is not there, or was deleted while it started",
        hint="deploy it again, and see who else works on it",
    )
