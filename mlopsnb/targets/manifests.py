"""What a revision is on Kubernetes: its objects as plain dicts. Pure: the same revision gives the same objects.

Each revision has a Deployment of its own, `NAME-rN`; one Service `NAME` chooses among their pods. All else bears the
deployment's name too. Pods pass the Pod Security Standard `restricted`, need no right in the cluster, and end without
a lost request: they wait until nobody sends them more before they are told to drain.
Sources: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted,
https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination,
https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlopsnb.errors import DeployError
from mlopsnb.rollout import version

if TYPE_CHECKING:
    from mlopsnb.records import Revision, Workload

Object = dict[str, Any]

NAME, REVISION, POOL = "mlopsnb.io/name", "mlopsnb.io/revision", "mlopsnb.io/pool"
MANAGED = "app.kubernetes.io/managed-by=mlopsnb"
"""Selects what is ours."""

HTTP_PORT, GRPC_PORT = 8080, 8081
PYTHON = "/opt/mlopsnb/venv/bin/python"
WEIGHTS_MOUNT = "/mnt/models"
USER = 65532
"""These five are the serving image's."""

SERVICE_PORT = 80

CONTAINER, KSERVE_CONTAINER = "model", "kserve-container"
"""What the server's container is called; KServe knows the container of a custom predictor by a name of its own."""

SETTLE_SECONDS = 5
"""A pod that is to end goes on serving for so long, while every node and balancer learns that it is leaving."""

GRACE_SECONDS = SETTLE_SECONDS + 5 + 60 + 5
"""The most a pod gets to end: the above, connections that are open, one slow request, its logs."""

READY_SECONDS = 600
"""The least that a model gets to load."""

SCRAPED: Mapping[str, str] = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(HTTP_PORT),
    "prometheus.io/path": "/metrics",
}
"""Says to a Prometheus server of the cluster, in a pod's annotations, where its metrics are."""

_BUSY_PERCENT = 80
_COUNTERS = "/tmp/profile"  # noqa: S108  in the container
"""Where the server keeps what it counts of live rows: on the pod's own volume, which outlives its containers."""

_CPU = "100m"
"""What a pod asks for that was given no cpu: enough to be placed with some thought."""

Pool = Literal["main", "apart"]
"""While revisions share the traffic, the Service takes the pods of the pool `main`, of whatever revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the objects have to know of the cluster: its API versions, and how it gets at images."""

    autoscaling: str = "autoscaling/v2"
    disruption: str = "policy/v1"
    pull_policy: Literal["IfNotPresent", "Never"] = "IfNotPresent"
    pull_secret: str = ""
    gateway: str = ""
    """The Gateway of the namespace that routes are attached to."""


def labels(name: str, revision_id: int | None = None) -> dict[str, str]:
    """Return what every object bears, and those of one revision in addition."""
    common = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "mlopsnb", NAME: name}
    return common if revision_id is None else {**common, REVISION: str(revision_id)}


def selector(name: str, revision_id: int | None) -> dict[str, str]:
    """Return which pods get the traffic: those of one revision, or if it is None of all that share it."""
    return {NAME: name, POOL: "main"} if revision_id is None else {NAME: name, REVISION: str(revision_id)}


def workload_name(name: str, revision_id: int) -> str:
    """Return the name of a revision's Deployment."""
    return f"{name}-r{revision_id}"


def deployment(
    name: str,
    revision: Revision,
    traits: Traits,
    *,
    replicas: int,
    pool: Pool = "main",
    seconds: float = READY_SECONDS,
) -> Object:
    """Return the Deployment of a revision, whose pods have *seconds* to become ready."""
    chosen = {NAME: name, REVISION: str(revision.id)}
    deadline = max(READY_SECONDS, round(seconds))
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": workload_name(name, revision.id),
            "labels": labels(name, revision.id),
            "annotations": lineage(revision),
        },
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": deadline,
            "selector": {"matchLabels": chosen},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {
                    "labels": {**labels(name, revision.id), POOL: pool},
                    "annotations": {**SCRAPED, "mlopsnb.io/source": revision.source},
                },
                "spec": pod(name, revision, traits, chosen, deadline),
            },
        },
    }


