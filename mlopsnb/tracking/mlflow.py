"""Keep packages in MLflow, wherever MLflow is configured to keep them: a server, a database, or its local default.

A model version holds our package beside MLflow's own flavours (see `mlflow_flavor`). Everything said here is said by
errors: MLflow's own messages, warnings and links stay out of the user's cell. Exports and deploys nothing.
"""

from __future__ import annotations

import errno
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlopsnb import identity, manifest
from mlopsnb.errors import TrackingError, UserError, nearest
from mlopsnb.extras import need
from mlopsnb.profiles import DriftProfile
from mlopsnb.records import Artifact, ModelVersion
from mlopsnb.tensors import is_frame
from mlopsnb.tracking import environment, mlflow_flavor, provenance
from mlopsnb.tracking.environment import without_user
from mlopsnb.tracking.mlflow_seam import seam

_BATCH = 100
"""Params, tags or metrics that MLflow takes in one request."""

_LISTED = 1000
"""Models or versions that are looked through."""

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/]+))?")
_RUN = re.compile(r"runs:/(?P<run>[^/]+)(?:/(?P<path>.+))?")


class MLflow:
    """Tracker `mlflow`. Reads MLflow's own configuration at every call and keeps none of its own."""

    def log(
        self,
        artifact: Artifact,
        *,
        name: str,
        metrics: Mapping[str, float],
        params: Mapping[str, object],
        tags: Mapping[str, str],
        alias: str | None,
        reference: object,
    ) -> ModelVersion:
        """Store the package and register it as the next version of *name*.

        Logs into the active run, which stays open; else into a run of its own. Lineage goes, as tags, onto the run
        and the version, and wins over *tags* of the same name. Of *reference* only digest and schema are logged.
        Raises `TrackingError`; no version is left behind then.
        """
        manifest.verify(artifact.path, manifest.read(artifact.path))
        numbers = _numbers(metrics)
        with seam(f"logging {name!r}") as mlflow:
            client = mlflow.MlflowClient()
            lock = environment.lock()
            lineage = provenance.collect(artifact, reference=reference, environment=lock)
            merged = {str(k): str(v) for k, v in tags.items()} | lineage
            with _run(mlflow, client, name) as run_id:
                _log_batches(client, run_id, numbers, params, merged)
                if reference is not None:
                    _log_reference(client, run_id, reference, lineage["mlopsnb.data_digest"])
                logged = mlflow.models.Model.log(
                    artifact_path=None,
                    name=_path(name),
                    flavor=mlflow_flavor,
                    run_id=run_id,
                    tags=merged,
                    artifact=artifact,
                    lock=lock,
                    validate_serving_input=False,  # export has proved the model; MLflow would load it once more
                )
                version = mlflow.register_model(f"models:/{logged.model_id}", name, tags=merged)
                if alias is not None:
                    _set_alias(client, version, alias)
            return _model_version(mlflow, version)

    def find(self, uri: str) -> ModelVersion:
        """Resolve `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/NAME` (the newest) or `runs:/ID/…`.

        Raises `UserError` if *uri* is none of these, `TrackingError`, which says what there is, if nothing is there.
        """
        model, run = _URI.fullmatch(uri), _RUN.fullmatch(uri)
        if model is None and run is None:
            raise UserError(
                f"{uri!r} is no model address",
                hint="use models:/NAME, models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/NAME",
            )
        with seam(f"looking for {uri}") as mlflow:
            client = mlflow.MlflowClient()
            if model is not None:
                found = _find_model(client, model["name"], model["version"] or "latest", model["alias"])
            else:
                assert run is not None
                found = _find_run(client, run["run"], run["path"])
            return _model_version(mlflow, found)

    def fetch(self, version: ModelVersion, into: Path) -> Artifact:
        """Bring the package of *version* into the directory *into*, which appears whole or not at all.

        Does nothing but verify if it is there already. Raises `UserError` if *into* holds something else,
        `TrackingError` if mlopsnb did not log this version or what was stored has been changed.
        """
        if into.exists() and any(into.iterdir()):
            return _present(version, into)
        if not version.digest:
            raise TrackingError(
                f"{version.uri} was not logged by mlopsnb: it holds no package",
                hint="log the model with mlopsnb; MLflow's own loaders can still load this version",
            )
        into.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as temporary:
            with seam(f"fetching {version.uri}") as mlflow:
                uri = f"models:/{version.name}/{version.version}/{mlflow_flavor.PACKAGE_DIR}"
                package = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=temporary))
            _verify(version, package)
            try:
                package.rename(into)
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return _present(version, into)  # another process was quicker
        return manifest.artifact(into)


def _present(version: ModelVersion, into: Path) -> Artifact:
    """Return the package that is in *into* already, if it is the one that is wanted."""
    try:
        _verify(version, into)
    except (manifest.BadPackage, TrackingError) as exc:
        raise UserError(
            f"{into} is not empty, and holds something else than {version.uri}",
            hint="give a directory that is empty",
        ) from exc
    return manifest.artifact(into)


def _verify(version: ModelVersion, package: Path) -> None:
    described = manifest.read(package)
    manifest.verify(package, described)
    if described.digest != version.digest:
        raise TrackingError(
            f"what is stored as {version.uri} is not what was logged: {described.digest}, logged {version.digest}",
            hint="somebody changed the stored files; log the model again",
        )


