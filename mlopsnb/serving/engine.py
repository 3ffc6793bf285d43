"""The model: loads a package, proves that it runs, and runs it away from the event loop. Knows no protocol.

All calls of the model, loading included, come from one thread, as formats ask for; frameworks keep settings such
as the number of threads by thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from mlopsnb import manifest, plugins
from mlopsnb.errors import MlopsnbError
from mlopsnb.manifest import BadPackage, Manifest
from mlopsnb.serving.errors import BadRequest, ModelFailure, summary
from mlopsnb.tensors import Array, dtype_name, take_rows

if TYPE_CHECKING:
    from mlopsnb.protocols import Predict
    from mlopsnb.records import Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The model's outputs, in the signature's order, and the seconds that the call took."""

    outputs: Mapping[str, Array]
    seconds: float


class Engine:
    """One loaded model. `ready` turns false for good when even the golden example no longer runs."""

    def __init__(
        self, package: Manifest, predict: Predict, golden: Mapping[str, Array], pool: ThreadPoolExecutor
    ) -> None:
        self.manifest = package
        self.ready = True
        self._predict = predict
        self._golden = golden
        self._pool = pool

    @classmethod
    def load(cls, path: Path) -> Engine:
        """Load the package in *path* and warm it up on its golden example.

        Raises `BadPackage` if it is damaged, `UnknownBackend` or `MissingExtra` if its format is not installed,
        `ModelFailure` if the model cannot be loaded, does not run, or does not answer as its signature says.
        """
        package = manifest.read(path)
        manifest.verify(path, package)
        try:
            golden, _ = manifest.read_example(path)
        except (OSError, ValueError, BadZipFile) as exc:
            raise BadPackage(f"the golden example of {path} cannot be read: {summary(exc)}") from exc
        backend = plugins.create("format", package.format)
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        try:
            predict = pool.submit(_load, backend, path / manifest.MODEL_DIR, package.signature).result()
            engine = cls(package, predict, golden, pool)
            pool.submit(engine._warm_up).result()
        except BaseException:
            pool.shutdown(wait=False)
            raise
        return engine

    def _warm_up(self) -> None:
        """Run the golden example: all of it, and one row, the size that most requests have."""
        batches = [self._golden]
        if all(s.shape and s.shape[0] is None for s in self.manifest.signature.inputs):
            batches.append(take_rows(self._golden, 1))
        for inputs in batches:
            try:
                _checked(self._predict(inputs), self.manifest.signature)
            except MlopsnbError:
                raise
            except Exception as exc:
                raise ModelFailure(f"the model fails on its own example: {summary(exc)}") from exc

    async def infer(self, inputs: Mapping[str, Array]) -> Answer:
        """Run the model on *inputs*, which fit the signature.

        Raises `BadRequest` (rejected) if the model fails on them alone, `ModelFailure` if it fails altogether.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._infer, inputs)

    def _infer(self, inputs: Mapping[str, Array]) -> Answer:
        start = time.perf_counter()
        try:
            outputs = _checked(self._predict(inputs), self.manifest.signature)
        except Exception as exc:
            self._still_works(exc)
            shapes = ", ".join(f"{k!r} {dtype_name(a)} {list(a.shape)}" for k, a in inputs.items())
            raise BadRequest(
                f"the model cannot take this input: {summary(exc)}; the inputs were {shapes}", kind="rejected"
            ) from exc
        return Answer(outputs=outputs, seconds=time.perf_counter() - start)

    def _still_works(self, exc: Exception) -> None:
        """Run the golden example after *exc*; if that fails as well, the model is to blame."""
        try:
            _checked(self._predict(self._golden), self.manifest.signature)
        except Exception as second:  # noqa: BLE001  told in the failure, beside its cause
            self.ready = False
            raise ModelFailure(
                f"the model fails, on its own example too: {summary(second)}",
                hint="the server is no longer ready; start it anew",
            ) from exc


def _load(backend: object, path: Path, signature: Signature) -> Predict:
    try:
        predict: Predict = backend.load(path, signature)  # type: ignore[attr-defined]
    except MlopsnbError:
        raise
    except Exception as exc:
        raise ModelFailure(f"the model cannot be loaded: {summary(exc)}") from exc
    return predict


def _checked(outputs: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """Return *outputs* in order; `ModelFailure` unless they have the signature's names and dtypes."""
    found = {name: dtype_name(array) for name, array in outputs.items()}
    if found != {s.name: s.dtype for s in signature.outputs}:
        expected = ", ".join(f"{s.name} {s.dtype}" for s in signature.outputs)
        came = ", ".join(f"{name} {dtype}" for name, dtype in found.items())
        raise ModelFailure(f"the model's outputs should be {expected}; found {came or 'none'}")
    return {s.name: outputs[s.name] for s in signature.outputs}
