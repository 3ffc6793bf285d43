"""What a cluster's administrator sets up so that pods are not taken, and deployments that run into it."""

from __future__ import annotations

import base64
import json
import time
from contextlib import ExitStack, contextmanager, suppress

from authority import Authority
from failing_deployments import Failing, deployment, web

from mlopsnb.errors import DeployError
from mlopsnb.targets.cluster import Cluster

VIOLATES = (
    'pods "{}" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'
)
"""What Kubernetes' own admission of pods by the Pod Security Standards says, in the API server and as a webhook."""


@contextmanager
def space(context, name):
    """The cluster in a new namespace, which is removed behind it."""
    cluster = Cluster(context, name)
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"tests": name}}}
    cluster.request("POST", "/api/v1/namespaces", body=made)
    try:
        cluster.until("v1", "ServiceAccount", bool, fields="metadata.name=default", seconds=60)
        yield cluster
    finally:
        cluster.request("DELETE", f"/api/v1/namespaces/{name}")


def asking(cpu, memory):
    return {"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": memory}}}


def forbidden(prefix, base):
    """Deployments whose pods `rules` do not let in."""
    return [
        Failing(
            manifest=deployment(f"{prefix}-quota", base, **asking("2", "64Mi")),
            kind="QuotaExceeded",
            words=(f"the quota {prefix}-resourcequota is used up", "asked for requests.cpu=2", "of requests.cpu=100m"),
        ),
        Failing(
            manifest=deployment(f"{prefix}-limit", base, **asking("10m", "1Gi")),
            kind="LimitRange",
            words=("a limit range of the namespace does not allow the pod: maximum memory usage per Container is 256Mi",),
        ),
        Failing(
            manifest=deployment(f"{prefix}-denied", base, **asking("10m", "64Mi")),
            kind="WebhookDenied",
            words=('the admission webhook "denied.example.com" denied the pod: no signature',),
        ),
        Failing(
            manifest=deployment(f"{prefix}-dead", base, **asking("10m", "64Mi")),
            kind="WebhookDenied",
            words=('the admission webhook "dead.example.com", without which the cluster takes no pod, does not answer',),
        ),
        Failing(
            manifest=deployment(f"{prefix}-security", base, **asking("10m", "64Mi")),
            kind="PodSecurity",
            words=('the Pod Security level "restricted:latest" of the namespace', "allowPrivilegeEscalation"),
        ),
    ]  # fmt: skip


@contextmanager
def rules(admin, prefix, place):
    """Have a quota, a limit range and webhooks in the namespace *prefix*; certificates are made in *place*."""
    quota = {"hard": {"requests.cpu": "100m"}}
    limit = {"limits": [{"type": "Container", "max": {"memory": "256Mi"}, "default": {"memory": "64Mi"}}]}
    for kind, spec in (("ResourceQuota", quota), ("LimitRange", limit)):
        root = f"/api/v1/namespaces/{prefix}/{kind.lower()}s"
        made = {
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {"name": f"{prefix}-{kind.lower()}"},
            "spec": spec,
        }
        admin.request("POST", root, body=made)
    authority = Authority(place, "ca")
    certificate, key = authority.issue("webhook")
    both = place / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    trusted = base64.b64encode(authority.path.read_bytes()).decode()
    with ExitStack() as stack:

        def saying(message):
            port = stack.enter_context(web("127.0.0.1", lambda body: _deny(body, message), certificate=both))
            return f"https://127.0.0.1:{port}/"

        places = {
            "denied": saying("no signature"),
            "dead": "https://127.0.0.1:9/",
            "security": saying(VIOLATES),
        }
        hooks = [_webhook(name, prefix, {"url": url, "caBundle": trusted}) for name, url in places.items()]
        stack.enter_context(_webhooks(admin, prefix, hooks))
        for case in forbidden(prefix, "scratch"):
            _await_refused(admin, prefix, case.manifest["spec"]["template"])
        yield


def _await_refused(admin, prefix, template):
    """Return when the API server, which hears of new rules by and by, takes no pod of *template*."""
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {**template["metadata"], "name": "tried"}
    end = time.monotonic() + 60
    with suppress(DeployError):
        while time.monotonic() < end:
            admin.request("POST", f"/api/v1/namespaces/{prefix}/pods?dryRun=All", body=pod)
            time.sleep(0.05)
        raise AssertionError(f"a pod that the rules forbid is taken: {pod}")


def _webhook(name, prefix, client):
    """A webhook that is asked about the pods of one deployment in the namespace."""
    return {
        "name": f"{name}.example.com",
        "clientConfig": client,
        "namespaceSelector": {"matchLabels": {"tests": prefix}},
        "objectSelector": {"matchLabels": {"app": f"{prefix}-{name}"}},
        "rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        ],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "timeoutSeconds": 2,
        "admissionReviewVersions": ["v1"],
    }


@contextmanager
def _webhooks(cluster, prefix, hooks):
    root = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    cluster.request("POST", root, body={**kind, "metadata": {"name": prefix}, "webhooks": hooks})
    try:
        yield
    finally:
        cluster.request("DELETE", f"{root}/{prefix}")


def _deny(body, message):
    """Say no, as an admission webhook does."""
    asked = json.loads(body)["request"]
    said = {"uid": asked["uid"], "allowed": False, "status": {"message": message.format(asked["name"])}}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": said}
    return 200, {"Content-Type": "application/json"}, json.dumps(review).encode()
