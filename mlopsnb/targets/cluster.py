"""Requests to a cluster's API server, with plain objects: what they mean is decided elsewhere.

The official client reads the kubeconfig, refreshes credentials and makes connections. Its classes for objects are those
of one version of Kubernetes, so objects go out and come in as dicts, which are those of the cluster's version.
Sources: https://kubernetes.io/docs/reference/using-api/api-concepts/ and …/server-side-apply/.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from mlopsnb.errors import DeployError, nearest
from mlopsnb.extras import need
from mlopsnb.targets import kubeconfig
from mlopsnb.targets.cluster_errors import ClusterUnreachable, Doing, Rejected, translated

Object = dict[str, Any]
"""An object of the cluster, or a part of one, as JSON has it."""

MANAGER = "mlopsnb"
"""The field manager by which the cluster knows what is ours."""

PLURALS: Mapping[str, str] = {
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Endpoints": "endpoints",
    "Event": "events",
    "Gateway": "gateways",
    "HTTPRoute": "httproutes",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "InferenceService": "inferenceservices",
    "Ingress": "ingresses",
    "NetworkPolicy": "networkpolicies",
    "Node": "nodes",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "ReplicaSet": "replicasets",
    "ResourceQuota": "resourcequotas",
    "Secret": "secrets",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
}

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_INSIDE = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""What a pod has of its cluster."""

_CONNECT_SECONDS = 10.0
_READ_SECONDS = 60.0
_BRIDGED_SECONDS = 60.0
"""An API server that has answered before may be away for so long, to be restarted."""

_PAUSES = (0.1, 0.2, 0.5, 1.0)
_AGAIN = (429, 502, 503, 504)
_TOO_OLD = 410
_WATCH_SECONDS = 240


