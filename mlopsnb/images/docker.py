"""The builder `docker`: the exported context, built by a container engine.

For users' own Dockerfile steps and Debian packages, and for machines whose engine is to have the image anyway. The
environment of a model's last build is kept under a name, so that the next one stands on it. Nothing else is left of a
build but the image, and nothing of one that fails.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlopsnb import events
from mlopsnb.errors import BuildError
from mlopsnb.images import context, dockerfile, wheels
from mlopsnb.images.blobs import pieces
from mlopsnb.images.buildlog import BuildLog
from mlopsnb.images.cache import Store
from mlopsnb.images.delivery import deliver
from mlopsnb.images.engine_builds import BuildEngine
from mlopsnb.images.environment import sources
from mlopsnb.images.errors import EngineFull
from mlopsnb.images.layers import archive
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from mlopsnb.images.image import Destination, Image
    from mlopsnb.images.plan import Entry, ImagePlan

CACHE = "mlopsnb-cache"
"""The repository whose tags keep the environments of last builds, one for each model's name."""

_SETTLE_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_IDLE_ROUNDS = 4


class Docker:
    """Builds with the engine that `docker` would use.

    *apt* names Debian packages, and *steps* are instructions of a Dockerfile (`"RUN …"`), that the base is given before
    anything else.
    """

    def __init__(self, *, apt: Sequence[str] = (), steps: Sequence[str] = ()) -> None:
        self._apt, self._steps = tuple(apt), tuple(steps)

    def build(self, plan: ImagePlan, to: Destination) -> Image:
        """Have the engine build the image, and bring it to its destination.

        Raises `EngineNotRunning`, `EngineForbidden`, `EngineError` for what the engine refuses, `BuildError` with the
        last lines of the step that failed, and the errors of the destination.
        """
        store = Store(settings().cache_dir / "images")
        with BuildEngine() as engine, store.alone(f"docker {plan.repository}"):
            base = _only_here(engine, plan)
            entries = exported(plan, base=base, apt=self._apt, steps=self._steps)
            build = _Build(engine, plan)
            with events.step("pack", f"building {plan.repository} with the engine") as told:
                image = build.run(entries)
                told.result = f"{plan.repository}, {build.log.steps} steps"
            try:
                return deliver(engine, plan, image, to, sent=build.sent)
            finally:
                engine.remove_untagged(image)  # it went elsewhere, or nowhere


def exported(
    plan: ImagePlan, *, base: str = "", apt: Sequence[str] = (), steps: Sequence[str] = ()
) -> tuple[Entry, ...]:
    """Return the context of *plan* with the wheels that it has to bring along; see `context.context`."""
    cache = settings().cache_dir / "images" / "wheels"
    brought = wheels.bring(context.private(plan, own_index=sources.has_own_index()), plan.lock, cache)
    return context.context(plan, brought, base=base, apt=apt, steps=steps)


def _only_here(engine: BuildEngine, plan: ImagePlan) -> str:
    """Return the id of the base if the engine has it, but not by a digest that it could be asked for."""
    found = engine.image(plan.base.reference.partition("@")[0])
    same = found is not None and found.diff_ids == tuple(plan.base.config["rootfs"]["diff_ids"])
    return found.id if found and same and engine.image(plan.base.pinned) is None else ""


def _word(repository: str) -> str:
    """Return *repository* as a tag."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", repository).lstrip(".-")[:128]


class _Build:
    """One run of the engine's builder. `log` is what it told, `sent` how many bytes it was sent."""

    def __init__(self, engine: BuildEngine, plan: ImagePlan) -> None:
        self.log = BuildLog()
        self.sent = 0
        self._told = ""
        self._engine = engine
        self._kept = f"{CACHE}:{_word(plan.repository)}"

    def run(self, entries: Sequence[Entry]) -> str:
        """Build and return the id of the image, which has no name yet."""
        try:
            for message in self._engine.build(self._context(entries)):
                self.log.read(message)
                self._tell(message)
                self._keep()
            if self.log.error or not self.log.image:
                raise self._failure()
        except BaseException:
            self._sweep()
            raise
        for image in reversed(self.log.made):
            if not self.log.image.removeprefix("sha256:").startswith(image):
                self._engine.remove_untagged(image)
        return self.log.image

    def _context(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        tar = archive(entries)
        for piece in pieces(tar):
            yield piece
            self.sent += len(piece)
            events.report_bytes("pack", "handing the files to the engine", self.sent, tar.size)

    def _tell(self, message: Mapping[str, Any]) -> None:
        log = self.log
        for line in str(message.get("stream", "")).splitlines():
            events.report_line("pack", line)
        if not log.steps:
            return
        line = str(message.get("status") or log.tail.rpartition("\n")[2]) or log.instruction
        if (told := f"step {log.step} of {log.steps}: {line}"[:200]) != self._told:
            self._told = told
            events.report_progress("pack", told, log.step / (log.steps + 1))

    def _keep(self) -> None:
        """Name the environment as soon as it is there: it takes longest, and the next build wants it."""
        if image := self.log.stages.pop(dockerfile.CACHED_STAGE, ""):
            self._engine.name(image, self._kept)

    def _failure(self) -> BuildError:
        log = self.log
        why = log.error or "the engine broke off"
        step = f"step {log.step} of {log.steps} of the Dockerfile" if log.steps else "the build"
        if "no space left on device" in f"{why}\n{log.tail}".lower():
            return EngineFull(f"{step}: {why[:200]}")
        what = f"{step} failed: {log.instruction[:200]}" if log.instruction else f"{step} failed"
        return BuildError(
            "\n".join(filter(None, (what, log.tail, why[:400]))),
            hint="the lines above are the step's last; ml.build(…, export=DIR) writes the Dockerfile to try it by hand",
        )

    def _sweep(self) -> None:
        """Remove what the failed or interrupted build has made, once the engine has let go of it.

        The engine ends a build that nobody listens to after the step's next move, and tells nobody when. So this looks
        until nothing new has come for a while.
        """
        self._engine.hang_up()
        for container in self.log.containers:
            self._engine.remove_container(container)
        end = time.monotonic() + (0 if self.log.error else _SETTLE_SECONDS)
        idle = 0
        while self._engine.remove_descendants(self.log.made) or (idle := idle + 1) < _IDLE_ROUNDS:
            if time.monotonic() > end:
                return
            time.sleep(_PAUSE_SECONDS)
