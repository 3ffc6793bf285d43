"""
What an API server said no to, in our words:

* DeployError
  x ClusterUnreachable   no kubeconfig, an unknown context, or nobody answers
  x NotAuthenticated     the credentials are missing, expired or not accepted
  x Forbidden            a right is missing: which verb, on what, in which namespace
  x Rejected             the object was refused: invalid, over a quota, or by an admission webhook
    + Conflict           somebody else has changed or made it meanwhile

Source of the answers' shape: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mlopsnb.errors import DeployError
from mlopsnb.targets.admission import recognised

_CANNOT = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"'
    r'(?: in API group "(?P<group>[^"]*)")?(?: in the namespace "(?P<namespace>[^"]+)")?'
)
"""How the API server words a missing right, since Kubernetes 1.14."""


class ClusterUnreachable(DeployError):
    """There is no cluster to talk to."""


class NotAuthenticated(DeployError):
    """The API server does not know who asks."""


class Forbidden(DeployError):
    """A right is missing."""

    def __init__(self, verb: str, resource: str, namespace: str, *, user: str = "") -> None:
        who = repr(user) if user else "you"
        where = f"in namespace {namespace!r}" if namespace else "in the whole cluster"
        name = f"{user or 'USER'}-edit".replace(":", "-")
        group = resource.partition(".")[2]
        role = (
            f"a Role with --verb={verb} --resource={resource}, and its RoleBinding: the role edit knows no {group}"
            if group.count(".") > 1 and not group.startswith("networking.k8s.io")
            else f"kubectl create rolebinding {name} --clusterrole=edit --user={user or 'USER'} --namespace={namespace}"
            if namespace
            else f"a ClusterRole that allows to {verb} {resource}"
        )
        super().__init__(
            f"{who} may not {verb} {resource} {where}",
            hint=f"ask the cluster's administrator for the right to {verb} {resource} {where}, for example: {role}",
        )
        self.verb, self.resource, self.namespace = verb, resource, namespace


class Rejected(DeployError):
    """The API server did not take an object."""

    def __init__(self, message: str, *, status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Conflict(Rejected):
    """The object has changed since it was read, or is there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What was asked of the API server, for messages."""

    verb: str
    resource: str
    name: str = ""
    namespace: str = ""
    context: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.verb, self.resource, self.name)))


def translated(status: int, body: bytes, doing: Doing) -> DeployError:
    """Return the error that an answer with *status* and *body* stands for."""
    said = _message(body) or f"status {status}"
    if status == 401:
        return NotAuthenticated(
            f"the cluster of context {doing.context!r} does not accept your credentials; they may have expired",
            hint="log in to it again, as its provider says, and see that `kubectl auth can-i get pods` works",
        )
    if status == 403 and (found := _CANNOT.search(said)):
        resource = f"{found['resource']}.{found['group']}" if found["group"] else found["resource"]
        return Forbidden(found["verb"], resource, found["namespace"] or "", user=found["user"])
    if status == 404 and re.search(r'^namespaces "[^"]+" not found', said):
        return Rejected(
            f"there is no namespace {doing.namespace!r} in the cluster of context {doing.context!r}",
            status=status,
            hint="name another one (MLOPSNB_NAMESPACE), or ask the cluster's administrator to make it",
        )
    kind = Conflict if status == 409 else Rejected
    known = recognised(said)
    return kind(f"the cluster refused to {doing}: {said}", status=status, hint=known.hint if known else "")


def _message(body: bytes) -> str:
    try:
        status: Any = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip()[:300]
    return str(status.get("message", "")) if isinstance(status, dict) else ""
