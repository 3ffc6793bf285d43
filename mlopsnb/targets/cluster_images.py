"""How images get to the nodes of a cluster: which way there is, and why there is none, before anything is built.

Its nodes may run their containers in the engine of this machine; it may be a local cluster that has a command to load
images; else it pulls from a registry.
Sources: https://kind.sigs.k8s.io, https://minikube.sigs.k8s.io, https://k3d.io; UIDs of pods are in the label
`io.kubernetes.pod.uid` of their containers (https://github.com/kubernetes/kubernetes, pkg/kubelet/types/labels.go).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlopsnb import dockerd
from mlopsnb.errors import DeployError, MissingExtra
from mlopsnb.events import report_progress
from mlopsnb.settings import settings
from mlopsnb.targets.cluster_errors import Forbidden, Rejected

if TYPE_CHECKING:
    from mlopsnb.protocols import Delivery
    from mlopsnb.settings import Settings
    from mlopsnb.targets.cluster import Cluster, Object

_DOCKER_DESKTOP = "docker-desktop"
"""Its engine hides the containers of its pods."""

_POD_UID = "io.kubernetes.pod.uid"
_ENGINE_SECONDS = 10
_PROBE_SECONDS = 20.0
_PROBE = "mlopsnb-engine-probe"


def delivery(cluster: Cluster, chosen: Settings) -> Delivery:
    """Say how a revision's image gets into *cluster*; `DeployError` if there is no way."""
    why = []
    if kind := local_kind(cluster.context, os.environ):
        if shutil.which(kind):
            return kind
        why.append(f"the command {kind}, which loads images into it, is not on the PATH of this kernel")
    elif _shares_engine(cluster):
        return "engine"
    if chosen.registry:
        check_pull(cluster, f"{chosen.registry}/")
        return "registry"
    why.append("no registry is set that it could pull from")
    if not kind:
        why.insert(0, "it does not run its pods in this machine's container engine")
    raise DeployError(
        f"the cluster of context {cluster.context!r} could not get an image: {'; '.join(why)}",
        hint="set one that you can push to and its nodes can pull from: MLOPSNB_REGISTRY=ghcr.io/TEAM",
    )


def check_pull(cluster: Cluster, image: str) -> None:
    """Raise `DeployError` if it is certain that the nodes of *cluster* cannot pull *image*."""
    host = image.partition("/")[0]
    if (
        pull_policy(image) != "Never"
        and is_loopback(host)
        and not is_loopback(urlsplit(cluster.server).netloc)
    ):
        raise DeployError(
            f"the cluster of context {cluster.context!r} cannot pull from {host}: "
            "that is this machine's own address, and its nodes are elsewhere",
            hint="name a registry that its nodes can reach: MLOPSNB_REGISTRY=HOST/NAMESPACE",
        )
    if host in {each.strip() for each in settings().insecure_registries.split(",")}:
        said = f"{host} is spoken to over plain HTTP; the nodes pull from it only if they are told to as well"
        report_progress("start", said)


def local_kind(context: str, environ: Mapping[str, str]) -> Delivery | None:
    """Return what kind of local cluster a context is of, by its name; None if it is of none that has a command.

    A shell that has had `minikube docker-env` uses the node's engine.
    """
    if context.startswith("kind-"):
        return "kind"
    if context.startswith("k3d-"):
        return "k3d"
    minikube = context == "minikube" and environ.get("MINIKUBE_ACTIVE_DOCKERD") != context
    return "minikube" if minikube else None


def is_loopback(host: str) -> bool:
    """Say whether *host*, with or without a port, is this machine's loopback interface."""
    name = urlsplit(f"//{host}").hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


def pull_policy(image: str) -> str:
    """Return when nodes pull *image*: never if its name has no registry, for such a one of another's may be found.

    Docker's rule: the part before the first slash is a host if it has a dot or a colon, or is `localhost`.
    """
    first, slash, _ = image.partition("/")
    return "IfNotPresent" if slash and ("." in first or ":" in first or first == "localhost") else "Never"


