"""A registry in this process that is strict about the distribution specification, and can fail in every way we know.

`faults` holds what goes wrong with the next requests, one entry each (None: nothing). `requests` records what came.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from mlopsnb.images.plan import Descriptor

FAULTS = (
    "drop",  # the connection ends before anything is read or done
    "half",  # half of the body is taken in, then the connection ends
    "lost",  # all is done, but the answer does not come
    "cut",  # the answer breaks off half-way
    "short",  # the answer is well-formed but lacks its second half
    "slow",  # the answer trickles
    "429",
    "500",
    "503",
    "amnesia",  # all uploads under way are forgotten, then the request is served
)
"""Faults after which every call can still succeed."""

LASTING = ("507", "413", "403", "corrupt", "digest", "rejected")
"""Faults that end a call with an error of its own."""


def blob_of(data, media_type="application/octet-stream"):
    """Return the descriptor of *data*."""
    return Descriptor(
        media_type=media_type, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data)
    )


@dataclass
class Session:
    repository: str
    data: bytearray = field(default_factory=bytearray)
    state: str = field(default_factory=lambda: secrets.token_hex(4))
    short_chunk: bool = False
    known: bool = False  # the client heard of it: it sent a request there
    farewell: bool = False  # the client asked that it be deleted, heard or not


class Gone(Exception):
    """The connection is to be closed without (further) answer."""


class FakeRegistry:
    """A registry on a free loopback port, as a context manager."""

    def __init__(self):
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.sessions: dict[str, Session] = {}
        self.faults: list[str | None] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.connections: set[int] = set()  # the ports that requests came from
        self.min_chunk = 0
        self.max_body = None
        self.mounts = True
        self.silent = False  # manifests come without their digest
        self.referrers_api = True
        self.redirect_to = ""
        self.absolute_locations = False
        self.users: dict[str, str] = {}
        self.kind = ""  # "basic" or "bearer"
        self.rights: dict[str, set[str]] = {}  # repository -> actions that the user has
        self.identity_token = ""
        self.tokens: dict[str, set[tuple[str, str]]] = {}
        self.retry_after = "0"
        self.finish_with = None  # status, code and message of the answer to what ends an upload
        self.release = threading.Event()
        self.release.set()
        self.lock = threading.RLock()

    def start(self):
        handler = type("Handler", (Handler,), {"registry": self})
        self.server = Server(("127.0.0.1", 0), handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def stop(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.server.hang_up()
        self.thread.join()

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        self.stop()

    def left(self):
        """Return the uploads that the client knew of and did not try to end."""
        return [name for name, session in self.sessions.items() if session.known and not session.farewell]

    def sent(self, method, part=""):
        return [r for r in self.requests if r[0] == method and part in r[1]]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args):
        super().__init__(*args)
        self.open = []

    def process_request(self, request, client_address):
        self.open.append(request)
        super().process_request(request, client_address)

    def hang_up(self):
        for sock in self.open:
            with contextlib.suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Broken connections are our business here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: FakeRegistry
    wbufsize = 1 << 16
    timeout = 20

    def log_message(self, *args):
        pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (Gone, ConnectionError, TimeoutError, ValueError):
            self.close_connection = True

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.serve
        raise AttributeError(name)

    # The frame: faults, authorization, routes

    def serve(self):
        self.url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(self.url.query).items()}
        with self.registry.lock:
            self.registry.requests.append(
                (self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            )
            self.registry.connections.add(self.client_address[1])
            token_service = self.url.path == "/token"
            self.fault = self.registry.faults.pop(0) if self.registry.faults and not token_service else None
        self.registry.release.wait(20)
        self.before()
        self.body = self.read_body()
        if token_service:
            return self.token()
        if self.fault in ("429", "500", "503", "507", "413", "403"):
            extra = {"Retry-After": self.registry.retry_after} if self.fault in ("429", "503") else {}
            return self.error(int(self.fault), "UNKNOWN", "as ordered", **extra)
        if not self.authorized():
            return None
        return self.route()

    def before(self):
        name = self.url.path.rpartition("/")[2]
        if (session := self.registry.sessions.get(name)) is not None:
            session.known = True
            session.farewell = session.farewell or self.command == "DELETE"
        if self.fault == "drop":
            raise Gone
        if self.fault == "amnesia":
            self.registry.sessions.clear()
        length = int(self.headers.get("content-length") or 0)
        if self.fault == "half":
            self.take_half(self.rfile.read(length // 2))
            raise Gone

    def take_half(self, data):
        """What came of a body that broke off is kept, as good registries do."""
        match = re.fullmatch(r"/v2/(.+)/blobs/uploads/([^/]+)", self.url.path)
        session = self.registry.sessions.get(match[2]) if match else None
        if session is not None and self.command in ("PATCH", "PUT"):
            session.data += data

    def read_body(self):
        if "chunked" in self.headers.get("transfer-encoding", ""):
            self.close_connection = True
            self.answer(411)
            raise Gone
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            self.take_half(body)
            raise Gone
        return body

    def authorized(self):
        registry, header = self.registry, self.headers.get("authorization", "")
        if not registry.kind:
            return True
        match = re.match(r"/v2/(.+)/(blobs|manifests|tags|referrers)/", self.url.path)
        repository = match[1] if match else ""
        action = "pull" if self.command in ("GET", "HEAD") else "push"
        if registry.kind == "basic":
            kept = {base64.b64encode(f"{u}:{p}".encode()).decode() for u, p in registry.users.items()}
            good = header.removeprefix("Basic ") in kept
            challenge = 'Basic realm="test"'
        else:
            good = (repository, action) in registry.tokens.get(header.removeprefix("Bearer "), set())
            scope = f"repository:{repository}:{'pull' if action == 'pull' else 'pull,push'}"
            challenge = f'Bearer realm="http://{registry.host}/token",service="test",scope="{scope}"'
        if not good:
            self.error(401, "UNAUTHORIZED", "authentication required", **{"WWW-Authenticate": challenge})
        return good

    def token(self):
        registry = self.registry
        if self.command == "POST":
            form = {k: v[0] for k, v in parse_qs(self.body.decode()).items()}
            if (
                form.get("grant_type") != "refresh_token"
                or form.get("refresh_token") != registry.identity_token
            ):
                return self.error(401, "UNAUTHORIZED", "bad identity token")
            scopes, known = form["scope"].split(" "), True
        else:
            scopes = parse_qs(self.url.query).get("scope", [])
            user, _, password = (
                base64.b64decode(self.headers.get("authorization", "").removeprefix("Basic "))
                .decode()
                .partition(":")
            )
            known = bool(user) and registry.users.get(user) == password
            if user and not known:
                return self.error(401, "UNAUTHORIZED", "incorrect username or password")
        granted = set()
        for scope in scopes:
            _, repository, actions = scope.split(":")
            allowed = (
                registry.rights.get(repository, {"pull", "push"})
                if known
                else {"pull"} & registry.rights.get(f"public:{repository}", set())
            )
            granted |= {(repository, action) for action in actions.split(",") if action in allowed}
        token = secrets.token_hex(8)
        registry.tokens[token] = granted
        return self.answer(200, json.dumps({"token": token, "expires_in": 300}).encode())

    def route(self):
        routes = {
            r"/v2/(.+)/blobs/uploads/": self.start_upload,
            r"/v2/(.+)/blobs/uploads/([^/]+)": self.upload,
            r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})": self.blob,
            r"/v2/(.+)/manifests/([^/]+)": self.manifest,
            r"/v2/(.+)/tags/list": self.tags,
            r"/v2/(.+)/referrers/(sha256:[0-9a-f]{64})": self.referrers,
        }
        for pattern, method in routes.items():
            if match := re.fullmatch(pattern, self.url.path):
                with self.registry.lock:
                    return method(*match.groups())
        return self.error(404, "NAME_UNKNOWN", self.path)

    # Blobs

    def blob(self, repository, digest):
        data = self.registry.blobs.get((repository, digest))
        if data is None:
            return self.error(404, "BLOB_UNKNOWN", digest)
        if self.registry.redirect_to and self.command == "GET":
            return self.answer(307, Location=f"{self.registry.redirect_to}{self.url.path}?signature=s3cret")
        if self.fault == "corrupt" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        extra = {"Docker-Content-Digest": digest}
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "")):
            start = int(match[1])
            if start >= len(data):
                return self.error(416, "RANGE", "beyond the end")
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        return self.answer(status, data, **extra)

    def start_upload(self, repository):
        if self.command != "POST":
            return self.error(405, "UNSUPPORTED", self.command)
        digest, origin = self.query.get("mount"), self.query.get("from")
        if (
            digest
            and self.registry.mounts
            and (origin, digest) in self.registry.blobs
            and self.may_read(origin)
        ):
            self.registry.blobs[repository, digest] = self.registry.blobs[origin, digest]
            return self.answer(
                201, **{"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest}
            )
        name = secrets.token_hex(8)
        session = self.registry.sessions[name] = Session(repository)
        extra = {"OCI-Chunk-Min-Length": str(self.registry.min_chunk)} if self.registry.min_chunk else {}
        return self.answer(202, Location=self.location(name, session), Range="0-0", **extra)

    def may_read(self, repository):
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        return self.registry.kind != "bearer" or (repository, "pull") in self.registry.tokens.get(
            token, set()
        )

    def location(self, name, session):
        path = f"/v2/{session.repository}/blobs/uploads/{name}?_state={session.state}%3D%3D"
        return f"http://{self.registry.host}{path}" if self.registry.absolute_locations else path

    def upload(self, repository, name):
        session = self.registry.sessions.get(name)
        if session is None or session.repository != repository:
            return self.error(404, "BLOB_UPLOAD_UNKNOWN", name)
        if self.query.get("_state") != f"{session.state}==":
            return self.error(400, "BLOB_UPLOAD_INVALID", "the query of the Location was lost")
        if self.registry.max_body is not None and len(self.body) > self.registry.max_body:
            return self.error(413, "SIZE_INVALID", "too large")
        if self.command == "DELETE":
            del self.registry.sessions[name]
            return self.answer(204)
        if self.command == "GET":
            return self.answer(204, **self.progress(name, session))
        if self.command == "PATCH":
            return self.patch(name, session)
        if self.command == "PUT":
            return self.finish(name, session)
        return self.error(405, "UNSUPPORTED", self.command)

    def progress(self, name, session):
        return {"Location": self.location(name, session), "Range": f"0-{max(0, len(session.data) - 1)}"}

    def patch(self, name, session):
        match = re.fullmatch(r"(\d+)-(\d+)", self.headers.get("content-range", ""))
        if match is None or int(match[2]) - int(match[1]) + 1 != len(self.body):
            return self.error(400, "BLOB_UPLOAD_INVALID", "bad Content-Range")
        if int(match[1]) != len(session.data):
            return self.error(416, "BLOB_UPLOAD_INVALID", "out of order", **self.progress(name, session))
        if session.short_chunk:
            return self.error(400, "SIZE_INVALID", "only the last chunk may be short")
        session.short_chunk = len(self.body) < self.registry.min_chunk
        session.data += self.body
        session.state = secrets.token_hex(4)
        return self.answer(202, **self.progress(name, session))

    def finish(self, name, session):
        if self.registry.finish_with:
            return self.error(*self.registry.finish_with)
        digest = self.query.get("digest", "")
        data = bytes(session.data) + self.body
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            return self.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        del self.registry.sessions[name]
        self.registry.blobs[session.repository, digest] = data
        said = f"sha256:{'0' * 64}" if self.fault == "digest" else digest
        location = f"/v2/{session.repository}/blobs/{digest}"
        return self.answer(201, **{"Location": location, "Docker-Content-Digest": said})

    # Manifests

    def manifest(self, repository, ref):
        if self.command == "PUT":
            return self.put_manifest(repository, ref)
        found = self.registry.manifests.get((repository, ref))
        if found is None:
            return self.error(404, "MANIFEST_UNKNOWN", ref)
        data, media_type = found
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.fault == "corrupt":
            data = data.replace(b"2", b"3", 1)
        extra = {} if self.registry.silent else {"Docker-Content-Digest": digest}
        return self.answer(200, data, **{"Content-Type": media_type, **extra})

    def put_manifest(self, repository, ref):
        content = json.loads(self.body)
        needed = [d["digest"] for d in [*content.get("layers", ()), *filter(None, [content.get("config")])]]
        if self.fault == "rejected":
            return self.error(400, "MANIFEST_INVALID", "manifest invalid")
        if missing := [d for d in needed if (repository, d) not in self.registry.blobs]:
            return self.error(404, "MANIFEST_BLOB_UNKNOWN", missing[0])
        digest = f"sha256:{hashlib.sha256(self.body).hexdigest()}"
        if ref.startswith("sha256:") and ref != digest:
            return self.error(400, "DIGEST_INVALID", ref)
        for name in {ref, digest}:
            self.registry.manifests[repository, name] = (self.body, self.headers["content-type"])
        said = f"sha256:{'0' * 64}" if self.fault == "digest" else digest
        extra = {"Location": f"/v2/{repository}/manifests/{digest}", "Docker-Content-Digest": said}
        if self.registry.referrers_api and "subject" in content:
            extra["OCI-Subject"] = content["subject"]["digest"]
        return self.answer(201, **extra)

    def tags(self, repository):
        tags = sorted(ref for name, ref in self.registry.manifests if name == repository and ":" not in ref)
        if not tags:
            return self.error(404, "NAME_UNKNOWN", repository)
        rest = [tag for tag in tags if tag > self.query.get("last", "")]
        page = rest[:2]
        link = f'</v2/{repository}/tags/list?last={page[-1]}>; rel="next"' if len(rest) > 2 else ""
        return self.answer(
            200, json.dumps({"name": repository, "tags": page}).encode(), **({"Link": link} if link else {})
        )

    def referrers(self, repository, digest):
        if not self.registry.referrers_api:
            return self.error(404, "NOT_FOUND", "no such API")
        found = []
        for (name, ref), (data, media_type) in self.registry.manifests.items():
            content = json.loads(data)
            if name == repository and ":" in ref and content.get("subject", {}).get("digest") == digest:
                found.append(
                    {
                        "mediaType": media_type,
                        "digest": ref,
                        "size": len(data),
                        "artifactType": content.get("artifactType"),
                    }
                )
        return self.answer(200, json.dumps({"schemaVersion": 2, "manifests": found}).encode())

    # Answers

    def error(self, status, code, message, **headers):
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        return self.answer(status, body, **{"Content-Type": "application/json", **headers})

    def answer(self, status, data=b"", **headers):
        if self.fault == "lost":
            raise Gone
        shown = b"" if self.command == "HEAD" else data
        promised = len(data)
        if (
            self.fault == "short"
            and self.command == "GET"
            and status in (200, 206)
            and "/blobs/" in self.path
        ):
            shown = shown[: len(shown) // 2]
            promised = len(shown)
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(promised))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.fault == "cut":
            self.wfile.write(shown[: len(shown) // 2])
            self.wfile.flush()
            if self.command == "HEAD" or not shown:
                return
            self.connection.shutdown(socket.SHUT_RDWR)
            raise Gone
        if self.fault == "slow":
            step = max(1, len(shown) // 8)
            for at in range(0, len(shown), step):
                self.wfile.write(shown[at : at + step])
                self.wfile.flush()
                threading.Event().wait(0.002)
            return
        self.wfile.write(shown)
        self.wfile.flush()
