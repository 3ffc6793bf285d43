"""What all builders are given, and the small tools that they share."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)


class CannotBuild(Exception):
    """A builder is missing or failed; the message says why."""


@dataclass(frozen=True, slots=True)
class Built:
    """One build with its push: seconds together, and the image's name in the registry."""

    seconds: float
    reference: str
    sent: int | None = None


@dataclass(slots=True)
class Work:
    """What every builder gets. `models` are directories of packages, a new model in each; `root` is for its files.

    `lock` is a requirements file with hashes, `wheels` the directory that holds all of its wheels, and `wheelhouse` the
    address where they are served.
    """

    root: Path
    registry: str
    base: str
    prefix: str
    models: list[Path] = field(default_factory=list)
    lock: Path = Path()
    wheels: Path = Path()
    wheelhouse: str = ""

    def repository(self, builder: str, round_: int) -> str:
        """Return a name that no build had before, so that the first push of each round has everything to send."""
        return f"{self.registry}/{self.prefix}-{builder}-{round_}"

    def log(self, builder: str) -> Path:
        """Return where what *builder* says is kept."""
        return self.root / f"{builder}.log"


class Builder(Protocol):
    """One way to make the image. `prepare` may take its time; the other two are what is measured."""

    name: str

    def prepare(self, work: Work) -> None:
        """Get ready, or raise `CannotBuild`."""
        ...

    def cold(self, work: Work, round_: int) -> Built:
        """Build the first model and push it, with nothing made before but the wheels."""
        ...

    def changed(self, work: Work, round_: int, model: int) -> Built:
        """Build and push another model; all else is as it was."""
        ...

    def again(self, work: Work, round_: int, model: int) -> Built:
        """The same once more."""
        ...

    def clean(self, work: Work) -> None:
        """Remove what it left outside `work.root`."""
        ...


def run(command: list[str], log: Path, **options: Any) -> None:
    """Run *command*, its words into *log*; `CannotBuild` with its last lines if it fails."""
    with log.open("ab") as out:
        out.write(f"\n$ {' '.join(command)}\n".encode())
        out.flush()
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False, **options)
    if done.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-4:]
        raise CannotBuild(f"{command[0]} {command[1]}: {' | '.join(last)[:600]} (log: {log})")


def timed(*commands: list[str], log: Path, **options: Any) -> float:
    """Return the seconds that the *commands* take, one after the other."""
    start = time.perf_counter()
    for command in commands:
        run(command, log, **options)
    return time.perf_counter() - start


def find(program: str) -> str:
    """Return the path of *program*; `CannotBuild` if it is not on the PATH."""
    path = shutil.which(program)
    if path is None:
        raise CannotBuild(f"no {program} on the PATH")
    return path


def _ask(registry: str, method: str, path: str) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(registry, timeout=30)
    try:
        connection.request(method, path, headers={"Accept": _MANIFESTS})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("Docker-Content-Digest", "")
    finally:
        connection.close()


def split(reference: str) -> tuple[str, str, str]:
    """Return registry, repository and tag or digest of a *reference* with a registry."""
    registry, _, rest = reference.partition("/")
    name, at, digest = rest.partition("@")
    if at:
        return registry, name.partition(":")[0], digest
    name, _, tag = rest.partition(":")
    return registry, name, tag or "latest"


def compressed_size(reference: str) -> int:
    """Return the bytes of all layers of an image as the registry keeps them."""
    registry, repository, ref = split(reference)
    status, data, _ = _ask(registry, "GET", f"/v2/{repository}/manifests/{ref}")
    if status != 200:
        raise CannotBuild(f"{reference} is not in the registry: status {status}")
    return sum(layer["size"] for layer in json.loads(data)["layers"])


def digest_of(reference: str) -> str:
    """Return the digest of an image's manifest, as the registry says."""
    registry, repository, ref = split(reference)
    return _ask(registry, "HEAD", f"/v2/{repository}/manifests/{ref}")[2]


def forget(registry: str, prefix: str) -> None:
    """Delete every manifest of the repositories that begin with *prefix*."""
    _, data, _ = _ask(registry, "GET", "/v2/_catalog?n=1000")
    for repository in json.loads(data)["repositories"]:
        if not repository.startswith(prefix):
            continue
        _, tags, _ = _ask(registry, "GET", f"/v2/{repository}/tags/list")
        for tag in json.loads(tags).get("tags") or ():
            digest = digest_of(f"{registry}/{repository}:{tag}")
            _ask(registry, "DELETE", f"/v2/{repository}/manifests/{digest}")


def cache_home() -> Path:
    """Return where peers and wheels are kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "mlopsnb" / "benchmarks" / "images"
