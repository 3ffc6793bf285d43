"""What a Gateway is told of a revision that stands beside the one with the traffic: by header, by session, or as shadow.

Pure. The route is the name's own HTTPRoute; the revision gets a Service of its own, to which a part of it leads.
Sources: https://gateway-api.sigs.k8s.io/reference/spec/#httproutematch, …/#httprequestmirrorfilter,
https://gateway-api.sigs.k8s.io/geps/gep-1619/ (sessionPersistence, experimental).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.targets.manifests import SERVICE_PORT, labels, service, workload_name

if TYPE_CHECKING:
    from mlopsnb.matching import Match
    from mlopsnb.records import Revision
    from mlopsnb.targets.manifests import Object

API, KIND = "gateway.networking.k8s.io/v1", "HTTPRoute"

BESIDE = "mlopsnb.io/beside"
"""The route's annotation that says who stands beside, and what it gets: `7 header:X-Group=b`."""


def own_service(name: str, revision: Revision) -> Object:
    """Return the Service of one revision, whoever has the name's traffic."""
    made = service(name, revision, pinned=True)
    return {
        **made,
        "metadata": {"name": workload_name(name, revision.id), "labels": labels(name, revision.id)},
        "spec": {**made["spec"], "type": "ClusterIP"},
    }


def beside(route: Object, name: str, new: Revision, match: Match, told: str) -> Object:
    """Return *route*, which gives a name's traffic to one Service, such that *new* gets what *match* says of it.

    *told* is *match* as it was written.
    """
    [rule] = route["spec"]["rules"]
    [usual] = rule["backendRefs"]
    other = {**usual, "name": workload_name(name, new.id), "port": new.port or SERVICE_PORT}
    if match.kind == "shadow":
        mirror = {key: value for key, value in other.items() if key != "weight"}
        copied = [{"type": "RequestMirror", "requestMirror": {"backendRef": mirror}}]
        rules = [{**rule, "filters": copied}]
    elif match.kind == "session":
        shares = [{**usual, "weight": 100 - match.share}, {**other, "weight": match.share}]
        kept = {"sessionName": f"mlopsnb-{name}", "type": "Cookie"}
        rules = [{**rule, "backendRefs": shares, "sessionPersistence": kept}]
    else:
        how = "Exact" if match.kind == "exact" else "RegularExpression"
        headers = [{"type": how, "name": match.header, "value": match.value}]
        chosen = [{**each, "headers": headers} for each in rule["matches"]]
        rules = [{**rule, "matches": chosen, "backendRefs": [other]}, rule]
    return {
        **route,
        "metadata": {**route["metadata"], "annotations": {BESIDE: f"{new.id} {told}"}},
        "spec": {**route["spec"], "rules": rules},
    }
