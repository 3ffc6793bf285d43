"""The check of a revision that runs and has no traffic yet: does it answer as the original model did?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlopsnb import manifest, parity
from mlopsnb.errors import DeployError

if TYPE_CHECKING:
    from mlopsnb.protocols import Target
    from mlopsnb.records import Revision


def check(target: Target, name: str, revision_id: int) -> str:
    """Replay the golden example against the revision and compare with what the original model answered; say how near it is.

    Raises `DeployError` if it answers otherwise, or not at all.
    """
    from mlopsnb.client import Client

    revision = next(r for r in target.observe(name).revisions if r.id == revision_id)
    with tempfile.TemporaryDirectory(prefix="mlopsnb-") as scratch:
        package = _package(revision, Path(scratch))
        stored = manifest.read(package)
        inputs, wanted = manifest.read_example(package)
    with target.reach(name, revision_id) as address, Client(address, name) as client:
        found = client.infer(inputs, check=True)
    # JSON has one word, null, for all that is not finite.
    wanted = {k: np.where(np.isfinite(a), a, np.nan) if a.dtype.kind == "f" else a for k, a in wanted.items()}
    report = parity.compare(wanted, found, tolerance=stored.parity.tolerance if stored.parity else None)
    if error := parity.failure(report):
        raise DeployError(
            f"revision {revision_id} does not answer as the original model did: {error.message}"
        )
    return f"answers the golden example as the original did (max error {report.max_abs_error:.2g})"


def _package(revision: Revision, scratch: Path) -> Path:
    """Return a directory with the manifest and the golden example of what *revision* serves.

    That is its package if it is still the same on this machine; else they come out of its image.
    """
    package = revision.package
    here = package is not None and (package / manifest.FILE).exists()
    if here and package and (not revision.image or manifest.read(package).digest == revision.digest):
        return package
    if not revision.image:
        raise DeployError(f"revision {revision.id} has no package to check it with")
    from mlopsnb.images import holding

    return holding.golden(revision.image, scratch)