def _shares_engine(cluster: Cluster) -> bool:
    """Say whether pods of the namespace run on this machine's engine, so that they find its images there."""
    if (here := _engine_pods()) is None:
        return False
    known = decide(
        context=cluster.context,
        on_engine=here,
        pods=[p["metadata"]["uid"] for p in cluster.list("v1", "Pod", fields="status.phase=Running")],
        runtimes=_runtimes(cluster),
        environ=os.environ,
    )
    return _try_out(cluster) if known is None else known


def decide(
    *,
    context: str,
    on_engine: Collection[str],
    pods: Collection[str],
    runtimes: Sequence[str],
    environ: Mapping[str, str],
) -> bool | None:
    """Say whether a cluster runs on an engine; None if what is known does not tell. Pure.

    *on_engine* are the UIDs of the pods whose containers the engine runs, *pods* those of running pods that the cluster
    let us see, *runtimes* what its nodes say they run on; either is empty if we may not look.
    """
    if context and environ.get("MINIKUBE_ACTIVE_DOCKERD") == context:
        return True  # the shell has had `minikube docker-env`: this engine is the node's
    if any(not runtime.startswith("docker://") for runtime in runtimes):
        return False
    if set(pods) & set(on_engine):
        return len(runtimes) <= 1
    if context == _DOCKER_DESKTOP and runtimes:
        return True
    if pods and context != _DOCKER_DESKTOP:
        return False
    return None


def _engine_pods() -> frozenset[str] | None:
    """Return the UIDs of the pods whose containers this machine's engine runs; None if there is no engine."""
    try:
        with contextlib.closing(dockerd.connect(seconds=_ENGINE_SECONDS)) as client:
            listed = client.api.containers(filters={"label": _POD_UID})
    except (dockerd.Unavailable, MissingExtra):
        return None
    return frozenset(container["Labels"][_POD_UID] for container in listed)


def _runtimes(cluster: Cluster) -> list[str]:
    """Return what the nodes run containers on; nothing if we may not see them."""
    try:
        found = cluster.request("GET", "/api/v1/nodes") or {}
    except Forbidden:
        return []
    return [n["status"]["nodeInfo"]["containerRuntimeVersion"] for n in found.get("items", ())]


def _try_out(cluster: Cluster) -> bool:
    """Make a pod that never gets its image, and see whether the engine has its sandbox. It uses nothing."""
    name = f"{_PROBE}-{os.urandom(4).hex()}"
    try:
        made = cluster.create(_probe(name))
    except Rejected:  # a quota or a policy is against it
        return False
    try:
        with contextlib.suppress(TimeoutError):
            cluster.until("v1", "Pod", _was_seen_to, fields=f"metadata.name={name}", seconds=_PROBE_SECONDS)
        return made["metadata"]["uid"] in (_engine_pods() or ())
    finally:
        cluster.request("DELETE", cluster.path("v1", "Pod", name), query={"gracePeriodSeconds": "0"})


def _was_seen_to(found: Sequence[Object]) -> bool:
    """Say whether a node has made the pod's sandbox, or nobody will."""
    status = found[0].get("status", {}) if found else {}
    waiting = [s["state"].get("waiting", {}).get("reason") for s in status.get("containerStatuses") or ()]
    hopeless = any(c.get("reason") == "Unschedulable" for c in status.get("conditions") or ())
    return not found or hopeless or any(r and r != "ContainerCreating" for r in waiting)


def _probe(name: str) -> Object:
    """Return a pod as the Pod Security Standard `restricted` has it, of an image that is nowhere."""
    confined = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    little = {"cpu": "1m", "memory": "16Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "mlopsnb"}},
        "spec": {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "probe",
                    "image": f"{name}:none",
                    "imagePullPolicy": "Never",
                    "resources": {"requests": little, "limits": little},
                    "securityContext": confined,
                }
            ],
        },
    }
