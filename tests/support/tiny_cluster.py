"""An API server of a few objects, for what no real one does when it is asked: refuse, forget, go away and come back."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from urllib.parse import parse_qs, urlsplit

import yaml

READY = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 1}


class TinyCluster:
    """Lists and watches `objects`, by plural. Loopback, no TLS.

    What is in `forbidden` may not be listed; the next watch of what is in `old` ends with 410 Gone. `lists` counts how
    often each was listed.
    """

    def __init__(self, name="fraud-r1"):
        self.objects = {
            "deployments": [
                {
                    "metadata": {"name": name, "uid": "d", "generation": 1},
                    "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}},
                    "status": {"observedGeneration": 1},
                }
            ],
            "replicasets": [],
            "pods": [
                {
                    "metadata": {"name": f"{name}-x", "uid": "p"},
                    "spec": {"containers": [{"name": "model"}]},
                    "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
                }
            ],
            "events": [],
        }
        self.name, self.lists, self.forbidden, self.log = name, {}, set(), []
        self.old = set()
        self.changed = threading.Condition()
        self.port = self.lives = 0
        self.start()

    def start(self):
        """Serve, on the port that it had before if it did."""

        class Ask(_Ask):
            cluster, life = self, self.lives

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Ask)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True)
        self._thread.start()

    def stop(self):
        """Go away: end all watches, refuse connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self.changed:
            self.lives += 1
            self.changed.notify_all()

    def tell(self, plural, change, found):
        """Change an object, and send that to all who watch from an earlier version on."""
        with self.changed:
            kept = [o for o in self.objects[plural] if o["metadata"]["uid"] != found["metadata"]["uid"]]
            self.objects[plural] = kept + ([] if change == "DELETED" else [found])
            self.log.append((plural, {"type": change, "object": found}))
            self.changed.notify_all()

    def get_ready(self):
        """Make the deployment ready."""
        [old] = self.objects["deployments"]
        self.tell("deployments", "MODIFIED", {**old, "status": READY})

    def kubeconfig(self, path):
        """Write the kubeconfig that leads here to *path*; return *path*."""
        here = {"name": "tiny"}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{**here, "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{**here, "user": {"token": "t"}}],
                    "contexts": [{**here, "context": {"cluster": "tiny", "user": "tiny", "namespace": "ml"}}],
                    "current-context": "tiny",
                }
            )
        )
        return path


class _Ask(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: TinyCluster
    life: int

    def do_GET(self):
        place = urlsplit(self.path)
        parts, query = place.path.split("/"), parse_qs(place.query)
        known = [p for p in parts if p in self.cluster.objects]
        if not known:
            self._send(404, {"kind": "Status", "message": "nothing there"})
        elif known[0] in self.cluster.forbidden:
            said = f'{known[0]} is forbidden: User "u" cannot list resource "{known[0]}" in API group "" in the namespace "ml"'
            self._send(403, {"kind": "Status", "message": said})
        elif "watch" in query:
            self._watch(known[0], int(query["resourceVersion"][0]))
        elif parts[-1] == known[0]:
            self._list(known[0])
        else:
            found = [o for o in self.cluster.objects[known[0]] if o["metadata"]["name"] == parts[-1]]
            self._send(200 if found else 404, found[0] if found else {"message": "not found"})

    def _list(self, plural):
        with self.cluster.changed:
            self.cluster.lists[plural] = self.cluster.lists.get(plural, 0) + 1
            found = {
                "metadata": {"resourceVersion": str(len(self.cluster.log))},
                "items": self.cluster.objects[plural],
            }
        self._send(200, found)

    def _send(self, status, found):
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, plural, version):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        if plural in self.cluster.old:
            self.cluster.old.discard(plural)
            self._line({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
            return
        with contextlib.suppress(OSError):
            while self.life == self.cluster.lives:
                with self.cluster.changed:
                    while len(self.cluster.log) == version and self.life == self.cluster.lives:
                        self.cluster.changed.wait()
                    news, version = self.cluster.log[version:], len(self.cluster.log)
                for watched, event in news:
                    if watched == plural:
                        self._line(event)
            self.wfile.write(b"0\r\n\r\n")

    def _line(self, event):
        line = json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def log_message(self, *args):
        """Print nothing."""
