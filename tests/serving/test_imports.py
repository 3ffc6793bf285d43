from __future__ import annotations

import json
import subprocess
import sys

MODULES = [
    *("app", "batcher", "binary", "board", "capture", "control", "counters", "cpu", "dispatch", "engine"),
    *("errors", "fastlane", "handover", "listen", "logfile", "memory", "metrics", "model", "payloads"),
    *(
        "openapi",
        "pages.form",
        "pages.reference",
        "processes",
        "protocols",
        "readypipe",
        "reference",
        "requestlog",
        "routes",
        "server",
        "supervisor",
        "tracecontext",
        "tracing",
    ),
    *("tuning", "v2", "values", "windows", "worker", "workers", "__main__"),
]
HEAVY = {
    "opentelemetry",
    "pyarrow",
    "simdjson",
    "torch",
    "tensorflow",
    "mlflow",
    "IPython",
    "pandas",
    "httpx",
}
NOTEBOOK_SIDE = {f"mlopsnb.{name}" for name in ("notebook", "flow", "targets", "tracking", "monitoring")}


def loaded_by(*modules):
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps(list(sys.modules)))"
    return set(
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    )


def test_the_runtime_loads_no_framework_and_nothing_of_the_notebook_side():
    assert loaded_by(*(f"mlopsnb.serving.{m}" for m in MODULES)) & (HEAVY | NOTEBOOK_SIDE) == set()


def test_the_codec_is_cheap_to_load():
    loaded = loaded_by("mlopsnb.serving.v2")
    assert {"numpy", "msgspec", "orjson"} <= loaded
    assert loaded & {"uvicorn", "uvloop", "httptools", "prometheus_client", "asyncio"} == set()
    assert loaded & (HEAVY | NOTEBOOK_SIDE) == set()


def test_the_supervisor_stays_small():
    loaded = loaded_by("mlopsnb.serving.__main__", "mlopsnb.serving.supervisor", "mlopsnb.serving.board")
    assert loaded & {"asyncio", "numpy", "uvicorn", "uvloop", "orjson", "ssl", "prometheus_client"} == set()


def test_uvicorn_comes_without_its_command_line_and_keeps_it_for_who_asks():
    code = """
import sys
from mlopsnb.serving import __main__ as command
command._import_uvicorn()
import uvicorn, uvicorn.server
assert not {"click", "multiprocessing", "uvicorn.main"} & set(sys.modules)
assert uvicorn.Server is uvicorn.server.Server
try:
    uvicorn.main(["--version"])
except SystemExit as exc:
    assert exc.code == 0
assert "click" in sys.modules
from uvicorn.main import run
assert run.__module__ == "uvicorn.main"
command._import_uvicorn()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("Running uvicorn")
