"""Finding a cluster, and what is said when it cannot be talked to; an API server that misbehaves is played here."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest
import yaml

from mlopsnb.errors import DeployError
from mlopsnb.targets.cluster import Cluster
from mlopsnb.targets.cluster_errors import (
    ClusterUnreachable,
    Conflict,
    Doing,
    Forbidden,
    NotAuthenticated,
    Rejected,
    translated,
)

DOING = Doing(verb="create", resource="pods", name="x", namespace="ml", context="dev")


def status(message):
    return json.dumps({"kind": "Status", "message": message}).encode()


@pytest.mark.parametrize(
    ("code", "said", "kind", "words"),
    [
        (
            403,
            'User "ada" cannot create resource "deployments" in API group "apps" in the namespace "ml"',
            Forbidden,
            r"'ada' may not create deployments.apps in namespace 'ml'\n.*ask .* for the right to create .*--user=ada",
        ),
        (
            403,
            'nodes is forbidden: User "x" cannot list resource "nodes" in API group "" at the cluster scope',
            Forbidden,
            "may not list nodes in the whole cluster",
        ),
        (
            403,
            'pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1',
            Rejected,
            r"refused to create pods x: .*exceeded quota: small.*\n.*ask for less",
        ),
        (
            403,
            'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            Rejected,
            r"violates PodSecurity .*\n  hint: ",
        ),
        (
            400,
            'admission webhook "a.b" denied the request: no',
            Rejected,
            r"denied the request: no\n  hint: ",
        ),
        (
            403,
            "unable to create new content in namespace ml because it is being terminated",
            Rejected,
            r"\n  hint: name another one \(MLOPSNB_NAMESPACE\)",
        ),
        (401, "Unauthorized", NotAuthenticated, "context 'dev' does not accept your credentials"),
        (
            404,
            'namespaces "ml" not found',
            Rejected,
            "there is no namespace 'ml' in the cluster of context 'dev'",
        ),
        (409, 'pods "x" already exists', Conflict, "already exists"),
        (
            422,
            "spec.x: Invalid value",
            Rejected,
            r"the cluster refused to create pods x: spec.x: Invalid value",
        ),
    ],
)
def test_refusals_are_told_in_our_words(code, said, kind, words):
    error = translated(code, status(said), DOING)
    assert type(error) is kind
    assert isinstance(error, DeployError)
    assert re.search(words, str(error))


def test_what_is_no_status_is_shown_as_it_is():
    assert "bad gateway" in str(translated(502, b"<html>bad gateway</html>", DOING))
    assert "status 500" in str(translated(500, b"[]", DOING))


@pytest.fixture
def kubeconfig(tmp_path, monkeypatch):
    """A function that writes a kubeconfig with two contexts of one server."""

    def write(server, *, current="dev", **user):
        contexts = [
            {"name": "dev", "context": {"cluster": "c", "user": "u", "namespace": "ml"}},
            {"name": "production", "context": {"cluster": "c", "user": "u"}},
        ]
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": "secret", **user}}],
            "contexts": contexts,
            **({"current-context": current} if current else {}),
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(path))

    return write


def test_the_context_and_the_namespace_are_those_of_the_kubeconfig_unless_named(kubeconfig):
    kubeconfig("https://k8s.example")
    found = Cluster()
    assert (found.context, found.namespace, found.server) == ("dev", "ml", "https://k8s.example")
    assert Cluster("production").namespace == "default"
    assert Cluster("production", "team").namespace == "team"


def test_an_unknown_context_is_told_with_the_nearest(kubeconfig):
    kubeconfig("https://k8s.example")
    with pytest.raises(
        ClusterUnreachable, match=r"no context named 'prodution'; there are: dev, production"
    ) as caught:
        Cluster("prodution")
    assert caught.value.hint == "did you mean 'production'?"
    kubeconfig("https://k8s.example", current="")
    with pytest.raises(ClusterUnreachable, match="has no current context"):
        Cluster()


def test_without_a_kubeconfig_it_is_said_where_one_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterUnreachable, match="there is no kubeconfig at .*none"):
        Cluster()
    (tmp_path / "none").write_text("")
    with pytest.raises(ClusterUnreachable, match="cannot be used"):
        Cluster()


def test_without_a_kubeconfig_the_client_is_not_even_imported(tmp_path):
    code = "import sys, mlopsnb\nassert mlopsnb.deployments() == ()\nassert 'kubernetes' not in sys.modules"
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "KUBECONFIG": str(tmp_path / "none"),
        "DOCKER_HOST": "unix:///none",
    }
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=100)


def test_a_dead_api_server_is_told_at_once(kubeconfig):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kubeconfig(f"http://127.0.0.1:{port}")
    with pytest.raises(
        ClusterUnreachable, match=rf"context 'dev' does not answer at http://127.0.0.1:{port}: .*refused"
    ):
        Cluster().list("v1", "Pod")


class Api:
    """Plays an API server: gives *answers* in turn, the last one for good; `asked` are the requests."""

    def __init__(self):
        self.answers, self.asked = [], []
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                api.asked.append((self.command, self.path, self.headers.get("authorization"), body))
                code, data = api.answers.pop(0) if len(api.answers) > 1 else api.answers[0]
                self.send_response(code)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def api(kubeconfig):
    played = Api()
    kubeconfig(played.url)
    yield played
    played.close()


GOOD = (200, b'{"items": []}')


def test_requests_bear_the_token_and_go_to_the_namespace(api):
    api.answers = [GOOD]
    Cluster("production", "team").list("apps/v1", "Deployment", labels="a=b,c", fields="metadata.name=x")
    [(method, path, token, _)] = api.asked
    assert (method, token) == ("GET", "Bearer secret")
    assert path == (
        "/apis/apps/v1/namespaces/team/deployments?labelSelector=a%3Db%2Cc&fieldSelector=metadata.name%3Dx"
    )


def test_an_api_server_that_restarts_is_waited_for(api):
    cluster = Cluster()
    api.answers = [
        GOOD,
        (503, status("starting")),
        (429, status("later")),
        (401, status("Unauthorized")),  # it has not read its tokens yet
        (200, b'{"items": [{"a": 1}]}'),
    ]
    assert cluster.list("v1", "Pod") == []
    assert [pod["a"] for pod in cluster.list("v1", "Pod")] == [1]


def test_credentials_that_are_not_accepted_are_told_at_once(api):
    api.answers = [(401, status("Unauthorized"))]
    with pytest.raises(NotAuthenticated, match="may have expired"):
        Cluster().list("v1", "Pod")
    assert len(api.asked) == 1


def test_only_what_is_absent_is_none(api):
    cluster = Cluster()
    api.answers = [(404, status('configmaps "x" not found'))]
    assert cluster.get("v1", "ConfigMap", "x") is None
    assert cluster.delete("v1", "ConfigMap", "x") is False
    with pytest.raises(Rejected, match="not found"):
        cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}})
    api.answers = [(404, status('namespaces "ml" not found'))]
    with pytest.raises(Rejected, match="there is no namespace 'ml'"):
        cluster.get("v1", "ConfigMap", "x")


def test_objects_are_applied_with_our_name_and_by_force(api):
    api.answers = [(200, b"{}")]
    wanted = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}
    Cluster().apply(wanted)
    [(method, path, _, body)] = api.asked
    assert (method, path) == ("PATCH", "/api/v1/namespaces/ml/services/x?fieldManager=mlopsnb&force=true")
    assert json.loads(body) == wanted


def test_a_watch_that_is_cut_begins_anew(api):
    listed = {"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "x"}}]}
    change = {"type": "MODIFIED", "object": {"metadata": {"name": "x"}, "done": True}}
    half = json.dumps({"type": "BOOKMARK", "object": {}}).encode() + b'\n{"type": "MOD'
    cluster, listing = Cluster(), (200, json.dumps(listed).encode())
    api.answers = [
        *(listing, (200, half)),
        *(listing, (410, status("too old resource version"))),
        *(listing, (200, json.dumps(change).encode() + b"\n")),
    ]
    cluster.until("v1", "Pod", lambda pods: any(pod.get("done") for pod in pods), seconds=20)
    assert len(api.asked) == 6
    api.answers = [(200, json.dumps(listed).encode())]
    with pytest.raises(TimeoutError, match="x"):
        cluster.until("v1", "Pod", lambda pods: False, seconds=0)
