"""Keep in step with the cluster's objects of some kinds, by list and watch, whatever happens to the API server.

Each kind has a thread, which lists, watches from that version on, and lists again when the watch has ended: because
its time was over, the version was too old (410 Gone), or the API server went away. What it hears goes into one queue.
Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from mlopsnb.errors import DeployError

if TYPE_CHECKING:
    from queue import SimpleQueue

    from mlopsnb.targets.cluster import Cluster, Watching

WATCH_SECONDS = 30.0
"""A connection that broke without a word is noticed after that long."""

_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Listed:
    """The objects of a kind, all of them."""

    kind: str
    objects: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Changed:
    """What happened to one object: `ADDED`, `MODIFIED` or `DELETED`."""

    kind: str
    change: str
    found: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """The API server does not answer, or not as it should; it is asked again."""

    kind: str
    error: str


News = Listed | Changed | Lost


class Reflector:
    """The objects of one kind that *labels* and *fields* select. `start` lists them; `stop` ends it at once.

    With *ahead* none are listed, only what happens from then on is told, after a `Listed` without objects: of some kinds
    a namespace holds thousands that concern somebody else.
    """

    def __init__(
        self,
        cluster: Cluster,
        api: str,
        kind: str,
        news: SimpleQueue[News],
        *,
        labels: str = "",
        fields: str = "",
        ahead: bool = False,
    ) -> None:
        self.kind = kind
        self._ahead = ahead
        self._cluster, self._api, self._news = cluster, api, news
        self._labels, self._fields = labels, fields
        self._stopped = threading.Event()
        self._watching: Watching | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """List the objects, then follow them in a thread. Raises `DeployError` if they cannot be listed."""
        listed = (
            self._cluster.request("GET", self._cluster.path(self._api, self.kind), query=self._query()) or {}
        )
        version = self._tell(listed)
        self._thread = threading.Thread(
            target=self._follow, args=[version], name=f"mlopsnb-watch-{self.kind}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the watch; nothing is heard after this."""
        self._stopped.set()
        if self._watching is not None:
            self._watching.cut()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _follow(self, version: str) -> None:
        while not self._stopped.is_set():
            try:
                self._watch(version)
            except DeployError as exc:
                self._lose(exc.message)
            if self._stopped.is_set():
                return
            version = self._list_again()

    def _watch(self, version: str) -> None:
        with self._cluster.watch(
            self._api,
            self.kind,
            version=version,
            labels=self._labels,
            fields=self._fields,
            seconds=WATCH_SECONDS,
        ) as self._watching:
            if self._stopped.is_set():
                return
            for change, found in self._watching:
                self._news.put(Changed(self.kind, change, found))

    def _list_again(self) -> str:
        """Return the version of a new list, as soon as the API server gives one."""
        path = f"{self._cluster.path(self._api, self.kind)}?{urlencode(self._query())}"
        while not self._stopped.is_set():
            try:
                status, body = self._cluster.raw(path, seconds=10)
                if status == 200:
                    return self._tell(json.loads(body))
                self._lose(f"the API server answers with status {status}")
            except DeployError as exc:
                self._lose(exc.message)
            except ValueError:
                self._lose("the API server's answer is cut off")
        return ""

    def _lose(self, error: str) -> None:
        self._news.put(Lost(self.kind, error))
        self._stopped.wait(_PAUSE)

    def _tell(self, listed: dict[str, Any]) -> str:
        self._news.put(Listed(self.kind, [] if self._ahead else list(listed.get("items") or ())))
        return str((listed.get("metadata") or {}).get("resourceVersion", ""))

    def _query(self) -> dict[str, str]:
        wanted = {
            "labelSelector": self._labels,
            "fieldSelector": self._fields,
            "limit": "1" if self._ahead else "",
        }
        return {key: value for key, value in wanted.items() if value}
