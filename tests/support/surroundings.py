"""A registry and a cluster for tests."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass


@contextlib.contextmanager
def docker_registry(root):
    """Run docker-registry on a free loopback port; yield its host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = root / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n"
        f"http: {{addr: {host!r}, secret: tests}}\n"
    )
    command = [shutil.which("docker-registry"), "serve", str(config)]
    with (root / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _await(f"http://{host}/v2/", process)
            yield host
        finally:
            process.terminate()


def _await(url, process):
    never = threading.Event()
    for _ in range(200):
        assert process.poll() is None, "docker-registry ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            never.wait(0.05)
    raise AssertionError(f"no answer at {url}")


def until_ready(url, seconds=60):
    """Wait until *url* answers 200."""
    end, never = time.monotonic() + seconds, threading.Event()
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        assert time.monotonic() < end, f"{url} never answered 200"
        never.wait(0.1)


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one context, and in its namespace unless another one is named."""

    context: str
    namespace: str = ""

    @classmethod
    def of(cls, admin):
        contexts = _run("config", "get-contexts", "--output=name").split()
        return cls("data-scientist" if "data-scientist" in contexts else admin or contexts[0])

    def __call__(self, *words, stdin=None):
        """Return what kubectl prints; *stdin* is text, or an object to be given as JSON."""
        text = stdin if stdin is None or isinstance(stdin, str) else json.dumps(stdin)
        return _run(*self._where, *words, stdin=text)

    @property
    def _where(self):
        return "--context", self.context, *(("--namespace", self.namespace) if self.namespace else ())

    @contextlib.contextmanager
    def pod(self, name, spec):
        """Run a pod until the block ends."""
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self("apply", "--filename=-", stdin=manifest)
        try:
            yield name
        finally:
            self("delete", "pod", name, "--grace-period=10", "--wait=true", "--ignore-not-found")

    @contextlib.contextmanager
    def forwarded(self, pod, port):
        """Forward a free loopback port to *port* of a pod; yield it."""
        command = ["kubectl", *self._where, "port-forward", f"pod/{pod}", f":{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield int(process.stdout.readline().rpartition(" -> ")[0].rpartition(":")[2])
            finally:
                process.terminate()


def restricted_pod(image):
    """Return a pod as the Pod Security Standard `restricted` demands it, with a root that cannot be written to.

    Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted.
    """
    return {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "model",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
            }
        ],
    }


def _run(*words, stdin=None):
    done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout
