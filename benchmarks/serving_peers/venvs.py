"""One virtual environment a peer, made once and kept. Pinned, so that two runs compare the same things."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
"""The CPU build is enough; which one comes is up to pip's configuration (find-links, index)."""

_PROBE = (
    "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
)


class CannotInstall(Exception):
    """pip could not make the environment; the message is the end of what it said."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What one peer needs. `note` is told in the report, where the version is not the one that was meant."""

    name: str
    requirements: tuple[str, ...]
    note: str = ""

    @property
    def packages(self) -> tuple[str, ...]:
        """The names whose versions are told in the report."""
        return tuple(r.partition("==")[0].partition("[")[0] for r in self.requirements)


ENVIRONMENTS = {
    e.name: e
    for e in (
        # uvloop 0.23 refuses what MLServer's parallel workers ask of it when they start.
        Environment("mlserver", ("mlserver==1.7.1", "uvloop==0.21.0", TORCH)),
        Environment("kserve", ("kserve==0.21.0", TORCH)),
        Environment("litserve", ("litserve==0.2.19", "numpy==2.4.6", TORCH)),
        Environment(
            "bentoml",
            ("bentoml==1.4.39", TORCH),
            note="1.4.40 cannot be installed: it requires certifi>=2026.10.19, and the newest published is 2026.10.18",
        ),
        Environment("mlflow", ("mlflow==3.17.2", "uvloop==0.23.0", TORCH)),
        Environment("triton", ("nvidia-pytriton==0.7.0", TORCH)),
    )
}


def python_of(environment: Environment, directory: Path) -> Path:
    """Return the interpreter of *environment* below *directory*, installing it first if it is not there yet."""
    key = hashlib.sha256(json.dumps([environment.requirements, sys.version]).encode()).hexdigest()[:10]
    root = directory / f"{environment.name}-{key}"
    done = root / "installed"
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)
            print(f"installing {' '.join(environment.requirements)} into {root}", flush=True)
            _make(root, environment)
            done.touch()
    return root / "bin" / "python"


def _make(root: Path, environment: Environment) -> None:
    log = root.with_suffix(".log")
    pip = [str(root / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    with log.open("wb") as out:
        for command in (
            [sys.executable, "-m", "venv", str(root)],
            [*pip, "--prefer-binary", *environment.requirements],
        ):
            if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode:
                break
        else:
            return
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
    raise CannotInstall(f"{' | '.join(last)} (log: {log})")


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of *packages* that *python* sees."""
    said = subprocess.run([str(python), "-c", _PROBE], capture_output=True, check=True).stdout
    found = {name.lower().replace("_", "-"): number for name, number in json.loads(said).items()}
    return {p: found.get(p.lower().replace("_", "-"), "missing") for p in packages}
