"""The handle on what runs, the same for every target.

A handle holds no state but a name: everything it says is read from the target when it is asked, so it is as true
after a kernel restart as before. Only what goes on in the background of this process is known to this process alone.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlopsnb import background, plugins, rollout
from mlopsnb.errors import DeployError, MlopsnbError, UserError, nearest
from mlopsnb.events import step
from mlopsnb.executing import carry_out, execute
from mlopsnb.rollout import Forget, Scale
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from contextlib import AbstractContextManager

    import numpy as np

    from mlopsnb.background import Hold, Rollout
    from mlopsnb.client import Client
    from mlopsnb.monitoring.performance import PerformanceReport
    from mlopsnb.monitoring.report import DriftReport
    from mlopsnb.monitoring.traffic import Traffic
    from mlopsnb.protocols import Target
    from mlopsnb.records import Origin, Release, Revision

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LOOK_SECONDS = 0.2
"""How often `await` looks: a kernel notices an interrupt of it only when its loop wakes up."""


def check_name(name: object, *, of: str = "a deployment") -> str:
    """Return *name* if every target can carry it: a DNS label (RFC 1123), 63 letters, digits and hyphens at most.

    *of* is what bears it, for the message.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    proposed = re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")[:63].strip("-")
    raise UserError(
        f"{name!r} cannot name {of}: lower-case letters, digits and hyphens only, 63 at most",
        hint=f"for example name={proposed!r}" if proposed else "for example name='my-model'",
    )


