"""What one has to be allowed in a namespace, asked before anything is changed there.

Source: https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlopsnb.targets.cluster import PLURALS
from mlopsnb.targets.cluster_errors import Forbidden

if TYPE_CHECKING:
    from mlopsnb.targets.cluster import Cluster

_CHANGE = ("create", "patch", "delete")
_API = "authorization.k8s.io/v1"

ALWAYS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("apps", "deployments"): (*_CHANGE, "get", "list", "watch"),
    ("apps", "deployments/scale"): ("patch",),
    ("", "services"): (*_CHANGE, "get"),
    ("", "serviceaccounts"): _CHANGE,
    ("", "configmaps"): (*_CHANGE, "get", "list", "update"),
    ("", "pods"): ("list", "watch"),
    ("", "pods/log"): ("get",),
    ("", "pods/portforward"): ("get", "create"),
}
"""What every deployment needs, by API group and resource. Newer API servers want `create` to forward a port."""


def check(cluster: Cluster, needed: Mapping[tuple[str, str], tuple[str, ...]]) -> None:
    """Raise `Forbidden` if one of the rights *needed* in the cluster's namespace is missing."""
    asked = [(group, resource, verb) for (group, resource), verbs in needed.items() for verb in verbs]
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda each: _may(cluster, *each), asked))
    for (group, resource, verb), may in zip(asked, allowed, strict=True):
        if not may:
            raise Forbidden(verb, f"{resource}.{group}" if group else resource, cluster.namespace)


def to_make(objects: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return what it takes to make and remove *objects*."""
    kinds = {(o["apiVersion"].rpartition("/")[0], PLURALS[o["kind"]]) for o in objects}
    return dict.fromkeys(sorted(kinds), _CHANGE)


def _may(cluster: Cluster, group: str, resource: str, verb: str) -> bool:
    plural, _, part = resource.partition("/")
    attributes = {"namespace": cluster.namespace, "verb": verb, "group": group, "resource": plural}
    if part:
        attributes["subresource"] = part
    review = {
        "apiVersion": _API,
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    found = cluster.request("POST", f"/apis/{_API}/selfsubjectaccessreviews", body=review) or {}
    return bool(found.get("status", {}).get("allowed"))
