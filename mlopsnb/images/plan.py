"""What an image will be: its base, its layers from what changes least to what changes most, its configuration. Pure.

Builders read the plan; none of them decides anything that it says. Source of the terms:
https://github.com/opencontainers/image-spec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlopsnb.images.digests import digest_of

if TYPE_CHECKING:
    from mlopsnb.images.lock import Lock

ROOT = "opt/mlopsnb"
"""Where everything of ours lies in the image. Paths in layers have no leading slash."""

VENV = f"{ROOT}/venv"
"""A virtual environment on the base's Python: site directories and `.pth` files work as they do at home."""

PACKAGE = f"{ROOT}/model"
"""The model package, as `mlopsnb.manifest` describes it."""

WEIGHTS_MOUNT = "mnt/models"
"""Where weights that are kept out of the image are mounted or fetched to."""

HTTP_PORT = 8080
GRPC_PORT = 8081
USER = "65532:65532"
"""Numeric, so that Kubernetes can see that it is not root; nothing belongs to it."""

Kind = Literal["wheel", "dependencies", "environment", "bytecode", "runtime", "metadata", "weights"]
"""What a layer holds: one large wheel; the other wheels; what makes the wheels a virtual environment; compiled modules;
the model server; the package without its large files, and the lock; large files of the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file, or its bytes, that is to go into an image, before it is known into which layer.

    `path` is relative to where files of its sort go; `sha256` is its digest in hex, `size` in bytes.
    """

    path: str
    source: Path | bytes
    size: int
    sha256: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a layer, root-owned. Exactly one of *source* (a file here, or its bytes) and *link* is given."""

    path: str
    source: Path | bytes | None = None
    link: str = ""
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer to be packed. `key` names its content: layers of the same key have the same files, byte for byte."""

    kind: Kind
    name: str
    """For people: `torch 2.13.0+cpu`, `12 packages`."""

    key: str
    entries: tuple[Entry, ...]
    compress: bool = True
    size: int = 0
    """Bytes of its files, before anything is packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A blob in a registry: what it is, its `sha256:…` digest, its size in bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The image that ours stands on, for one platform.

    `reference` is as it was asked for, `digest` that of its manifest; `config` is its OCI configuration. `python` is
    the path of its interpreter and `python_version` that one's version, `3.11.9`.
    """

    reference: str
    digest: str
    platform: str
    config: Mapping[str, Any]
    layers: tuple[Descriptor, ...]
    python: str
    python_version: str

    @property
    def pinned(self) -> str:
        """The reference by name and digest: what it means now, and for good."""
        return f"{self.reference.partition('@')[0]}@{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """Everything that a builder needs to know, and nothing that depends on which builder it is.

    `repository` is the image's name without a registry (`fraud`), `tag` the one it gets (`v3-1a2b3c4`); `config` is
    the `config` object of the OCI image configuration, labels included; `package` the directory of the model package.
    `weights` are files that are kept out of the image, by their path in the package.
    """

    repository: str
    tag: str
    base: Base
    lock: Lock
    layers: tuple[Layer, ...]
    config: Mapping[str, Any]
    package: Path
    package_digest: str
    weights: tuple[Layer, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """`sha256:…` of what the image will hold: plans of the same digest make the same image with any builder."""
        said = [
            self.base.digest,
            self.base.platform,
            self.config,
            [(layer.kind, layer.name, layer.key) for layer in (*self.layers, *self.weights)],
        ]
        return digest_of(json.dumps(said, sort_keys=True).encode())
