"""Revisions whose objects are compared whole, and where these are written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import kubernetes_validate

from mlopsnb.records import Origin, Revision, Workload

DATA = Path(__file__).parents[1] / "unit" / "data" / "manifests"

PLAIN = Revision(
    id=3,
    source="models:/fraud/7",
    digest="sha256:0a1b",
    image="registry.example/team/fraud@sha256:4f5e",
    created="2026-01-02T03:04:05+00:00",
)
FULL = replace(
    PLAIN,
    weights="registry.example/team/fraud-weights@sha256:6c7d",
    origin=Origin(user="ada", machine="lab", notebook="fraud.ipynb", commit="1a2b3c4"),
    env={"THREADS": "2", "COST": "$(not a reference)"},
    cache_bytes=64_000_000,
    workers=2,
    note="rollback to revision 1",
    workload=Workload(
        min_replicas=2,
        max_replicas=6,
        cpu=1.5,
        memory=2 << 30,
        gpu=1,
        secrets=("database",),
        config_maps=("features",),
        node_selector={"pool": "gpu"},
        tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
        expose="ingress",
        host="fraud.example",
        network_policy=True,
        ttl=86_400,
    ),
)

VERSIONS = ("1.25", "1.31", kubernetes_validate.latest_version())
"""Versions of Kubernetes against whose schemas objects are checked."""
