"""Where clients reach a name: the address that the cluster gives it, or a loopback port that leads there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlopsnb.targets import cluster_pods
from mlopsnb.targets.forwarding import FORWARDS, Forward
from mlopsnb.targets.manifests import GRPC_PORT, HTTP_PORT, SERVICE_PORT

if TYPE_CHECKING:
    from mlopsnb.records import Revision
    from mlopsnb.targets.cluster import Cluster
    from mlopsnb.targets.cluster_seen import Seen


class Addresses:
    """The addresses of the names in a cluster's namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def url(self, seen: Seen, top: Revision) -> str:
        """Return where HTTP clients send requests. Inside the cluster that is the Service; *top* says how it is exposed."""
        outside = self._outside(seen, top)
        if self._cluster.inside:
            outside = f"{seen.name}.{self._cluster.namespace}.svc:{top.port or SERVICE_PORT}"
        return f"http://{(outside or self._forwarded(seen.name, HTTP_PORT)).removesuffix(':80')}"

    def grpc(self, seen: Seen, top: Revision) -> str | None:
        """Return where clients of gRPC connect, if the revision is meant to serve them."""
        if top.grpc_port is None:
            return None
        if self._cluster.inside:
            return f"{seen.name}.{self._cluster.namespace}.svc:{GRPC_PORT}"
        match top.workload.expose:
            case "nodeport":
                return self._node_port(seen, "grpc") or self._forwarded(seen.name, GRPC_PORT)
            case "loadbalancer" if host := _balancer(seen.service):
                return f"{host}:{GRPC_PORT}"
            case _:
                return self._forwarded(seen.name, GRPC_PORT)

    def close(self, name: str) -> None:
        """Close the loopback ports that lead to *name*."""
        FORWARDS.close(self._key(name))

    def _outside(self, seen: Seen, top: Revision) -> str | None:
        """Return what the cluster offers to clients outside, if that is wanted and there yet."""
        match top.workload.expose:
            case "nodeport":
                return self._node_port(seen, "http")
            case "loadbalancer":
                host = _balancer(seen.service)
                return host and f"{host}:{top.port or SERVICE_PORT}"
            case "ingress":
                found = self._cluster.get("networking.k8s.io/v1", "Ingress", seen.name)
                there = _balancer(found)
                return there and (top.workload.host or there)
            case "gateway":
                return top.workload.host or None
            case "cluster":
                return None

    def _node_port(self, seen: Seen, port: str) -> str | None:
        """Return a node's address, as one of the pods tells it, and the port that all nodes have for the Service."""
        numbers = [p.get("nodePort") for p in (seen.service or {})["spec"]["ports"] if p["name"] == port]
        found = [
            pod["status"].get("hostIP")
            for n in seen.weights
            for pod in cluster_pods.pods(self._cluster, seen.name, n)
        ]
        hosts = [host for host in found if host]
        return f"{hosts[0]}:{numbers[0]}" if hosts and numbers and numbers[0] else None

    def _forwarded(self, name: str, port: int) -> str:
        forward = FORWARDS.get(
            (*self._key(name), str(port)), lambda: Forward(self._cluster, lambda: self._pods(name), port)
        )
        return forward.address

    def _pods(self, name: str) -> list[str]:
        """Return the pods that get the traffic of *name* now."""
        service = self._cluster.get("v1", "Service", name)
        if service is None:
            return []
        chosen = cluster_pods.chosen_by(service["spec"]["selector"])
        found = [p for p in self._cluster.list("v1", "Pod", labels=chosen) if cluster_pods.is_ready(p)]
        return cluster_pods.shuffled(cluster_pods.connectable(found))

    def _key(self, name: str) -> tuple[str, ...]:
        return (self._cluster.server, self._cluster.context, self._cluster.namespace, name)


def _balancer(found: Mapping[str, Any] | None) -> str | None:
    """Return the address that a load balancer has given a Service or an Ingress."""
    given = (found or {}).get("status", {}).get("loadBalancer", {}).get("ingress") or ()
    return next((str(each.get("hostname") or each["ip"]) for each in given), None)