def lineage(revision: Revision) -> dict[str, str]:
    """Return where a revision came from, as annotations; what is not known is left out."""
    said = {
        "source": revision.source,
        "package-digest": revision.digest,
        "created": revision.created,
        "user": revision.origin.user,
        "machine": revision.origin.machine,
        "notebook": revision.origin.notebook,
        "commit": revision.origin.commit,
        "note": revision.note,
        "ttl": "" if revision.workload.ttl is None else str(revision.workload.ttl),
    }
    return {f"mlopsnb.io/{key}": value for key, value in said.items() if value}


def pod(name: str, revision: Revision, traits: Traits, chosen: Mapping[str, str], deadline: int) -> Object:
    """Return what a pod of a revision is; *chosen* are the labels of its like, *deadline* the seconds that it has to start."""
    work = revision.workload
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(chosen)},
    }
    weights = revision.weights and {
        "name": "weights",
        "image": revision.weights,
        "imagePullPolicy": traits.pull_policy,
        "securityContext": _confined(),
        "resources": _resources(work, gpu=False),
        "volumeMounts": [{"name": "weights", "mountPath": WEIGHTS_MOUNT}],
    }
    return {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"imagePullSecrets": [{"name": traits.pull_secret}]} if traits.pull_secret else {}),
        **({"nodeSelector": dict(work.node_selector)} if work.node_selector else {}),
        **({"tolerations": [dict(t) for t in work.tolerations]} if work.tolerations else {}),
        "topologySpreadConstraints": [spread],
        **({"initContainers": [weights]} if weights else {}),
        "containers": [_container(name, revision, traits, deadline)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            *([{"name": "weights", "emptyDir": {}}] if weights else []),
        ],
    }


def _container(name: str, revision: Revision, traits: Traits, deadline: int) -> Object:
    sources = [
        *({"configMapRef": {"name": each}} for each in revision.workload.config_maps),
        *({"secretRef": {"name": each}} for each in revision.workload.secrets),
    ]
    wait = f"import time;time.sleep({SETTLE_SECONDS})"
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108  in the container
    if revision.weights:
        mounts.append({"name": "weights", "mountPath": WEIGHTS_MOUNT, "readOnly": True})
    return {
        "name": CONTAINER,
        "image": revision.image,
        "imagePullPolicy": traits.pull_policy,
        "args": _arguments(name, revision),
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
        ],
        **({"env": _variables(revision.env)} if revision.env else {}),
        **({"envFrom": sources} if sources else {}),
        "resources": _resources(revision.workload),
        "startupProbe": _probe("/ready", period=1, fails=deadline, seconds=5),
        "readinessProbe": _probe("/ready", period=1, fails=2, seconds=5),
        "livenessProbe": _probe("/healthz", period=10, fails=6, seconds=10),
        "lifecycle": {"preStop": {"exec": {"command": [PYTHON, "-I", "-S", "-c", wait]}}},
        "securityContext": _confined(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _arguments(name: str, revision: Revision) -> list[str]:
    """Return what is said to the server besides what its image says; the last word counts."""
    cache = revision.cache_bytes
    return [
        *("--name", name, "--version", version(revision), "--workers", str(revision.workers)),
        *("--profile-dir", _COUNTERS),
        *(("--cache-bytes", str(cache)) if cache else ()),
    ]


def _variables(env: Mapping[str, str]) -> list[Object]:
    return [{"name": key, "value": env[key].replace("$(", "$$(")} for key in sorted(env)]


def _probe(path: str, *, period: int, fails: int, seconds: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "http", "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": seconds,
        "successThreshold": 1,
        "failureThreshold": fails,
    }


def _confined() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _resources(work: Workload, *, gpu: bool = True) -> Object:
    """Return what a container may use, which is kept for it as well: it is not put to death for a neighbour's sake."""
    limits = {
        **({"cpu": f"{max(1, round(work.cpu * 1000))}m"} if work.cpu else {}),
        **({"memory": str(work.memory)} if work.memory else {}),
        **({"nvidia.com/gpu": str(work.gpu)} if work.gpu and gpu else {}),
    }
    return {"requests": {"cpu": _CPU, **limits}, **({"limits": limits} if limits else {})}


def service(name: str, revision: Revision, *, pinned: bool) -> Object:
    """Return the Service: to *revision* alone if *pinned*, else to all that share the traffic."""
    types = {"nodeport": "NodePort", "loadbalancer": "LoadBalancer"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "type": types.get(revision.workload.expose, "ClusterIP"),
            "selector": selector(name, revision.id if pinned else None),
            "ports": [
                {
                    "name": "http",
                    "port": revision.port or SERVICE_PORT,
                    "targetPort": "http",
                    "protocol": "TCP",
                },
                {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "protocol": "TCP"},
            ],
        },
    }


