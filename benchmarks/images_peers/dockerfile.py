"""`docker build` and `buildah`, with one Dockerfile as a careful person writes it: dependencies before the model, pip
without its cache, no root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from images_peers.common import Built, CannotBuild, Work, cache_home, find, run, timed

_DOCKERFILE = """\
FROM {base}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY lock.txt /opt/lock.txt
RUN python3 -m pip install --quiet --no-index --find-links {wheelhouse} --trusted-host {host} --no-deps \\
    --require-hashes -r /opt/lock.txt
COPY mlopsnb /opt/runtime/mlopsnb
COPY model /opt/model
ENV PYTHONPATH=/opt/runtime PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python3", "-m", "mlopsnb.serving", "/opt/model", "--host", "0.0.0.0", "--port", "8080", "--name", "bench"]
"""


def context(work: Work, model: int) -> Path:
    """Return a build context with the model of that number; only the model differs between two of them."""
    import mlopsnb

    place = work.root / "context"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    host = work.wheelhouse.split("//")[1].partition(":")[0]
    text = _DOCKERFILE.format(base=work.base, wheelhouse=work.wheelhouse, host=host)
    (place / "Dockerfile").write_text(text)
    shutil.copy(work.lock, place / "lock.txt")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(mlopsnb.__file__).parent, place / "mlopsnb", ignore=ignored)
    shutil.copytree(work.models[model], place / "model")
    return place


class Docker:
    """The engine's classic builder. BuildKit's push is the same, and its build no faster (see the README)."""

    name = "docker"

    def prepare(self, work: Work) -> None:
        """Have the base in the engine, as a builder that is used every day has it."""
        run([find("docker"), "pull", work.base], work.log(self.name))

    def cold(self, work: Work, round_: int) -> Built:
        """Build without the builder's cache, and push."""
        return self._build(work, round_, 0, "--no-cache")

    def changed(self, work: Work, round_: int, model: int) -> Built:
        """Build on the layers of the dependencies, and push."""
        return self._build(work, round_, model)

    again = changed

    def _build(self, work: Work, round_: int, model: int, *options: str) -> Built:
        reference = f"{work.repository(self.name, round_)}:m{model}"
        seconds = timed(
            ["docker", "build", "--quiet", *options, "--tag", reference, str(context(work, model))],
            ["docker", "push", "--quiet", reference],
            log=work.log(self.name),
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )
        return Built(seconds, reference)

    def clean(self, work: Work) -> None:
        """Remove its images from the engine."""
        remove_images(f"{work.registry}/{work.prefix}-{self.name}-*")


def remove_images(pattern: str) -> None:
    """Remove the engine's images whose name fits *pattern*; those that were pulled by digest have no tag."""
    name = '{{.Repository}}{{if eq .Tag "<none>"}}@{{.Digest}}{{else}}:{{.Tag}}{{end}}'
    listing = ["docker", "images", "--digests", "--format", name, "--filter", f"reference={pattern}"]
    names = subprocess.run(listing, capture_output=True, text=True, check=False).stdout.split()
    if names:
        subprocess.run(["docker", "rmi", "--force", *names], capture_output=True, check=False)


def remove_descendants(image: str) -> None:
    """Remove the engine's nameless images that were built on *image*; a build that fails leaves such."""
    listing = ["docker", "images", "--no-trunc", "--quiet", "--filter"]
    root = _lines([*listing, f"reference={image}"])
    for nameless in _lines([*listing, "dangling=true"]):
        parents = [nameless]
        while found := _lines(["docker", "inspect", "--format", "{{.Parent}}", parents[-1]]):
            parents.append(found[0])
        if root and root[0] in parents:
            for container in _lines(["docker", "ps", "--all", "--quiet", "--filter", f"ancestor={nameless}"]):
                subprocess.run(["docker", "rm", container], capture_output=True, check=False)
            subprocess.run(["docker", "rmi", "--force", nameless], capture_output=True, check=False)


def _lines(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


class Buildah:
    """Debian's buildah, as root, without a daemon; its storage is in a directory of this run."""

    name = "buildah"

    def prepare(self, work: Work) -> None:
        """Find buildah or unpack Debian's, and pull the base."""
        self._program = shutil.which("buildah") or _unpacked(work)
        run([*self._command(work), "pull", "--tls-verify=false", work.base], work.log(self.name))

    def _command(self, work: Work) -> list[str]:
        store = work.root / "buildah"
        return [self._program, "--root", str(store / "root"), "--runroot", str(store / "run")]

    def cold(self, work: Work, round_: int) -> Built:
        """Build without cached layers, and push."""
        return self._build(work, round_, 0, "--no-cache")

    def changed(self, work: Work, round_: int, model: int) -> Built:
        """Build on the layers of the dependencies, and push."""
        return self._build(work, round_, model)

    again = changed

    def _build(self, work: Work, round_: int, model: int, *options: str) -> Built:
        reference = f"{work.repository(self.name, round_)}:m{model}"
        buildah, place = self._command(work), str(context(work, model))
        build = [
            "bud",
            "--isolation",
            "chroot",
            "--network",
            "host",
            "--layers",
            "--tls-verify=false",
            "--quiet",
        ]
        seconds = timed(
            [*buildah, *build, *options, "--tag", reference, place],
            [*buildah, "push", "--tls-verify=false", "--quiet", reference],
            log=work.log(self.name),
        )
        return Built(seconds, reference)

    def clean(self, work: Work) -> None:
        """Remove its storage, which it alone can unmount."""
        subprocess.run([*self._command(work), "rmi", "--all", "--force"], capture_output=True, check=False)


def _unpacked(work: Work) -> str:
    """Return buildah out of Debian's package, which is unpacked into the cache and not installed."""
    place = cache_home() / "buildah"
    program = place / "usr" / "bin" / "buildah"
    if not program.exists():
        place.mkdir(parents=True, exist_ok=True)
        log = work.log("buildah")
        run([find("apt-get"), "download", "buildah"], log, cwd=place)
        for package in place.glob("*.deb"):
            run([find("dpkg-deb"), "--extract", str(package), str(place)], log)
    try:
        run([str(program), "version"], work.log("buildah"))
    except CannotBuild as exc:
        raise CannotBuild(f"{exc}; apt-get install buildah brings its libraries") from exc
    return str(program)