class Deployment:
    """A name on a target. Get one from `deploy`, `get` or `deployments`."""

    def __init__(self, name: str, target: Target, target_name: str) -> None:
        self.name = name
        self.target = target_name
        self._target = target
        self._key = background.key(target_name, name)
        self._client: tuple[int, str, Client] | None = None

    def __repr__(self) -> str:
        return f"<Deployment {self.name!r} on {self.target}: {self.status}, {self.url or 'no url'}>"

    def __await__(self) -> Generator[Any, None, Deployment]:
        while self.rollout is not None and self.rollout.state == "running":
            yield from asyncio.sleep(_LOOK_SECONDS).__await__()
        return self.wait()

    @property
    def rollout(self) -> Rollout | None:
        """What goes on in the background, or was the last thing that did; None where nothing of this kernel did."""
        return background.find(self._key)

    def wait(self, timeout: float | None = None) -> Deployment:
        """Return when what goes on in the background (`deploy(…, wait=False)`) is over; at once if nothing does.

        Raises what that failed with, or `NotReady` after *timeout* seconds. An interrupt ends the waiting and not the
        rollout. `await` of a deployment does the same, and leaves the kernel free meanwhile.
        """
        if self.rollout is not None:
            self.rollout.wait(timeout)
        return self

    def cancel(self) -> Deployment:
        """End what goes on in the background, and return when what served before is restored.

        Raises `UserError` if nothing does.
        """
        found = self.rollout
        if found is None or found.state != "running":
            raise UserError(f"no rollout of {self.name!r} goes on in the background of this kernel")
        found.cancel()
        found.join()
        return self

    @property
    def release(self) -> Release:
        """What the target says of this name now."""
        return self._target.observe(self.name)

    @property
    def url(self) -> str | None:
        """Where clients send requests, or None if nothing serves."""
        return self.release.url

    @property
    def grpc(self) -> str | None:
        """Where gRPC's clients connect, as `HOST:PORT`; None if nothing serves it."""
        return self.release.grpc

    @property
    def status(self) -> str:
        """`ready`, `starting`, `stopped` (its process is gone), `failed` (nothing came of it), or `deleted`."""
        from mlopsnb.client import Client

        release = self.release
        current = rollout.serving(release)
        if current is None:
            under_way = self.rollout.state if self.rollout else ""
            if under_way == "running" or any(r.state == "starting" for r in release.revisions):
                return "starting"
            return "stopped" if release.revisions else "failed" if under_way == "failed" else "deleted"
        try:
            with self._target.reach(self.name, current.id) as address, Client(address, self.name) as client:
                return "ready" if client.is_ready() else "not ready"
        except DeployError:  # it has just ended
            return "not ready"

    @property
    def revision(self) -> int | None:
        """The number of the revision that serves, or that served last."""
        current = rollout.latest(self.release)
        return current.id if current else None

    @property
    def model_version(self) -> str | None:
        """Where the served package came from, such as `models:/fraud/3`."""
        current = rollout.latest(self.release)
        return current.source if current else None

    def history(self) -> History:
        """Return all revisions that the target still knows, oldest first."""
        return History(self.release.revisions)

    def predict(self, x: object) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
        """Send *x* to the endpoint and return its answer: an array, or a dict of arrays if the model has several outputs.

        Takes what the model takes: an array, tensor or DataFrame of shape (rows, …), or a dict or tuple of them.
        Raises `UserError` if the input does not fit the model, `DeployError` if nothing answers.
        """
        outputs = self._connect().predict(x)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _connect(self) -> Client:
        """Return the client of the revision that serves now; a new revision may have another signature."""
        from mlopsnb.client import Client

        release = self.release
        current = rollout.serving(release)
        if current is None or release.url is None:
            raise self._nothing_serves(release)
        if self._client is None or self._client[:2] != (current.id, release.url):
            self._client = (current.id, release.url, Client(release.url, self.name))
        return self._client[2]

    def _nothing_serves(self, release: Release) -> DeployError:
        last = rollout.latest(release)
        if self.rollout is not None and self.rollout.state == "running":
            return DeployError(
                f"nothing serves {self.name!r} yet", hint="its rollout goes on: wait() waits for it"
            )
        if last is None:
            return DeployError(
                f"{self.name!r} is not deployed on target {self.target!r}", hint="deploy it first"
            )
        lines = self.logs(tail=8, revision=last.id)
        said = "\n  last lines of its log:\n    " + lines.replace("\n", "\n    ") if lines else ""
        return DeployError(
            f"nothing serves {self.name!r}: revision {last.id} has ended{said}", hint="deploy it again"
        )

    def logs(self, tail: int | None = None, revision: int | None = None) -> str:
        """Return the log of *revision* (by default the one that serves, or served last): its last *tail* lines, or all."""
        release = self.release
        number = revision if revision is not None else (self.revision or 0)
        if number not in {r.id for r in release.revisions}:
            known = ", ".join(str(r.id) for r in release.revisions) or "none"
            raise UserError(f"{self.name!r} has no revision {number}; there are: {known}")
        lines = list(self._target.logs(self.name, number))
        return "\n".join(lines[-tail:] if tail else lines)

    def drift(
        self,
        *,
        since: float | str | None = None,
        revision: int | None = None,
        threshold: float = 0.1,
        q: float = 0.05,
    ) -> DriftReport:
        """Compare what the servers were asked with the reference that the model was logged with; no rows are needed.

        Args:
            since: look so far back, in seconds or as `6h`; by default at all that the servers keep, a day.
            revision: the revision to look at, by default the one that serves.
            threshold, q: as for `mlopsnb.drift`.

        Raises `UserError` if the model has no reference, `DeployError` if no replica answers.
        """
        from mlopsnb import durations
        from mlopsnb.monitoring.replicas import live_drift

        found = self._found(revision)
        span = None if since is None else durations.seconds(since, of="since")
        return live_drift(self._target, self.name, found.id, seconds=span, threshold=threshold, q=q)

    def performance(
        self,
        labels: object = None,
        *,
        reference: Mapping[str, object],
        outputs: Mapping[str, str] | None = None,
        rows: int = 1000,
        since: float | str | None = None,
        revision: int | None = None,
    ) -> PerformanceReport:
        """Return how well the model does on what it was asked: estimated, and realised where labels have come.

        The rows are those that the server captured: `deploy(…, capture=0.1, target="process")`.

        Args:
            labels: a frame, a mapping of columns or a Parquet or CSV file with `request_id` (what the client sent as
                `x-request-id`, or was told there), `label`, and `row` where a request has several.
            reference: as for `watch_performance`: `labels`, and `scores`, `predictions`, or both, of data with labels.
            outputs: which of the model's outputs are the `scores` and the `predictions`; by default by their types.
            rows: rows in a span; since: look so far back, in seconds or as `6h`; revision: by default the one that serves.

        Raises `UserError` if nothing is captured or reached, or if labels, outputs and reference do not fit.
        """
        from mlopsnb import durations
        from mlopsnb.monitoring.captured import live_performance

        span = None if since is None else durations.seconds(since, of="since")
        found = self._found(revision)
        return live_performance(
            self.name, found, labels=labels, reference=reference, outputs=outputs, rows=rows, seconds=span
        )

    def _found(self, number: int | None) -> Revision:
        """Return the revision with that number, or the one that serves, or served last."""
        release = self.release
        current = rollout.latest(release)
        if number is None and current is not None:
            return current
        found = next((r for r in release.revisions if r.id == number), None)
        if found is None:
            known = ", ".join(str(r.id) for r in release.revisions) or "none"
            raise UserError(f"{self.name!r} has no revision {number or ''}; there are: {known}")
        return found

    def metrics(self, seconds: float | str = 1.0) -> Traffic:
        """Return what is sent to it and how it answers: rates, errors by kind, quantiles, batches, queue, CPU and memory.

        Watches for so many *seconds* (or a span such as `5m`), a figure each second or so, per revision, so that a canary
        is seen beside the stable one; the totals since the start are there too. Where the setting `prometheus` names a
        server it tells of the *seconds* that have passed, and nothing is waited for.
        Raises `DeployError` if nothing runs or answers.
        """
        from mlopsnb import durations
        from mlopsnb.monitoring import traffic

        release = self.release
        if not rollout.running(release):
            raise self._nothing_serves(release)
        span = durations.seconds(seconds, of="seconds")
        return traffic.watch(self._target, release, seconds=span, prometheus=settings().prometheus)

    def rollback(self, to: int | None = None) -> Deployment:
        """Serve an earlier revision again, as a new revision, without a failed request in between.

        Without *to* it is the one before the present one; while a canary is under way, the canary is ended and the stable
        revision gets all traffic back. Raises `UserError` if there is none, or no revision *to* that can serve.
        """
        with self._held() as hold:
            release = self.release
            pair = rollout.trial(release)
            if pair and to in (None, pair[0].id):
                execute(hold, rollout.abandon(release), timeout=settings().timeout)
                return self
            old = self._earlier(release, to)
            current = rollout.latest(release)
            new = replace(
                old,
                id=rollout.next_id(release),
                note=f"rollback to revision {old.id}",
                created=now(),
                origin=origin(),
                state="starting",
                port=None,
                grpc_port=current.grpc_port if current else None,
            )
            execute(hold, rollout.rolling(release, new), timeout=settings().timeout)
        return self

    def _earlier(self, release: Release, to: int | None) -> Revision:
        """Return the revision to roll back to; `UserError` if there is none."""
        current = rollout.latest(release)
        usable = {r.id: r for r in release.revisions if r.state != "failed" and r != current}
        if to is None:
            before = rollout.earlier(release)
            if before is None:
                raise UserError(
                    f"{self.name!r} has no revision to roll back to", hint="deploy another version first"
                )
            return before
        if to in usable:
            return usable[to]
        if current and to == current.id:
            raise UserError(f"revision {to} of {self.name!r} serves already")
        known = {r.id: r.state for r in release.revisions}
        found = (
            f"revision {to} of {self.name!r} failed"
            if to in known
            else f"{self.name!r} has no revision {to!r}"
        )
        raise UserError(f"{found}; it can go back to: {', '.join(map(str, usable)) or 'none'}")

    def promote(self) -> Deployment:
        """Give the canary all traffic and stop the others, without a failed request in between.

        Raises `UserError` if no canary is under way.
        """
        with self._held() as hold:
            release = self.release
            if rollout.trial(release) is None:
                raise UserError(
                    f"no canary of {self.name!r} is under way", hint="deploy(…, canary=10) starts one"
                )
            execute(hold, rollout.promote(release), timeout=settings().timeout)
        return self

    def scale(self, n: int) -> Deployment:
        """Serve with *n* replicas. Raises `UserError` during a canary, `DeployError` if the target cannot."""
        _checked_replicas(n)
        with self._held() as hold:
            release = self.release
            current = rollout.serving(release)
            if current is None:
                raise self._nothing_serves(release)
            if rollout.trial(release):
                raise UserError(
                    f"a canary of {self.name!r} is under way, which has its share by its replicas",
                    hint="promote() or rollback() it first",
                )
            if current.workload.replicas == n and current.workload.max_replicas is None:
                with step("scale") as log:
                    log.result = (
                        f"nothing changed: revision {current.id} has {n} replica{'s' if n != 1 else ''}"
                    )
                return self
            execute(hold, (Scale(current.id, n),), timeout=settings().timeout)
        return self

    def delete(self) -> None:
        """Stop it, let requests in flight end, and remove it with its history and logs."""
        with self._held():
            if self.release.revisions:
                carry_out(self._target, self.name, Forget(), settings().timeout)

    def _held(self) -> AbstractContextManager[Hold]:
        return background.hold(self._target, self._key)


