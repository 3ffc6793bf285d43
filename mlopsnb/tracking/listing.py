"""Which models are registered, for a front end that offers them while somebody types.

They are asked for in a process of its own: to import MLflow takes seconds, and what it changes and prints while it works
would meet the cell that runs. Nothing is made by looking: a store that is not there is empty.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from mlopsnb.extras import loaded
from mlopsnb.tracking.mlflow_seam import seam

_LISTED = 1000
_SECONDS = 30.0
_PLAIN = re.compile(r"[\w.-]+")
"""Names that stand in an address as they are."""


def models() -> tuple[str, ...]:
    """Return the addresses of registered models: `models:/fraud/3`, newest first, and `models:/fraud@champion`.

    Those of the server that this process works with; none if it does not answer in time, or there is none.
    """
    uris = {"MLFLOW_TRACKING_URI": "get_tracking_uri", "MLFLOW_REGISTRY_URI": "get_registry_uri"}
    here = loaded("mlflow")
    chosen = {name: str(getattr(here, get)()) for name, get in uris.items()} if here is not None else {}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mlopsnb.tracking.listing"],
            env=os.environ | chosen,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=True,
        )
        return tuple(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _found() -> list[str]:
    if (named := os.environ.get("MLFLOW_TRACKING_URI")) and not _exists(named):
        return []  # without the import of MLflow
    with seam("listing the registered models") as mlflow:
        if not all(_exists(uri) for uri in (mlflow.get_tracking_uri(), mlflow.get_registry_uri())):
            return []
        client = mlflow.MlflowClient()
        named = client.search_registered_models(max_results=_LISTED)
        newest = client.search_model_versions(max_results=_LISTED, order_by=["creation_timestamp DESC"])
    versions = [f"models:/{v.name}/{v.version}" for v in newest if _PLAIN.fullmatch(v.name)]
    aliases = [f"models:/{m.name}@{a}" for m in named if _PLAIN.fullmatch(m.name) for a in sorted(m.aliases)]
    return [*versions, *aliases]


def _exists(uri: str) -> bool:
    scheme, _, path = uri.rpartition(":")
    if scheme == "sqlite":
        return Path(unquote(path.removeprefix("///"))).is_file()
    return Path(unquote(path.removeprefix("//"))).is_dir() if scheme in ("", "file") else True


if __name__ == "__main__":
    said = json.dumps(_found())
    sys.stdout.write(said)
