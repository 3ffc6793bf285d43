"""The proof: real models served from real environments, and what is wrong with one told before it is packed."""

from __future__ import annotations

import importlib.util
import marshal
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from wheelhouse import wheel

import mlopsnb as ml
from mlopsnb import manifest
from mlopsnb.events import reporting_to
from mlopsnb.images.environment import kernel, prober
from mlopsnb.images.environment.install import install
from mlopsnb.images.environment.locking import resolve
from mlopsnb.images.environment.prove import Proof, prove
from mlopsnb.images.environment.request import PLATFORMS, here
from mlopsnb.images.environment.roots import roots
from mlopsnb.images.errors import Incomplete
from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature, TensorSpec

pytestmark = pytest.mark.skipif(
    here() == "", reason="no image is made for this machine, so nothing is proved on it"
)

FORMAT = '''
import os, pathlib, signal


class Told:
    """Does what its weights say."""

    def load(self, path, signature):
        what = (path / "weights").read_text()
        exec(what, {"path": path})
        return lambda inputs: {"y": inputs["x"] * 2}
'''
SITE = f"/opt/mlopsnb/venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    prober.end_all()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def told(store, tmp_path_factory):
    """An environment with the format `told` of a third party, beside the model server."""
    house = tmp_path_factory.mktemp("house")
    info = "told-1.0.dist-info/entry_points.txt"
    wheel(house, "told", files={"told.py": FORMAT, info: "[mlopsnb.formats]\ntold = told:Told\n"})
    links = " ".join(filter(None, [os.environ.get("PIP_FIND_LINKS"), str(house)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", links)
        described = Manifest(
            format="told", signature=Signature(inputs=(), outputs=()), files={}, requirements=("told==1.0",)
        )
        return install(resolve(roots(described), cache=store), store)


@pytest.fixture
def package(tmp_path):
    """Make a package whose model does *what* when it is loaded, and should answer *factor* times its input."""

    def make(what="", factor=2.0):
        place = tmp_path / "package"
        shutil.rmtree(place, ignore_errors=True)
        (place / "model").mkdir(parents=True)
        (place / "model/weights").write_text(what)
        x = np.arange(6, dtype="float32").reshape(3, 2)
        manifest.write_example(place, {"x": x}, {"y": x * np.float32(factor)})
        spec = TensorSpec(name="x", dtype="float32", shape=(None, 2))
        described = Manifest(
            format="told",
            signature=Signature(inputs=(spec,), outputs=(replace(spec, name="y"),)),
            files=manifest.file_digests(place),
            requirements=("told==1.0",),
        )
        manifest.write(place, described)
        return place

    return make


def check(environment, bytecode):
    """Every module is valid without its source, compiled from it, and says where it lies in the image."""
    for path, data in bytecode.files.items():
        source = Path(path).parent.parent / (Path(path).name.partition(".")[0] + ".py")
        assert data[:4] == importlib.util.MAGIC_NUMBER
        assert data[4:8] == b"\1\0\0\0"
        assert marshal.loads(data[16:]).co_filename == f"{SITE}/{source}"
        if (environment.root / source).exists():
            assert data[8:16] == importlib.util.source_hash((environment.root / source).read_bytes())


def test_a_sound_model_is_proved_once_and_yields_its_bytecode(told, store, package):
    events = []
    with reporting_to(events.append):
        first = prove(told, package(), cache=store)
        assert prove(told, package(), cache=store) == first
    assert [(e.step, e.state) for e in events] == [("prove", "started"), ("prove", "succeeded")]
    check(told, first)
    tag = sys.implementation.cache_tag
    for module in (
        "told",
        "uvicorn/server",
        "grpc/aio/_server",
        "mlopsnb/serving/engine",
        "mlopsnb/serving/supervisor",
    ):
        directory, _, name = module.rpartition("/")
        assert f"{directory}/__pycache__/{name}.{tag}.pyc".lstrip("/") in first.files
    assert not [path for path in first.files if path.startswith(("mlopsnb/images", "mlopsnb/notebook"))]


def test_the_next_model_is_served_by_the_process_that_is_there(told, store, package):
    first = prove(told, package("x = 1"), cache=store)
    (resting,) = prober._resting
    other = prove(told, package("import json.tool  # of the standard library"), cache=store)
    assert prober._resting == [resting]
    assert other.files == first.files
    assert set(other.standard) - set(first.standard) == {"json/tool.py"}
    with pytest.raises(Incomplete):
        prove(told, package("raise SystemExit('no')"), cache=store)
    assert prober._resting == [], "what failed is not asked again"


def test_a_build_whose_cache_knows_less_gets_all_it_needs(told, store, package, tmp_path):
    expected = prove(told, package(), cache=store)
    prober.end_all()
    prove(told, package("y = 1"), cache=store)  # in a process that was given what this cache knows
    assert len(prober._resting) == 1
    assert prove(told, package(), cache=tmp_path / "another") == expected


def test_the_same_bytes_come_of_any_kernel(told, store, package, tmp_path):
    expected = prove(told, package(), cache=store)
    script = (
        "import pickle, sys, pandas; from pathlib import Path\n"
        "from mlopsnb.images.environment.prove import prove\n"
        "told, package, cache = pickle.loads(sys.stdin.buffer.read())\n"
        "sys.stdout.buffer.write(pickle.dumps(prove(told, package, cache=cache)))"
    )
    path = {**os.environ, "PYTHONPATH": str(Path(ml.__file__).parents[1]), "PYTHONHASHSEED": "7"}
    given = pickle.dumps((told, package(), tmp_path / "another"))
    done = subprocess.run(
        [sys.executable, "-c", script], input=given, capture_output=True, env=path, timeout=200
    )
    assert done.returncode == 0, done.stderr.decode()
    assert pickle.loads(done.stdout) == expected


def test_what_the_kernel_has_compiled_gives_the_same_bytes(told, package, tmp_path, monkeypatch):
    taken = prove(told, package(), cache=tmp_path / "taken")
    prober.end_all()
    monkeypatch.setattr(prober, "_compiled", list)  # a kernel that keeps nothing of what it compiles
    assert prove(told, package(), cache=tmp_path / "compiled") == taken


def test_what_the_image_would_lack_is_named(told, store, package):
    with pytest.raises(Incomplete, match="No module named 'pytest'") as caught:
        prove(told, package("import pytest"), cache=store)
    assert f"add 'pytest=={kernel.versions()['pytest']}' to requirements=[…]" in caught.value.hint


def test_a_module_of_ones_own_comes_with_its_path(told, store, package, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("from mine import part\n")
    (tmp_path / "mine/part.py").write_text("x = 1\n")
    using = package("import mine; assert mine.part.x == 1; assert '/mine/' in mine.part.__file__")
    with pytest.raises(Incomplete, match="No module named 'mine'"):
        prove(told, using, cache=store)
    files = prove(told, using, code_paths=[tmp_path / "mine"], cache=store).files
    assert f"mine/__pycache__/part.{sys.implementation.cache_tag}.pyc" in files


@pytest.mark.parametrize(
    ("what", "factor", "words"),
    [
        ("", 3.0, "it answers otherwise than the notebook's model"),
        ("raise RuntimeError('the weights are torn')", 2.0, "the weights are torn"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 2.0, "was ended by SIGKILL"),
        ("os._exit(9)", 2.0, "ended with 9"),
        ("raise RuntimeError(sorted(k for k in os.environ if 'SECRET' in k) or 'clean')", 2.0, "clean"),
    ],
)
def test_what_is_wrong_with_a_model_is_told_before_it_is_packed(
    told, store, package, what, factor, words, monkeypatch
):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    what = f"import os, signal\n{what}"
    with pytest.raises(Incomplete, match=words) as caught:
        prove(told, package(what, factor), cache=store)
    assert caught.value.message.startswith(("the model does not run", "the process that served the model"))
    assert not list((store / "tmp").glob("proof-*"))


def test_an_interrupt_leaves_nothing(told, store, package, tmp_path):
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    endless = package(
        f"import os, time; open({str(pipe)!r}, 'w').write(str(os.getpid()))\nwhile True: time.sleep(1)"
    )
    pids = []

    def interrupt():
        pids.append(int(pipe.read_text()))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    events = []
    with reporting_to(events.append), pytest.raises(KeyboardInterrupt):
        prove(told, endless, cache=store)
    thread.join()
    assert [e.state for e in events] == ["started", "cancelled"]
    assert not list((store / "tmp").glob("proof-*"))
    assert not _runs(pids[0])
    assert len(prove(told, package(), cache=store).files) > 100


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_packing_may_go_on_meanwhile_and_fail(told, store, package):
    with pytest.raises(ZeroDivisionError), Proof(told, package("import time; time.sleep(60)"), cache=store):
        1 / 0
    assert prober._resting == []
    assert not list((store / "tmp").glob("proof-*"))


def test_an_environment_for_another_platform_is_not_proved(told, store, package):
    other = next(p for p in PLATFORMS if p != here())
    elsewhere = replace(told, lock=replace(told.lock, platform=other))
    bytecode = prove(elsewhere, package("raise RuntimeError"), cache=store)
    assert bytecode.files == {}
    assert f"an environment for {other}" in bytecode.notes[0]


@pytest.mark.parametrize("framework", ["onnx", "torch"])
def test_real_models(framework, tmp_path, store):
    if framework == "torch":
        import torch

        artifact = ml.export(
            torch.nn.Linear(4, 2).eval(), torch.ones(3, 4), format="torchscript", into=tmp_path / "p"
        )
    else:
        from sklearn.linear_model import LogisticRegression

        x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
        artifact = ml.export(LogisticRegression().fit(x, x[:, 0] > 0), x[:5], into=tmp_path / "p")
    wanted = roots(manifest.read(artifact.path))
    lock = resolve(wanted, cache=store)
    assert not [p.name for p in lock.packages if p.name.startswith(("nvidia", "mlopsnb"))]
    environment = install(lock, store)
    bytecode = prove(environment, artifact.path, cache=store)
    check(environment, bytecode)
    main = {"onnx": "onnxruntime", "torch": "torch"}[framework]
    assert f"{main}/__pycache__/__init__.{sys.implementation.cache_tag}.pyc" in bytecode.files
    lacking = resolve([root for root in wanted if not root.startswith(main)], cache=store)
    with pytest.raises(Incomplete, match=main) as caught:
        prove(install(lacking, store), artifact.path, cache=store)
    assert f"add '{main}==" in caught.value.hint
