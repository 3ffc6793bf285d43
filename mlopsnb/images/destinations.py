"""Clusters that take an image without a registry: kind, minikube and k3d, by their commands.

Sources: https://kind.sigs.k8s.io/docs/user/quick-start/#loading-an-image-into-your-cluster,
https://minikube.sigs.k8s.io/docs/commands/image/#minikube-image-load, https://k3d.io/stable/usage/importing_images/.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlopsnb import events
from mlopsnb.errors import BuildError

_KUBECTL_SECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """A command that brings an image archive into the nodes of a local cluster.

    `prefix` begins the names of its kubeconfig contexts; what follows is the cluster's name, said by `option`.
    """

    words: tuple[str, ...]
    prefix: str
    option: str
    install: str
    clusters: str
    """What to type to see its clusters."""


LOADERS: Mapping[str, Loader] = {
    "kind": Loader(
        words=("kind", "load", "image-archive"),
        prefix="kind-",
        option="--name",
        install="https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
        clusters="kind get clusters",
    ),
    "minikube": Loader(
        words=("minikube", "image", "load"),
        prefix="",
        option="--profile",
        install="https://minikube.sigs.k8s.io/docs/start/",
        clusters="minikube profile list",
    ),
    "k3d": Loader(
        words=("k3d", "image", "import"),
        prefix="k3d-",
        option="--cluster",
        install="https://k3d.io/stable/#installation",
        clusters="k3d cluster list",
    ),
}


def load(kind: str, archive: Path, *, context: str = "") -> None:
    """Bring the image in *archive* (a tar as `layout.write_archive` makes it) into the cluster of *context*.

    *kind* is a key of `LOADERS`. Without *context* it is kubectl's current one, if that is a cluster of this kind,
    else the one that the command takes by itself. `BuildError` if the command is not there or fails.
    """
    loader = LOADERS[kind]
    program = command_of(kind)
    cluster = cluster_of(kind, context or current_context())
    command = [program, *loader.words[1:], str(archive), *([loader.option, cluster] if cluster else [])]
    with events.step("upload", f"{' '.join(loader.words)} {archive.name}") as told:
        done = _run(command)
        if done.returncode:
            said = _last_line(done.stderr) or _last_line(done.stdout) or "it did not say why"
            raise BuildError(
                f"{kind} could not load the image (exit code {done.returncode}): {said}",
                hint=f"is the cluster running? {loader.clusters} lists what there is",
            )
        told.result = f"{kind} cluster {cluster}" if cluster else kind


def command_of(kind: str) -> str:
    """Return the path of the command that loads into clusters of *kind*; `BuildError` if it is not there."""
    program = shutil.which(LOADERS[kind].words[0])
    if program is None:
        raise BuildError(
            f"the command {kind} is not on the PATH of this kernel",
            hint=f"install it ({LOADERS[kind].install}), or push where the cluster can pull: registry='HOST/NAMESPACE'",
        )
    return program


def cluster_of(kind: str, context: str) -> str:
    """Return the name of the cluster that a kubeconfig context is of, or nothing if it is of another kind."""
    prefix = LOADERS[kind].prefix
    if prefix:
        return context.removeprefix(prefix) if context.startswith(prefix) else ""
    foreign = any(other.prefix and context.startswith(other.prefix) for other in LOADERS.values())
    return "" if foreign else context


def current_context() -> str:
    """Return kubectl's current context; nothing if there is none, or no kubectl."""
    return _kubectl("config", "current-context").strip()


def _kubectl(*words: str) -> str:
    """Return what kubectl says, or nothing if it is not there, refuses or hangs."""
    program = shutil.which("kubectl")
    if program is None:
        return ""
    command = [program, f"--request-timeout={_KUBECTL_SECONDS}s", *words]
    try:
        done = _run(command, timeout=_KUBECTL_SECONDS + 5)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _run(command: Sequence[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  a program from the PATH, and words of ours
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