def service_account(name: str) -> Object:
    """Return the account that pods run as: it may do nothing, and they get no token of it."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "labels": labels(name)},
        "automountServiceAccountToken": False,
    }


def autoscaler(name: str, revision: Revision, traits: Traits) -> Object | None:
    """Return what scales the revision by its use of the processor, if that is wanted."""
    work = revision.workload
    if work.max_replicas is None:
        return None
    target = {"type": "Utilization", "averageUtilization": _BUSY_PERCENT}
    return {
        "apiVersion": traits.autoscaling,
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": workload_name(name, revision.id),
            },
            "minReplicas": least(work),
            "maxReplicas": work.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }


def least(work: Workload) -> int:
    """Return how many replicas there are at the least."""
    return (work.min_replicas or 1) if work.max_replicas is not None else work.replicas


def check_scalable(name: str, revision: Revision) -> None:
    """Raise `DeployError` if the cluster decides how many replicas *revision* has."""
    work = revision.workload
    if work.max_replicas is not None:
        raise DeployError(
            f"revision {revision.id} of {name!r} is scaled by the cluster, "
            f"between {least(work)} and {work.max_replicas} replicas",
            hint="deploy it with other min_replicas and max_replicas",
        )


def disruption_budget(name: str, revision: Revision, traits: Traits) -> Object | None:
    """Return what keeps an administrator's drain of a node from taking all replicas at once, if there are several."""
    if least(revision.workload) < 2:
        return None
    return {
        "apiVersion": traits.disruption,
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {NAME: name}}},
    }


def network_policy(name: str, revision: Revision) -> Object | None:
    """Return what lets in requests only, from the namespace only unless the name is exposed, if that is wanted."""
    if not revision.workload.network_policy:
        return None
    ports = [{"port": port, "protocol": "TCP"} for port in ("http", "grpc")]
    inside: Object = {"from": [{"podSelector": {}}]} if revision.workload.expose == "cluster" else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "podSelector": {"matchLabels": {NAME: name}},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": ports, **inside}],
        },
    }


def ingress(name: str, revision: Revision) -> Object | None:
    """Return the Ingress, of the cluster's default class, if that is how the name is exposed."""
    if revision.workload.expose != "ingress":
        return None
    backend = {"service": {"name": name, "port": {"name": "http"}}}
    rule = {
        **({"host": revision.workload.host} if revision.workload.host else {}),
        "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {"rules": [rule]},
    }


def route(name: str, revision: Revision, traits: Traits) -> Object | None:
    """Return the HTTPRoute on the namespace's Gateway, if that is how the name is exposed.

    Source: https://gateway-api.sigs.k8s.io/reference/spec/#httproute.
    """
    if revision.workload.expose != "gateway":
        return None
    backend = {
        "kind": "Service",
        "name": name,
        "port": revision.port or SERVICE_PORT,
        "weight": 1,
    }
    parent = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": traits.gateway}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "parentRefs": [parent],
            **({"hostnames": [revision.workload.host]} if revision.workload.host else {}),
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [backend],
                }
            ],
        },
    }


def around(name: str, revision: Revision, traits: Traits) -> Sequence[Object]:
    """Return what goes with the traffic besides the Service, as it is for the revision that gets most of it."""
    found = (
        autoscaler(name, revision, traits),
        disruption_budget(name, revision, traits),
        network_policy(name, revision),
        ingress(name, revision),
        route(name, revision, traits),
    )
    return [each for each in found if each is not None]


def manifests(name: str, revision: Revision, traits: Traits) -> list[Object]:
    """Return all that there is when *revision* alone serves *name*, in the order in which it is applied."""
    return [
        service_account(name),
        deployment(name, revision, traits, replicas=least(revision.workload)),
        service(name, revision, pinned=True),
        *around(name, revision, traits),
    ]
