"""The planner: which file goes into which layer, and how the image is run. Pure: it looks at no disk and no network.

Layers go from what changes least to what changes most, so that a change resends as little as possible, and what lies
below it stays where it is in registries, in engines and on nodes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import BuildError
from mlopsnb.images.plan import (
    GRPC_PORT,
    HTTP_PORT,
    PACKAGE,
    ROOT,
    USER,
    VENV,
    WEIGHTS_MOUNT,
    Entry,
    File,
    ImagePlan,
    Kind,
    Layer,
)

if TYPE_CHECKING:
    from mlopsnb.images.environment import Bytecode, Environment
    from mlopsnb.images.lock import Lock
    from mlopsnb.images.plan import Base

LARGE = 64 << 20
"""A wheel or a file of the package of so many bytes gets a layer of its own."""

SMALL = 1 << 20
"""A file of the package below this goes with the metadata."""

_MOST_WHEELS = 20
_MOST_WEIGHTS = 12
"""With the others no more than 39 layers of ours: engines allow about 125 in all."""

_HEALTHCHECK = (
    "import socket as s;c=s.create_connection(('127.0.0.1',{port}),3);"
    "c.sendall(b'GET /ready HTTP/1.0\\r\\n\\r\\n');raise SystemExit(b' 200 ' not in c.recv(64))"
)
"""Only `socket` is imported: the check takes 20 ms of the container's time, not 200."""


def site_packages(python: str) -> str:
    """Return where packages lie in the image, for Python *python* (`3.11`)."""
    return f"{VENV}/lib/python{python}/site-packages"


def plan_image(
    *,
    name: str,
    version: str,
    base: Base,
    environment: Environment,
    bytecode: Bytecode,
    runtime: Sequence[File],
    package: Path,
    package_digest: str,
    files: Sequence[File],
    code: Sequence[File] = (),
    kept_out: Collection[str] = (),
    labels: Mapping[str, str] | None = None,
) -> ImagePlan:
    """Plan the image that serves version *version* of *name* from the model package *package*.

    *files* are those of the package by their path there, *runtime* and *code* (the user's local modules) by their path
    in `site-packages`; `contents` finds all three. *kept_out* are paths of *files* that shall not be in the image: it
    has links to `WEIGHTS_MOUNT` instead, and the plan has them as `weights`.

    Raises `BuildError` for a path that would leave its place.
    """
    raise NotImplementedError