class History(tuple["Revision", ...]):
    """Revisions, oldest first: a tuple that notebooks show as a table."""

    __slots__ = ()


class Deployments(tuple[Deployment, ...]):
    """Deployments: a tuple that notebooks show as a table.

    `rollouts` are those in the background of this kernel that go on, or came to nothing.
    """

    rollouts: tuple[Rollout, ...] = ()


def _checked_replicas(n: object) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UserError(f"replicas must be a number above 0, found {n!r}", hint="delete() ends a deployment")


def origin() -> Origin:
    """Return who deploys, from which machine, notebook and commit, as revisions note it."""
    from mlopsnb.tracking import provenance

    return provenance.origin()


def now() -> str:
    """Return the present time as revisions and packages note it (ISO 8601, UTC)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def get(name: str, *, target: str | None = None) -> Deployment:
    """Return the deployment *name* on *target*; without, on the target of the settings, or wherever it is.

    `UserError` with the nearest name if there is none, or if it is on several other targets.
    """
    usual = settings(target=target).target
    found: list[Deployment] = []
    known: list[str] = []
    looked: list[str] = []
    for kind in [usual] if target else sorted(plugins.available("target"), key=lambda kind: kind != usual):
        try:
            backend: Target = plugins.create("target", kind)
            if backend.observe(name).revisions or background.find(background.key(kind, name)):
                found.append(Deployment(name, backend, kind))
                if kind == usual:
                    break
            names = backend.names()
        except MlopsnbError as exc:
            if kind == usual:
                raise
            looked.append(f"on target {kind!r}, which could not be asked: {exc.message}")
            continue
        looked.append(f"on target {kind!r}; there are: {', '.join(names) or 'none'}")
        known += names
    if len(found) > 1:
        raise UserError(
            f"{name!r} is on the targets {', '.join(d.target for d in found)}",
            hint=f"say which: target={found[0].target!r}",
        )
    if not found:
        raise UserError(
            f"no deployment named {name!r} {', nor '.join(looked)}",
            hint=nearest(name, known) or "deployments() lists those of all targets",
        )
    return found[0]


def deployments(*, target: str | None = None) -> Deployments:
    """Return all deployments of *target*, or of every installed target that can be asked."""
    found: list[Deployment] = []
    usual = settings(target=target).target
    for kind in [target] if target else plugins.available("target"):
        try:
            backend: Target = plugins.create("target", kind)
            found += [Deployment(name, backend, kind) for name in backend.names()]
        except MlopsnbError:
            if kind == usual:  # of the others many a machine has no engine, or no cluster
                raise
    listed = Deployments(found)
    listed.rollouts = background.known(target)
    return listed
