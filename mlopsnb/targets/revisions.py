"""Revisions as plain data, for the places where targets keep their history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlopsnb.records import Origin, Revision, Workload

_PATHS = ("package", "fallback", "captured")


def plain(revision: Revision) -> dict[str, Any]:
    """Return *revision* as JSON can hold it, without its address, which is found out anew each time."""
    data = asdict(revision)
    del data["address"]
    return data | {name: data[name] and str(data[name]) for name in _PATHS}


def restored(data: Mapping[str, Any]) -> Revision:
    """Return the revision of which `plain` made *data*; TypeError or KeyError if it did not."""
    workload, origin = dict(data.get("workload", {})), data.get("origin", {})
    for name in ("secrets", "config_maps", "tolerations"):
        if name in workload:
            workload[name] = tuple(workload[name])
    paths = {name: Path(data[name]) for name in _PATHS if data.get(name)}
    mask = tuple(data.get("mask", ()))
    return Revision(
        **{**data, **paths, "mask": mask, "workload": Workload(**workload), "origin": Origin(**origin)}
    )
