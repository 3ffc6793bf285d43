"""What a revision is on KServe: one InferenceService with a predictor that runs our image. Pure.

KServe makes the pods, by Knative where that is installed, and divides the traffic between the newest revision
(`canaryTrafficPercent`) and the one that had all of it before. What is said of a pod is what Knative takes in all
versions, so it has one port, no hook before its end (Knative drains by itself) and no startup probe.
Sources: https://kserve.github.io/website/docs/reference/crd-api (v1beta1),
https://kserve.github.io/website/docs/model-serving/predictive-inference/rollout-strategies/canary,
https://knative.dev/docs/serving/configuration/feature-flags/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlopsnb.targets.manifests import (
    HTTP_PORT,
    KSERVE_CONTAINER,
    NAME,
    READY_SECONDS,
    REVISION,
    SCRAPED,
    least,
    lineage,
    pod,
)

if TYPE_CHECKING:
    from mlopsnb.records import Revision
    from mlopsnb.targets.manifests import Object, Traits

API, KIND = "serving.kserve.io/v1beta1", "InferenceService"
CRD = "inferenceservices.serving.kserve.io"

_NOT_KNATIVES = (
    "automountServiceAccountToken",
    "securityContext",
    "terminationGracePeriodSeconds",
    "topologySpreadConstraints",
)
_NOT_ITS_CONTAINERS = ("lifecycle", "livenessProbe", "startupProbe")


def labels(name: str, revision_id: int) -> dict[str, str]:
    """Return what the InferenceService bears, and by KServe its pods and Deployments.

    These are KServe's to manage, so the label that says what we do is not among them.
    """
    return {"app.kubernetes.io/name": name, NAME: name, REVISION: str(revision_id)}


def inference_service(
    name: str, revision: Revision, traits: Traits, *, canary: int | None = None, replicas: int | None = None
) -> Object:
    """Return the InferenceService that runs *revision*, in *replicas* if they are not those of its workload.

    *canary* is the share of the traffic, in percent, that it gets beside what had all of it before; None is all.
    Labels and annotations are the revision's alone: were they to change, KServe would make another one of it.
    """
    work = revision.workload
    fewest = least(work) if replicas is None else replicas
    return {
        "apiVersion": API,
        "kind": KIND,
        "metadata": {
            "name": name,
            "labels": labels(name, revision.id),
            "annotations": {**lineage(revision), **SCRAPED},
        },
        "spec": {
            "predictor": {
                "minReplicas": fewest,
                "maxReplicas": max(fewest, work.max_replicas or 0),
                **({} if canary is None else {"canaryTrafficPercent": canary}),
                **_predictor(name, revision, traits),
            }
        },
    }


def _predictor(name: str, revision: Revision, traits: Traits) -> Object:
    """Return the pod without what Knative refuses; what is said of its user goes to its containers."""
    whole = pod(name, revision, traits, {}, READY_SECONDS)
    user = whole["securityContext"]
    [container] = whole["containers"]
    kept = {key: value for key, value in container.items() if key not in _NOT_ITS_CONTAINERS}
    protocol = [] if "PROTOCOL" in revision.env else [{"name": "PROTOCOL", "value": "v2"}]
    ready = {**container["readinessProbe"]["httpGet"], "port": HTTP_PORT}
    served = {
        **kept,
        "name": KSERVE_CONTAINER,
        "env": [*protocol, *container.get("env", ())],
        "ports": [{"containerPort": HTTP_PORT, "protocol": "TCP"}],
        "readinessProbe": {**container["readinessProbe"], "httpGet": ready},
        "securityContext": {**user, **container["securityContext"]},
    }
    first = [
        {**c, "securityContext": {**user, **c["securityContext"]}} for c in whole.get("initContainers", ())
    ]
    return {
        **{key: value for key, value in whole.items() if key not in _NOT_KNATIVES},
        **({"initContainers": first} if first else {}),
        "containers": [served],
    }
