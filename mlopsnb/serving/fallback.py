"""A smaller model that answers while the main one cannot: because it fails, has too much to do, or is too late.

Loaded beside the main model, with the same signature. An answer is of one model alone, and says if it is of the
fallback. What is wrong with a request is told by the main model and never tried elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlopsnb.errors import MlopsnbError
from mlopsnb.manifest import BadPackage
from mlopsnb.serving import tuning
from mlopsnb.serving.engine import Engine
from mlopsnb.serving.errors import DeadlineExceeded, ModelFailure, Overloaded

if TYPE_CHECKING:
    from mlopsnb.records import Signature, TensorSpec
    from mlopsnb.serving.batcher import Job, Outputs
    from mlopsnb.serving.stages import Asker, Done, Stage
    from mlopsnb.tensors import Array

REASONS: dict[type[Exception], str] = {
    ModelFailure: "failure",
    Overloaded: "overloaded",
    DeadlineExceeded: "deadline",
}
"""What sends a request to the fallback, and what that is called."""

GRACE_SECONDS = 1.0
"""How long a request whose deadline has passed may wait for the fallback."""

_log = logging.getLogger("mlopsnb.serving")


def load(path: Path, main: Engine) -> Engine:
    """Load the package in *path* to stand in for *main*.

    Raises what `Engine.load` raises, and `BadPackage` if its signature is another.
    """
    try:
        spare = Engine.load(path)
    except MlopsnbError as exc:
        exc.message = f"the fallback: {exc.message}"
        raise
    if wrong := differences(main.manifest.signature, spare.manifest.signature):
        spare.close()
        raise BadPackage(
            f"{path} cannot be the fallback: {'; '.join(wrong)}",
            hint="a fallback takes all inputs of the model and gives the same outputs",
        )
    if main.plan.inline:  # both call their models in this thread, whose setting is now the fallback's
        tuning.set_threads(main.plan.threads)
    return spare


def differences(main: Signature, spare: Signature) -> list[str]:
    """Say where a model of the signature *spare* cannot answer to requests that were made for *main*."""
    found = _names("inputs", main.inputs, spare.inputs) + _names("outputs", main.outputs, spare.outputs)
    if found:
        return found
    for side, ours, theirs in (("input", main.inputs, spare.inputs), ("output", main.outputs, spare.outputs)):
        by_name = {s.name: s for s in theirs}
        for spec in ours:
            other = by_name[spec.name]
            narrow, wide = (spec, other) if side == "input" else (other, spec)
            what = f"{side} {spec.name!r}"
            if spec.dtype != other.dtype:
                found.append(f"{what} is {spec.dtype} for the model and {other.dtype} for the fallback")
            if not _within(narrow.shape, wide.shape):
                found.append(
                    f"{what} has the shape {_shape(spec)} for the model and {_shape(other)} for the fallback"
                )
            if side == "input" and spec.allow_nan and not other.allow_nan:
                found.append(f"{what} may have missing values, which the fallback does not take")
            if spec.feature_names and other.feature_names and spec.feature_names != other.feature_names:
                found.append(f"{what} has other features, or in another order")
    return found


def _names(side: str, main: Iterable[TensorSpec], spare: Iterable[TensorSpec]) -> list[str]:
    ours, theirs = ([s.name for s in specs] for specs in (main, spare))
    if sorted(ours) == sorted(theirs):
        return []
    return [f"the model's {side} are {', '.join(ours)}, the fallback's {', '.join(theirs)}"]


def _within(narrow: tuple[int | None, ...], wide: tuple[int | None, ...]) -> bool:
    """Say whether all arrays of the shape *narrow* have the shape *wide* too."""
    return len(narrow) == len(wide) and all(w in (None, n) for n, w in zip(narrow, wide, strict=True))


def _shape(spec: TensorSpec) -> list[int]:
    return [-1 if n is None else n for n in spec.shape]


@dataclass(slots=True, eq=False)
class _Asked:
    """One request, and what the two models know it by."""

    asker: Asker
    inputs: Mapping[str, Array]
    rows: int
    done: Done
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    handle: object | None = None
    spare_job: Job | None = None


class WithFallback:
    """*main*, and the engine *spare* for the requests that it fails."""

    def __init__(self, main: Stage, spare: Engine) -> None:
        self._main = main
        self._spare = spare
        self._answered = dict.fromkeys(REASONS.values(), 0)
        digest = spare.manifest.digest
        self._headers = ((b"x-model-degraded", b"fallback"), (b"x-model-fallback", digest.encode()))

    @property
    def ready(self) -> bool:
        """Whether one of the two works."""
        return self._main.ready or self._spare.ready

    @property
    def waits(self) -> bool:
        """Whether requests may have to wait."""
        return self._main.waits or self._spare.waits

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Which model stands in, and whether it does so for good."""
        manifest = self._spare.manifest
        told = {
            "digest": manifest.digest,
            "format": manifest.format,
            "ready": self._spare.ready,
            "model_failed": not self._main.ready,
            "batching": self._spare.batching,
        }
        return {**self._main.parameters, "fallback": told}

    def families(self, labels: Mapping[str, str]) -> Iterable[Metric]:
        """Return how often the fallback answered, and why."""
        names, values = list(labels), list(labels.values())
        count = CounterMetricFamily(
            "mlopsnb_fallback", "Requests that the fallback answered, by why.", labels=[*names, "reason"]
        )
        for reason, answered in self._answered.items():
            count.add_metric([*values, reason], answered)
        degraded = GaugeMetricFamily(
            "mlopsnb_degraded", "1 if the model has failed for good and the fallback answers.", labels=names
        )
        degraded.add_metric(values, not self._main.ready)
        return *self._main.families(labels), count, degraded

    def admit(self) -> None:
        """Raise `Overloaded` if neither takes anything in."""
        try:
            self._main.admit()
        except Overloaded:
            self._spare.admit()

    def submit(
        self,
        asker: Asker,
        inputs: Mapping[str, Array],
        rows: int,
        done: Done,
        *,
        deadline: float | None,
        loop: asyncio.AbstractEventLoop,
        at_once: bool = False,
    ) -> _Asked:
        """Let the main model answer, or the fallback; if both fail, what the main one said is the answer."""
        asked = _Asked(asker, inputs, rows, done, deadline, loop)

        def arrived(job: object, outcome: Outputs | Exception) -> None:
            if type(outcome) in REASONS:
                assert isinstance(outcome, Exception)
                self._degrade(asked, outcome)
            else:
                done(job, outcome)

        if not self._main.ready:
            self._degrade(asked, ModelFailure("the model has failed, and so has the fallback"))
            return asked
        try:
            asked.handle = self._main.submit(
                asker, inputs, rows, arrived, deadline=deadline, loop=loop, at_once=at_once
            )
        except Overloaded as exc:
            self._degrade(asked, exc)
        return asked

    def cancel(self, handle: _Asked) -> None:
        """Forget a request, wherever it is."""
        if handle.handle is not None:
            self._main.cancel(handle.handle)
        if handle.spare_job is not None:
            self._spare.cancel(handle.spare_job)

    def _degrade(self, asked: _Asked, cause: Exception) -> None:
        """Let the fallback answer, as the main model gave *cause*."""
        reason = REASONS[type(cause)]
        deadline = asked.deadline
        if isinstance(cause, DeadlineExceeded):
            deadline = asked.loop.time() + GRACE_SECONDS

        def arrived(job: object, outcome: Outputs | Exception) -> None:
            if isinstance(outcome, Exception):
                _log.warning(  # their words may show values of the request
                    "the fallback did not answer either: %s after %s", type(outcome).__name__, reason
                )
                asked.done(job, cause)
                return
            self._answered[reason] += 1
            asked.asker.degraded = reason
            asked.asker.told += self._headers
            asked.done(job, outcome)

        try:
            asked.spare_job = self._spare.submit(
                asked.asker, asked.inputs, asked.rows, arrived, deadline=deadline, loop=asked.loop
            )
        except Overloaded:
            asked.done(None, cause)
