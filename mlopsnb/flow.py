"""The steps in order, each one function from a record to the next: export, log, deploy.

Data goes forward: no step holds the one before it. Steps report `Event`s and print nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb import background, plugins, rollout, servers, shipping, strategies, workloads
from mlopsnb.deployment import Deployment, check_name, now, origin
from mlopsnb.errors import UserError
from mlopsnb.events import step
from mlopsnb.executing import execute
from mlopsnb.images.image import Image
from mlopsnb.monitoring.sources import is_streamed
from mlopsnb.packages import TRACKER, export, fetch, find, name_of, pick_format, with_reference
from mlopsnb.records import Artifact, ModelVersion, Revision
from mlopsnb.settings import settings
from mlopsnb.shipping import Cargo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlopsnb.protocols import Delivery, Target, Tracker
    from mlopsnb.rollout import Action


def log(
    artifact: Artifact,
    *,
    name: str,
    reference: object = None,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    alias: str | None = None,
) -> ModelVersion:
    """Log *artifact* to MLflow and register it as the next version of *name*.

    The tracking server is the one that MLflow is configured with, else MLflow's local store. The version has
    the signature, the input example, the environment's lock and the lineage (git commit, notebook, cell,
    data), and loads with `mlflow.pyfunc.load_model` as well.

    Args:
        artifact: what `export` returned.
        name: the registered model's name.
        reference: the data that the model was trained on, as the model takes it: a DataFrame (other columns may be
            beside), an array or a dict of arrays; for more than fits in memory Parquet files (a path, paths, a
            `pyarrow.dataset.Dataset`) or an iterator of frames. Its profile (bins, counts, levels: see
            `mlopsnb.profiles`) becomes part of the package that is logged, which therefore has another digest than
            *artifact*; a server of it counts what it is asked, for `Deployment.drift`. Rows are not stored.
        metrics: numbers such as ``{"accuracy": 0.97}``.
        params: training parameters.
        tags: tags of the run and the version.
        alias: an alias to set on the version, such as `champion`.

    Raises:
        TrackingError: the server does not answer or refuses; no version is registered.
    """
    if not isinstance(artifact, Artifact):
        raise UserError(
            f"log takes what export returned, found {type(artifact).__name__}", hint="export it first"
        )
    version, _ = _log(
        artifact, name=name, reference=reference, metrics=metrics, params=params, tags=tags, alias=alias
    )
    return version


def _log(
    artifact: Artifact,
    *,
    name: str,
    reference: object,
    metrics: Mapping[str, float] | None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    alias: str | None = None,
) -> tuple[ModelVersion, Artifact]:
    """Log *artifact*, with the profile of *reference* if there is one; return also the package that was logged."""
    if reference is not None:
        artifact, made = with_reference(artifact, reference)
        reference = made if is_streamed(reference) else reference  # a stream has been read, and is gone
    tracker: Tracker = plugins.create("tracker", TRACKER)
    with step("log", name) as said:
        version = tracker.log(
            artifact,
            name=name,
            metrics=metrics or {},
            params=params or {},
            tags=tags or {},
            alias=alias,
            reference=reference,
        )
        said.result = f"{version.uri}{f' (alias {alias})' if alias else ''}"
    return version, artifact


def deploy(
    what: object,
    *,
    name: str | None = None,
    example: object = None,
    reference: object = None,
    metrics: Mapping[str, float] | None = None,
    format: str | None = None,
    target: str | None = None,
    port: int | None = None,
    grpc_port: int | None = None,
    env: Mapping[str, str] | None = None,
    cache_bytes: int | None = None,
    capture: float | None = None,
    mask: Sequence[str] = (),
    fallback: Artifact | ModelVersion | str | None = None,
    workers: int = 1,
    replicas: int = 1,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    cpu: float | str | None = None,
    memory: int | str | None = None,
    gpu: int = 0,
    secrets: Sequence[str] = (),
    config_maps: Sequence[str] = (),
    node_selector: Mapping[str, str] | None = None,
    tolerations: Sequence[Mapping[str, str] | str] = (),
    expose: str = "cluster",
    host: str = "",
    network_policy: bool = False,
    platform: str = "kubernetes",
    ttl: float | str | None = None,
    strategy: str | None = None,
    canary: int | Sequence[int] | str | None = None,
    match: str | None = None,
    gate: str | None = None,
    pause: float | str | None = None,
    force: bool = False,
    wait: bool = True,
    timeout: float | None = None,
    dry_run: bool = False,
) -> Any:
    """Serve *what* under *name*, running the steps that are missing: export, log, start, check, route.

    The new revision runs beside the old one until it has answered its golden example as the original model
    did; then it gets the traffic, without a failed request in between. If anything fails, Ctrl-C included,
    what served before serves on.

    Args:
        what: a model (give *example*), an `Artifact`, a `ModelVersion`, or a URI: `models:/fraud/3`,
            `models:/fraud@champion`, `runs:/…`. Where images are run, also an `Image` or an image's name
            (`ghcr.io/team/fraud@sha256:…`); one is built of anything else.
        name: the deployment's name, a DNS label; by default that of the model version.
        example, format: as for `export`; reference, metrics: as for `log`.
        target: where to run it: `process` (this machine), `docker` (its container engine) or `kubernetes` (a cluster).
        port: the port to serve on; by default a free one, kept by later revisions.
        grpc_port: serve gRPC too, on this port, or with 0 on a free one; kept by later revisions, off by default.
            Calls and connections that are on the wire at the moment when a revision gives way may end with
            `CANCELLED` or `UNAVAILABLE`, as gRPC has it: clients that wait for ready and retry these notice nothing.
        env: environment variables of the server.
        cache_bytes: keep answers, in so much memory, for rows that come again; by default none.
        capture: write the rows of this share of the requests, and their answers, to files of the deployment, for
            `performance` to join with labels; by default none. They are what clients sent: mind who may read them.
        mask: names of inputs, outputs and features that are left out of these files.
        fallback: an `Artifact`, a `ModelVersion` or a URI: a smaller model of the same signature, which answers
            while this one fails, is overloaded or late.
        workers: processes that share the port, each with the model in its memory.
        replicas: containers of the revision, each with its own server. Targets say which of these and the following
            they know. With *min_replicas* and *max_replicas* the target scales between the two by itself.
        cpu: cores for each replica: `2`, `0.5`, `"500m"`; memory: bytes or `"512Mi"`; gpu: a number of GPUs.
        secrets, config_maps: names of those in the cluster whose keys become environment variables.
        node_selector, tolerations: labels of the nodes to run on (a mapping), and taints to put up with (mappings, or
            `"dedicated=ml:NoSchedule"`).
        expose: how clients outside reach it: `cluster`, `nodeport`, `loadbalancer`, `ingress` or `gateway`; *host* is
            the name for the last two.
        network_policy: let in only what the cluster's policies allow.
        platform: what serves it on a cluster: `kubernetes`, which needs nothing more, or `kserve`.
        ttl: how long it may stay before a clean-up removes it: seconds, or `"7d"`.
        strategy: `rolling` (the default), `blue-green` or `canary`; behind a Gateway also `ab` and `shadow`, which gets
            a copy of every request and answers nobody. Both stay until `promote()` or `rollback()`.
        canary: the canary's shares of the traffic in percent. `10` stays there until `promote()` or `rollback()`;
            `(10, 50)` goes on by itself, with a gate or a pause at each, and then gets all.
        match: which requests are for the new revision of an `ab`: those with a header (`"header:X-Group=b"`, or
            `"header:X-User=~[0-3]$"` by a regular expression), or so many percent of the sessions (`"session:20"`), each
            of which stays where it was sent first.
        gate: what the new revision has to keep under real traffic, such as ``error_rate<0.01 and p99_ms<200``: a canary
            at each of its shares, otherwise after the switch while the old one still runs. If it does not, the old one
            serves on.
        pause: how long each of these takes, such as `30s` (the default with a gate) or `5m`.
        force: deploy also what runs already in just this way; without it that changes nothing.
        wait: without, return as soon as what reads your objects is done (export, proof, log), and go on in the
            background of this process; `Deployment.wait` waits for it, `cancel` ends it, and what it fails with is told
            by `wait` and by `deployments`. It ends with the process, and what served before serves on.
        timeout: seconds to wait for the new revision to become ready.
        dry_run: return the actions that would be carried out, and do nothing.

    Returns:
        The `Deployment`, or with *dry_run* a tuple of actions.

    Raises:
        GateRejected: the gate said no, or (`NotEnoughRequests`) could not tell.
        DeployError: the target failed or refused; `NotReady` if the model server did not become ready.
        UserError, ExportError, TrackingError: from the steps before.
    """
    chosen = settings(target=target, timeout=timeout)
    backend: Target = plugins.create("target", chosen.target)
    name = check_name(name or shipping.title(what) or name_of(what, of="a deployment"))
    how = strategies.choose(strategy=strategy, canary=canary, match=match, gate=gate, pause=pause)
    workload = workloads.read(
        replicas=replicas,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        cpu=cpu,
        memory=memory,
        gpu=gpu,
        secrets=secrets,
        config_maps=config_maps,
        node_selector=node_selector,
        tolerations=tolerations,
        expose=expose,
        host=host,
        network_policy=network_policy,
        platform=platform,
        ttl=ttl,
    )
    workloads.check(workload, backend.takes(), chosen.target)
    how.check(backend, name, chosen.target, expose=workload.expose)
    draft = Revision(
        id=0,
        source="",
        digest="",
        created=now(),
        origin=origin(),
        note=how.note,
        workload=workload,
        **servers.read(
            env=env,
            port=port,
            grpc_port=grpc_port,
            cache_bytes=cache_bytes,
            capture=capture,
            mask=mask,
            workers=workers,
        ),
    )
    backend.check(name, draft)
    delivery = backend.delivery()
    _check_capture(draft, delivery, chosen.target)
    spare = _found_fallback(fallback, delivery, chosen.target)
    if dry_run:
        return _plan(backend, name, draft, how, Cargo(source=_describe(what), digest=""))
    order = _Order(
        backend=backend,
        target=chosen.target,
        name=name,
        delivery=delivery,
        draft=draft,
        spare=spare,
        how=how,
        force=force,
        timeout=chosen.timeout,
    )
    order.carry_out(what, wait=wait, example=example, reference=reference, metrics=metrics, format=format)
    return Deployment(name, backend, chosen.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What `deploy` was asked for, read and checked."""

    backend: Target
    target: str
    name: str
    delivery: Delivery
    draft: Revision
    spare: Artifact | ModelVersion | None
    how: strategies.Strategy
    force: bool
    timeout: float

    def carry_out(self, what: object, *, wait: bool, **given: Any) -> None:
        """Bring *what* to where it serves. What reads the caller's objects, which may change later, is done on return."""
        with background.hold(self.backend, background.key(self.target, self.name)) as hold:
            scratch = Path(hold.kept.enter_context(tempfile.TemporaryDirectory(prefix="mlopsnb-")))
            is_image = shipping.is_image(what, self.delivery)
            brought = what if is_image else _version(what, name=self.name, **given)
            named = isinstance(what, str | ModelVersion)
            work = partial(self._roll_out, hold, brought, named=named, scratch=scratch)
            if wait:
                work()
            else:
                hold.go_on(work)

    def _roll_out(self, hold: background.Hold, brought: Any, *, named: bool, scratch: Path) -> None:
        """Serve an image, or a version with its package if that is here; nothing, if it serves already."""
        if isinstance(brought, tuple):
            version, artifact = brought
            cargo = shipping.of_version(version, artifact, self.delivery, name=self.name, scratch=scratch)
        else:
            cargo = shipping.of_image(brought, self.delivery, target=self.target)
        draft = self.draft
        if (spare := self.spare) is not None:
            found = spare if isinstance(spare, Artifact) else fetch(spare, scratch / "fallback")
            draft = replace(draft, fallback=found.path)
        plan = _plan(self.backend, self.name, draft, self.how, cargo)
        new = next(a.revision for a in plan if isinstance(a, rollout.Start))
        if self.force or not strategies.keep(self.backend.observe(self.name), new, named=named):
            execute(hold, plan, timeout=self.timeout)


