"""The planner: every file in one layer, what changes little below what changes much, and nothing that leaves its place."""

from __future__ import annotations

import hashlib
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopsnb.errors import BuildError
from mlopsnb.images.environment import Bytecode, Environment, InstalledFile
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.images.plan import PACKAGE, ROOT, VENV, Base, File
from mlopsnb.images.planning import LARGE, plan_image

SITE = f"{VENV}/lib/python3.11/site-packages"
ORDER = ["wheel", "dependencies", "environment", "bytecode", "runtime", "metadata", "weights"]
MB = 1 << 20


def file(path, size=10, content="", mode=0o644):
    return File(
        path=path,
        source=Path("/here") / path,
        size=size,
        sha256=hashlib.sha256(f"{path}{content}".encode()).hexdigest(),
        mode=mode,
    )


def environment(**wheels):
    lock = Lock(
        python="3.11",
        platform="linux/amd64",
        packages=tuple(
            LockedPackage(name=n, version="1.0", filename="", sha256="00") for n in sorted(wheels)
        ),
    )
    packages = {
        name: tuple(InstalledFile(f.path, f.size, f.sha256, f.mode) for f in files)
        for name, files in wheels.items()
    }
    return Environment(lock=lock, root=Path("/env"), packages=packages)


BASE = Base(
    reference="python:3.11-slim@sha256:0a",
    digest="sha256:0b",
    platform="linux/amd64",
    config={
        "config": {
            "Env": ["PATH=/usr/local/bin:/bin", "PYTHONPATH=/sneaky", "LANG=C.UTF-8"],
            "Labels": {"vendor": "x"},
        }
    },
    layers=(),
    python="/usr/local/bin/python3.11",
    python_version="3.11.9",
)
RUNTIME = (file("mlopsnb/__init__.py"), file("mlopsnb/serving/__main__.py"))
BYTECODE = {
    "numpy/__pycache__/core.cpython-311.pyc": b"numpy",
    "mlopsnb/__pycache__/__init__.cpython-311.pyc": b"ours",
    "__pycache__/features.cpython-311.pyc": b"theirs",
}
MODEL = (file("model.json"), file("example.npz"), file("model/a.bin", 5 * MB), file("model/b.bin", 100 * MB))


def plan(env=None, files=MODEL, **changes):
    env = env or environment(torch=(file("torch/t.so", 500 * MB),), numpy=(file("numpy/core.py"),))
    given = {
        "name": "fraud",
        "version": "3",
        "base": BASE,
        "environment": env,
        "bytecode": Bytecode(files=BYTECODE),
        "runtime": RUNTIME,
        "code": (file("features.py"),),
        "package": Path("/package"),
        "package_digest": "sha256:cc",
        "files": files,
    }
    return plan_image(**{**given, **changes})


def by_name(made):
    return {layer.name: layer for layer in made.layers}


def keys(made):
    return [layer.key for layer in made.layers]


def paths(layer):
    return [e.path for e in layer.entries]


