"""The history of a name, kept in the cluster, so that another person or kernel can see it and roll back.

One ConfigMap holds it: who gets the traffic as it was last meant, and each revision with its manifests. It is changed
in one step or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import DeployError
from mlopsnb.targets.cluster_errors import Conflict
from mlopsnb.targets.manifests import MANAGED, NAME, labels
from mlopsnb.targets.revisions import plain, restored

if TYPE_CHECKING:
    from mlopsnb.records import Revision
    from mlopsnb.targets.cluster import Cluster, Object

KEEP_REVISIONS = 10
"""How many revisions stay for rollback."""

_PROTOCOL = 1
_KIND = "mlopsnb.io/history"
_RELEASE, _REVISION = "release", "revision-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A revision, the objects that it was made of, and the end of its log if it failed.

    `served_as` is what the platform that runs it calls it, if that has names of its own.
    """

    revision: Revision
    manifests: Sequence[Mapping[str, Any]] = ()
    log: Sequence[str] = ()
    served_as: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is written of a name: its revisions by number, oldest first, and the weights that were last given."""

    entries: Mapping[int, Entry] = field(default_factory=dict)
    weights: Mapping[int, int] = field(default_factory=dict)

    def with_entry(self, entry: Entry) -> State:
        """Return the state with *entry* in the place of the one of its number, or as a new one."""
        entries = {**self.entries, entry.revision.id: entry}
        return replace(self, entries=dict(sorted(entries.items())))

    def with_revision(self, revision_id: int, **changes: Any) -> State:
        """Return the state with some fields of one revision changed; as it is if there is none of that number."""
        entry = self.entries.get(revision_id)
        if entry is None:
            return self
        return self.with_entry(replace(entry, revision=replace(entry.revision, **changes)))

    def with_failed(self, revision_id: int, lines: Sequence[str]) -> State:
        """Return the state with a revision that failed, and what it wrote last."""
        state = self.with_revision(revision_id, state="failed")
        entry = state.entries.get(revision_id)
        return state.with_entry(replace(entry, log=tuple(lines) or entry.log)) if entry else state

    def with_served_as(self, revision_id: int, served_as: str) -> State:
        """Return the state with what the platform calls a revision."""
        entry = self.entries.get(revision_id)
        return self.with_entry(replace(entry, served_as=served_as)) if entry else self

    def bounded(self) -> State:
        """Return the state without the oldest revisions, if there are too many; those with traffic stay."""
        kept = [*self.entries][-KEEP_REVISIONS:]
        entries = {n: e for n, e in self.entries.items() if n in kept or n in self.weights}
        return replace(self, entries=entries)


class History:
    """The history of *name* in a cluster's namespace."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name

    @property
    def _object(self) -> str:
        return f"{self._name}.mlopsnb"

    def read(self) -> State:
        """Return what is written; an empty state if nothing is."""
        return self._read()[0]

    def _read(self) -> tuple[State, str]:
        found = self._cluster.get("v1", "ConfigMap", self._object)
        if found is None:
            return State(), ""
        try:
            return _parsed(found.get("data") or {}), found["metadata"]["resourceVersion"]
        except (ValueError, KeyError, TypeError) as exc:
            raise DeployError(
                f"the history of {self._name!r}, ConfigMap {self._object} of namespace"
                f" {self._cluster.namespace!r}, cannot be read: it is damaged, or of another version of mlopsnb",
                hint=f"kubectl --namespace={self._cluster.namespace} delete configmap {self._object}, and deploy again",
            ) from exc

    def update(self, change: Callable[[State], State]) -> State:
        """Write what *change* makes of the present state, and return it."""
        while True:
            state, version = self._read()
            wanted = change(state).bounded()
            if wanted == state and version:
                return state
            written = self._written(wanted, version)
            try:
                if version:
                    self._cluster.replace(written)
                else:
                    self._cluster.create(written)
            except Conflict:
                continue  # somebody was quicker; what they wrote stays
            return wanted

    def forget(self) -> None:
        """Remove it, if it is there."""
        self._cluster.delete("v1", "ConfigMap", self._object)

    def _written(self, state: State, version: str) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self._object,
                "labels": {**labels(self._name), _KIND: "true"},
                **({"resourceVersion": version} if version else {}),
            },
            "data": {
                _RELEASE: _json({"protocol": _PROTOCOL, "weights": dict(state.weights)}),
                **{f"{_REVISION}{n}": _json(_plain(entry)) for n, entry in state.entries.items()},
            },
        }


def names(cluster: Cluster) -> set[str]:
    """Return the names that have a history in the namespace."""
    found = cluster.list("v1", "ConfigMap", labels=f"{MANAGED},{_KIND}=true")
    return {each["metadata"]["labels"][NAME] for each in found}


def _plain(entry: Entry) -> dict[str, Any]:
    # Where the package lay on the machine that deployed says nothing to anybody else.
    kept = replace(entry.revision, package=None, fallback=None)
    return {
        "revision": plain(kept),
        "manifests": list(entry.manifests),
        "log": list(entry.log),
        **({"served_as": entry.served_as} if entry.served_as else {}),
    }


def _parsed(data: Mapping[str, str]) -> State:
    release = json.loads(data[_RELEASE])
    if release["protocol"] != _PROTOCOL:
        raise ValueError(release["protocol"])
    found = sorted((int(k.removeprefix(_REVISION)), v) for k, v in data.items() if k.startswith(_REVISION))
    entries = {number: _entry(json.loads(text)) for number, text in found}
    return State(entries=entries, weights={int(k): v for k, v in release["weights"].items()})


def _entry(data: Mapping[str, Any]) -> Entry:
    return Entry(
        revision=restored(data["revision"]),
        manifests=data["manifests"],
        log=tuple(data.get("log", ())),
        served_as=data.get("served_as", ""),
    )


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
