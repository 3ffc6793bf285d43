"""`mlopsnb.build`, called as a notebook calls it: in a process that goes on, with the model's framework imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from images_peers.common import Built, CannotBuild, Work, run
from mlopsnb.images.environment.request import native

ROOT = Path(__file__).resolve().parents[2]

_KERNEL = """
import json, sys, time
from pathlib import Path
import torch
import mlopsnb as ml
from mlopsnb.images import base
from mlopsnb.images.cache import Store
from mlopsnb.settings import settings

for line in sys.stdin:
    asked = json.loads(line)
    if "pull" in asked:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        store = Store(settings().cache_dir / "images")
        base.inspect(asked["pull"], platform=asked["platform"], python=python, store=store)
        print("{}", flush=True)
        continue
    package = Path(asked.pop("package"))
    start = time.perf_counter()
    try:
        image = ml.build(package, **asked)
    except ml.MlopsnbError as exc:
        print(json.dumps({"error": str(exc)}), flush=True)
        continue
    seconds = time.perf_counter() - start
    said = {"seconds": seconds, "reference": image.reference, "digest": image.digest, "sent": image.sent}
    print(json.dumps({**said, "lock": image.lock.text, "tagged": image.tagged}), flush=True)
"""


class Kernel:
    """A Python process that builds what it is asked to, with a cache of its own."""

    def __init__(self, source: Path, cache: Path, log: Path, **env: str) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", _KERNEL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            text=True,
            cwd=cache.parent,
            env={**os.environ, "PYTHONPATH": str(source), "MLOPSNB_CACHE_DIR": str(cache), **env},
        )

    def build(self, package: Path, **options: Any) -> dict[str, Any]:
        """Build *package* with these options of `mlopsnb.build`; return what it says of it."""
        return self._ask({"package": str(package), **options})

    def pull(self, base: str) -> None:
        """Look *base* up and note its Python, as an engine that is used every day has the base pulled."""
        self._ask({"pull": base, "platform": native()})

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {"error": f"it ended (log: {self._log})"}
        if "error" in said:
            raise CannotBuild(f"mlopsnb: {said['error']}")
        return said

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Ours:
    """The builder `oci`, from a fresh clone, without the engine. A cold build has an empty
    cache of its own, but for what the base is."""

    name = "mlopsnb"

    def __init__(self) -> None:
        self._kernel: Kernel | None = None
        self.digests: list[str] = []

    def prepare(self, work: Work) -> None:
        """Clone the repository, and build once so that the wheels are where uv or pip keeps them; note the lock."""
        self._source = clone(work.root / "clone", work.log(self.name))
        kernel = self._start(work, "warm")
        said = kernel.build(work.models[0], name="bench", base=work.base, output=str(work.root / "warm.tar"))
        kernel.end()
        work.lock = work.root / "lock.txt"
        work.lock.write_text(said["lock"])

    def _start(self, work: Work, name: str, **env: str) -> Kernel:
        cache = work.root / f"cache-{name}"
        shutil.rmtree(cache, ignore_errors=True)
        return Kernel(self._source, cache, work.log(self.name), **env)

    def cold(self, work: Work, round_: int) -> Built:
        """Build the first model with an empty cache."""
        self.end()
        self._kernel = self._start(work, str(round_))
        self._kernel.pull(work.base)
        return self._build(work, round_, 0)

    def changed(self, work: Work, round_: int, model: int) -> Built:
        """Build another model."""
        return self._build(work, round_, model)

    again = changed

    def _build(self, work: Work, round_: int, model: int) -> Built:
        assert self._kernel is not None
        name = work.repository(self.name, round_).partition("/")[2]
        said = self._kernel.build(work.models[model], name=name, base=work.base, registry=work.registry)
        if model == 0:
            self.digests.append(said["digest"])
        return Built(said["seconds"], said["reference"], said["sent"])

    def elsewhere(self, work: Work) -> str:
        """Return the digest of the first model's image from a second clone, with new caches and a copied package."""
        source = clone(work.root / "clone-2", work.log(self.name), of=self._source)
        package = work.root / "copied-package"
        shutil.copytree(work.models[0], package, copy_function=shutil.copyfile)
        name = work.repository(self.name, 1).partition("/")[2]
        kernel = Kernel(
            source, work.root / "cache-clone-2", work.log(self.name), UV_CACHE_DIR=str(work.root / "uv")
        )
        try:
            said = kernel.build(package, name=name, base=work.base, registry=work.registry)
        finally:
            kernel.end()
        return str(said["digest"])

    def end(self) -> None:
        """End the process that builds."""
        if self._kernel is not None:
            self._kernel.end()
            self._kernel = None

    def clean(self, work: Work) -> None:
        """Nothing of it is outside the work directory and the registry."""
        self.end()


def clone(into: Path, log: Path, *, of: Path = ROOT) -> Path:
    """Return a fresh clone of the repository *of*, which holds what is committed there."""
    run(["git", "clone", "--quiet", "--no-hardlinks", str(of), str(into)], log)
    return into
