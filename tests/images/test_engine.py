"""Images go into the container engine and out of it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import socket
import tarfile

import pytest

pytest.importorskip("docker")

from mlopsnb.errors import MissingExtra
from mlopsnb.images import engine as module
from mlopsnb.images.engine import Engine, EngineLayer
from mlopsnb.images.errors import EngineError, EngineForbidden, EngineNotRunning
from mlopsnb.images.layout import Layout, write_archive

NAME = f"mlopsnb-test-{os.urandom(4).hex()}"


def digest_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer_of(name, size=10_000):
    """Return a layer with one file of random content, and so of its own."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = size
        archive.addfile(info, io.BytesIO(os.urandom(size)))
    return file.getvalue()


def config_of(*layers):
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/none"]},
        "created": "1970-01-01T00:00:00Z",
    }
    return json.dumps(
        {**config, "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}}
    ).encode()


class Asked:
    """Layers that note which of them were read."""

    def __init__(self, *layers):
        self.read = []
        self.layers = [
            EngineLayer(diff_id=digest_of(d), size=len(d), read=lambda d=d: self._read(d)) for d in layers
        ]

    def _read(self, data):
        self.read.append(digest_of(data))
        yield data[:5000]
        yield data[5000:]


@pytest.fixture
def engine():
    with Engine() as engine:
        yield engine
        for tag in ("1", "2", "old"):
            engine.remove(f"{NAME}:{tag}")
        listed = engine._api.images(NAME)
        assert listed == []


@pytest.mark.engine
def test_only_what_is_lacking_is_sent(engine):
    base, first, second = layer_of("base"), layer_of("a"), layer_of("b")
    counts = []
    loaded = engine.load(
        config_of(base, first), Asked(base, first).layers, tag=f"{NAME}:1", on_bytes=counts.append
    )
    assert loaded.id == digest_of(config_of(base, first)) == engine.image(f"{NAME}:1").id
    assert loaded.sent == sum(counts) == len(base) + len(first)
    asked = Asked(base, second)
    loaded = engine.load(config_of(base, second), asked.layers, tag=f"{NAME}:2")
    assert asked.read == [digest_of(second)]
    assert loaded.sent == len(second)
    asked = Asked(base, second)
    again = engine.load(config_of(base, second), asked.layers, tag=f"{NAME}:1")
    assert (again.id, again.sent, asked.read) == (loaded.id, 0, [])
    assert engine.image(f"{NAME}:1").id == loaded.id


@pytest.mark.engine
def test_all_is_sent_when_a_part_is_refused(engine, monkeypatch):
    base, first = layer_of("base"), layer_of("a")
    claimed = frozenset({(digest_of(base),)})
    monkeypatch.setattr(Engine, "chains", lambda self: claimed)
    asked, counts = Asked(base, first), []
    loaded = engine.load(config_of(base, first), asked.layers, tag=f"{NAME}:1", on_bytes=counts.append)
    assert set(asked.read) == {digest_of(base), digest_of(first)}
    assert loaded.sent == sum(counts) == len(base) + len(first)


@pytest.mark.engine
def test_an_engine_that_keeps_blobs_gets_all_by_a_name_that_does_not_stay(engine, monkeypatch):
    monkeypatch.setattr(Engine, "_keeps_blobs", lambda self: True)
    base, first = layer_of("base"), layer_of("a")
    engine.load(config_of(base), Asked(base).layers, tag=f"{NAME}:old")
    asked = Asked(base, first)
    loaded = engine.load(config_of(base, first), asked.layers, tag=f"{NAME}:1")
    assert set(asked.read) == {digest_of(base), digest_of(first)}
    assert {tag for image in engine._api.images(NAME) for tag in image["RepoTags"]} == {
        f"{NAME}:old",
        f"{NAME}:1",
    }
    assert engine.image(f"{NAME}:1").id == loaded.id


@pytest.mark.engine
@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError("no")])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_load_that_ends_early_leaves_the_tag_where_it_was(engine, monkeypatch, error, keeps):
    monkeypatch.setattr(Engine, "_keeps_blobs", lambda self: keeps)
    base, first = layer_of("base"), layer_of("a", size=5_000_000)
    old = engine.load(config_of(base), Asked(base).layers, tag=f"{NAME}:1").id

    def stop(count):
        raise error

    with pytest.raises((KeyboardInterrupt, EngineError)):
        engine.load(config_of(base, first), Asked(base, first).layers, tag=f"{NAME}:1", on_bytes=stop)
    assert engine.image(f"{NAME}:1").id == old
    assert engine.image(digest_of(config_of(base, first))) is None
    assert (digest_of(base), digest_of(first)) not in engine.chains()


@pytest.mark.engine
def test_a_layer_that_is_another_one_is_refused(engine):
    first, other = layer_of("a"), layer_of("b")
    wrong = [EngineLayer(diff_id=digest_of(first), size=len(other), read=lambda: [other])]
    with pytest.raises(EngineError):
        engine.load(config_of(first), wrong, tag=f"{NAME}:1")
    assert engine.image(f"{NAME}:1") is None


@pytest.mark.engine
def test_an_image_comes_out_and_goes_in_again(engine, tmp_path):
    base, first = layer_of("base"), layer_of("a")
    loaded = engine.load(config_of(base, first), Asked(base, first).layers, tag=f"{NAME}:1")
    digest = engine.export(f"{NAME}:1", tmp_path / "layout")
    layout = Layout(tmp_path / "layout")
    manifest = layout.manifest("1")
    assert manifest.digest == digest
    content = json.loads(manifest.data)
    assert content["config"]["digest"] == loaded.id
    assert [layer["digest"] for layer in content["layers"]] == [digest_of(base), digest_of(first)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert engine.export(f"{NAME}:1", tmp_path / "again") == digest
    engine.remove(f"{NAME}:1")
    assert engine.image(f"{NAME}:1") is None
    folder = tmp_path / "layout/blobs/sha256"
    blobs = {f"sha256:{path.name}": path for path in folder.iterdir()}
    write_archive(tmp_path / "image.tar", manifest, blobs, name=f"{NAME}:2")
    with (tmp_path / "image.tar").open("rb") as archive:
        assert not [line for line in engine._api.load_image(archive) if "error" in line]
    assert engine.image(f"{NAME}:2").id == loaded.id
    assert engine.image(f"{NAME}:2").platform == "linux/amd64"


@pytest.mark.engine
def test_what_the_engine_has_not(engine, tmp_path):
    with pytest.raises(EngineError, match="has no image"):
        engine.export(f"{NAME}:absent", tmp_path / "layout")
    assert not (tmp_path / "layout").exists()
    engine.remove(f"{NAME}:absent")


# docker-py leaves the socket open that it could not connect.
unconnected = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@unconnected
@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1"])
def test_no_engine(monkeypatch, host):
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(EngineNotRunning, match=host):
        Engine()
    gc.collect()


@unconnected
def test_no_permission(monkeypatch, tmp_path):
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        path.chmod(0)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        with _nobody(), pytest.raises(EngineForbidden, match="no permission"):
            Engine()
    gc.collect()


@contextlib.contextmanager
def _nobody():
    """Be a user whom permissions bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_without_docker_py(monkeypatch):
    def need(name, *, extra):
        raise MissingExtra(name, extra)

    monkeypatch.setattr(module, "need", need)
    with pytest.raises(MissingExtra, match=r"mlopsnb\[docker\]"):
        Engine()
