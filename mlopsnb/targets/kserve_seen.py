"""What KServe says of a name, put together with its history. Pure.

With Knative the status names the traffic by Knative's revisions; which of ours each is, the history says. Without, one
Deployment has all of it.
Source: https://kserve.github.io/website/docs/reference/crd-api (InferenceServiceStatus).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlopsnb.records import Release, Revision, RevisionState, Workload
from mlopsnb.targets.manifests import KSERVE_CONTAINER, REVISION
from mlopsnb.targets.verdicts import at, condition, items, labels, text

if TYPE_CHECKING:
    from mlopsnb.targets.cluster import Object
    from mlopsnb.targets.cluster_history import State

_KNATIVE = "serving.knative.dev/revision"


def knative_name(deployment: Object) -> str:
    """Return the name of Knative's revision that a Deployment was made for; none where there is no Knative."""
    return text(deployment, "metadata", "labels", _KNATIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One look at a name: its history, and its InferenceService if there is one."""

    name: str
    state: State
    found: Object | None

    @property
    def newest(self) -> int | None:
        """The revision that the InferenceService was last told to run."""
        number = text(self.found or {}, "metadata", "labels", REVISION)
        return int(number) if number else None

    @property
    def divides(self) -> bool:
        """Whether KServe has Knative make its revisions, and so can divide the traffic."""
        return bool(text(self._predictor, "latestCreatedRevision"))

    @property
    def known(self) -> frozenset[str]:
        """Knative's names of the revisions that there are."""
        mine = {entry.served_as for entry in self.state.entries.values()}
        said = {text(self._predictor, key) for key in ("latestCreatedRevision", "latestReadyRevision")}
        return frozenset((mine | said) - {""})

    @property
    def weights(self) -> dict[int, int]:
        """Who gets the traffic, in percent."""
        if not self.divides:
            ran = self._ran
            serving = self.newest if self.newest in ran else ran[-1] if ran else None
            return {serving: 100} if serving is not None and self._url("url") else {}
        mine = {entry.served_as: n for n, entry in self.state.entries.items() if entry.served_as}
        found: dict[int, int] = {}
        for share in items(self._predictor, "traffic"):
            number, percent = mine.get(text(share, "revisionName")), share.get("percent") or 0
            if number is not None and percent:
                found[number] = found.get(number, 0) + percent
        return found

    @property
    def pinnable(self) -> frozenset[int]:
        """Who gets what KServe does not give to the newest: what shares with it, or what had all before it did."""
        if self.weights.get(self.newest or 0) != 100:
            return frozenset(self.weights) - {self.newest or 0}
        before = text(self._predictor, "previousRolledoutRevision")
        return frozenset(n for n, e in self.state.entries.items() if before and e.served_as == before)

    @property
    def running(self) -> tuple[int, ...]:
        """The revisions that KServe may be told to give traffic to."""
        return tuple(r.id for r in self.release().revisions if r.state == "running")

    @property
    def said(self) -> str:
        """What KServe's conditions say is wrong, as the end of a message."""
        wrong = [c for c in items(self.found or {}, "status", "conditions") if c.get("status") != "True"]
        told = [f"{text(c, 'type')}: {text(c, 'message') or text(c, 'reason')}" for c in wrong]
        return f": {'; '.join(told)}" if told else ""

    def has_ready(self, knative: str) -> bool:
        """Say whether the revision that Knative calls *knative*, or without Knative the only one, is ready."""
        if knative:
            return text(self._predictor, "latestReadyRevision") == knative
        return condition(self.found or {}, "Ready").get("status") == "True"

    def revision(self, number: int) -> Revision:
        """Return one of the revisions that are in the history or that the InferenceService runs."""
        entry = self.state.entries.get(number)
        return entry.revision if entry else self._unwritten(number)

    def beside(self, number: int) -> int | None:
        """Return who serves if *number* does not: who has most of the traffic, or else was last seen to run."""
        others = {n: w for n, w in self.weights.items() if n != number}
        if others:
            return max(others, key=others.__getitem__)
        return next((n for n in reversed(self._ran) if n != number), None)

    def release(self, *, inside: bool = False) -> Release:
        """Return it as the record; *inside* the cluster addresses are those of the cluster."""
        numbers = sorted({*self.state.entries, *([self.newest] if self.newest is not None else ())})
        local = self._url("address", "url") if inside else ""
        return Release(
            name=self.name,
            target="kubernetes",
            revisions=tuple(replace(self.revision(n), state=self._state_of(n)) for n in numbers),
            weights=self.weights,
            url=(local or self._url("url") or None) if self.weights else None,
        )

    @property
    def _ran(self) -> list[int]:
        """The revisions that were last seen to run, oldest first; none if there is no InferenceService."""
        ran = [n for n, e in self.state.entries.items() if e.revision.state == "running"]
        return ran if self.found is not None else []

    @property
    def _predictor(self) -> Mapping[str, Any]:
        found = at(self.found or {}, "status", "components", "predictor")
        return found if isinstance(found, Mapping) else {}

    def _url(self, *path: str) -> str:
        return text(self.found or {}, "status", *path).rstrip("/")

    def _state_of(self, number: int) -> RevisionState:
        written = self.revision(number).state
        if self.found is None:
            return "failed" if written in ("starting", "failed") else "stopped"
        return "failed" if written == "starting" and number != self.newest else written

    def _unwritten(self, number: int) -> Revision:
        """Return what the InferenceService tells of a revision whose history is lost."""
        said = labels(self.found or {}, "metadata", "annotations")
        containers: Sequence[Mapping[str, Any]] = items(self.found or {}, "spec", "predictor", "containers")
        [image] = [text(c, "image") for c in containers if text(c, "name") == KSERVE_CONTAINER]
        return Revision(
            id=number,
            source=said.get("mlopsnb.io/source", ""),
            digest=said.get("mlopsnb.io/package-digest", ""),
            image=image,
            created=said.get("mlopsnb.io/created", ""),
            workload=Workload(platform="kserve"),
            state="running",
        )
