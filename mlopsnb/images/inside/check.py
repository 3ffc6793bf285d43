"""`check.py OUT PACKAGE COMMAND...`: prove that the image serves its model, and keep the bytecode of what that took.

Starts the image's own command as the image's own user, asks for the golden example over HTTP, compares the answers with
those of the original model, and stops the server. The modules that it imported are then compiled below `OUT`, by their
path in the image; their bytecode is never compared with its source, since files of an image do not change.
"""

import http.client
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mlopsnb import manifest, parity
from mlopsnb.serving import v2

Arrays = dict[str, np.ndarray[Any, Any]]

SECONDS = 300
_LENGTH = "Inference-Header-Content-Length"


def main(out: Path, package: Path, command: list[str]) -> None:
    """Serve, ask, compare, compile; exit with what is wrong."""
    out.mkdir()
    with tempfile.TemporaryDirectory() as prefix:
        serve_once(package, command, prefix)
        for source in imported(Path(prefix)):
            compile_into(out, source)


def serve_once(package: Path, command: list[str], prefix: str) -> None:
    """Run the server; what it imports is compiled below *prefix* by Python itself."""
    read, write = os.pipe()
    here = ["--name", "model", "--host", "127.0.0.1", "--port", "0", "--grpc-port", "0", "--workers", "1"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    server = subprocess.Popen(  # noqa: S603
        [*command, *here, "--ready-fd", str(write)],
        pass_fds=(write,),
        env={**environment, "PYTHONPYCACHEPREFIX": prefix},
    )
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            told = json.loads(pipe.readline() or '{"ready": false, "error": "the server ended"}')
        if not told["ready"]:
            sys.exit(f"the model cannot be served: {told['error']}")
        inputs, wanted = manifest.read_example(package)
        compare(wanted, ask(told["url"], inputs), package)
        server.send_signal(signal.SIGTERM)
        if code := server.wait(SECONDS):
            sys.exit(f"the server ended with {code}")
    finally:
        server.kill()


def ask(url: str, inputs: Arrays) -> Arrays:
    """Return the server's answers to *inputs*."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SECONDS)
    body, length = v2.encode_binary_request(inputs)
    headers = {_LENGTH: str(length), "Content-Type": "application/octet-stream"}
    connection.request("POST", "/v2/models/model/infer", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        sys.exit(f"the golden example was answered {answer.status}: {content[:300]!r}")
    told = answer.headers[_LENGTH]
    return v2.decode_response(content, header_length=int(told) if told else None)


def compare(wanted: Arrays, found: Arrays, package: Path) -> None:
    """Exit unless the answers are those of the original, within the tolerance that its export was held to."""
    proof = manifest.read(package).parity
    if wrong := parity.failure(parity.compare(wanted, found, tolerance=proof.tolerance if proof else None)):
        sys.exit(f"the model answers otherwise than it was exported with: {wrong.message}")


def imported(prefix: Path) -> list[Path]:
    """Return the sources of all modules that were compiled below *prefix* and have no bytecode yet."""
    tag = f".{sys.implementation.cache_tag}.pyc"
    sources = (
        Path("/") / p.relative_to(prefix).with_name(p.name.removesuffix(tag) + ".py")
        for p in sorted(prefix.rglob(f"*{tag}"))
    )
    return [s for s in sources if not bytecode(s).exists()]


def bytecode(source: Path) -> Path:
    """Return where Python looks for the bytecode of *source*."""
    return source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"


def compile_into(out: Path, source: Path) -> None:
    """Compile *source* to where it goes below *out*, in directories that are as open as the image's."""
    target = out / bytecode(source).relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    for directory in source.relative_to("/").parents:
        shutil.copymode(Path("/") / directory, out / directory)
    py_compile.compile(
        str(source),
        cfile=str(target),
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
