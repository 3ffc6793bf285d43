"""What is said of an image beside it in its registry: its bill of materials, and a signature if there is a key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import BuildError, UserError
from mlopsnb.events import step

if TYPE_CHECKING:
    from mlopsnb.images.image import Destination, Image


def check(to: Destination, sign: Path | None) -> None:
    """Raise `UserError` if a signature is asked for where none can lie."""
    if sign is not None and to.place != "registry":
        raise UserError(
            "a signature lies beside the image in a registry, and this image goes to none",
            hint="give registry=…, or leave sign out",
        )


def key_of(sign: Path | None) -> Any:
    """Return the key to sign with, or None if none is asked for; read before anything is built."""
    if sign is None:
        return None
    from mlopsnb.images.signing import read_key

    return read_key(sign)


def attest(image: Image, key: Any) -> None:
    """Attach the bill of materials of *image* to it, and a signature by *key* if that is given.

    Does nothing for an image that is in no registry. If it fails, the image is there without them; building again
    sends nothing but them.
    """
    if image.destination.place != "registry":
        return
    from mlopsnb.images import referrers, sbom, signing
    from mlopsnb.images.plan import Descriptor
    from mlopsnb.images.references import parse
    from mlopsnb.images.registry import connect

    name = parse(image.reference)
    with (
        step("attest", image.tagged) as said,
        connect(name.registry) as registry,
    ):
        try:
            manifest = registry.manifest(name.repository, image.digest)
            subject = Descriptor(media_type=manifest.media_type, digest=image.digest, size=len(manifest.data))
            bill = sbom.text(image.sbom())
            referrers.attach(registry, name.repository, subject, bill, sbom.MEDIA_TYPE, title=sbom.FILE)
            if key is not None:
                signing.sign(registry, name.repository, subject, key)
        except BuildError as exc:
            exc.add_note(
                f"{image.tagged} is there, without its bill of materials or signature; build it again"
            )
            raise
        said.result = (
            "bill of materials attached" if key is None else "bill of materials attached, and signed"
        )
