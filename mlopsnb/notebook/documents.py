"""Records as JSON, for programs: one document each, whose keys stay. What is not a number is null, what looks secret is masked.

`deployments`  `{"deployments": [DEPLOYMENT …], "rollouts": [{"name", "target", "state", "reason"} …]}`
DEPLOYMENT     `{"name", "target", "state", "model", "revision", "url", "grpc"}`
`metrics`      `{"name", "target", "source", "revisions": [{"revision", "model", "role", "share", "watched", "total"} …]}`,
               where the last two are `{"seconds", "figures": {"qps": …}}`; `watched` is null if nothing was
`drift`        `{"state", "verdict", "drifted", "reference_rows", "current_rows", "threshold", "q", "span", "features"}`,
               the features with the columns of `DriftReport.to_frame()`
`logs`         `{"lines": […]}`, without control characters
`predict`      a list, or an object of lists for a model of several outputs
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlopsnb.masking import masked


def document(result: object) -> str:
    """Return the record *result* as one JSON document, in one line."""
    return json.dumps(_plain(_by_kind(result)), allow_nan=False)


def deployment(found: Any) -> dict[str, Any]:
    """Return what there is to say of a deployment."""
    return {
        "name": found.name,
        "target": found.target,
        "state": found.status,
        "model": found.model_version,
        "revision": found.revision,
        "url": found.url,
        "grpc": found.grpc,
    }


def _deployments(found: Any) -> dict[str, Any]:
    rollouts = [
        {"name": r.name, "target": r.target, "state": r.state, "reason": r.reason}
        for r in getattr(found, "rollouts", ())
    ]
    return {"deployments": [deployment(d) for d in found], "rollouts": rollouts}


def _traffic(traffic: Any) -> dict[str, Any]:
    from mlopsnb.monitoring.counting import FIGURES

    def figures(window: Any) -> dict[str, Any] | None:
        if window is None:
            return None
        return {
            "seconds": window.seconds,
            "figures": {name: figure.of(window) for name, figure in FIGURES.items()},
        }

    revisions = [
        {
            "revision": r.revision,
            "model": r.source,
            "role": r.role,
            "share": r.share,
            "watched": figures(r.window),
            "total": figures(r.total),
        }
        for r in traffic.revisions
    ]
    source = masked(traffic.source)  # the address of a Prometheus server
    return {"name": traffic.name, "target": traffic.target, "source": source, "revisions": revisions}


def _drift(report: Any) -> dict[str, Any]:
    from mlopsnb.monitoring.report import COLUMNS

    names = ("state", "verdict", "drifted", "reference_rows", "current_rows", "threshold", "q", "span")
    features = [{name: getattr(row, name) for name in COLUMNS} for row in report.rows]
    return {**{name: getattr(report, name) for name in names}, "features": features}


def _log(text: Any) -> dict[str, Any]:
    return {"lines": masked(text).splitlines()}


_KINDS: dict[str, Callable[[Any], Any]] = {
    "Deployment": deployment,
    "Deployments": _deployments,
    "Listing": _deployments,
    "Traffic": _traffic,
    "DriftReport": _drift,
    "str": _log,
    "LogText": _log,
}


def _by_kind(result: object) -> object:
    return _KINDS.get(type(result).__name__, lambda same: same)(result)


def _plain(value: Any) -> Any:
    """Return *value* as JSON has it; arrays and their numbers become Python's own."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
