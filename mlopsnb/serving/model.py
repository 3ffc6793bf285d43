"""One instance of the model: loads it, proves that it runs, and runs batches on it. Knows no event loop.

Formats promise a model that one thread at a time may call. So each instance is loaded anew, and whoever owns it
calls it from one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from mlopsnb import manifest, plugins
from mlopsnb.errors import MlopsnbError
from mlopsnb.manifest import BadPackage, Manifest
from mlopsnb.protocols import THREADS
from mlopsnb.serving import batcher, lean_torch
from mlopsnb.serving.errors import BadRequest, ModelFailure, summary
from mlopsnb.tensors import Array, dtype_name, take_rows

if TYPE_CHECKING:
    from mlopsnb.protocols import Predict
    from mlopsnb.serving.batcher import Batch, Outputs


def import_framework(format: str) -> None:
    """Import what models of *format* run on, where a server needs less of it than others do."""
    if format == "torchscript":
        lean_torch.import_torch()


@dataclass(slots=True)
class Ran:
    """What came of a batch: for each piece its outputs or why there are none, and the calls: rows and seconds.

    `begin` is when it began, on the clock that times it, and `seconds` all that it took.
    `joinable` is false when the outputs of the whole batch did not follow its rows.
    """

    results: list[Outputs | Exception] = field(default_factory=list)
    calls: list[tuple[int, float]] = field(default_factory=list)
    begin: float = 0.0
    seconds: float = 0.0
    joinable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A verified model package and its golden example, with the answers that the original model gave to it."""

    path: Path
    manifest: Manifest
    golden: Mapping[str, Array]
    answers: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Package:
        """Read the package in *path*; `BadPackage` if it is damaged."""
        package = manifest.read(path)
        manifest.verify(path, package)
        try:
            golden, answers = manifest.read_example(path)
        except (OSError, ValueError, BadZipFile) as exc:
            raise BadPackage(f"the golden example of {path} cannot be read: {summary(exc)}") from exc
        return cls(path=path, manifest=package, golden=golden, answers=answers)

    def blank(self) -> Package:
        """Return the package with zeros and empty text for its example, and no answers to it."""
        zeros = {
            name: np.full_like(array, "" if array.dtype.kind in "OSU" else 0)
            for name, array in self.golden.items()
        }
        return replace(self, golden=zeros, answers={})

    @property
    def bytes(self) -> int:
        """Return the size of its files."""
        return sum((self.path / name).stat().st_size for name in self.manifest.files)


class Model:
    """One loaded model. `broken` turns true for good when even the golden example no longer runs."""

    def __init__(self, package: Package, predict: Predict) -> None:
        self.broken = False
        self.signature = package.manifest.signature
        self.golden = package.golden
        self._predict = predict
        self._expected = {s.name: s.dtype for s in self.signature.outputs}

    @classmethod
    def load(cls, package: Package, threads: int = 1) -> Model:
        """Load the model and warm it up on its golden example.

        *threads* are told to formats that have to know them now; see `tuning.set_threads` for the others.
        Raises `UnknownBackend` or `MissingExtra` if its format is not installed, `ModelFailure` if the model
        cannot be loaded, does not run, or does not answer as its signature says.
        """
        backend = plugins.create("format", package.manifest.format)
        import_framework(package.manifest.format)
        before = THREADS.set(threads)
        try:
            predict: Predict = backend.load(package.path / manifest.MODEL_DIR, package.manifest.signature)
        except MlopsnbError:
            raise
        except Exception as exc:
            raise ModelFailure(f"the model cannot be loaded: {summary(exc)}") from exc
        finally:
            THREADS.reset(before)
        model = cls(package, predict)
        model._warm_up()
        return model

    def _warm_up(self) -> None:
        """Run the golden example: all of it, and one row, the size that most requests have."""
        batches = [self.golden]
        if all(s.shape and s.shape[0] is None for s in self.signature.inputs):
            batches.append(take_rows(self.golden, 1))
        for inputs in batches:
            try:
                self.call(inputs)
            except MlopsnbError:
                raise
            except Exception as exc:
                raise ModelFailure(f"the model fails on its own example: {summary(exc)}") from exc

    def call(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the model's outputs in order; `ModelFailure` unless they have the signature's names and dtypes."""
        outputs = self._predict(inputs)
        expected = self._expected
        ordered: dict[str, Array] = {}
        for name, dtype in expected.items():
            array = outputs.get(name)
            if array is None or dtype_name(array) != dtype:
                raise self._unexpected(outputs)
            ordered[name] = array
        if len(outputs) != len(expected):
            raise self._unexpected(outputs)
        return ordered

    def _unexpected(self, outputs: Mapping[str, Array]) -> ModelFailure:
        expected = ", ".join(f"{s.name} {s.dtype}" for s in self.signature.outputs)
        came = ", ".join(f"{name} {dtype_name(array)}" for name, array in outputs.items())
        return ModelFailure(f"the model's outputs should be {expected}; found {came or 'none'}")

    def run(self, batch: Batch) -> Ran:
        """Run the pieces of *batch* in one call; if that fails, one by one, so that only the guilty one fails."""
        ran = Ran()
        ran.begin = time.perf_counter()
        if len(batch) > 1:
            try:
                outputs = self._timed(batcher.joined(batch), sum(p.stop - p.start for p in batch), ran)
                ran.results = list(batcher.split(outputs, batch))
            except batcher.NotByRows:
                ran.joinable = False
            except Exception:  # noqa: BLE001, S110  each is run again below, and tells its own
                pass
        if not ran.results:
            ran.results = [self._alone(batch, index, ran) for index in range(len(batch))]
        ran.seconds = time.perf_counter() - ran.begin
        return ran

    def _alone(self, batch: Batch, index: int, ran: Ran) -> Outputs | Exception:
        """Return what the model makes of one piece.

        `BadRequest` (rejected) if it fails on that alone, `ModelFailure` if it fails altogether.
        """
        piece = batch[index]
        inputs = piece.inputs
        try:
            outputs = self._timed(inputs, piece.stop - piece.start, ran)
            return outputs if piece.whole else batcher.split(outputs, [piece])[0]
        except Exception as exc:  # noqa: BLE001  handed on as the answer
            return self._explained(exc, inputs)

    def _timed(self, inputs: Mapping[str, Array], rows: int, ran: Ran) -> Outputs:
        begin = time.perf_counter()
        outputs = self.call(inputs)
        ran.calls.append((rows, time.perf_counter() - begin))
        return outputs

    def _explained(self, exc: Exception, inputs: Mapping[str, Array]) -> Exception:
        """Run the golden example after *exc*; if that fails as well, the model is to blame."""
        told: Exception
        try:
            self.call(self.golden)
        except Exception as second:  # noqa: BLE001  told in the failure, beside its cause
            self.broken = True
            told = ModelFailure(
                f"the model fails, on its own example too: {summary(second)}",
                hint="the server is no longer ready; start it anew",
            )
        else:
            shapes = ", ".join(f"{k!r} {dtype_name(a)} {list(a.shape)}" for k, a in inputs.items())
            told = BadRequest(
                f"the model cannot take this input: {summary(exc)}; the inputs were {shapes}", kind="rejected"
            )
        told.__cause__ = exc
        return told
