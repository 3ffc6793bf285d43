"""The names in the kubeconfig, read without a client: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/."""

from __future__ import annotations

import os
from pathlib import Path

from mlopsnb.extras import need


def files() -> str:
    """Return the files that count, as the variable `KUBECONFIG` has them; they may not be there."""
    return os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")


def contexts() -> tuple[str, ...]:
    """Return the names of the contexts in these files."""
    yaml = need("yaml", extra="kubernetes")
    found: dict[str, None] = {}
    for name in filter(None, files().split(os.pathsep)):
        path = Path(name).expanduser()
        if path.is_file():
            read = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            found.update(dict.fromkeys(str(c["name"]) for c in read.get("contexts") or ()))
    return tuple(found)
