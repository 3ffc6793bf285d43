"""The clients that people of the field have, over each transport and form of tensors that they know."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import mlopsnb
from mlopsnb.serving import v2

VENVS = Path(__file__).parents[2] / ".venv"
WAYS = [
    pytest.param(client, how, id=f"{client}-{how}", marks=getattr(pytest.mark, client))
    for client, hows in {
        "triton": ("http-binary", "http-json", "grpc-binary"),
        "kserve": ("http-binary", "http-json", "grpc-binary", "grpc-typed"),
    }.items()
    for how in hows
]
CODES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND"}


EVERY = {
    **{
        f"i_{name}": np.array([[np.iinfo(name).min, 0], [1, np.iinfo(name).max]], name)
        for name in v2.DATATYPES
        if "int" in name
    },
    "f_float16": np.array([[1.5, -0.0], [65504, 6e-8]], np.float16),
    "f_float32": np.array([[0.1, -0.0], [3.4e38, 1e-45]], np.float32),
    "f_float64": np.array([[0.1, -0.0], [1.7e308, 5e-324]]),
    "flag": np.array([[True, False], [False, False]]),
    "text": np.array([["", "naïve"], ["日本", "a\nb"]], object),
}


def sendable(how):
    """All dtypes but float16, which these clients send as raw bytes alone."""
    return {k: a for k, a in EVERY.items() if how.endswith("binary") or k != "f_float16"}


@pytest.fixture
def converse(serve, make_echo, tmp_path):
    """Let a client talk with a server that sends back what it gets; return what was told, and the outputs."""

    def talk(client, how, arrays, *, package=None, model="echo", outputs=None, version=""):
        runtime = serve(make_echo(arrays if package is None else package), "--port", "0", "--grpc-port", "0")
        address = runtime.report["grpc"]
        if how.startswith("http"):
            address = runtime.report["url"] if client == "kserve" else f"127.0.0.1:{runtime.port}"
        sent, came = tmp_path / "sent.npz", tmp_path / "came.npz"
        np.savez(sent, **{k: a.astype(str) if a.dtype == object else a for k, a in arrays.items()})
        done = subprocess.run(
            [
                VENVS / client / "bin" / "python",
                Path(__file__).with_name(f"{client}_client.py"),
                *(how, address, model, sent, came),
                json.dumps({"outputs": outputs, "version": version}),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            env={},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), dict(np.load(came)) if came.exists() else {}

    return talk


@pytest.mark.parametrize(("client", "how"), WAYS)
def test_every_dtype_comes_back_as_it_went(converse, client, how):
    sent = sendable(how)
    said, found = converse(client, how, sent)
    assert (said["live"], said["ready"], said["id"]) == (True, [True, True], "17")
    if client == "triton":
        assert (said["server"]["name"], said["server"]["version"]) == ("mlopsnb", mlopsnb.__version__)
        assert [t["name"] for t in said["model"]["inputs"]] == list(sent)
    assert list(found) == [f"out_{name}" for name in sent]
    for name, array in sent.items():
        came = found[f"out_{name}"]
        assert (came.shape, came.tolist()) == (array.shape, array.tolist()), name
        assert came.dtype == array.dtype or array.dtype == object, name


@pytest.mark.parametrize(("client", "how"), WAYS)
def test_outputs_are_those_asked_for_of_the_version_asked_for(converse, client, how):
    sent = {k: EVERY[k] for k in ("f_float32", "i_int64", "text")}
    said, found = converse(client, how, sent, outputs=["out_text", "out_f_float32"], version="1")
    assert "error" not in said
    assert {k: a.tolist() for k, a in found.items()} == {
        "out_text": sent["text"].tolist(),
        "out_f_float32": sent["f_float32"].tolist(),
    }


@pytest.mark.parametrize(("client", "how"), WAYS)
def test_no_rows_are_answered_with_none(converse, client, how):
    sent = {"a": np.zeros((0, 2), np.float32), "b": np.zeros(0, np.int64)}
    package = {"a": np.zeros((1, 2), np.float32), "b": np.zeros(1, np.int64)}
    said, found = converse(client, how, sent, package=package)
    assert "error" not in said
    assert {k: (a.shape, a.dtype) for k, a in found.items()} == {
        "out_a": ((0, 2), np.float32),
        "out_b": ((0,), np.int64),
    }


@pytest.mark.parametrize(("client", "how"), WAYS)
def test_errors_are_shown_as_they_were_said(converse, client, how):
    sent = {"a": np.zeros((1, 3), np.float32)}
    said, _ = converse(client, how, sent, package={"a": np.zeros((1, 2), np.float32)})
    code, message = said["error"]
    assert CODES.get(code, code) == "INVALID_ARGUMENT"
    assert message == "input 'a': expected shape [-1, 2], found [1, 3]; one row is [1, 2]"


@pytest.mark.parametrize(
    ("client", "how"), [w for w in WAYS if w.id not in ("kserve-http-binary", "kserve-http-json")]
)
def test_a_version_that_is_not_here_is_not_found(converse, client, how):
    sent = {"a": np.zeros((1, 2), np.float32)}
    said, _ = converse(client, how, sent, version="7")
    assert CODES.get(said["error"][0], said["error"][0]) == "NOT_FOUND"
    assert "'echo', version '1'" in said["error"][1]
