"""Where a model came from: commit, notebook, cell, data, environment. Reads; writes, sends and decides nothing.

What cannot be found out is left out. No tag holds source code, file contents, remotes or credentials: a diff or a
cell is named by its digest only, for either may hold a secret.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb import identity, manifest
from mlopsnb.extras import loaded
from mlopsnb.profiles import DriftProfile
from mlopsnb.records import Origin
from mlopsnb.tracking.fingerprint import data_digest

if TYPE_CHECKING:
    from mlopsnb.records import Artifact

GIT_TIMEOUT = 10.0
"""Seconds that one git command may take; a repository on a slow network drive must not stop a log."""

ARTIFACT_DIGEST = "mlopsnb.artifact_digest"
"""The tag that ties a model version to its package."""

_NOTEBOOK_VARIABLES = ("MLOPSNB_NOTEBOOK", "JPY_SESSION_NAME")
"""Where the notebook's path is: what the user says, then what Jupyter's server tells its kernels."""


def collect(artifact: Artifact, *, reference: object = None, environment: str = "") -> dict[str, str]:
    """Return the lineage of *artifact* as tags.

    The data is *reference* (or its profile, where it is not in memory), or else the example in the package;
    *environment* is the text of the lock.
    """
    notebook = notebook_path()
    here = Path(notebook).parent if notebook else Path()
    tags = git_tags(here if here.is_dir() else Path()) | _notebook_tags(notebook) | _artifact_tags(artifact)
    data = manifest.read_example(artifact.path)[0] if reference is None else reference
    tags["mlopsnb.data_digest"] = data.digest if isinstance(data, DriftProfile) else data_digest(data)
    if environment:
        tags["mlopsnb.environment_digest"] = _digest(environment.encode())
    return tags


def git_tags(directory: Path) -> dict[str, str]:
    """Return the commit that *directory* is at and whether tracked files differ from it; nothing outside a repository.

    `mlopsnb.git.diff_digest` is what `git diff HEAD | sha256sum` prints at the top of the repository.
    """
    top = _git(directory, "rev-parse", "--show-toplevel")
    commit = _git(directory, "rev-parse", "--verify", "--quiet", "HEAD")
    if not top or not commit:
        return {}
    tags = {"mlflow.source.git.commit": commit.decode().strip()}
    root = Path(os.fsdecode(top).rstrip("\n"))
    diff = _git(root, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD")
    if diff is not None:
        tags["mlopsnb.git.dirty"] = "true" if diff else "false"
    if diff:
        tags["mlopsnb.git.diff_digest"] = _digest(diff)
    return tags


def origin() -> Origin:
    """Return who works here, on which machine, in which notebook, at which commit; what nobody knows stays empty."""
    notebook = notebook_path()
    here = Path(notebook).parent if notebook else Path()
    commit = _git(here if here.is_dir() else Path(), "rev-parse", "--verify", "--quiet", "HEAD")
    return Origin(
        user=identity.user(),
        machine=platform.node(),
        notebook=notebook,
        commit=(commit or b"").decode().strip(),
    )


def _git(directory: Path, *arguments: str) -> bytes | None:
    """Return what git says, or None: no git, no repository, no commit, not ours to read, or too slow."""
    try:
        done = subprocess.run(  # noqa: S603  fixed arguments, no shell
            ["git", "--no-pager", *arguments],  # noqa: S607  the user's own git is the one that is meant
            cwd=directory,
            env=os.environ
            | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},  # never lock an index that the user works on
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def notebook_path() -> str:
    """Return the path of the notebook that runs, or an empty string if there is none or nobody knows."""
    known = [os.environ.get(variable, "") for variable in _NOTEBOOK_VARIABLES]
    namespace = getattr(_shell(), "user_ns", None)
    if isinstance(namespace, dict):
        known.append(str(namespace.get("__vsc_ipynb_file__") or ""))  # Visual Studio Code's extension sets it
    return next(filter(None, known), "")


def cell_source() -> str:
    """Return the source of the cell that runs, or an empty string outside IPython."""
    inputs = getattr(getattr(_shell(), "history_manager", None), "input_hist_raw", None)
    return str(inputs[-1]) if inputs else ""


def _shell() -> Any:
    """Return the running IPython shell, if any.

    IPython is not imported: only the front end knows Jupyter, and whoever runs in a shell has it loaded already.
    """
    ipython = loaded("IPython")
    return ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None


def _notebook_tags(path: str) -> dict[str, str]:
    tags: dict[str, str] = {}
    if path or getattr(_shell(), "kernel", None) is not None:
        tags["mlflow.source.type"] = "NOTEBOOK"
    if path:
        tags["mlflow.source.name"] = tags["mlopsnb.notebook"] = path
    if cell := cell_source():
        tags["mlopsnb.cell_digest"] = _digest(cell.encode("utf-8", "surrogatepass"))
    return tags


def _artifact_tags(artifact: Artifact) -> dict[str, str]:
    tags = {ARTIFACT_DIGEST: artifact.digest, "mlopsnb.format": artifact.format}
    if (parity := artifact.parity) is not None:
        numbers = {
            "max_abs_error": parity.max_abs_error,
            "max_rel_error": parity.max_rel_error,
            "tolerance": parity.tolerance,
            "original_ms": parity.original_ms,
            "exported_ms": parity.exported_ms,
        }
        tags |= {f"mlopsnb.parity.{name}": f"{value:.6g}" for name, value in numbers.items()}
    return tags


def _digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"
