"""Profile the data that a model was trained on as the model sees it: its tensors, and its own answers on them.

The server counts what it is sent in the same places and the same precision. Writes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlopsnb import manifest, plugins
from mlopsnb.errors import UserError
from mlopsnb.events import step
from mlopsnb.monitoring.profiling import ProfileBuilder
from mlopsnb.monitoring.sources import PARTS, look, parts, rows_in
from mlopsnb.profiles import DriftProfile, Feature
from mlopsnb.tensors import arrange, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlopsnb.records import Artifact, TensorSpec

Array = np.ndarray[Any, Any]

MOST_COLUMNS = 512
"""Columns of one tensor that are counted at most: counters take memory in every server."""

OUTPUT_ROWS = 20_000
"""Rows that the model is asked about; more would not tell its answers better, only take time."""

_BATCH = 1000


def profile_reference(artifact: Artifact, reference: object) -> DriftProfile:
    """Return the profile of *reference*, and of the answers that *artifact* gives on some of its rows.

    *reference* is what `sources.parts` takes, each part being what the model takes, with labels and other columns
    beside if it is a frame; or a profile made by `ProfileBuilder`, which has no answers then. Raises `UserError` if it does not fit the model's inputs.
    """
    if isinstance(reference, DriftProfile):
        return _bound(reference, artifact)
    builder = ProfileBuilder()
    with step("profile") as said:
        ask = _asker(artifact)
        if (seen := look(reference)) is not None and rows_in(seen):
            _count(builder, _fitted(seen, artifact), artifact.signature.inputs, "input", count=False)
        for part in parts(reference):
            inputs = _fitted(part, artifact)
            rows = rows_of(inputs)
            builder.add_rows(rows)
            _count(builder, inputs, artifact.signature.inputs, "input")
            if (answers := ask(inputs, rows)) is not None:
                _count(builder, answers, artifact.signature.outputs, "output")
        made = builder.finish()
        said.result = f"{len(made.features)} features and outputs, {made.rows:,} rows"
    return made


def _bound(profile: DriftProfile, artifact: Artifact) -> DriftProfile:
    """Return a profile that was made elsewhere, of columns, with the places of these in the model's inputs."""
    places: dict[str, tuple[TensorSpec, int | None]] = {}
    specs = artifact.signature.inputs
    for spec in specs:
        width = 1 if len(spec.shape) < 2 else spec.shape[1] or 0
        names = spec.feature_names or tuple(f"feature_{i}" for i in range(width if len(specs) == 1 else 0))
        places |= {name: (spec, i if len(spec.shape) > 1 else None) for i, name in enumerate(names)}
        places.setdefault(spec.name, (spec, None if len(spec.shape) < 2 else 0))
    unknown = [f.name for f in profile.features if f.role == "input" and f.name not in places]
    if unknown:
        raise UserError(
            f"the reference does not fit the model: the model has no input {unknown[0]!r}",
            hint=f"profile these columns: {', '.join(list(places)[:20])}",
        )
    return replace(
        profile,
        features=tuple(_placed(f, *places[f.name]) for f in profile.features if f.role == "input"),
    )


def _placed(feature: Feature, spec: TensorSpec, column: int | None) -> Feature:
    """Return *feature* at its place, its bins in the precision that the model sees: 0.1 is another number in float32."""
    feature = replace(feature, tensor=spec.name, column=column)
    if spec.dtype not in ("float16", "float32"):
        return feature

    def narrowed(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(np.dtype(spec.dtype).type(v).item() if isinstance(v, float) else v for v in values)

    with np.errstate(over="ignore"):
        low, high = narrowed((feature.low, feature.high))
        return replace(
            feature, edges=narrowed(feature.edges), levels=narrowed(feature.levels), low=low, high=high
        )


def _fitted(part: object, artifact: Artifact) -> dict[str, Array]:
    try:
        return arrange(part, artifact.signature)
    except UserError as exc:
        raise UserError(
            f"the reference does not fit the model: {exc.message}",
            hint="give the rows that the model takes, after any preprocessing outside of it",
        ) from exc


def _count(
    builder: ProfileBuilder,
    tensors: Mapping[str, Array],
    specs: tuple[TensorSpec, ...],
    role: Literal["input", "output"],
    *,
    count: bool = True,
) -> None:
    for spec in (spec for spec in specs if spec.name in tensors):
        array = tensors[spec.name]
        names = column_names(spec, array, alone=len(specs) == 1, role=role)
        if not names:
            builder.skip(spec.name, _why_not(array), role=role, tensor=spec.name)
        elif array.ndim == 1:
            builder.add_column(names[0], array, role=role, tensor=spec.name, count=count)
        else:
            for place, name in enumerate(names):
                builder.add_column(
                    name, array[:, place], role=role, tensor=spec.name, place=place, count=count
                )


def column_names(spec: TensorSpec, array: Array, *, alone: bool, role: str) -> tuple[str, ...]:
    """Return what the columns of a tensor are called; nothing if it has none that can be counted.

    By the frame's columns; else by the tensor's name, or as `feature_0`, `output_0`, … if it is the only one.
    """
    if array.ndim == 1:
        return (spec.name,)
    if array.ndim != 2 or not 0 < array.shape[1] <= MOST_COLUMNS:
        return ()
    width = array.shape[1]
    if len(spec.feature_names) == width:
        return spec.feature_names
    if width == 1:
        return (spec.name,)
    stem = {"input": "feature", "output": "output"}[role] if alone else spec.name
    return tuple(f"{stem}_{i}" for i in range(width))


def _why_not(array: Array) -> str:
    if array.ndim == 2:
        return f"{array.shape[1]} columns are too many to be counted; {MOST_COLUMNS} are the most"
    return f"shape {array.shape[1:]} a row is not compared; only numbers, booleans and text in columns are"


def _asker(artifact: Artifact) -> Callable[[Mapping[str, Array], int], dict[str, Array] | None]:
    """Return a function that gives the model's answers on some rows of a part, and None once it has been asked enough."""
    predict = plugins.create("format", artifact.format).load(
        artifact.path / manifest.MODEL_DIR, artifact.signature
    )
    following = [spec.name for spec in artifact.signature.outputs if spec.shape[:1] == (None,)]
    left = OUTPUT_ROWS if following else 0

    def ask(inputs: Mapping[str, Array], rows: int) -> dict[str, Array] | None:
        nonlocal left
        wanted = min(left, rows, OUTPUT_ROWS // PARTS)
        if not wanted:
            return None
        left -= wanted
        chosen = np.linspace(0, rows - 1, wanted).astype(np.intp)
        answers: list[Mapping[str, Array]] = []
        for start in range(0, wanted, _BATCH):
            some = chosen[start : start + _BATCH]
            answers.append(predict({k: a[some] if a.ndim else a for k, a in inputs.items()}))
        return {name: np.concatenate([one[name] for one in answers]) for name in following}

    return ask
