"""Plays KServe's part in a test: makes of an InferenceService what KServe with Knative, or without, makes of it.

Deployments (one for each change of what a pod is, with Knative), a door on loopback that gives each request to a pod by
the shares, and the status, by KServe's rules of who gets the traffic. It watches; nothing is polled.
"""

from __future__ import annotations

import http.client
import http.server
import json
import random
import threading
from queue import SimpleQueue

from mlopsnb.targets import cluster_pods
from mlopsnb.targets.cluster import Cluster
from mlopsnb.targets.kserve_manifests import API, KIND
from mlopsnb.targets.reflector import Changed, Listed, Reflector

POD, KNATIVE = "serving.kserve.io/inferenceservice", "serving.knative.dev/revision"
_SCALES = ("minReplicas", "maxReplicas", "canaryTrafficPercent")


class TinyKServe:
    """KServe for one namespace, while the block lasts."""

    def __init__(self, context, namespace, *, knative=True):
        self.cluster = Cluster(context, namespace)
        self.knative, self.news, self.known = knative, SimpleQueue(), {}
        self.services, self.deployments, self.doors = {}, {}, {}
        self.failed = []

    def __enter__(self):
        self.watches = [
            Reflector(Cluster(self.cluster.context, self.cluster.namespace), api, kind, self.news)
            for api, kind in ((API, KIND), ("apps/v1", "Deployment"))
        ]
        for watch in self.watches:
            watch.start()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.news.put(None)
        self.thread.join(60)
        for watch in self.watches:
            watch.stop()
        for door in self.doors.values():
            door.close()
        assert self.failed == []

    def _run(self):
        try:
            while (news := self.news.get()) is not None:
                match news:
                    case Listed(kind, objects):
                        for found in objects:
                            self._take(kind, "ADDED", found)
                    case Changed(kind, change, found):
                        self._take(kind, change, found)
        except Exception as exc:  # noqa: BLE001
            self.failed.append(exc)

    def _take(self, kind, change, found):
        held = self.services if kind == KIND else self.deployments
        name = found["metadata"]["name"]
        if change == "DELETED":
            held.pop(name, None)
            return
        held[name] = found
        service = name if kind == KIND else found["metadata"].get("labels", {}).get(POD)
        if service in self.services and "deletionTimestamp" not in self.services[service]["metadata"]:
            self._reconcile(self.services[service])

    # ------------------------------------------------------------------------------------------ KServe's part
    def _reconcile(self, service):
        name, predictor = service["metadata"]["name"], dict(service["spec"]["predictor"])
        made = self.known.setdefault(name, {"templates": [], "rolled": "", "before": ""})
        sizes = {key: predictor.pop(key, None) for key in _SCALES}
        # To Knative the number of replicas is an annotation of what it makes pods of; the share is not.
        size = sizes["minReplicas"] if self.knative else None
        template = json.dumps([service["metadata"]["labels"], predictor, size], sort_keys=True)
        if not made["templates"] or made["templates"][-1] != template:
            made["templates"].append(template)
        newest = f"{name}-predictor-{len(made['templates']):05d}" if self.knative else f"{name}-predictor"
        self.cluster.apply(self._deployment(service, newest, predictor, sizes["minReplicas"]))
        ready = self._ready(name, newest)
        traffic = self._traffic(made, newest, ready, sizes["canaryTrafficPercent"])
        self._serve(service, traffic, newest)
        self._tell(service, made, newest, ready, traffic)

    def _deployment(self, service, newest, predictor, replicas):
        labels = {
            **service["metadata"]["labels"],
            POD: service["metadata"]["name"],
            "component": "predictor",
            "app": newest,
            **({KNATIVE: newest} if self.knative else {}),
        }
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": f"{newest}-deployment" if self.knative else newest,
                "labels": labels,
                "ownerReferences": [_owner(service)],
            },
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": newest}},
                "template": {"metadata": {"labels": labels}, "spec": predictor},
            },
        }

    def _ready(self, name, newest):
        """The newest revision that has a ready pod."""
        up = [
            d["metadata"]["labels"]["app"]
            for d in self.deployments.values()
            if d["metadata"].get("labels", {}).get(POD) == name
            and d.get("status", {}).get("readyReplicas", 0) >= 1
            and d["status"].get("observedGeneration") == d["metadata"]["generation"]
            and d["status"].get("updatedReplicas") == d["status"].get("replicas")
        ]
        return max(up, default="")

    def _traffic(self, made, newest, ready, canary):
        """Shares by revision: to the newest that is ready its canary's, to what had all before it the rest."""
        if not ready:
            return {}
        before = made["before"] if made["rolled"] == ready == newest else made["rolled"]
        share = 100 if canary is None or not before else canary
        if share == 100 and made["rolled"] != ready:
            made["before"], made["rolled"] = made["rolled"], ready
        shares = {ready: share}
        if share < 100:
            shares[before] = shares.get(before, 0) + 100 - share
        return shares

    def _serve(self, service, traffic, newest):
        name = service["metadata"]["name"]
        with_some = {revision: share for revision, share in traffic.items() if share}
        if name not in self.doors:
            self.doors[name] = Door(Cluster(self.cluster.context, self.cluster.namespace))
        self.doors[name].shares = with_some
        # Knative scales what nobody is routed to down to nothing.
        for each in list(self.deployments.values()):
            labels = each["metadata"].get("labels", {})
            idle = labels.get("app") not in (*with_some, newest)
            if labels.get(POD) == name and idle and each["spec"]["replicas"]:
                self.cluster.merge(
                    "apps/v1", "Deployment", each["metadata"]["name"], {"spec": {"replicas": 0}}
                )

    def _tell(self, service, made, newest, ready, traffic):
        name = service["metadata"]["name"]
        status = {
            "deploymentMode": "Serverless" if self.knative else "RawDeployment",
            "conditions": [{"type": "Ready", "status": "True" if ready == newest else "Unknown"}],
        }
        if self.knative:
            status["components"] = {
                "predictor": {
                    "latestCreatedRevision": newest,
                    **({"latestReadyRevision": ready} if ready else {}),
                    **({"latestRolledoutRevision": made["rolled"]} if made["rolled"] else {}),
                    **({"previousRolledoutRevision": made["before"]} if made["before"] else {}),
                    "traffic": [
                        {"revisionName": revision, "percent": share, "latestRevision": revision == ready}
                        for revision, share in traffic.items()
                    ],
                }
            }
        if ready:
            status["url"] = self.doors[name].url
        if service.get("status") != status:
            told = self.cluster.merge(API, KIND, name, {"status": status}, part="status")
            self.services[name] = {**self.services[name], "status": told["status"]}


def _owner(service):
    return {
        "apiVersion": API,
        "kind": KIND,
        "name": service["metadata"]["name"],
        "uid": service["metadata"]["uid"],
    }


class Door:
    """A port on loopback, as an ingress would be: each request goes to a ready pod of a revision that has a share."""

    def __init__(self, cluster):
        self.shares = {}
        door = self

        class Ask(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                onward = http.client.HTTPConnection(door.pod(cluster), 8080, timeout=30)
                try:
                    onward.request(self.command, self.path, body, dict(self.headers))
                    answer = onward.getresponse()
                    content = answer.read()
                finally:
                    onward.close()
                self.send_response(answer.status)
                for key in ("Content-Type", "Inference-Header-Content-Length"):
                    if value := answer.getheader(key):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *args):
                """Print nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ask)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def pod(self, cluster):
        """Return the address of a pod that may answer the next request."""
        shares = dict(self.shares)
        [revision] = random.choices([*shares], [*shares.values()])
        pods = cluster.list("v1", "Pod", labels=f"app={revision}")
        return next(p["status"]["podIP"] for p in pods if cluster_pods.is_ready(p))

    def close(self):
        """Close the port."""
        self.server.shutdown()
        self.server.server_close()
