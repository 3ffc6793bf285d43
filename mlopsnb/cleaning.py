"""Remove what can be made again and what nobody needs any more, and say what that was."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlopsnb import durations, identity, plugins, rollout
from mlopsnb.deployment import Deployment
from mlopsnb.errors import MlopsnbError, UserError
from mlopsnb.images.cache import Store
from mlopsnb.images.environment import prober
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlopsnb.protocols import Target
    from mlopsnb.records import Release

ANYBODY = "*"
"""The owner that means everybody."""

_PARTS = {
    "images/blobs": "packed layers",
    "images/environments": "environments",
    "layouts": "images that were kept in the cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleanup:
    """What was removed, and its bytes; with `dry_run` what would have been.

    `deployments` are those removed, each as `fraud on docker` with the reason; `skipped` says what could not be asked or
    removed, and why.
    """

    removed: tuple[tuple[str, int], ...] = ()
    deployments: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    dry_run: bool = False

    @property
    def freed(self) -> int:
        """Bytes of all that was removed."""
        return sum(size for _, size in self.removed)


def cleanup(
    *,
    images: bool = False,
    deployments: bool = False,
    older_than: float | str | None = None,
    owner: str | None = None,
    target: str | None = None,
    dry_run: bool = False,
) -> Cleanup:
    """Remove deployments that are past their time, and what past steps left in the cache.

    Args:
        images: packed layers, environments and resolved locks of past builds, and images that `build` wrote to the
            cache because it was told no other place; the next build makes what it needs again. Images in registries and
            engines stay.
        deployments: those whose TTL has passed since they were last deployed.
        older_than: deployments that were last deployed longer ago than this too, such as `7d`.
        owner: whose deployments: yours by default, somebody's by the name that their history shows, or `*` for all.
        target: where to look; on every installed target by default.
        dry_run: say what would be removed, and remove nothing.

    Returns:
        A `Cleanup`: what was removed, `.freed` bytes, and in `.skipped` the targets that could not be asked.

    Raises:
        UserError: nothing was chosen.
        BuildError: a build is using the cache; nothing was removed.
    """
    age = None if older_than is None else durations.seconds(older_than, of="older_than")
    if not (images or deployments or age is not None):
        raise UserError(
            "nothing was chosen to clean up",
            hint="cleanup(images=True), cleanup(deployments=True) or cleanup(older_than='7d')",
        )
    removed = _clean_cache(dry_run=dry_run) if images else ()
    gone: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    if deployments or age is not None:
        for found, why in _past(age, owner, target, skipped):
            label = f"{found.name} on {found.target}"
            try:
                if not dry_run:
                    found.delete()
            except MlopsnbError as exc:  # another deploy of it is under way, or its target refuses
                skipped.append((label, exc.message))
            else:
                gone.append((label, why))
    return Cleanup(removed=removed, deployments=tuple(gone), skipped=tuple(skipped), dry_run=dry_run)


def _clean_cache(*, dry_run: bool) -> tuple[tuple[str, int], ...]:
    cache = settings().cache_dir
    found = [(name, _size(cache / part)) for part, name in _PARTS.items()]
    if not dry_run:
        prober.end_all()
        Store(cache / "images").clear()
        shutil.rmtree(cache / "layouts", ignore_errors=True)
    return tuple((name, size) for name, size in found if size)


def _past(
    age: float | None, owner: str | None, target: str | None, skipped: list[tuple[str, str]]
) -> Iterator[tuple[Deployment, str]]:
    """Yield the deployments of *owner* whose time is over, and why; note what could not be asked in *skipped*."""
    whose = owner or identity.user()
    now = datetime.now(UTC)
    for kind in [target] if target else plugins.available("target"):
        try:
            backend: Target = plugins.create("target", kind)
            names = list(backend.names())
        except MlopsnbError as exc:
            if target:
                raise
            skipped.append((f"target {kind}", exc.message))
            continue
        for name in names:
            try:
                why = over(backend.observe(name), now, age=age, owner=whose)
            except MlopsnbError as exc:
                skipped.append((f"{name} on {kind}", exc.message))
                continue
            if why:
                yield Deployment(name, backend, kind), why


def over(release: Release, now: datetime, *, age: float | None, owner: str) -> str:
    """Return why the deployment is past its time, or nothing if it is not or is somebody else's.

    Its age is counted from its last deploy; what says of no one who made it is nobody's, and meant only by `*`.
    """
    last = max(release.revisions, key=lambda r: r.id, default=None)
    if last is None or owner not in (ANYBODY, last.origin.user) or not last.created:
        return ""
    seconds = (now - datetime.fromisoformat(last.created)).total_seconds()
    ttl = (rollout.serving(release) or last).workload.ttl
    if ttl is not None and seconds > ttl:
        return f"its TTL passed {_days(seconds - ttl)} ago"
    return f"deployed {_days(seconds)} ago" if age is not None and seconds > age else ""


def _days(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _size(directory: Path) -> int:
    """Return the bytes on the disk below *directory*; a file that has two names there counts once."""
    found = [(Path(root) / name).lstat() for root, _, names in os.walk(directory) for name in names]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in found}.values())
