"""The pods of a name: which are there, what they wrote, and what they answer."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from mlopsnb.errors import DeployError
from mlopsnb.targets.asking import get
from mlopsnb.targets.forwarding import Forward
from mlopsnb.targets.manifests import CONTAINER, HTTP_PORT, KSERVE_CONTAINER, NAME, REVISION

if TYPE_CHECKING:
    from mlopsnb.targets.cluster import Cluster, Object

_ASK_SECONDS = 5.0
_LOG_SECONDS = 30.0
_LAST_LINES = 50


def chosen_by(selector: Mapping[str, str]) -> str:
    """Return *selector* as the API server takes it in a request."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))


def pods(cluster: Cluster, name: str, revision_id: int) -> list[Object]:
    """Return the pods of a revision, oldest first, those that are ending included."""
    found = cluster.list("v1", "Pod", labels=chosen_by({NAME: name, REVISION: str(revision_id)}))
    return sorted(found, key=lambda p: (p["metadata"]["creationTimestamp"], p["metadata"]["name"]))


def connectable(found: Sequence[Object]) -> list[str]:
    """Return the names of the pods that can be connected to: those that are ready first."""
    running = [
        p
        for p in found
        if p.get("status", {}).get("phase") == "Running" and "deletionTimestamp" not in p["metadata"]
    ]
    return [p["metadata"]["name"] for p in sorted(running, key=lambda p: not is_ready(p))]


def shuffled(names: Sequence[str]) -> list[str]:
    """Return *names* in another order each time: connections are spread as evenly as the cluster itself would."""
    return random.sample(names, len(names))


def is_ready(pod: Object) -> bool:
    """Say whether the pod gets traffic."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def ask(cluster: Cluster, found: Sequence[Object], path: str) -> dict[str, bytes]:
    """GET *path* of the server in each of the pods that run; by pod, those that answer with 200."""
    names = connectable(found)
    if not names:
        return {}
    with ThreadPoolExecutor(min(8, len(names))) as pool:
        bodies = pool.map(lambda pod: _asked(cluster, pod, path), names)
    return {pod: body for pod, body in zip(names, bodies, strict=True) if body is not None}


def _asked(cluster: Cluster, pod: str, path: str) -> bytes | None:
    """Ask through the API server's proxy; where that may not be used, or cannot reach pods, by a forwarded port."""
    try:
        status, body = cluster.raw(
            f"{cluster.path('v1', 'Pod', pod)}:{HTTP_PORT}/proxy{path}", seconds=_ASK_SECONDS
        )
    except DeployError:
        return None
    if status in (403, 502, 503):
        forward = Forward(cluster, lambda: [pod], HTTP_PORT)
        try:
            return get(f"http://{forward.address}", path, seconds=_ASK_SECONDS)
        finally:
            forward.close()
    return body if status == 200 else None


def logs(cluster: Cluster, found: Sequence[Object], *, tail: int | None = None) -> Iterator[str]:
    """Yield the lines that the model servers of the pods wrote so far, by their time; *tail* of each pod at most."""
    for _, line in heapq.merge(*(_log(cluster, pod, tail) for pod in found), key=itemgetter(0)):
        yield line


def last_lines(cluster: Cluster, name: str, revision_id: int) -> tuple[str, ...]:
    """Return what the pods of a revision wrote last."""
    return tuple(logs(cluster, pods(cluster, name, revision_id), tail=_LAST_LINES))[-_LAST_LINES:]


def await_ending(cluster: Cluster, name: str, seconds: float, revision_id: int | None = None) -> None:
    """Wait until the pods of a name, or of one revision, have been told to end; they answer what they have in work.

    Raises `TimeoutError` after *seconds*.
    """
    chosen = {NAME: name} if revision_id is None else {NAME: name, REVISION: str(revision_id)}
    cluster.until("v1", "Pod", _all_are_ending, labels=chosen_by(chosen), seconds=seconds)


def _all_are_ending(found: Sequence[Object]) -> bool:
    return all("deletionTimestamp" in pod["metadata"] for pod in found)


def await_end(cluster: Cluster, name: str, seconds: float) -> None:
    """Wait until all pods of a name have been told to end; `DeployError` after *seconds*."""
    try:
        await_ending(cluster, name, seconds)
    except TimeoutError as exc:
        raise DeployError(
            f"the cluster does not end the pods of {name!r}: {exc}", hint="delete it again"
        ) from exc


def _log(cluster: Cluster, pod: Object, tail: int | None) -> list[tuple[str, str]]:
    """Return the lines of one pod with their times; those of a container that was restarted come first."""
    states: Sequence[Mapping[str, Any]] = pod.get("status", {}).get("containerStatuses") or ()
    restarted = any(s.get("restartCount") for s in states)
    # A platform may have put containers of its own beside it, and given it another name.
    names = [c["name"] for c in pod["spec"]["containers"]]
    container = next((n for n in (CONTAINER, KSERVE_CONTAINER) if n in names), names[0])
    lines: list[tuple[str, str]] = []
    for previous in (True, False) if restarted else (False,):
        query = {
            "container": container,
            "timestamps": "true",
            **({"previous": "true"} if previous else {}),
            **({"tailLines": str(tail)} if tail else {}),
        }
        path = f"{cluster.path('v1', 'Pod', pod['metadata']['name'])}/log?{urlencode(query)}"
        status, body = cluster.raw(path, seconds=_LOG_SECONDS)
        if status == 200:
            text = body.decode(errors="replace")
            lines += [(time, line) for time, _, line in (each.partition(" ") for each in text.splitlines())]
    return sorted(lines, key=itemgetter(0))
