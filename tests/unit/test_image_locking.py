"""Locks by a real uv and a real pip, from wheels made here."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from wheelhouse import index, wheel

from mlopsnb.errors import BuildError, MissingExtra
from mlopsnb.events import reporting_to
from mlopsnb.images.environment import failures, pip, uv
from mlopsnb.images.environment.install import install
from mlopsnb.images.environment.locking import resolve
from mlopsnb.images.environment.request import PLATFORMS, here, request
from mlopsnb.images.errors import DiskFull, IndexFailed, NoWheel, Unresolvable

SECRET = "hunter2"
BOTH = pytest.mark.parametrize("tool", ["uv", "pip"])


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A directory of wheels, the only place where packages come from; caches of its own."""
    place = tmp_path / "house"
    place.mkdir()
    for name in [n for n in os.environ if n.startswith(("PIP_", "UV_")) or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


@pytest.fixture
def use(monkeypatch):
    def use(tool):
        if tool == "pip":
            monkeypatch.setattr(uv, "find", lambda: None)
        elif uv.find() is None:
            pytest.skip("uv is not installed")

    return use


@BOTH
def test_a_lock_names_each_wheel_and_who_wants_it(tool, use, house):
    use(tool)
    top = wheel(
        house, "Top_Level", requires=["shared>=1", "other ; python_version >= '3'", "never ; extra == 'x'"]
    )
    wheel(house, "shared", "1.0")
    newest = wheel(house, "shared", "2.0")
    wheel(house, "other", requires=["shared"])
    lock = resolve(["top-level"], installed={})
    assert [(p.name, p.version, p.wanted_by) for p in lock.packages] == [
        ("other", "1.0", ("top-level",)),
        ("shared", "2.0", ("other", "top-level")),
        ("top-level", "1.0", ()),
    ]
    assert lock.packages[2].sha256 == hashlib.sha256(top.read_bytes()).hexdigest()
    assert lock.packages[1].filename == newest.name
    assert lock.packages[1].url == newest.as_uri()
    assert resolve(["top-level"], installed={"shared": "1.0"}).packages[1].version == "1.0"


@BOTH
def test_a_lock_is_kept_by_what_it_was_made_from(tool, use, house):
    use(tool)
    first = wheel(house, "a")
    lock = resolve(["a"], installed={})
    first.unlink()
    assert resolve(["a"], installed={}) == lock
    with pytest.raises((NoWheel, Unresolvable)):
        resolve(["a"], installed={"b": "1"})


def test_nothing_is_asked_for_and_nothing_found(house):
    assert resolve([], installed={"a": "1"}).packages == ()


@BOTH
def test_a_conflict_names_the_packages_and_what_is_held(tool, use, house):
    use(tool)
    wheel(house, "a", requires=["shared<2"])
    wheel(house, "b", requires=["shared>=2"])
    for version in ("1.0", "2.0"):
        wheel(house, "shared", version)
    with pytest.raises(Unresolvable) as caught:
        resolve(["a==1.0", "b==1.0"], installed={})
    for name in ("a", "b", "shared"):
        assert name in caught.value.message.replace("(", " ").split() or f"{name}<2" in caught.value.message
    with pytest.raises(Unresolvable) as caught:
        resolve(["a==1.0"], installed={"shared": "2.0"})
    assert "shared" in caught.value.message
    if tool == "uv":
        assert "Held to what is installed here: shared==2.0" in caught.value.message


@BOTH
def test_sources_alone_are_no_wheel(tool, use, house):
    use(tool)
    wheel(house, "a", requires=["needs-compiler"])
    (house / "needs-compiler-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(NoWheel) as caught:
        resolve(["a"], installed={})
    assert caught.value.package.startswith("needs-compiler")
    assert "has no wheel for linux/amd64 and Python" in caught.value.message or here() != "linux/amd64"
    assert "pip wheel needs-compiler" in caught.value.hint


@BOTH
def test_a_wheel_for_another_platform_is_none_for_this(tool, use, house):
    use(tool)
    wheel(house, "a", tag="cp311-cp311-win_amd64")
    with pytest.raises(NoWheel, match="^a"):
        resolve(["a"], installed={})


def test_wheels_are_those_of_the_platform_asked_for(use, house):
    use("uv")
    for machine in ("x86_64", "aarch64"):
        wheel(house, "a", tag=f"py3-none-manylinux_2_28_{machine}", files={f"{machine}.so": "", "a.py": ""})
    wheel(house, "b", requires=["a ; platform_machine == 'aarch64'"])
    lock = resolve(["b"], installed={}, platform="linux/arm64", python="3.12")
    assert [p.filename for p in lock.packages] == [
        "a-1.0-py3-none-manylinux_2_28_aarch64.whl",
        "b-1.0-py3-none-any.whl",
    ]
    environment = install(lock, Path(os.environ["MLOPSNB_CACHE_DIR"]))
    assert [f.path for f in environment.packages["a"]][:1] == ["a-1.0.dist-info/METADATA"]
    assert (environment.root / "aarch64.so").exists()
    assert [p.name for p in resolve(["b"], installed={}, platform="linux/amd64").packages] == ["b"]


def test_pip_resolves_for_no_other_platform(use, house):
    use("pip")
    other = next(p for p in PLATFORMS if p != here())
    with pytest.raises(MissingExtra, match="'uv' is not installed") as caught:
        resolve(["a"], installed={}, platform=other)
    assert "mlopsnb[images]" in caught.value.hint


def test_neither_uv_nor_pip(use, house, monkeypatch):
    use("pip")
    monkeypatch.setattr(pip, "available", lambda: False)
    with pytest.raises(MissingExtra, match="'uv' is not installed"):
        resolve(["a"], installed={})


@BOTH
def test_the_build_of_pytorch_is_the_one_for_a_cpu(tool, use, house):
    use(tool)
    wheel(house, "torch", "2.0", requires=["nvidia-cudnn-cu13"])
    wheel(house, "torch", "2.0+cpu")
    wheel(house, "nvidia-cudnn-cu13", "9.0")
    lock = resolve(["torch==2.0"], installed={"torch": "2.0"})
    assert [(p.name, p.version) for p in lock.packages] == [("torch", "2.0+cpu")]
    cuda = resolve(["torch==2.0"], installed={"torch": "2.0"}, accelerator="cuda")
    assert [(p.name, p.version) for p in cuda.packages] == [("nvidia-cudnn-cu13", "9.0"), ("torch", "2.0")]


@BOTH
def test_cuda_comes_only_when_asked_for(tool, use, house, monkeypatch):
    use(tool)
    wheel(house, "torch", "2.0", requires=["nvidia-cudnn-cu13"])
    wheel(house, "nvidia-cudnn-cu13", "9.0")
    monkeypatch.setenv(
        "HTTPS_PROXY", "http://127.0.0.1:9"
    )  # PyTorch's own index is asked, and cannot be reached
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for roots, installed in ((["torch==2.0"], {"torch": "2.0"}), (["torch"], {})):
        with pytest.raises(
            Unresolvable, match="PyTorch without CUDA, which runs on a CPU, was not found"
        ) as caught:
            resolve(roots, installed=installed)
        assert "accelerator='cuda'" in caught.value.hint


@BOTH
def test_an_index_with_a_password_is_used_and_never_told(tool, use, house, monkeypatch, tmp_path):
    use(tool)
    wheel(house, "a", requires=["b"])
    wheel(house, "b")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    seen = []
    with index(house, authorization=expected) as served, reporting_to(seen.append):
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:{SECRET}@{served.address}/simple")
        lock = resolve(["a"], installed={})
        assert [p.url for p in lock.packages] == [
            f"http://{served.address}/files/{p.filename}" for p in lock.packages
        ]
        cache = Path(os.environ["MLOPSNB_CACHE_DIR"]) / "images"
        environment = install(lock, cache)
        assert (environment.root / "b.py").read_text() == "VERSION = '1.0'\n"
        with pytest.raises(BuildError) as missing:
            resolve(["no-such-package"], installed={})
        served.authorization = "another one"
        with pytest.raises(BuildError) as denied:
            resolve(["c"], installed={})
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(BuildError) as gone:
        resolve(["d"], installed={})
    told = [repr(lock), lock.text, repr(seen), *(str(e.value) for e in (missing, denied, gone))]
    told += [p.read_text(errors="replace") for p in cache.rglob("*") if p.is_file()]
    assert not [text for text in told if SECRET in text]
    assert not [p for p in tmp_path.rglob("*") if SECRET in p.name]


@pytest.mark.skipif(importlib.util.find_spec("uv") is None, reason="uv is not installed")
def test_a_proxy_of_pips_configuration_is_asked(house, monkeypatch, tmp_path):
    wheel(house, "a")
    config = tmp_path / "pip.conf"
    with index(house) as proxy:
        config.write_text(
            f"[global]\nproxy = http://{proxy.address}\nindex-url = http://packages.example/simple\n"
        )
        for name, value in {"PIP_CONFIG_FILE": config, "NO_PROXY": "", "no_proxy": ""}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        lock = resolve(["a"], installed={})
    assert lock.packages[0].url.startswith("http://packages.example/files/a-1.0")
    assert proxy.asked[0][0] == "http://packages.example/simple/a/"


def test_a_package_that_came_from_elsewhere_says_so(house, monkeypatch, tmp_path):
    site = tmp_path / "site"
    (site / "mine-0.1.dist-info").mkdir(parents=True)
    (site / "mine-0.1.dist-info" / "direct_url.json").write_text('{"url": "file:///home/me/mine"}')
    monkeypatch.syspath_prepend(str(site))
    wheel(house, "a", requires=["mine"])
    wheel(house, "mine", "2.0")
    with pytest.raises(BuildError, match="mine from file:///home/me/mine") as caught:
        resolve(["a"], installed={"mine": "0.1"})
    assert "pip wheel --no-deps" in caught.value.hint


ASKED = request(["a"], installed={"numpy": "1.0"}, platform="linux/amd64", python="3.11")


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            (
                "  \u00d7 No solution found when resolving dependencies:\n  ╰─▶ Because x==1 depends on numpy>=2 and you\n"
                "      require x==1, we can conclude that your requirements are unsatisfiable."
            ),
            Unresolvable,
            (
                "Because x==1 depends on numpy>=2 and you require x==1, we can conclude that your requirements are"
                " unsatisfiable. Held to what is installed here: numpy==1.0."
            ),
        ),
        (
            (
                "error: No solution found\n  cause: Because only x==1 is available and x==1 has no wheels with a matching"
                " platform tag (e.g., `manylinux_2_28_x86_64`), we can conclude.\n\nhint: Wheels are available for `x` (v1)"
                " on the following platform: `win_amd64`"
            ),
            NoWheel,
            (
                "x==1 has no wheel for linux/amd64 and Python 3.11; found Wheels are available for `x` (v1) on the following"
                " platform: `win_amd64`"
            ),
        ),
        (
            "error: No solution found when resolving dependencies\n  cause: you require x<2 and x==2, which are incompatible",
            Unresolvable,
            "no set of packages meets all requirements: you require x<2 and x==2, which are incompatible",
        ),
        ("error: failed to write\n  cause: No space left on device (os error 28)", DiskFull, "no space left"),
        (
            "error: Failed to fetch: `http://h/simple/x/`\n  cause: HTTP status client error (401)",
            IndexFailed,
            "401",
        ),
        ("", IndexFailed, "cannot be had from the index"),
    ],
)
def test_what_uv_says(said, kind, words):
    error = failures.failed(said, ASKED)
    assert type(error) is kind
    assert words in error.message


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            (
                "ERROR: Cannot install a and b because these package versions have conflicting dependencies.\n\n"
                "The conflict is caused by:\n    a 1.0 depends on numpy<2\n    The user requested (constraint) numpy==1.0\n\n"
                "To fix this you could try to:"
            ),
            Unresolvable,
            "a 1.0 depends on numpy<2; The user requested (constraint) numpy==1.0.",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement x==9 (from versions: 1, 2)",
            Unresolvable,
            "1, 2",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)",
            NoWheel,
            "x has no",
        ),
        (
            (
                "WARNING: Retrying after connection broken\nERROR: Could not find a version that satisfies the requirement x"
                " (from versions: none)"
            ),
            IndexFailed,
            "connection broken",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space",
            DiskFull,
            "no space left",
        ),
    ],
)
def test_what_pip_says(said, kind, words):
    error = failures.pip_failed(said, ASKED)
    assert type(error) is kind
    assert words in error.message


@pytest.mark.parametrize("text", ["", "packages = 1", "[[packages]]\nname = 'a'\nwheels = []", "not toml ["])
def test_a_lock_that_cannot_be_read(text):
    with pytest.raises(BuildError, match="cannot be read"):
        uv.parse(text, {})


def test_a_uv_on_the_path_will_do(monkeypatch, tmp_path):
    monkeypatch.setattr(uv, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert uv.find() is None
    shutil.copy("/bin/true", tmp_path / "uv")
    assert uv.find() == tmp_path / "uv"
