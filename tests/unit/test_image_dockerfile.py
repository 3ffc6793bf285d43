"""The plan as a Dockerfile, and the directory that goes with it. Nothing is built."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.errors import BuildError, UserError
from mlopsnb.images import context, dockerfile
from mlopsnb.images.blobs import pieces
from mlopsnb.images.layers import archive
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.images.plan import PACKAGE, ROOT, VENV, Base, Entry, ImagePlan, Layer

SITE = f"{VENV}/lib/python3.11/site-packages"
PYPI = "https://files.example/packages/aa/"


def layer(kind, name, *entries):
    return Layer(kind=kind, name=name, key=name, entries=entries)


def file(path, source=b"x", mode=0o644):
    return Entry(path=path, source=source, mode=mode)


def locked(name, version, url=PYPI):
    filename = f"{name}-{version}-py3-none-any.whl"
    return LockedPackage(
        name=name, version=version, filename=filename, sha256=f"{len(name):064x}", url=f"{url}{filename}"
    )


def plan(*packages, env=("PATH=/bin", "A=1"), labels=None, weights=(), **config):
    return ImagePlan(
        repository="fraud",
        tag="v3-1a2b3c4",
        base=Base(
            reference="ghcr.io/me/python:3.11-slim",
            digest="sha256:0b",
            platform="linux/amd64",
            config={
                "config": {"Env": ["PATH=/bin", "PYTHONPATH=/theirs"]},
                "rootfs": {"diff_ids": ["sha256:0c"]},
            },
            layers=(),
            python="/usr/bin/python3",
            python_version="3.11.9",
        ),
        lock=Lock(
            python="3.11",
            platform="linux/amd64",
            packages=packages or (locked("numpy", "2.0"), locked("torch", "2.13+cpu")),
        ),
        layers=(
            layer("wheel", "torch 2.13+cpu", file(f"{SITE}/torch/a.so", mode=0o755)),
            layer("dependencies", "1 package", file(f"{SITE}/numpy/b.py"), file(f"{SITE}/numpy/a.py")),
            layer(
                "environment",
                "virtual environment",
                Entry(path=f"{VENV}/bin/python", link="/usr/bin/python3"),
            ),
            layer("bytecode", "2 modules", file(f"{SITE}/numpy/__pycache__/a.pyc")),
            layer("runtime", "model server", file(f"{SITE}/mlopsnb/x.py")),
            layer("metadata", "model metadata", file(f"{PACKAGE}/model.json"), file(f"{ROOT}/lock.txt")),
            layer("weights", "1 file", file(f"{PACKAGE}/model/small")),
            layer("weights", "model/large", file(f"{PACKAGE}/model/large")),
        ),
        config={
            "User": "65532:65532",
            "Env": list(env),
            "Entrypoint": ["/opt/mlopsnb/venv/bin/python", "-m", "m"],
            "Labels": labels or {},
            **config,
        },
        package=Path("/package"),
        package_digest="sha256:0d",
        weights=weights,
    )


def test_the_whole_file_from_what_changes_least_to_what_changes_most():
    text = dockerfile.render(
        plan(
            labels={"b": "2", "a": '"$x" \\'},
            WorkingDir="/",
            ExposedPorts={"8081/tcp": {}, "8080/tcp": {}},
            StopSignal="SIGTERM",
            Healthcheck={"Test": ["CMD", "true"], "Interval": 10**10, "Timeout": 5 * 10**8, "Retries": 3},
        ),
        fetched=True,
        brought=True,
        apt=["libgomp1", "git=1:2.39-1"],
        steps=["RUN echo one \\\n && echo two\n"],
    )
    assert text == (Path(__file__).parent / "data" / "Dockerfile").read_text()


def test_without_an_index_or_without_wheels_of_our_own():
    offline = dockerfile.render(plan(), fetched=False, brought=True)
    assert "--find-links /build/wheels --no-index" in offline
    assert "PIP_INDEX_URL" not in offline
    online = dockerfile.render(plan(), fetched=True, brought=False)
    assert "wheels" not in online
    assert "ARG PIP_INDEX_URL" in online


@pytest.mark.parametrize("name", ["", "a; rm -rf /", "-y", "A", "lib gomp1", "a=$(id)", "a\nb"])
def test_only_names_of_packages_are_given_to_apt(name):
    with pytest.raises(UserError, match="is no name of a Debian package"):
        dockerfile.render(plan(), fetched=True, brought=True, apt=[name])


@pytest.mark.parametrize("step", ["FROM scratch", "  from x AS y", "", " \n", "# syntax=docker/dockerfile:1"])
def test_a_step_begins_no_other_stage(step):
    with pytest.raises(UserError, match="cannot be a step"):
        dockerfile.render(plan(), fetched=True, brought=True, steps=[step])


def test_a_line_break_cannot_be_said():
    with pytest.raises(BuildError, match="note has a line break, which a Dockerfile cannot hold"):
        dockerfile.render(plan(labels={"note": "a\nRUN b"}), fetched=True, brought=True)


def tar_of(entries):
    return pieces(archive(entries))


def unquoted(word):
    return re.sub(r'\\(["\\$])', r"\1", word.removeprefix('"').removesuffix('"'))


@given(st.text(st.characters(exclude_characters="\n\r\0")))
def test_no_value_ends_its_quotes_early(value):
    line = next(
        x
        for x in dockerfile.render(plan(labels={"k": value}), fetched=True, brought=True).split("\n")
        if x.startswith("LABEL")
    )
    word = line.removeprefix('LABEL "k"=')
    assert unquoted(word) == value
    assert re.fullmatch(r'"([^"\\$]|\\["\\$])*"', word, re.DOTALL)


def test_wheels_that_pypi_lacks_come_along():
    public, cpu, here = (
        locked("numpy", "2.0"),
        locked("torch", "2.13+cpu"),
        locked("ours", "1", "file:///wheels/"),
    )
    assert context.private(plan(public, cpu, here), own_index=False) == (cpu, here)
    assert context.private(plan(public, cpu, here), own_index=True) == (public, cpu, here)


def test_the_context_has_what_the_file_copies_and_ignores_all_else(tmp_path):
    wheel = tmp_path / "torch.whl"
    wheel.write_bytes(b"wheel")
    entries = context.context(plan(), {"torch-2.13+cpu-py3-none-any.whl": wheel})
    found = {e.path: e for e in entries}
    assert list(found) == sorted(found)
    assert {p for p in found if "/" not in p} == {
        ".dockerignore",
        "Dockerfile",
        "README.md",
        "requirements.txt",
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", found["Dockerfile"].source.decode(), re.MULTILINE)
    tops = {path.partition("/")[0] for path in found}
    assert {word.partition("/")[0] for line in copied for word in line.split()} == tops - {
        ".dockerignore",
        "Dockerfile",
        "README.md",
    }
    ignored = found[".dockerignore"].source.decode().split()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored[1:]} == tops - {".dockerignore"}
    lines = found["lists/2-dependencies.txt"].source.decode().splitlines()
    assert lines[1:] == ["numpy/a.py\t644", "numpy/b.py\t644"]
    assert found["lists/1-torch.txt"].source.decode().splitlines() == [lines[0], "torch/a.so\t755"]
    assert found["environment/venv/bin/python"].link == "/usr/bin/python3"
    assert found["weights-2/model/model/large"].source == b"x"


def test_weights_that_are_kept_out_are_there_to_try_the_model_only():
    kept = layer("weights", "model/huge", file("models/model/huge"))
    text = dockerfile.render(plan(weights=(kept,)), fetched=True, brought=True)
    check, final = text.split("FROM base\n")
    assert "COPY kept-out-1/ /mnt/models/\n" in check
    assert "kept-out" not in final
    assert "kept-out-1/model/huge" in [e.path for e in context.context(plan(weights=(kept,)), {})]


def test_a_tar_of_it_is_the_same_each_time_and_holds_all(tmp_path):
    (tmp_path / "big").write_bytes(os.urandom(3 << 20))
    entries = [
        file("b/c/run", tmp_path / "big", mode=0o755),
        file("a", b"one"),
        Entry(path="b/link", link="/elsewhere"),
        file("b/" + "long/" * 30 + "ünï", b""),
    ]
    data = b"".join(tar_of(entries))
    os.utime(tmp_path / "big", (1, 1))
    assert b"".join(tar_of(reversed(entries))) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        members = {m.name: m for m in opened}
        assert opened.extractfile("b/c/run").read() == (tmp_path / "big").read_bytes()
    assert {m.mtime for m in members.values()} == {0}
    assert (members["b/c/run"].mode, members["b"].mode, members["b/link"].linkname) == (
        0o755,
        0o755,
        "/elsewhere",
    )
    assert "b/" + "long/" * 30 + "ünï" in members


def test_a_file_that_changes_or_goes_is_told(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"1" * (8 << 20))
    parts = tar_of([file("f", path)])
    next(parts)
    path.write_bytes(b"")
    with pytest.raises(BuildError, match="f was changed while it was packed"):
        list(parts)
    path.unlink()
    with pytest.raises(BuildError, match=f"{path} cannot be packed: No such file"):
        list(tar_of([file("f", path)]))


def test_an_export_replaces_its_own_and_leaves_the_rest(tmp_path):
    into = tmp_path / "a" / "b"
    ours = [
        file("Dockerfile", dockerfile.HEADER.encode() + b"\n"),
        file("weights-2/x", mode=0o755),
        Entry(path="environment/l", link="/x"),
    ]
    assert context.export(ours, into) == into
    assert ((into / "weights-2" / "x").stat().st_mode & 0o777, (into / "environment" / "l").readlink()) == (
        0o755,
        Path("/x"),
    )
    (into / ".git").mkdir()
    (into / "ci.yml").write_text("mine")
    context.export([*ours[:1], file("metadata/y")], into)
    assert sorted(p.name for p in into.iterdir()) == [".git", "Dockerfile", "ci.yml", "metadata"]


def test_an_export_overwrites_nothing_that_is_not_its_own(tmp_path):
    into = tmp_path / "into"
    into.mkdir()
    (into / "README.md").write_text("mine")
    (into / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(
        BuildError, match=r"has a Dockerfile that no earlier export wrote; nothing was changed"
    ):
        context.export([file("Dockerfile"), file("README.md"), file("metadata/y")], into)
    assert sorted(p.name for p in into.iterdir()) == ["Dockerfile", "README.md"]
    assert (into / "README.md").read_text() == "mine"


def test_a_build_that_is_not_whole_is_not_exported(tmp_path):
    with pytest.raises(BuildError):
        context.export([file("Dockerfile"), file("metadata/y", tmp_path / "gone")], tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
