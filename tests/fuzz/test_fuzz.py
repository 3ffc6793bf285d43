"""A short run of each fuzzer; `make fuzz` runs them longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LARGE = ["mlflow-plain", "tfserving-plain", "v2-plain"]
CODECS = ["grpc", "grpc-plain", "mlflow-csv", "mlflow-json", *LARGE, "tfserving", "v2", "v2-binary"]


def run(script, *arguments):
    command = [sys.executable, HERE / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.fuzz
@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_gives_what_fits_or_a_bad_request(codec):
    assert "Done 20000 runs" in run("codecs.py", codec, 20_000, 1)


def test_a_server_in_a_flood_of_malformed_requests():
    assert "10000" in run("flood.py", 10_000, 1)
