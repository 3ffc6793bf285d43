"""OCI image layouts, as a directory or as a tar of one: write an image into one, read a base out of one.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md. A tar also has the `manifest.json` of
`docker save`, so that engines that know no OCI layout load it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlopsnb.images.plan import Descriptor
    from mlopsnb.images.registry import Manifest, OnBytes

Blobs = Mapping[str, Path | bytes]
"""All blobs of an image, configuration included, by digest: the file that holds it, or its bytes."""


def write_directory(
    path: Path, manifest: Manifest, blobs: Blobs, *, name: str, on_bytes: OnBytes | None = None
) -> int:
    """Add an image to the layout directory *path* under *name* (`fraud:v3-1a2b3c4`); return the bytes written.

    Blobs are linked or cloned where the file system can, and not written if they are there. The index is replaced
    last, so others see the old one or the new one; if anything fails, what was new is removed again. `LayoutError` if
    *path* is something else than a layout or an empty directory.
    """
    raise NotImplementedError


def write_archive(
    path: Path, manifest: Manifest, blobs: Blobs, *, name: str, on_bytes: OnBytes | None = None
) -> int:
    """Write an image to the tar *path*, replacing it when all is written; return its bytes. Equal images, equal tars."""
    raise NotImplementedError


class Layout:
    """A layout directory, or a tar of one, to read from; `LayoutError` if it is neither."""

    def __init__(self, path: Path) -> None:
        raise NotImplementedError

    def manifest(self, ref: str = "") -> Manifest:
        """Return the manifest or index named *ref* (a tag, a name with a tag, or a digest), verified.

        Without *ref* it is the only one there is. `LayoutError` lists what there is if that is not clear.
        """
        raise NotImplementedError

    def has(self, digest: str) -> bool:
        """Say whether the blob is there."""
        raise NotImplementedError

    def blob(self, blob: Descriptor) -> Iterator[bytes]:
        """Yield a blob in order; `LayoutError` if it is absent or, after the last piece, if it was another one."""
        raise NotImplementedError

    def read(self, blob: Descriptor) -> bytes:
        """Return a small blob, such as a configuration, verified."""
        raise NotImplementedError
