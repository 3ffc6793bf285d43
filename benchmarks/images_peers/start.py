"""From `docker run` to the first good answer: our image, and the same image without its bytecode."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from pathlib import Path

from images_peers.common import CannotBuild, Work, run

_PATIENCE = 60.0
_SAFE = ["--read-only", "--cap-drop", "ALL", "--user", "65532:65532"]


def without_bytecode(work: Work, reference: str) -> str:
    """Return an image that is *reference* less all compiled modules: the packages' and, as official bases have it, Python's."""
    place = work.root / "bare"
    place.mkdir(exist_ok=True)
    text = f"FROM {reference}\nUSER 0\nRUN find / -xdev -name __pycache__ -prune -exec rm -r {{}} +\nUSER 65532:65532\n"
    (place / "Dockerfile").write_text(text)
    tag = f"{work.prefix}-bare:1"
    run(["docker", "build", "--quiet", "--tag", tag, str(place)], work.log("start"))
    return tag


def request_of(package: Path) -> bytes:
    """Return a request with the golden example of *package*."""
    from mlopsnb import manifest
    from mlopsnb.serving.v2 import encode_request

    inputs, _ = manifest.read_example(package)
    return encode_request({name: rows[:1] for name, rows in inputs.items()})


def seconds(image: str, model: str, body: bytes) -> float:
    """Return the seconds from `docker run` of *image* to its first good answer, as the engine's safest options allow."""
    start = time.perf_counter()
    command = ["docker", "run", "--detach", "--rm", *_SAFE, "--publish", "127.0.0.1::8080", image]
    container = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        said = subprocess.run(
            ["docker", "port", container, "8080"], check=True, capture_output=True, text=True
        )
        host, _, port = said.stdout.split()[0].rpartition(":")
        while time.perf_counter() - start < _PATIENCE:
            if _answers(host, int(port), model, body):
                return time.perf_counter() - start
            time.sleep(0.005)
        logs = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=False)
        raise CannotBuild(f"{image} gave no good answer in {_PATIENCE:.0f} s: {logs.stderr[-600:]}")
    finally:
        subprocess.run(["docker", "rm", "--force", container], capture_output=True, check=False)


def _answers(host: str, port: int, model: str, body: bytes) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status == 200 and "outputs" in json.loads(answer.read())
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
