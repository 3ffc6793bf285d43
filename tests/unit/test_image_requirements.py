"""What an image needs of packages, and what that means for versions, builds and platforms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.errors import UserError
from mlopsnb.images.environment import kernel, stripping
from mlopsnb.images.environment.diff import Difference, diff, in_image
from mlopsnb.images.environment.request import request
from mlopsnb.images.environment.roots import roots
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature

NOTHING = Signature(inputs=(), outputs=())


def package(*requirements: str) -> Manifest:
    return Manifest(format="onnx", signature=NOTHING, files={}, requirements=requirements)


def found(*args, **options):
    return {root.partition("==")[0]: root for root in roots(*args, **options)}


def test_model_and_server_are_held_to_what_is_installed():
    here = {"numpy": "2.4.6", "onnxruntime": "1.31.0", "uvicorn": "0.30", "pandas": "3.1", "mlopsnb": "0.1.0"}
    asked = found(package("onnxruntime>=1.20"), installed=here)
    assert asked["onnxruntime"] == "onnxruntime==1.31.0"
    assert asked["numpy"] == "numpy==2.4.6"
    assert asked.keys() >= {"numpy", "onnxruntime", "grpcio>=1.60", "httptools>=0.6"}
    assert "pandas" not in asked
    assert not [name for name in asked if name.startswith("mlopsnb")]
    assert "uvicorn>=0.34" in asked, "what is installed here is too old for it"


def test_a_version_that_is_asked_for_wins_and_all_extras_stay():
    here = {"numpy": "2.4.6", "x": "1.5"}
    asked = found(package("x[b]"), extra=["X[a]>=1", "numpy==1.26.4"], installed=here)
    assert asked["x[a,b]"] == "x[a,b]==1.5"
    assert "numpy==1.26.4,>=1.26" in asked.values()
    assert "numpy<2,>=1.26" in roots(package(), extra=["numpy<2"], installed=here)


def test_the_order_of_what_is_asked_for_tells_nothing():
    here = {"a": "1", "b": "2"}
    assert roots(package("a", "b"), extra=["c"], installed=here) == roots(
        package("b", "c"), extra=["a"], installed=here
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("not a requirement!", "give NAME==VERSION"),
        ("https://me:secret@host/x-1.0-py3-none-any.whl", "give NAME==VERSION"),
        ("x @ https://me:secret@host/x-1.0-py3-none-any.whl", "PIP_FIND_LINKS"),
    ],
)
def test_what_no_index_can_give_is_refused(text, hint):
    with pytest.raises(UserError, match="^requirements: ") as caught:
        roots(package(), extra=[text], installed={})
    assert hint in caught.value.hint
    assert "secret" not in str(caught.value)


def test_modules_of_ones_own_bring_what_they_import(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(
        "import os, numpy.linalg\nfrom mine import other\nimport orjson"
    )
    (tmp_path / "mine" / "other.py").write_text(
        "from . import x\ndef f():\n    import yaml\n    import no_such_module"
    )
    asked = roots(package(), code_paths=[tmp_path / "mine"], installed=kernel.versions())
    names = {root.partition("==")[0] for root in asked}
    assert names >= {"numpy", "orjson", "pyyaml"}
    assert not names & {"os", "mine", "no-such-module"}
    (tmp_path / "broken.py").write_text("def (")
    with pytest.raises(UserError, match=r"code_paths: .*broken\.py cannot be read as Python"):
        roots(package(), code_paths=[tmp_path / "broken.py"], installed={})


def asked(*texts, installed, **options):
    options = {"platform": "linux/amd64", "python": "3.11"} | options
    return request(texts, installed=installed, **options)


@pytest.mark.parametrize(
    ("here", "accelerator", "expected"),
    [
        ("2.13.0+cpu", "cpu", "==2.13.0+cpu"),
        ("2.13.0", "cpu", "==2.13.0+cpu"),
        ("2.13.0+cu130", "cpu", "==2.13.0+cpu"),
        ("2.13.0+cu130", "cuda", "==2.13.0+cu130"),
        ("2.13.0", "cuda", "==2.13.0,!=2.13.0+cpu"),
        ("2.13.0+cpu", "cuda", "==2.13.0,!=2.13.0+cpu"),
    ],
)
def test_pytorch_comes_in_the_build_that_is_asked_for(here, accelerator, expected):
    constrained = asked("x", installed={"torch": here}, accelerator=accelerator)
    assert constrained.held == {"torch": expected}
    rooted = asked(f"torch=={here}", installed={}, accelerator=accelerator)
    first, *others = sorted(rooted.roots[0].removeprefix("torch").split(","), key=lambda s: s.startswith("!"))
    assert ",".join([first, *others]) == expected


def test_what_is_asked_for_is_not_held_to_what_is_here():
    found = asked(
        "a==1", "b>=5", "c>=1", installed={"a": "2", "b": "4", "c": "3", "d": "1.0-weird!", "mlopsnb": "0"}
    )
    assert found.held == {"c": "==3"}
    assert found.constraints == "c==3\n"


def test_platforms_and_accelerators_that_there_are_not():
    with pytest.raises(UserError, match="no images are made for the platform 'linux/amd46'") as caught:
        asked(installed={}, platform="linux/amd46")
    assert "did you mean 'linux/amd64'?" in str(caught.value)
    with pytest.raises(UserError, match="accelerator must be 'cpu' or 'cuda', found 'tpu'"):
        asked(installed={}, accelerator="tpu")


def test_names_of_directories_tell_what_is_installed(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for name in ("Foo_Bar-1.2+cpu.dist-info", "old-0.1-py3.11.egg-info", "~roken-1.0.dist-info", "foo_bar"):
        (first / name).mkdir(parents=True)
    (second / "foo_bar-9.dist-info").mkdir(parents=True)
    (second / "local-1.dist-info").mkdir()
    url = '{"url": "https://me:secret@host/local.whl?token=secret", "archive_info": {}}'
    (second / "local-1.dist-info" / "direct_url.json").write_text(url)
    paths = [str(first), str(tmp_path / "missing"), str(second)]
    assert kernel.versions(paths) == {"foo-bar": "1.2+cpu", "old": "0.1", "local": "1"}
    assert kernel.origin("local", paths) == "https://host/local.whl"
    assert kernel.origin("old", paths) == ""


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("torch/__init__.py", True),
        ("torch/include/ATen/ATen.h", False),
        ("torch/testing/__init__.py", True),
        ("torch/bin/torch_shm_manager", True),
        ("torch/bin/protoc", False),
        ("numpy/_core/tests/_natype.py", True),
        ("numpy/_core/tests/test_x.py", False),
        ("absl/testing/x.py", True),
        ("x/test/y.py", True),
        ("x/y.pyi", False),
        ("x/__pycache__/y.cpython-311.pyc", False),
        ("bin/uvicorn", False),
        ("../../bin/uvicorn", False),
        ("x-1.0.dist-info/METADATA", True),
        ("x-1.0.dist-info/entry_points.txt", True),
        ("x-1.0.dist-info/RECORD", False),
        ("x-1.0.dist-info/direct_url.json", False),
        ("x/RECORD", True),
    ],
)
def test_what_is_stripped(path, needed):
    assert stripping.is_needed(path) is needed


@given(st.lists(st.text(st.characters(blacklist_characters="/\0"), min_size=1), min_size=1))
def test_any_path_is_needed_or_not(parts):
    assert stripping.is_needed("/".join(parts)) in (True, False)


def locked(name, version="1.0", wanted_by=()):
    return LockedPackage(name=name, version=version, filename="", sha256="", wanted_by=wanted_by)


def test_differences_between_notebook_lock_and_image():
    packages = (locked("a"), locked("b", wanted_by=("a",)), locked("torch", "2.0+cpu"), locked("z"))
    lock = Lock(python="3.9", platform="linux/amd64", packages=packages)
    notebook = {"a": "1.0", "torch": "2.0", "z": "0.9", "other": "5"}
    rows = {
        d.name: d
        for d in diff(lock, installed=notebook, image={"a": "1.0", "b": "0.5", "torch": "2.0+cpu", "y": "3"})
    }
    assert rows["b"] == Difference(
        name="b",
        notebook="",
        lock="1.0",
        image="0.5",
        note="not installed in the notebook, wanted by a; the image has another version",
    )
    notes = {name: row.note for name, row in rows.items() if name in ("torch", "y", "z")}
    assert notes == {
        "torch": "another build of the same version",
        "y": "not in the lock",
        "z": "another version than the notebook's; the image lacks it",
    }
    assert rows["python"].lock == "3.9"
    assert "a" not in rows
    assert "other" not in rows


def test_no_difference_is_said_so_and_others_in_columns():
    lock = Lock(python="3.9", platform="linux/amd64", packages=(locked("a"),))
    text = str(diff(lock, installed={"a": "0.9"}))
    assert text.splitlines()[0].split() == ["notebook", "lock", "image"]
    assert text.splitlines()[1].split()[:4] == ["a", "0.9", "1.0", "1.0"]


def test_an_image_tells_its_packages_by_its_paths():
    site = "opt/mlopsnb/venv/lib/python3.11/site-packages"
    paths = [
        f"{site}/torch-2.0+cpu.dist-info/METADATA",
        f"{site}/torch/x.py",
        f"{site}/a_b-1.dist-info/WHEEL",
    ]
    assert in_image(paths) == {"torch": "2.0+cpu", "a-b": "1"}