def test_the_layers_of_an_image():
    made = plan()
    assert [(la.kind, la.name, la.compress, la.size // MB) for la in made.layers] == [
        ("wheel", "torch 1.0", True, 500),
        ("dependencies", "1 package", True, 0),
        ("environment", "virtual environment", True, 0),
        ("bytecode", "1 compiled module", True, 0),
        ("runtime", "model server", True, 0),
        ("metadata", "model metadata", True, 0),
        ("weights", "1 file", True, 5),
        ("weights", "model/b.bin", False, 100),
    ]
    assert [paths(la) for la in made.layers] == [
        [f"{SITE}/torch/t.so"],
        [f"{SITE}/numpy/core.py"],
        [f"{VENV}/bin/python", f"{VENV}/bin/python3", f"{VENV}/pyvenv.cfg"],
        [f"{SITE}/numpy/__pycache__/core.cpython-311.pyc"],
        [
            f"{SITE}/mlopsnb/__init__.py",
            f"{SITE}/mlopsnb/__pycache__/__init__.cpython-311.pyc",
            f"{SITE}/mlopsnb/serving/__main__.py",
        ],
        [
            f"{ROOT}/lock.txt",
            f"{PACKAGE}/example.npz",
            f"{PACKAGE}/model.json",
            f"{SITE}/__pycache__/features.cpython-311.pyc",
            f"{SITE}/features.py",
        ],
        [f"{PACKAGE}/model/a.bin"],
        [f"{PACKAGE}/model/b.bin"],
    ]
    links = {e.path: e.link for e in by_name(made)["virtual environment"].entries if e.link}
    assert links == {f"{VENV}/bin/python": "/usr/local/bin/python3.11", f"{VENV}/bin/python3": "python"}


def test_how_the_image_is_run():
    config = plan().config
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"][:4] == [f"/{VENV}/bin/python", "-m", "mlopsnb.serving", f"/{PACKAGE}"]
    assert config["Env"] == [
        f"PATH=/{VENV}/bin:/usr/local/bin:/bin",
        "LANG=C.UTF-8",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTHONUNBUFFERED=1",
    ]
    assert config["Healthcheck"]["Test"][:2] == ["CMD", f"/{VENV}/bin/python"]
    compile(config["Healthcheck"]["Test"][-1], "healthcheck", "exec")
    assert config["Labels"]["vendor"] == "x"
    assert config["Labels"]["org.opencontainers.image.base.name"] == "python:3.11-slim"
    assert config["Labels"]["org.opencontainers.image.base.digest"] == "sha256:0b"


def test_a_tag_names_the_version_and_tells_builds_apart():
    assert plan().tag == f"v3-{plan().digest[7:14]}"
    assert plan().tag == plan().tag != plan(files=MODEL[:3]).tag
    assert plan(version="2026/11 beta").tag.startswith("v2026-11-beta-")


def test_a_package_that_was_never_logged_has_no_version():
    made = plan(version="")
    assert made.tag == made.digest[7:14]
    assert "--version" not in made.config["Entrypoint"]
    assert "org.opencontainers.image.version" not in made.config["Labels"]


def test_a_change_of_the_model_changes_the_last_layers_only():
    changed = (
        file("model.json", content="2"),
        *MODEL[1:3],
        file("model/b.bin", 100 * MB, "2"),
    )
    before, after = keys(plan()), keys(plan(files=changed))
    assert [a == b for a, b in zip(before, after, strict=True)] == [*[True] * 5, False, True, False]


def test_a_new_dependency_leaves_the_large_wheels():
    torch, numpy = (file("torch/t.so", 500 * MB),), (file("numpy/core.py"),)
    before = plan(environment(torch=torch, numpy=numpy))
    for extra in ((file("pandas/p.so", 70 * MB),), (file("six.py"),)):
        after = plan(environment(torch=torch, numpy=numpy, another=extra))
        assert after.layers[0] == before.layers[0]
        assert len(set(keys(before)) - set(keys(after))) <= 2  # the other dependencies and the lock


def test_a_change_of_the_runtime_leaves_the_packages_and_their_bytecode():
    changed = (*RUNTIME[:1], file("mlopsnb/serving/__main__.py", content="2"))
    before, after = keys(plan()), keys(plan(runtime=changed))
    assert [a == b for a, b in zip(before, after, strict=True)] == [*[True] * 4, False, *[True] * 3]


def test_where_the_files_lie_here_changes_nothing():
    moved = tuple(
        File(path=f.path, source=Path("/elsewhere") / f.path, size=f.size, sha256=f.sha256, mode=0o600)
        for f in MODEL
    )
    assert plan(files=moved, package=Path("/elsewhere")).digest == plan().digest


def test_wheels_of_one_namespace_may_share_a_file():
    shared = file("nvidia/__init__.py", 0)
    made = plan(
        environment(
            cublas=(file("nvidia/cublas.so", 300 * MB), shared),
            cudnn=(file("nvidia/cudnn.so", 200 * MB), shared),
            small=(file("nvidia/small.so"), shared),
        )
    )
    assert [f"{SITE}/nvidia/__init__.py" in paths(la) for la in made.layers[:3]] == [True, False, False]


def test_what_is_kept_out_is_linked_to_where_it_will_be():
    made = plan(kept_out={"model/b.bin"})
    links = {e.path: e.link for layer in made.layers for e in layer.entries if e.link.startswith("/mnt")}
    assert links == {f"{PACKAGE}/model/b.bin": "/mnt/models/model/b.bin"}
    assert [paths(la) for la in made.weights] == [["models/model/b.bin"]]
    assert not made.weights[0].compress


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/./b", "a/..", "", "a\0b", "a\udcff"])
def test_a_path_that_leaves_its_place_is_refused(path):
    for change in (
        {"files": (file("model.json"), File(path=path, source=b"", size=0, sha256=""))},
        {"env": environment(numpy=(File(path=path, source=b"", size=0, sha256=""),))},
    ):
        with pytest.raises(BuildError, match="leads elsewhere"):
            plan(**change)


def test_a_module_of_the_user_that_hides_a_package_is_refused():
    with pytest.raises(BuildError, match=r"numpy/core\.py would come into the image twice"):
        plan(code=(file("numpy/core.py", content="mine"),))
    with pytest.raises(BuildError, match="a file .* and a directory"):
        plan(code=(file("numpy"),))


NAMES = st.text(string.ascii_lowercase + "é ", min_size=1, max_size=6).filter(lambda t: t.strip())
SIZES = st.sampled_from([0, 1, MB - 1, MB, LARGE - 1, LARGE, 10 * LARGE])


@st.composite
def trees(draw, top, most):
    names = draw(st.lists(NAMES, max_size=most, unique=True))
    return tuple(file(f"{top}/d{i % 3}/{n}.x", draw(SIZES)) for i, n in enumerate(names))


@st.composite
def environments(draw):
    names = draw(st.lists(NAMES, max_size=30, unique=True))
    return environment(**{n: draw(trees(n, 4)) for n in names})


@given(environments(), trees("model", 40), st.data())
@settings(max_examples=100, deadline=None)
def test_any_plan(env, weights, data):
    files = (file("model.json"), *weights)
    out = (
        set(data.draw(st.lists(st.sampled_from([f.path for f in weights]), max_size=3))) if weights else set()
    )
    made = plan(env, files, kept_out=out)
    kinds = [layer.kind for layer in made.layers]
    assert kinds == sorted(kinds, key=ORDER.index)
    assert len(made.layers) <= 40
    every = [e.path for layer in made.layers for e in layer.entries]
    assert len(every) == len(set(every))
    wanted = {f"{SITE}/{f.path}" for wheel in env.packages.values() for f in wheel}
    wanted |= {f"{PACKAGE}/{f.path}" for f in files}
    assert wanted <= set(every)
    assert all(layer.entries for layer in made.layers)
    # Large files stand alone, as far as there are layers for them.
    large = [f for f in files if f.size >= LARGE and f.path not in out]
    alone = [la for la in made.layers if la.kind == "weights" and not la.compress]
    assert sum(len(la.entries) for la in alone) == len(large)
    if len(large) <= 12:
        assert all(len(la.entries) == 1 for la in alone)
    # The order in which things were found says nothing.
    shuffled = environment(**dict(reversed(env.packages.items())))
    assert plan(shuffled, files[::-1], kept_out=out).digest == made.digest
