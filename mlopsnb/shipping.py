"""From whatever a person deploys to what the target runs: a package on this machine, or an image where it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb.building import build
from mlopsnb.errors import UserError
from mlopsnb.events import step
from mlopsnb.images import holding
from mlopsnb.images.image import Image
from mlopsnb.images.references import parse
from mlopsnb.images.weights import LABEL
from mlopsnb.packages import fetch
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from mlopsnb.protocols import Delivery
    from mlopsnb.records import Artifact, ModelVersion

_ADDRESSES = ("models:/", "runs:/")
_TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """What a revision is of: where the model came from, its digest, and its package, its image, or both.

    `weights` is the image that holds the weights which that one does not.
    """

    source: str
    digest: str
    package: Path | None = None
    image: str = ""
    weights: str = ""


def is_image(what: object, delivery: Delivery) -> bool:
    """Say whether *what* is an image, or names one; where packages are run, only the record of one is."""
    named = isinstance(what, str) and not what.startswith(_ADDRESSES) and delivery != "package"
    return isinstance(what, Image) or named


def title(what: object) -> str:
    """Return the name that an image goes by, or nothing if *what* is none."""
    if isinstance(what, Image):
        return what.labels.get(_TITLE, "")
    if isinstance(what, str) and not what.startswith(_ADDRESSES):
        return parse(what).repository.rpartition("/")[2]
    return ""


def of_image(what: object, delivery: Delivery, *, target: str) -> Cargo:
    """Return what a built image is of; `UserError` if the target cannot run it, `BuildError` if it cannot be found."""
    if delivery == "package":
        raise UserError(
            f"target {target!r} runs packages, not images", hint="give the model, its artifact or its version"
        )
    if isinstance(what, Image):
        if what.destination.path is not None and delivery in ("engine", "registry"):
            raise UserError(
                f"the image lies in {what.destination.path}, where target {target!r} does not find it",
                hint="build it with load='engine', or push=True",
            )
        return _cargo(what.reference, dict(what.labels), what.weights)
    reference = str(what)
    named = parse(reference)
    if not named.digest and not named.tag:
        raise UserError(f"{reference} says no version", hint="name a tag, or better a digest: NAME@sha256:…")
    with step("fetch", reference) as said:
        reference = holding.pinned(reference) if delivery == "registry" else reference
        cargo = _cargo(reference, dict(holding.labels(reference)))
        said.result = f"{reference}, of {cargo.source}"
    return cargo


def _cargo(reference: str, labels: dict[str, str], weights: str = "") -> Cargo:
    beside, slash, _ = reference.rpartition("/")
    if not weights and LABEL in labels:
        weights = f"{beside}{slash}{labels[LABEL]}"
    return Cargo(
        source=labels.get(holding.MODEL, "") or reference,
        digest=labels[holding.PACKAGE_DIGEST],
        image=reference,
        weights=weights,
    )


def of_version(
    version: ModelVersion, artifact: Artifact | None, delivery: Delivery, *, name: str, scratch: Path
) -> Cargo:
    """Return what the target runs of a model version, whose package is *artifact* if it is on this machine already.

    A package is fetched into *scratch*; an image is built and brought to where the target finds it. The image's weights
    are in it: whoever keeps them apart builds it first.
    """
    if delivery == "package":
        found = artifact or fetch(version, scratch / "package")
        return Cargo(source=version.uri, digest=found.digest, package=found.path)
    if delivery == "registry" and not settings().registry:
        raise UserError(
            "the target takes images from a registry, and none is set",
            hint="name one that you may push to: %mlopsnb set registry=ghcr.io/team, or MLOPSNB_REGISTRY",
        )
    image: Image = build(
        version,
        name=name,
        separate_weights=False,
        push=delivery == "registry",
        load=None if delivery == "registry" else delivery,
    )
    package = artifact.path if artifact else None
    return Cargo(source=version.uri, digest=image.package_digest, package=package, image=image.reference)
