"""The seams. Everything that can be swapped is swapped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np

    from mlopsnb.images.image import Destination, Image
    from mlopsnb.images.plan import ImagePlan
    from mlopsnb.records import Artifact, ModelVersion, Release, Revision, Signature
    from mlopsnb.rollout import Action
    from mlopsnb.tensors import Example

Delivery = Literal["package", "registry", "engine", "kind", "minikube", "k3d"]
"""What a target runs: a package, or an image in a registry, in this machine's engine, or loaded into a local cluster."""

Tensors = Mapping[str, "np.ndarray[Any, Any]"]
Predict = Callable[[Tensors], Tensors]

THREADS: ContextVar[int] = ContextVar("THREADS", default=0)
"""The threads that a call of the model may use, for a format that has to say so in `load`; 0: as its framework likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A model tied to its example: the inputs have names, and the original can be called with them.

    `inputs` are the example's arrays in the dtypes that the model takes; `predict` runs the original in
    inference mode. `feature_names` name the last axis of an input that came as a DataFrame.
    """

    model: Any
    inputs: Tensors
    predict: Predict
    feature_names: Mapping[str, tuple[str, ...]]


class Format(Protocol):
    """All we know about one way to store a model: how to write it and how to run it.

    You provide the four methods; you get the parity proof, the package, logging and serving.
    """

    def accepts(self, model: object) -> bool:
        """Say whether *model* is of a kind this format can export. Imports nothing."""
        ...

    def bind(self, model: object, example: Example) -> AbstractContextManager[Bound]:
        """Name the inputs. The model is in inference mode inside the block and as it was after it."""
        ...

    def export(self, bound: Bound, into: Path) -> Exported:
        """Write the model's files into the directory *into*; raise `ExportError` if it can't be."""
        ...

    def load(self, path: Path, signature: Signature) -> Predict:
        """Return the model stored in *path*, ready to be called from one thread at a time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What a format has to say of an export: what it needs to run, and notes for people."""

    requirements: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Tracker(Protocol):
    """Keeps packages under a name and a version."""

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
        """Store the package and register it as the next version of *name*."""
        ...

    def find(self, uri: str) -> ModelVersion:
        """Resolve `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `runs:/ID/…`; `TrackingError` if it is not there."""
        ...

    def fetch(self, version: ModelVersion, into: Path) -> Artifact:
        """Bring the package into the directory *into* and verify its digest."""
        ...


class Builder(Protocol):
    """Makes the image that a plan describes. It decides nothing that the plan says."""

    def build(self, plan: ImagePlan, to: Destination) -> Image:
        """Make the image and bring it to its destination; `BuildError` if it cannot be done.

        Whatever goes wrong, an interrupt included, no tag, no half image and no lock is left; what was packed is kept
        for the next build.
        """
        ...


class Target(Protocol):
    """Says what runs, and does one action. It plans nothing."""

    def delivery(self) -> Delivery:
        """Say what a revision has to come as: a package on this machine, or an image, and where that has to be.

        Asked before anything is built; `DeployError` if the target cannot be reached, or could not get an image.
        """
        ...

    def takes(self) -> Collection[str]:
        """Name the fields of `Workload` that it gives a revision; what asks for others is refused beforehand."""
        ...

    def check(self, name: str, draft: Revision) -> None:
        """Raise `UserError` or `DeployError` if *draft*, of which nothing is built yet, cannot be served under *name*."""
        ...

    def splits(self, name: str) -> bool:
        """Say whether `Shift` can give shares of the traffic of *name* to several revisions at a time."""
        ...

    def observe(self, name: str) -> Release:
        """Say what is there under *name* now, from what really runs; an empty release if nothing is."""
        ...

    def names(self) -> Sequence[str]:
        """List the names of all releases on this target."""
        ...

    def apply(self, name: str, action: Action, *, timeout: float) -> None:
        """Carry out one action; raise `DeployError` if that fails, `NotReady` after *timeout* seconds."""
        ...

    def logs(self, name: str, revision_id: int) -> Iterator[str]:
        """Yield the log lines of one revision so far, oldest first, without line ends."""
        ...

    def reach(self, name: str, revision_id: int) -> AbstractContextManager[str]:
        """Yield an address of this one revision (`http://HOST:PORT` or `unix:PATH`) that works inside the block.

        It need not have traffic yet. `DeployError` if it does not run.
        """
        ...

    def ask(self, name: str, revision_id: int, path: str) -> Mapping[str, bytes]:
        """GET *path*, such as `/metrics`, from each running replica of a revision, and return the bodies by replica.

        A replica that does not answer within seconds is left out.
        """
        ...

    def claim(self, name: str) -> AbstractContextManager[None]:
        """Hold *name* against other deploys; `DeployError` at once if another one holds it."""
        ...
