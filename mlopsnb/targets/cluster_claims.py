"""A name is held in the cluster, by a ConfigMap that only one can have made, while it is changed.

Whoever holds it says so again and again. If they stop, because their machine or kernel died, it can be taken after a
while. Times are the API server's, so that clocks that go wrong do no harm. Leases would be the cluster's own object for
this, but the role `edit` does not allow them everywhere.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlopsnb import identity
from mlopsnb.errors import DeployError
from mlopsnb.targets.cluster_errors import Conflict
from mlopsnb.targets.manifests import labels

if TYPE_CHECKING:
    from mlopsnb.targets.cluster import Cluster, Object

RENEWED_SECONDS = 10.0
EXPIRES_SECONDS = 45.0


class Claim:
    """The hold on a name; `lost` is true once somebody else has taken it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._version = ""
        self._end = threading.Event()
        self._since = ""
        self.lost = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the name inside the block; `DeployError` at once if another one holds it."""
        self._take()
        renewing = threading.Thread(target=self._renew, name=f"mlopsnb claim of {self._name}", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._end.set()
            renewing.join()
            self._release()

    @property
    def _object(self) -> str:
        return f"{self._name}.mlopsnb.lock"

    def _take(self) -> None:
        present = self._cluster.get("v1", "ConfigMap", self._object)
        self._since = _said(self._cluster.now())
        if present is not None and not self._is_expired(present):
            raise self._refused(present)
        try:
            if present is None:
                taken = self._cluster.create(self._written())
            else:
                taken = self._cluster.replace(self._written(present["metadata"]["resourceVersion"]))
        except Conflict:
            raise self._refused(self._cluster.get("v1", "ConfigMap", self._object)) from None
        self._version = taken["metadata"]["resourceVersion"]

    def _is_expired(self, present: Object) -> bool:
        try:
            renewed = float(present["data"]["renewed"])
        except (KeyError, TypeError, ValueError):
            return True
        return self._cluster.now() - renewed > EXPIRES_SECONDS

    def _refused(self, present: Object | None) -> DeployError:
        data = (present or {}).get("data") or {}
        who = f" ({data['holder']}, since {data['since']})" if {"holder", "since"} <= data.keys() else ""
        return DeployError(
            f"another deploy of {self._name!r} is under way{who}",
            hint=f"wait for it, or interrupt it where it runs; if that has died, wait {EXPIRES_SECONDS:.0f} seconds",
        )

    def _written(self, version: str = "") -> Object:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self._object,
                "labels": labels(self._name),
                **({"resourceVersion": version} if version else {}),
            },
            "data": {
                "holder": f"{identity.user()} on {socket.gethostname()}, process {os.getpid()}",
                "since": self._since,
                "renewed": str(self._cluster.now()),
            },
        }

    def _renew(self) -> None:
        while not self._end.wait(RENEWED_SECONDS):
            try:
                renewed = self._cluster.replace(self._written(self._version))
                self._version = renewed["metadata"]["resourceVersion"]
            except DeployError as exc:
                # An API server that is away cannot give it to anybody else either.
                if isinstance(exc, Conflict) or getattr(exc, "status", 0) == 404:
                    self.lost = True
                    return

    def _release(self) -> None:
        with contextlib.suppress(DeployError):  # it expires by itself
            if not self.lost:
                self._cluster.delete("v1", "ConfigMap", self._object, version=self._version)

    def check(self) -> None:
        """Raise `DeployError` if somebody else has taken the name."""
        if self.lost:
            raise DeployError(
                f"the hold on {self._name!r} was lost: somebody else deploys it now",
                hint="the connection to the cluster was away for too long; look at what runs, and deploy again",
            )


def _said(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
