"""How a model package comes to be on this disk: exported from a model, and proved to equal it, or fetched from where
it was logged.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb import manifest, parity, plugins
from mlopsnb.deployment import now
from mlopsnb.errors import ExportError, MlopsnbError, UnsupportedModel, UserError
from mlopsnb.events import step
from mlopsnb.images.sizes import size_text
from mlopsnb.records import Artifact, ModelVersion, Signature
from mlopsnb.settings import settings
from mlopsnb.tensors import dtype_name, read_example, rows_of, specs_of, take_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlopsnb.profiles import DriftProfile
    from mlopsnb.protocols import Bound, Format, Tensors, Tracker
    from mlopsnb.tensors import Example

TRACKER = "mlflow"

_PREFERRED = ("torchscript", "savedmodel")
"""Formats tried before the others when none is asked for: the fastest to serve of each framework."""

_EXAMPLE_ROWS = 64
"""Rows of the example that are used: more would only take time."""

_GOLDEN_VALUES = 100_000
"""Numbers that the golden example holds at most, beyond its first row."""


def export(
    model: object,
    example: object,
    *,
    format: str | None = None,
    into: str | Path | None = None,
    tolerance: float | None = None,
) -> Artifact:
    """Export *model* and prove that the export answers as the original does.

    Args:
        model: a `torch.nn.Module` (in any mode; it is exported in eval mode and left as it was), a Keras
            model, a callable `tf.Module`, a fitted scikit-learn estimator, an `onnx.ModelProto`, or the path of a
            `.onnx` file.
        example: a few rows that the model can predict on: an array, tensor or DataFrame of shape
            (rows, …), or a dict or tuple of them if the model has several inputs. Its first 64 rows count.
        format: `torchscript`, `torch_export`, `savedmodel` or `onnx`; by default the first of these that fits.
        into: a directory to make; by default one in the cache, named by the content's digest.
        tolerance: how much an output may differ, see `mlopsnb.parity`; by default 1e-4 for float32.

    Raises:
        UnsupportedModel: no format accepts the model.
        ParityError: the export differs from the original; the message names the output and the place.
        ExportError: the model cannot be exported, or the disk is full. In every case nothing is kept.
    """
    given = read_example(example).head(_EXAMPLE_ROWS)
    name = pick_format(model, format)
    fmt: Format = plugins.create("format", name)
    with _room(into) as draft:
        files = draft / manifest.MODEL_DIR
        files.mkdir()
        with fmt.bind(model, given) as tied:
            bound = replace(tied, predict=parity.Original(tied.predict))
            with step("export", name) as log:
                following = parity.check_original(bound.predict, bound.inputs)
                golden = take_rows(bound.inputs, _golden_rows(bound.inputs))
                outputs = bound.predict(golden)
                signature = _signature(bound, outputs, following)
                exported = fmt.export(bound, files)
                log.result = f"{name}, {_size(files)}"
            with step("verify") as log:
                report = parity.prove(
                    bound.predict,
                    fmt.load(files, signature),
                    bound.inputs,
                    tolerance=tolerance,
                    notes=exported.notes,
                )
                parity.require(report)
                log.result = (
                    f"equals the original in {len(report.checks)} checks (max error {report.max_abs_error:.2g}), "
                    f"{report.exported_ms:.2g} ms against {report.original_ms:.2g} ms"
                )
        manifest.write_example(draft, golden, outputs)
        made = manifest.Manifest(
            format=name,
            signature=signature,
            files=manifest.file_digests(draft),
            requirements=exported.requirements,
            example_dtypes=_given_dtypes(given, bound),
            python=platform.python_version(),
            created=now(),
            parity=report,
        )
        manifest.write(draft, made)
        return manifest.artifact(_keep(draft, into, made.digest))


def with_reference(artifact: Artifact, reference: object) -> tuple[Artifact, DriftProfile]:
    """Return *artifact* with the profile of *reference* in its package, for whoever serves it to count on, and the profile.

    The package is a new one beside the old, with a digest of its own: the same files and `reference.json`. The same
    reference gives the same package. *reference* is what `log` takes. Raises `UserError` if it does not fit the model.
    """
    from mlopsnb import profiles
    from mlopsnb.monitoring.reference import profile_reference

    described = manifest.read(artifact.path)
    manifest.verify(artifact.path, described)
    made = profile_reference(artifact, reference)
    with _room(None) as draft:
        for name in described.files:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, draft / name)
        (draft / profiles.FILE).write_text(profiles.to_json(made), encoding="utf-8")
        described = replace(described, files=manifest.file_digests(draft))
        manifest.write(draft, described)
        return manifest.artifact(_keep(draft, None, described.digest)), made


def pick_format(model: object, asked: str | None) -> str:
    """Return the format that *model* is exported to: the one *asked* for, else the first that accepts it.

    Raises `UnsupportedModel` if none does.
    """
    if asked is not None:
        fmt: Format = plugins.create("format", asked)
        if fmt.accepts(model):
            return asked
        fitting = ", ".join(_accepting(model))
        raise UnsupportedModel(model, asked=asked, supported=fitting and f"formats that accept it: {fitting}")
    for name in _accepting(model):
        return name
    raise UnsupportedModel(model)


def _accepting(model: object) -> list[str]:
    """Return the installed formats that accept *model*, the preferred ones first."""
    names = sorted(plugins.available("format"), key=lambda name: (name not in _PREFERRED, name))
    return [name for name in names if plugins.create("format", name).accepts(model)]


def _signature(bound: Bound, outputs: Tensors, following: frozenset[str]) -> Signature:
    named = [specs_of({name: a}, free_rows=name in following)[0] for name, a in outputs.items()]
    return Signature(inputs=specs_of(bound.inputs, feature_names=bound.feature_names), outputs=tuple(named))


def _given_dtypes(given: Example, bound: Bound) -> dict[str, str]:
    """Return the dtypes of the example as the user has it; MLflow will be given the same, and is strict."""
    arrays = dict(zip(bound.inputs, given.positional, strict=True)) if given.positional else given.named
    return {name: dtype_name(arrays.get(name, a)) for name, a in bound.inputs.items()}


def _golden_rows(inputs: Tensors) -> int:
    """Return how many rows the golden example keeps: it is sent as JSON at every deploy, so it stays small."""
    rows = rows_of(inputs)
    return max(1, min(rows, _GOLDEN_VALUES * rows // max(1, sum(a.size for a in inputs.values()))))


def _size(directory: Path) -> str:
    return size_text(sum(p.stat().st_size for p in directory.rglob("*") if p.is_file()))


@contextmanager
def _room(into: str | Path | None) -> Iterator[Path]:
    """Yield a draft directory beside the place of the package; whatever fails, the draft goes."""
    if into is not None and Path(into).exists() and (not Path(into).is_dir() or any(Path(into).iterdir())):
        raise UserError(
            f"{into} is there already", hint="choose a directory that does not exist yet, or is empty"
        )
    parent = Path(into).absolute().parent if into is not None else settings().cache_dir / "artifacts"
    draft: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
        yield draft
    except Exception as exc:
        # What a framework wrapped is found in our own error's cause; our own words are not searched.
        if (reason := _no_room(exc.__cause__ if isinstance(exc, MlopsnbError) else exc)) is not None:
            raise ExportError(
                f"the export cannot be written below {parent}: {reason}; nothing was kept",
                hint="free some space, give into=, or set MLOPSNB_CACHE_DIR to another disk",
            ) from exc
        raise
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _no_room(exc: BaseException | None) -> str | None:
    """Return why the file system refused, if it did; frameworks wrap its errors in their own."""
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno is not None:
            return os.strerror(exc.errno)
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            if os.strerror(number) in str(exc):
                return os.strerror(number)
        exc = exc.__cause__ or exc.__context__
    return None


def _keep(draft: Path, into: str | Path | None, digest: str) -> Path:
    """Move the finished draft to its place in one step; a package that is there already is the same."""
    place = Path(into).absolute() if into is not None else _place(draft.parent, digest)
    if into is not None and place.exists():
        place.rmdir()
    elif (place / manifest.FILE).exists():
        manifest.verify(place, manifest.read(place))
        return place
    draft.chmod(0o755)
    try:
        draft.rename(place)
    except OSError:
        if not (place / manifest.FILE).exists():  # else another export of the same content was faster
            raise
    return place


def find(uri: str) -> ModelVersion:
    """Return the model version that `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `runs:/ID/…` means."""
    tracker: Tracker = plugins.create("tracker", TRACKER)
    return tracker.find(uri)


def fetch(version: ModelVersion, into: Path) -> Artifact:
    """Return the package of *version*: the one that was exported on this machine, if it is in the cache still, else it is
    brought into the directory *into*, which is made. `TrackingError` if it can't be had.
    """
    tracker: Tracker = plugins.create("tracker", TRACKER)
    with step("fetch", version.uri) as said:
        artifact = _cached(version) or tracker.fetch(version, into)
        said.result = version.uri
    return artifact


def _cached(version: ModelVersion) -> Artifact | None:
    place = _place(settings().cache_dir / "artifacts", version.digest)
    try:
        described = manifest.read(place)
        if described.digest != version.digest:
            return None
        manifest.verify(place, described)
        return manifest.artifact(place)
    except manifest.BadPackage:
        return None


def _place(parent: Path, digest: str) -> Path:
    """Return where a package of that digest lies below *parent*, unless somebody wants it elsewhere."""
    return parent / digest.removeprefix("sha256:")[:16]


def name_of(what: object, *, of: str) -> str:
    """Return the name of the registered model that *what* is, or `UserError`: *of* what a name is needed for."""
    if isinstance(what, ModelVersion):
        return what.name
    if isinstance(what, str) and what.startswith("models:/"):
        return what.removeprefix("models:/").partition("/")[0].partition("@")[0]
    raise UserError(f"{of} needs a name", hint="name='fraud'")
