"""What the steps hand to each other: frozen, plain, JSON-able. No behaviour, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One named tensor of a signature.

    `dtype` is numpy's name of it (`float32`); in `shape` None is a free axis, such as the batch.
    `feature_names` name the last axis if the example was a DataFrame. `allow_nan` says that the
    example itself held missing values, so requests may too.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    feature_names: tuple[str, ...] = ()
    allow_nan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The inputs a model takes and the outputs it gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCheck:
    """One output compared in one case, original against export.

    Errors are the largest over the elements: absolute in the output's own unit, relative to the
    original's value. `worst` is the index of the element that is farthest beyond (or nearest to) its
    tolerance; `original` and `exported` are the values there.
    """

    case: str
    output: str
    equal: bool
    max_abs_error: float
    max_rel_error: float
    worst: tuple[int, ...] = ()
    original: float | None = None
    exported: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """The proof that an export equals its original.

    Latencies are medians in milliseconds for one call with `rows` rows. `notes` say what a person
    should know: which capture was used, which dtypes the export refuses.
    """

    checks: tuple[ParityCheck, ...]
    tolerance: float
    original_ms: float
    exported_ms: float
    rows: int
    notes: tuple[str, ...] = ()

    @property
    def max_abs_error(self) -> float:
        return max((c.max_abs_error for c in self.checks), default=0.0)

    @property
    def max_rel_error(self) -> float:
        return max((c.max_rel_error for c in self.checks), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An exported model: a package directory that holds `model.json` beside the model's files.

    `digest` is `sha256:…` over all that the package holds; `requirements` are what the export needs to
    run, as pip takes them.
    """

    path: Path
    format: str
    signature: Signature
    digest: str
    requirements: tuple[str, ...] = ()
    parity: ParityReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A registered version of a named model. Points back to its artifact by digest."""

    name: str
    version: int
    uri: str
    digest: str
    run_id: str = ""
    tracking_uri: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


RevisionState = Literal["starting", "running", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a revision may use, and how it is reached, where it runs from an image.

    `cpu` is in cores, `memory` in bytes, `ttl` in seconds after which a clean-up may remove the deployment.
    With `min_replicas` and `max_replicas` the target scales by itself between the two. Of `secrets` and `config_maps`
    only the names are here: their keys become environment variables. `expose` says how clients outside reach it,
    `platform` what serves it there: Kubernetes' own objects, or KServe.
    """

    replicas: int = 1
    min_replicas: int | None = None
    max_replicas: int | None = None
    cpu: float | None = None
    memory: int | None = None
    gpu: int = 0
    secrets: tuple[str, ...] = ()
    config_maps: tuple[str, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    expose: Literal["cluster", "nodeport", "loadbalancer", "ingress", "gateway"] = "cluster"
    host: str = ""
    network_policy: bool = False
    platform: Literal["kubernetes", "kserve"] = "kubernetes"
    ttl: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who deployed, and from where: `user` at `machine`, the notebook's path and the git commit if there are any."""

    user: str = ""
    machine: str = ""
    notebook: str = ""
    commit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One deploy of one package under a name. The next deploy, or a rollback, makes a new one.

    `source` says where the package came from (`models:/fraud/3`, or the digest of a bare artifact);
    `package` is the directory it is served from, `address` where this revision alone can be reached; `workers` are
    the processes that share the port, each with the model; `grpc_port` is the port for gRPC, if it is served.
    `cache_bytes` is the memory for answers that are kept, `fallback` the package that answers while this one cannot.
    `capture` is the share of the requests whose rows are written to files, without the columns of `mask`, `captured` the
    directory of these.
    Targets that run images take it from `image`, a reference by digest, and give it what `workload` says; `weights` is
    the image that holds the weights which that one does not.
    """

    id: int
    source: str
    digest: str
    package: Path | None = None
    image: str = ""
    weights: str = ""
    workload: Workload = field(default_factory=Workload)
    origin: Origin = field(default_factory=Origin)
    created: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # a value may be secret
    cache_bytes: int | None = None
    fallback: Path | None = None
    capture: float | None = None
    mask: tuple[str, ...] = ()
    captured: Path | None = None
    port: int | None = None
    grpc_port: int | None = None
    workers: int = 1
    state: RevisionState = "starting"
    address: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a target knows under one name: its revisions, oldest first, and who gets the traffic.

    `weights` maps revision ids to percent, `routes` those of revisions beside them to what sends them requests. `url` is where clients send requests, `grpc` where those of gRPC connect
    (`HOST:PORT`); None if nothing serves.
    """

    name: str
    target: str
    revisions: tuple[Revision, ...] = ()
    weights: Mapping[int, int] = field(default_factory=dict)
    routes: Mapping[int, str] = field(default_factory=dict)
    url: str | None = None
    grpc: str | None = None
