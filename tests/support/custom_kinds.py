"""Kinds that a cluster may have or not, defined for a test: their fields that we use, as their projects publish them."""

from __future__ import annotations

import contextlib
import json
import os

import pytest

MARK = "mlopsnb.io/tests"
TAKES_THEM = "MLOPSNB_TEST_CUSTOM_RESOURCES" in os.environ
OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
TEXT, WHOLE, YES = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(**properties):
    """An object of these fields; what is not among them is dropped by the API server."""
    return {"type": "object", "properties": properties}


def several(item, *keys):
    """A list; with *keys* one that is merged by them."""
    by = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [*keys]} if keys else {}
    return {"type": "array", "items": {**item, **({"required": [*keys]} if keys else {})}, **by}


_CONTAINER = fields(
    name=TEXT,
    image=TEXT,
    imagePullPolicy=TEXT,
    args=several(TEXT),
    env=several(OPEN),
    envFrom=several(OPEN),
    ports=several(fields(containerPort=WHOLE, name=TEXT, protocol=TEXT)),
    readinessProbe=fields(
        httpGet=fields(path=TEXT, port={"x-kubernetes-int-or-string": True}, scheme=TEXT),
        periodSeconds=WHOLE,
        timeoutSeconds=WHOLE,
        successThreshold=WHOLE,
        failureThreshold=WHOLE,
    ),
    resources=OPEN,
    securityContext=OPEN,
    terminationMessagePolicy=TEXT,
    volumeMounts=several(fields(name=TEXT, mountPath=TEXT, readOnly=YES)),
)

INFERENCE_SERVICE = {
    "group": "serving.kserve.io",
    "version": "v1beta1",
    "kind": "InferenceService",
    "plural": "inferenceservices",
    "spec": fields(
        predictor=fields(
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            canaryTrafficPercent={"type": "integer", "format": "int64"},
            serviceAccountName=TEXT,
            enableServiceLinks=YES,
            imagePullSecrets=several(fields(name=TEXT)),
            nodeSelector=TEXTS,
            tolerations=several(OPEN),
            initContainers=several(_CONTAINER),
            containers=several(_CONTAINER),
            volumes=several(fields(name=TEXT, emptyDir=OPEN)),
        )
    ),
    "status": fields(
        url=TEXT,
        address=fields(url=TEXT),
        deploymentMode=TEXT,
        conditions=several(OPEN),
        components={
            "type": "object",
            "additionalProperties": fields(
                latestReadyRevision=TEXT,
                latestCreatedRevision=TEXT,
                previousRolledoutRevision=TEXT,
                latestRolledoutRevision=TEXT,
                traffic=several(fields(revisionName=TEXT, latestRevision=YES, percent=WHOLE, tag=TEXT)),
            ),
        },
    ),
}

_BACKEND = {"group": TEXT, "kind": TEXT, "name": TEXT, "port": WHOLE}
_RULE = fields(
    matches=several(
        fields(
            path=fields(type=TEXT, value=TEXT),
            headers=several(fields(type=TEXT, name=TEXT, value=TEXT), "name"),
        )
    ),
    filters=several(
        fields(
            type={"type": "string", "enum": ["RequestMirror"]},
            requestMirror=fields(backendRef=fields(**_BACKEND)),
        )
    ),
    backendRefs=several(fields(**_BACKEND, weight=WHOLE)),
)

HTTP_ROUTE = {
    "group": "gateway.networking.k8s.io",
    "version": "v1",
    "kind": "HTTPRoute",
    "plural": "httproutes",
    "spec": fields(
        parentRefs=several(fields(group=TEXT, kind=TEXT, name=TEXT)),
        hostnames=several(TEXT),
        rules=several(_RULE),
    ),
    "status": OPEN,
}
"""Of the standard channel, whose rules have no sessionPersistence."""

GATEWAY = {
    "group": "gateway.networking.k8s.io",
    "version": "v1",
    "kind": "Gateway",
    "plural": "gateways",
    "spec": fields(
        gatewayClassName=TEXT, listeners=several(fields(name=TEXT, port=WHOLE, protocol=TEXT), "name")
    ),
    "status": OPEN,
}


def definition(kind):
    """The CustomResourceDefinition of *kind*."""
    schema = fields(spec=kind["spec"], status=kind["status"])
    version = {
        "name": kind["version"],
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind['plural']}.{kind['group']}",
            "labels": {MARK: "true"},
            # The API server lets nobody define kinds of the Kubernetes project's groups by accident.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": kind["group"],
            "scope": "Namespaced",
            "names": {"kind": kind["kind"], "plural": kind["plural"], "singular": kind["kind"].lower()},
            "versions": [version],
        },
    }


@contextlib.contextmanager
def defined(admin, *kinds):
    """Define *kinds* on the cluster until the block ends; a cluster that has them of its own is not for tests like these."""
    minor = json.loads(admin("get", "--raw", "/version"))["minor"]
    if int(minor.rstrip("+")) < 24 and not TAKES_THEM:
        pytest.skip(f"an API server 1.{minor} may die of custom resources; see tests/devcluster/README.md")
    names = [f"crd/{kind['plural']}.{kind['group']}" for kind in kinds]
    there = admin("get", "crd", f"--selector=!{MARK}", "--output=name").split()
    if any(f"customresourcedefinition.apiextensions.k8s.io/{n.removeprefix('crd/')}" in there for n in names):
        pytest.skip(f"the cluster has {', '.join(names)} of its own, with somebody who acts on it")
    try:
        for kind in kinds:
            admin("apply", "--filename=-", stdin=definition(kind))
        admin("wait", *names, "--for=condition=Established", "--timeout=60s")
        yield
    finally:
        admin("delete", *names, "--wait=true", "--timeout=60s", "--ignore-not-found")