def _check_capture(draft: Revision, delivery: Delivery, target: str) -> None:
    if draft.capture is not None and delivery != "package":
        raise UserError(
            f"target {target!r} captures no rows: their files would be in a container, and end with it",
            hint="leave capture out, deploy to target='process', or start the image with --capture and a volume",
        )


def _found_fallback(what: object, delivery: Delivery, target: str) -> Artifact | ModelVersion | None:
    if what is not None and delivery != "package":
        raise UserError(
            f"target {target!r} knows no fallback: an image holds one package",
            hint="leave it out, or deploy to target='process'",
        )
    if what is None or isinstance(what, Artifact | ModelVersion):
        return what
    if isinstance(what, str):
        return find(what)
    raise UserError(
        f"the fallback must be an artifact, a model version or its URI, found {type(what).__name__}",
        hint="export makes an artifact: fallback=export(model, example)",
    )


def _plan(
    backend: Target, name: str, draft: Revision, how: strategies.Strategy, cargo: Cargo
) -> tuple[Action, ...]:
    """Decide what to do, from what runs now. Touches nothing."""
    present = backend.observe(name)
    kept = [r.grpc_port for r in present.revisions if r.state != "failed"][-1:]
    new = replace(
        draft,
        grpc_port=draft.grpc_port if draft.grpc_port is not None or not kept else kept[0],
        id=rollout.next_id(present),
        source=cargo.source,
        digest=cargo.digest,
        package=cargo.package,
        image=cargo.image,
        weights=cargo.weights,
    )
    return tuple(how.plan(present, new))


def _version(
    what: object,
    *,
    name: str,
    example: object,
    reference: object,
    metrics: Mapping[str, float] | None,
    format: str | None,
) -> tuple[ModelVersion, Artifact | None]:
    """Return *what* as a model version, and its package if that is on this machine already."""
    if isinstance(what, ModelVersion):
        return what, None
    if isinstance(what, str):
        return find(what), None
    if isinstance(what, Artifact):
        return _log(what, name=name, reference=reference, metrics=metrics)
    if example is None:
        pick_format(what, format)  # a model of no known kind is the first thing to say
        raise UserError(
            "a model needs an example to be exported with", hint="deploy(model, example=X_test[:10], …)"
        )
    artifact = export(what, example, format=format)
    return _log(artifact, name=name, reference=reference, metrics=metrics)


def _describe(what: object) -> str:
    if isinstance(what, ModelVersion):
        return what.uri
    if isinstance(what, Artifact):
        return what.digest
    if isinstance(what, Image):
        return what.reference
    return what if isinstance(what, str) else f"{type(what).__name__}, not exported yet"
