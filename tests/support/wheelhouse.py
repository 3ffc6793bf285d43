"""Wheels of a few lines, made where a test needs them, and an index of them on the loopback interface."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def wheel(
    into: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    tag: str = "py3-none-any",
) -> Path:
    """Write a wheel of the module *name* and return its path. Its bytes depend on nothing but what is asked for."""
    into.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    contents = {
        **(files if files is not None else {f"{name.replace('-', '_')}.py": f"VERSION = {version!r}\n"}),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{path},{_digest(text)},{len(text.encode())}\n" for path, text in contents.items())
    place = into / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(place, "w") as archive:
        for path, text in {**contents, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if path.endswith(".so") else 0o100644) << 16
            archive.writestr(entry, text)
    return place


def _digest(text: str) -> str:
    raw = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Index:
    """A package index of a directory. `asked` are the headers of each request, by its path."""

    def __init__(self, directory: Path, authorization: str) -> None:
        self.directory = directory
        self.authorization = authorization
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.address = ""


@contextmanager
def index(directory: Path, *, authorization: str = "") -> Iterator[Index]:
    """Serve the wheels of *directory* as PEP 503 has it; with *authorization*, only to who sends that header."""
    served = Index(directory, authorization)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append((self.path, dict(self.headers)))
            if served.authorization and self.headers.get("authorization") != served.authorization:
                return self._answer(401, b"")
            # as a proxy is asked, the path is a whole address
            parts = [part for part in self.path.partition("//")[2].split("/")[1:] if part]
            parts = parts or [part for part in self.path.split("/") if part]
            if parts[:1] == ["simple"] and len(parts) == 2:
                return self._page(parts[1])
            file = served.directory / parts[-1]
            return self._answer(200, file.read_bytes()) if file.is_file() else self._answer(404, b"")

        def _page(self, name: str) -> None:
            found = [
                p
                for p in sorted(served.directory.iterdir())
                if p.name.split("-")[0].replace("_", "-") == name
            ]
            links = "".join(
                f'<a href="/files/{p.name}#sha256={hashlib.sha256(p.read_bytes()).hexdigest()}">{p.name}</a>\n'
                for p in found
            )
            self._answer(200 if found else 404, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("www-authenticate", "Basic")
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.address = f"127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