class Cluster:
    """The API server of one context of the kubeconfig, and one namespace.

    Without *context* it is the current one; a kernel that runs in a pod and has no kubeconfig uses its pod's account.
    Without *namespace* it is the context's. Raises `ClusterUnreachable` if there is no such context.
    """

    def __init__(self, context: str = "", namespace: str = "") -> None:
        # First: to import the client takes seconds, and where there is none, for nothing.
        files = _kubeconfig(context)
        self.inside = not files
        self.context, default = "", ""
        self._configuration = need("kubernetes.client", extra="kubernetes").Configuration()
        try:
            self.context, default = self._read(files, context)
        except need("kubernetes.config", extra="kubernetes").ConfigException as exc:
            raise ClusterUnreachable(
                f"the kubeconfig cannot be used: {exc}", hint="`kubectl cluster-info` tells whether it works"
            ) from exc
        self.namespace = namespace or default or "default"
        self.server = str(self._configuration.host)
        self._client = need("kubernetes.client", extra="kubernetes").ApiClient(self._configuration)
        self._answered = False
        self._clock = 0.0
        self._versions: dict[str, frozenset[str]] = {}

    def _read(self, files: str, context: str) -> tuple[str, str]:
        """Read the configuration; return the names of the context and of its namespace."""
        config = need("kubernetes.config", extra="kubernetes")
        if self.inside:
            config.load_incluster_config(self._configuration)
            return "in-cluster", (_INSIDE / "namespace").read_text().strip()
        merged = need("kubernetes.config.kube_config", extra="kubernetes").KubeConfigMerger(files).config
        found: Object = merged.value if merged is not None else {}
        known = {str(c.value["name"]): c.value.get("context") or {} for c in found.get("contexts") or ()}
        chosen = context or str(found.get("current-context") or "")
        if chosen not in known:
            said = f"no context named {chosen!r}" if chosen else "no current context"
            raise ClusterUnreachable(
                f"the kubeconfig ({files}) has {said}; there are: {', '.join(sorted(known)) or 'none'}",
                hint=nearest(chosen, known) or "name one: MLOPSNB_CONTEXT, or `kubectl config use-context`",
            )
        config.load_kube_config(files, context=chosen, client_configuration=self._configuration)
        return chosen, str(known[chosen].get("namespace") or "")

    # ------------------------------------------------------------------------------------------ objects
    def get(self, api: str, kind: str, name: str) -> Object | None:
        """Return an object of this namespace; None if it is not there. *api* is its `apiVersion`."""
        return self.request("GET", self.path(api, kind, name), missing=True)

    def list(self, api: str, kind: str, *, labels: str = "", fields: str = "") -> list[Object]:
        """Return the objects of a kind in this namespace that *labels* and *fields* select, such as `a=b,c`."""
        found = self.request("GET", self.path(api, kind), query=_selectors(labels, fields)) or {}
        # Objects in lists do not say what they are.
        return [{"apiVersion": api, "kind": kind, **item} for item in found.get("items", ())]

    def apply(self, wanted: Object, *, dry_run: bool = False) -> Object:
        """Make the object as *wanted* says, by server-side apply, and return it; fields not said stay as they are."""
        query = {"fieldManager": MANAGER, "force": "true", **({"dryRun": "All"} if dry_run else {})}
        path = self.path(wanted["apiVersion"], wanted["kind"], wanted["metadata"]["name"])
        content = "application/apply-patch+yaml"
        return self.request("PATCH", path, query=query, body=wanted, content=content) or {}

    def create(self, wanted: Object) -> Object:
        """Make an object; `Conflict` if there is one of its name."""
        path = self.path(wanted["apiVersion"], wanted["kind"])
        return self.request("POST", path, query={"fieldManager": MANAGER}, body=wanted) or {}

    def replace(self, wanted: Object) -> Object:
        """Put *wanted* in the place of an object; `Conflict` unless that is still of its `resourceVersion`."""
        path = self.path(wanted["apiVersion"], wanted["kind"], wanted["metadata"]["name"])
        return self.request("PUT", path, query={"fieldManager": MANAGER}, body=wanted) or {}

    def merge(self, api: str, kind: str, name: str, changes: Object, *, part: str = "") -> Object:
        """Change some fields of an object (RFC 7396), or of its subresource *part*."""
        path = self.path(api, kind, name) + (f"/{part}" if part else "")
        content = "application/merge-patch+json"
        query = {"fieldManager": MANAGER}
        return self.request("PATCH", path, query=query, body=changes, content=content) or {}

    def delete(self, api: str, kind: str, name: str, *, version: str = "") -> bool:
        """Delete an object and what belongs to it, if it is there; if *version* is given, only as it is of that one."""
        conditions = {"preconditions": {"resourceVersion": version}} if version else {}
        body = {"propagationPolicy": "Background", **conditions}
        return self.request("DELETE", self.path(api, kind, name), body=body, missing=True) is not None

    def serves(self, api: str, kind: str = "") -> bool:
        """Say whether the cluster has the API *api* (`policy/v1`), and *kind* in it."""
        if api not in self._versions:
            found = self.request("GET", f"/apis/{api}", missing=True) or {}
            self._versions[api] = frozenset(r["kind"] for r in found.get("resources", ()))
        return kind in self._versions[api] if kind else bool(self._versions[api])

    def path(self, api: str, kind: str, name: str = "") -> str:
        """Return the path of an object, or of all objects of a kind, in this namespace."""
        root = f"/apis/{api}" if "/" in api else f"/api/{api}"
        return f"{root}/namespaces/{self.namespace}/{PLURALS[kind]}" + (f"/{name}" if name else "")

    # ------------------------------------------------------------------------------------------ watch
    @contextlib.contextmanager
    def watch(
        self, api: str, kind: str, *, version: str, labels: str = "", fields: str = "", seconds: float = 0.0
    ) -> Iterator[Watching]:
        """Yield what happens to objects of a kind after *version*, as (`ADDED`…`DELETED`, object), as it happens.

        It ends after *seconds*, a few minutes at most, or when the server wants it to: list again, and go on from there.
        """
        lasts = min(seconds or _WATCH_SECONDS, _WATCH_SECONDS)
        query = {
            **_selectors(labels, fields),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(lasts))),
        }
        answer = self._send("GET", self.path(api, kind), query=query, stream=True, read_seconds=lasts + 15)
        try:
            yield Watching(answer)
        finally:
            answer.close()

    def until(
        self,
        api: str,
        kind: str,
        holds: Callable[[Sequence[Object]], bool],
        *,
        labels: str = "",
        fields: str = "",
        seconds: float,
    ) -> None:
        """Watch the objects that *labels* and *fields* select until *holds* is true of them all together.

        Raises `TimeoutError` after *seconds*.
        """
        end = time.monotonic() + seconds
        while True:
            listed = self.request("GET", self.path(api, kind), query=_selectors(labels, fields)) or {}
            there: dict[str, Object] = {item["metadata"]["name"]: item for item in listed["items"]}
            if holds(tuple(there.values())):
                return
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(", ".join(sorted(there)))
            version = listed["metadata"]["resourceVersion"]
            try:
                with self.watch(
                    api, kind, version=version, labels=labels, fields=fields, seconds=left
                ) as events:
                    for change, item in events:
                        there.pop(item["metadata"]["name"], None)
                        if change != "DELETED":
                            there[item["metadata"]["name"]] = item
                        if holds(tuple(there.values())):
                            return
            except Rejected as exc:
                if exc.status != _TOO_OLD:
                    raise

    # ------------------------------------------------------------------------------------------ requests
    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content: str = "application/json",
        missing: bool = False,
    ) -> Object | None:
        """Send one request and return the object that comes back; None for a 404 if *missing* allows one.

        An API server that has answered before is waited for while it restarts. Raises a `DeployError`.
        """
        answer = self._send(method, path, query=query, body=body, content=content)
        status, data = answer.status, answer.data
        if 200 <= status < 300:
            found: Object = json.loads(data) if data else {}
            return found
        error = translated(status, data, self._doing(method, path))
        if missing and status == 404 and "namespace" not in error.message:
            return None
        raise error

    def raw(self, path: str, *, seconds: float) -> tuple[int, bytes]:
        """GET *path* and return status and body as they are, within *seconds*."""
        answer = self._send("GET", path, read_seconds=seconds, patient=False)
        return answer.status, answer.data

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content: str = "application/json",
        stream: bool = False,
        read_seconds: float = _READ_SECONDS,
        patient: bool = True,
    ) -> Any:
        urllib3 = need("urllib3", extra="kubernetes")
        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        options = {
            "body": None if body is None else json.dumps(body),
            "headers": {**self.headers(), "accept": "application/json", "content-type": content},
            "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=read_seconds),
            "retries": False,
            "preload_content": not stream,
        }
        end, never = time.monotonic() + _BRIDGED_SECONDS, threading.Event()
        for attempt in range(10_000):
            try:
                answer = self._client.rest_client.pool_manager.request(method, url, **options)
            except (urllib3.exceptions.HTTPError, OSError) as exc:
                if not (patient and self._answered) or time.monotonic() > end:
                    raise self._unreachable(exc) from exc
            else:
                # An API server that has just come back knows tokens and rights a moment later.
                settling = attempt > 0 and answer.status in (401, 403) and attempt < len(_PAUSES)
                if not (patient and (answer.status in _AGAIN or settling)) or time.monotonic() > end:
                    self._answered = self._answered or answer.status < 500
                    self._set_clock(answer.headers.get("date"))
                    if stream and answer.status >= 300:
                        said = answer.read()
                        answer.close()
                        raise translated(answer.status, said, self._doing(method, path))
                    return answer
                answer.close()
            never.wait(_PAUSES[min(attempt, len(_PAUSES) - 1)])
        raise AssertionError("time has stood still")

    def headers(self) -> dict[str, str]:
        """Return the headers that say who asks; credentials that have expired are renewed."""
        settings = self._configuration.auth_settings().values()
        return {"user-agent": MANAGER} | {s["key"]: s["value"] for s in settings if s["in"] == "header"}

    def now(self) -> float:
        """Return the time by the API server's clock, to about a second, in seconds since 1970."""
        return time.monotonic() + self._clock

    def _set_clock(self, said: str | None) -> None:
        with contextlib.suppress(TypeError, ValueError):
            self._clock = parsedate_to_datetime(said or "").timestamp() - time.monotonic()

    @property
    def configuration(self) -> Any:
        """The official client's configuration, for connections that are not requests."""
        return self._configuration

    def _doing(self, method: str, path: str) -> Doing:
        parts = path.partition(f"/namespaces/{self.namespace}/")[2].split("/")
        return Doing(
            verb=_VERBS[method],
            resource=parts[0] or path,
            name=parts[1] if len(parts) > 1 else "",
            namespace=self.namespace,
            context=self.context,
        )

    def _unreachable(self, exc: Exception) -> DeployError:
        reason = getattr(exc, "reason", None) or exc
        said = str(reason).rpartition(">: ")[2] or type(exc).__name__
        return ClusterUnreachable(
            f"the cluster of context {self.context!r} does not answer at {self.server}: {said}",
            hint="is it running, and can this machine reach it? `kubectl cluster-info` tells; "
            "another context is named with MLOPSNB_CONTEXT",
        )


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {
        **({"labelSelector": labels} if labels else {}),
        **({"fieldSelector": fields} if fields else {}),
    }


class Watching:
    """The events of a watch. A connection that breaks, or a version that is too old, ends them."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[tuple[str, Object]]:
        urllib3 = need("urllib3", extra="kubernetes")
        rest = b""
        try:
            for chunk in self._answer.stream(None):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError):  # the last line may be half a one
            return

    def cut(self) -> None:
        """End the events for a thread that waits for the next one; called from another."""
        line = getattr(self._answer.connection, "sock", None)
        if line is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)


def _kubeconfig(context: str) -> str:
    """Return the files of the kubeconfig, as the variable KUBECONFIG has them; nothing if the pod's own account counts."""
    files = kubeconfig.files()
    if any(Path(path).expanduser().is_file() for path in files.split(os.pathsep) if path):
        return files
    if not context and (_INSIDE / "token").is_file() and "KUBERNETES_SERVICE_HOST" in os.environ:
        return ""
    raise ClusterUnreachable(
        f"there is no kubeconfig at {files}",
        hint="put the one of your cluster there, or say where it is: KUBECONFIG=PATH",
    )