@contextmanager
def _run(mlflow: Any, client: Any, name: str) -> Iterator[str]:
    """Yield the active run, or a new one that is FINISHED at the end of the block, or FAILED."""
    if (active := mlflow.active_run()) is not None:
        yield active.info.run_id
        return
    # Through the client, so that the user's thread never has a run of ours as its active one.
    experiment = mlflow.tracking.fluent._get_experiment_id()
    run_id = client.create_run(experiment, run_name=name, tags={"mlflow.user": identity.user()}).info.run_id
    try:
        yield run_id
    except BaseException as exc:
        try:
            client.set_terminated(run_id, status="FAILED")
        except Exception:  # noqa: BLE001  what went wrong first is what must be told
            exc.add_note(f"run {run_id} could not be marked as failed")
        raise
    client.set_terminated(run_id, status="FINISHED")


def _path(name: str) -> str:
    """Return what a model is called inside its run, where MLflow is stricter than with registered names."""
    return re.sub(r"[/:.%\"']", "-", name)


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in metrics.items()}
    except (TypeError, ValueError) as exc:
        raise UserError(
            f"a metric is not a number: {exc}", hint="give a dict of numbers; texts go to params"
        ) from exc


def _log_batches(
    client: Any,
    run_id: str,
    metrics: Mapping[str, float],
    params: Mapping[str, object],
    tags: Mapping[str, str],
) -> None:
    entities = need("mlflow.entities", extra="mlflow")
    now = time.time_ns() // 1_000_000
    kinds = {
        "metrics": [entities.Metric(k, v, now, 0) for k, v in metrics.items()],
        "params": [entities.Param(str(k), str(v)) for k, v in params.items()],
        "tags": [entities.RunTag(k, v) for k, v in tags.items()],
    }
    for kind, items in kinds.items():
        for start in range(0, len(items), _BATCH):
            client.log_batch(run_id, **{kind: items[start : start + _BATCH]})


def _log_reference(client: Any, run_id: str, reference: Any, digest: str) -> None:
    """Say in MLflow's own terms which data this was, in context `reference`. The rows stay here."""
    entities = need("mlflow.entities", extra="mlflow")
    if isinstance(reference, DriftProfile):
        schema = {f.name: str(f.kind) for f in reference.features if f.role == "input"}
        rows = reference.rows
    else:
        parts = reference if isinstance(reference, Mapping) else {"reference": reference}
        columns = {c: reference[c] for c in reference.columns} if is_frame(reference) else parts
        schema = {str(name): f"{getattr(v, 'dtype', type(v).__name__)}" for name, v in columns.items()}
        rows = len(next(iter(parts.values()), ()))
    dataset = entities.Dataset(
        name="reference",
        digest=digest.removeprefix("sha256:")[:36],  # as much of it as MLflow stores
        source_type="code",
        source=json.dumps({"tags": {"mlopsnb.data_digest": digest}}),
        schema=json.dumps({"columns": schema}),
        profile=json.dumps({"num_rows": rows}),
    )
    context = entities.InputTag("mlflow.data.context", "reference")
    client.log_inputs(run_id, [entities.DatasetInput(dataset, [context])])


def _set_alias(client: Any, version: Any, alias: str) -> None:
    try:
        client.set_registered_model_alias(version.name, alias, version.version)
    except BaseException:
        client.delete_model_version(version.name, version.version)
        raise


def _find_model(client: Any, name: str, version: str, alias: str | None) -> Any:
    model = _found(client.get_registered_model, name)
    if model is None:
        names = [m.name for m in client.search_registered_models(max_results=_LISTED)]
        raise TrackingError(
            f"no registered model is named {name!r}; there are {', '.join(names) or 'none'}",
            hint=nearest(name, names),
        )
    if alias is not None:
        if alias not in model.aliases:
            known = sorted(model.aliases)
            raise TrackingError(
                f"model {name!r} has no alias {alias!r}; it has {', '.join(known) or 'none'}",
                hint=nearest(alias, known),
            )
        version = model.aliases[alias]
    elif version == "latest":
        newest = _versions(client, f"name={_quoted(name)}")
        if not newest:
            raise TrackingError(f"model {name!r} has no versions", hint="log one first")
        return newest[0]
    found = _found(client.get_model_version, name, version)
    if found is None:
        there = ", ".join(str(v.version) for v in reversed(_versions(client, f"name={_quoted(name)}")))
        raise TrackingError(f"model {name!r} has no version {version}; it has {there or 'none'}")
    return found


def _find_run(client: Any, run_id: str, path: str | None) -> Any:
    """Return the newest version that was registered from the run, by the name in *path* if it has several."""
    if _found(client.get_run, run_id) is None:
        raise TrackingError(f"there is no run {run_id}")
    versions = _versions(client, f"run_id={_quoted(run_id)}")
    versions.sort(key=lambda v: v.creation_timestamp, reverse=True)
    if not versions:
        raise TrackingError(f"run {run_id} has no registered model", hint="log the model with a name")
    named = [v for v in versions if _path(v.name) == path]
    return (named or versions)[0]


def _found(get: Callable[..., Any], *key: str) -> Any:
    """Return what *get* gets, or None if MLflow says that it does not exist."""
    exceptions = need("mlflow.exceptions", extra="mlflow")
    try:
        return get(*key)
    except exceptions.MlflowException as exc:
        if exc.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _versions(client: Any, condition: str) -> list[Any]:
    """Return the newest versions that meet *condition*, newest first."""
    found = client.search_model_versions(condition, max_results=_LISTED)
    return sorted(found, key=lambda v: int(v.version), reverse=True)


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def _model_version(mlflow: Any, found: Any) -> ModelVersion:
    tags = dict(found.tags)
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        uri=f"models:/{found.name}/{found.version}",
        digest=tags.get(provenance.ARTIFACT_DIGEST, ""),
        run_id=found.run_id or "",
        tracking_uri=without_user(mlflow.get_tracking_uri()),
        tags=tags,
    )
