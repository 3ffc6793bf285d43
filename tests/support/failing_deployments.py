"""Deployments that do not get ready, one for each way in which that happens on a real cluster."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import subprocess
import sys
import threading
from dataclasses import dataclass

SLEEP = "import time; time.sleep(600)"
HOG = "x = bytearray(300 << 20); import time; time.sleep(600)"
FILL = "import time; open('/v/x', 'wb').write(bytes(8 << 20)); time.sleep(600)"
SERVE = """
import http.server
class Ask(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == '/started' else 503)
        self.end_headers()
    def log_message(self, *args):
        pass
print('serving', flush=True)
http.server.ThreadingHTTPServer(('', 8080), Ask).serve_forever()
"""


@dataclass(frozen=True, kw_only=True)
class Failing:
    """A deployment, the kind of verdict that it shall get, and words that shall be in it."""

    manifest: dict
    kind: str
    words: tuple = ()
    hint: str = ""

    @property
    def name(self):
        return self.manifest["metadata"]["name"]


def deployment(name, image, code=SLEEP, *, replicas=1, pod=None, deadline=600, **container):
    """Return a deployment of pods that run *code*, with *container* and *pod* on top."""
    model = {
        "name": "model",
        "image": image,
        "command": ["python", "-c", code],
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "readinessProbe": probe("/started"),
        **container,
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "containers": [model],
        **(pod or {}),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": deadline,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
        },
    }


def probe(path, **more):
    return {"httpGet": {"path": path, "port": 8080}, "periodSeconds": 1, **more}


def from_env(kind, name, key):
    return {"env": [{"name": "A", "valueFrom": {f"{kind}KeyRef": {"name": name, "key": key}}}]}


def mounted(source):
    return {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, {"volumes": [{"name": "v", **source}]}


def images(prefix, base):
    """Pods without an image. There is a registry at 127.0.0.1:5000 or not: each answers in its own way."""
    none = f"{base.rpartition('/')[0] or 'docker.io'}/{prefix}/none:1"
    return [
        Failing(
            manifest=deployment(f"{prefix}-notfound", none),
            kind="ImagePullBackOff",
            words=(none, "no such image"),
            hint="push the image",
        ),
        Failing(
            manifest=deployment(f"{prefix}-away", f"127.0.0.1:9/{prefix}:1"),
            kind="ImagePullBackOff",
            words=("the nodes cannot reach 127.0.0.1:9", "refused"),
        ),
        Failing(
            manifest=deployment(f"{prefix}-never", none, imagePullPolicy="Never"),
            kind="ErrImageNeverPull",
            words=(none, "not on its node"),
        ),
        Failing(
            manifest=deployment(f"{prefix}-badname", "UPPER/Case:1"),
            kind="InvalidImageName",
            words=("UPPER/Case:1", "lowercase"),
        ),
    ]


def crashes(prefix, base):
    """Containers that end."""
    missing = subprocess.run(
        [sys.executable, "-m", "mlopsnb.serving", f"/nowhere/{prefix}"], capture_output=True, text=True
    )
    words = f"import sys; print({missing.stderr!r}, file=sys.stderr); sys.exit({missing.returncode})"
    limits = {"requests": {"memory": "16Mi"}, "limits": {"memory": "64Mi"}}
    return [
        Failing(
            manifest=deployment(f"{prefix}-crash", base, "print('loading', flush=True); {}['age']"),
            kind="CrashLoopBackOff",
            words=("ended with exit code 1, 2 times", "loading", "KeyError: 'age'"),
        ),
        Failing(
            manifest=deployment(f"{prefix}-package", base, words),
            kind="CrashLoopBackOff",
            words=("could not start (exit code 3)", f"/nowhere/{prefix}"),
            hint="build the image again",
        ),
        Failing(
            manifest=deployment(f"{prefix}-done", base, "pass"),
            kind="CrashLoopBackOff",
            words=("ended by itself (exit code 0)",),
        ),
        Failing(
            manifest=deployment(f"{prefix}-oom", base, HOG, resources=limits),
            kind="OOMKilled",
            words=("memory limit of 64Mi",),
            hint="memory='128Mi'",
        ),
        Failing(
            manifest=deployment(f"{prefix}-command", base, command=["/nothing"]),
            kind="StartError",
            words=("/nothing", "no such file"),
        ),
    ]


def settings(prefix, base):
    """Pods that want something that is not there. The secret `PREFIX-some` is, without the key `none`."""
    inside, pod = mounted({"secret": {"secretName": f"{prefix}-none"}})
    root = {"runAsNonRoot": True}
    return [
        Failing(
            manifest=deployment(f"{prefix}-secret", base, **from_env("secret", f"{prefix}-none", "k")),
            kind="CreateContainerConfigError",
            words=(f"the secret {prefix}-none, which is not there",),
            hint="kubectl create secret",
        ),
        Failing(
            manifest=deployment(f"{prefix}-key", base, **from_env("secret", f"{prefix}-some", "none")),
            kind="CreateContainerConfigError",
            words=("the key none of the secret", f"{prefix}-some"),
        ),
        Failing(
            manifest=deployment(
                f"{prefix}-config", base, envFrom=[{"configMapRef": {"name": f"{prefix}-none"}}]
            ),
            kind="CreateContainerConfigError",
            words=(f"the config map {prefix}-none, which is not there",),
        ),
        Failing(
            manifest=deployment(f"{prefix}-root", base, securityContext=root),
            kind="CreateContainerConfigError",
            words=("may not run as root",),
        ),
        Failing(
            manifest=deployment(f"{prefix}-mount", base, pod=pod, **inside),
            kind="FailedMount",
            words=(f"mounts the secret {prefix}-none, which is not there",),
        ),
        Failing(
            manifest=deployment(f"{prefix}-account", base, pod={"serviceAccountName": f"{prefix}-none"}),
            kind="ServiceAccountNotFound",
            words=(f"the service account {prefix}-none is not there",),
        ),
    ]


def nodes(prefix, base):
    """Pods that no node takes, and two that their node throws out."""
    much = {"requests": {"cpu": "4000", "memory": "16Mi"}}
    gpu = {"limits": {"example.com/gpu": "1"}}
    claim_inside, claim_pod = mounted({"persistentVolumeClaim": {"claimName": f"{prefix}-none"}})
    small_inside, small_pod = mounted({"emptyDir": {"sizeLimit": "1Mi"}})
    return [
        Failing(
            manifest=deployment(f"{prefix}-cpu", base, resources=much),
            kind="Unschedulable",
            words=("Insufficient cpu", "It asks for cpu 4"),
            hint="ask for less cpu",
        ),
        Failing(
            manifest=deployment(f"{prefix}-gpu", base, resources=gpu),
            kind="Unschedulable",
            words=("Insufficient example.com/gpu", "It asks for example.com/gpu 1"),
        ),
        Failing(
            manifest=deployment(f"{prefix}-pool", base, pod={"nodeSelector": {"pool": f"{prefix}-none"}}),
            kind="Unschedulable",
            words=("node affinity",),
            hint=f"pool={prefix}-none",
        ),
        Failing(
            manifest=deployment(f"{prefix}-claim", base, pod=claim_pod, **claim_inside),
            kind="Unschedulable",
            words=(f'persistentvolumeclaim "{prefix}-none" not found',),
        ),
        Failing(
            manifest=deployment(f"{prefix}-evicted", base, FILL, replicas=2, pod=small_pod, **small_inside),
            kind="Evicted",
            words=("was evicted from its node", '"v" exceeds the limit "1Mi"'),
        ),
    ]


def probes(prefix, base):
    """Servers that run and do not answer as they should."""
    return [
        Failing(
            manifest=deployment(
                f"{prefix}-unready",
                base,
                SERVE,
                startupProbe=probe("/started", failureThreshold=120),
                readinessProbe=probe("/ready"),
            ),
            kind="ReadinessFailed",
            words=("its readiness probe fails: HTTP probe failed with statuscode: 503",),
        ),
        Failing(
            manifest=deployment(
                f"{prefix}-live",
                base,
                SERVE,
                readinessProbe=probe("/ready"),
                livenessProbe=probe("/healthz", initialDelaySeconds=2, failureThreshold=2),
            ),
            kind="LivenessFailed",
            words=(
                "was killed because its liveness probe failed: HTTP probe failed with statuscode: 503",
                "serving",
            ),
        ),
        Failing(
            manifest=deployment(
                f"{prefix}-startup",
                base,
                SERVE,
                # Long enough for a busy machine to have brought the server up: the last answer is the server's own.
                startupProbe=probe("/", initialDelaySeconds=2, failureThreshold=15),
            ),
            kind="StartupFailed",
            words=("startup probe", "HTTP probe failed with statuscode: 503"),
        ),
        Failing(
            manifest=deployment(f"{prefix}-deadline", base, deadline=4),
            kind="ProgressDeadlineExceeded",
            words=("made no progress within 4 s",),
        ),
    ]


GROUPS = {"slow": (probes, nodes, images), "quick": (crashes, settings)}
"""What is started together. A node tells five events a second: were all together, those that matter would come late."""


@contextlib.contextmanager
def web(address, answer, *, certificate=None):
    """Serve what *answer* says to POSTs and GETs: a function from a body to status, headers and body. Yield the port."""

    class Ask(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            status, headers, body = answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *args):
            """Print nothing."""

    with http.server.ThreadingHTTPServer((address, 0), Ask) as server:
        server.handle_error = lambda *args: None  # a client that does not like the certificate hangs up
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
