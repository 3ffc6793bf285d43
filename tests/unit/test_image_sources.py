"""The user's settings for pip and uv reach the tool that asks, and nothing of them stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.images.environment import sources
from mlopsnb.images.environment.tools import clean

SECRET = "hunter2"


@pytest.fixture
def user(tmp_path):
    """The environment of a user without any configuration."""
    return {
        "HOME": str(tmp_path),
        "XDG_CONFIG_DIRS": str(tmp_path / "machine"),
        "PIP_CONFIG_FILE": str(tmp_path / "none"),
    }


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def told(environment, before):
    return {k: v for k, v in environment.items() if before.get(k) != v}


@pytest.fixture(autouse=True)
def no_machine_wide_files(monkeypatch, tmp_path):
    """Leave the settings of this machine out, which every file below is compared with."""
    real = sources._pip_files
    monkeypatch.setattr(
        sources, "_pip_files", lambda environ: (p for p in real(environ) if p.is_relative_to(tmp_path))
    )


def test_what_pip_was_told_is_told_to_uv(user, tmp_path):
    write(
        tmp_path / ".config/pip/pip.conf",
        f"[global]\nindex-url = https://me:{SECRET}@mirror.example/simple\n"
        "extra-index-url =\n    https://one.example/simple\n    https://two.example/simple\n"
        "find_links = /a /b\ntrusted-host = mirror.example\ncert = /ca.pem\nproxy = me:x@proxy.example:3128\n"
        "[install]\ntimeout = 7\n[freeze]\ntimeout = 9\n",
    )
    assert told(sources.for_uv(user), user) == {
        "UV_DEFAULT_INDEX": f"https://me:{SECRET}@mirror.example/simple",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/a,/b",
        "UV_INSECURE_HOST": "mirror.example",
        "SSL_CERT_FILE": "/ca.pem",
        "HTTP_PROXY": "http://me:x@proxy.example:3128",
        "HTTPS_PROXY": "http://me:x@proxy.example:3128",
        "UV_HTTP_TIMEOUT": "7",
    }


def test_variables_count_more_than_files_and_files_of_the_user_more_than_the_machine(user, tmp_path):
    write(tmp_path / "machine/pip/pip.conf", "[global]\nindex-url = https://machine\ncert = /machine.pem\n")
    write(tmp_path / ".config/pip/pip.conf", "[global]\nindex-url = https://user\n")
    assert sources.pip_options(user) == {"index-url": "https://user", "cert": "/machine.pem"}
    assert (
        sources.pip_options({**user, "PIP_INDEX_URL": "https://variable"})["index-url"] == "https://variable"
    )
    write(tmp_path / "none", "[install]\nindex-url = https://named\n")
    assert sources.pip_options(user)["index-url"] == "https://named"
    assert sources.pip_options({**user, "PIP_CONFIG_FILE": "/dev/null"}) == {}


def test_what_uv_knows_itself_counts(user, tmp_path, monkeypatch):
    write(
        tmp_path / ".config/pip/pip.conf",
        "[global]\nindex-url = https://pip\nfind-links = /pip\nno-index = false\n",
    )
    assert told(sources.for_uv({**user, "UV_DEFAULT_INDEX": "https://uv"}), user) == {
        "UV_DEFAULT_INDEX": "https://uv",
        "UV_FIND_LINKS": "/pip",
    }
    write(tmp_path / ".config/uv/uv.toml", 'index-url = "https://uv"\n')
    assert told(sources.for_uv(user), user) == {"UV_FIND_LINKS": "/pip"}
    project = tmp_path / "project"
    write(
        project / "pyproject.toml",
        '[tool.uv]\nindex = [{url = "https://x"}]\n[tool.uv.pip]\nfind-links = ["/x"]\n',
    )
    (project / "deep").mkdir()
    monkeypatch.chdir(project / "deep")
    assert told(sources.for_uv(user), user) == {}
    write(project / "uv.toml", "this is no toml")
    assert told(sources.for_uv({**user, "UV_NO_CONFIG": "1"}), user)["UV_DEFAULT_INDEX"] == "https://pip"


def test_certificates_and_proxies_that_are_there_stay(user):
    kept = {"SSL_CERT_FILE": "/mine.pem", "https_proxy": "http://mine", "REQUESTS_CA_BUNDLE": "/other.pem"}
    environment = sources.for_uv({**user, **kept, "PIP_PROXY": "http://pip"})
    assert told(environment, {**user, "PIP_PROXY": "http://pip"}) == {**kept, "HTTP_PROXY": "http://pip"}
    assert sources.for_uv({**user, "CURL_CA_BUNDLE": "/c.pem"})["SSL_CERT_FILE"] == "/c.pem"


def test_a_backend_of_pytorch_for_gpus_is_for_gpus(user):
    user["UV_TORCH_BACKEND"] = "cu130"
    assert "UV_TORCH_BACKEND" not in sources.for_uv(user, accelerator="cpu")
    assert sources.for_uv(user, accelerator="cuda")["UV_TORCH_BACKEND"] == "cu130"


@pytest.mark.parametrize(
    ("variable", "value", "own"),
    [
        ("PIP_INDEX_URL", "https://index.corp/simple", True),
        ("PIP_EXTRA_INDEX_URL", "https://index.corp/simple", True),
        ("UV_DEFAULT_INDEX", "https://index.corp/simple", True),
        ("PIP_FIND_LINKS", "https://wheels.corp", True),
        ("PIP_FIND_LINKS", "/wheels", False),
        ("PIP_TIMEOUT", "10", False),
    ],
)
def test_an_index_of_their_own_is_known(user, variable, value, own):
    assert sources.has_own_index({**user, variable: value}) is own
    assert not sources.has_own_index(user)


def test_pip_is_not_led_elsewhere(user):
    given = {**user, "PIP_TARGET": "/there", "PIP_USER": "1", "PIP_INDEX_URL": "https://mirror"}
    assert told(sources.for_pip(given), given) == {
        "PIP_USER": "0",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_NO_INPUT": "1",
    }
    assert "PIP_TARGET" not in sources.for_pip(given)


def test_a_lock_is_asked_for_again_when_the_settings_change_but_not_with_a_new_password(user, tmp_path):
    def key(**variables):
        return sources.key({**user, **variables}, tool="uv")

    first = key(UV_INDEX=f"https://me:{SECRET}@host/simple", UV_INDEX_MINE_PASSWORD=SECRET)
    assert first == key(UV_INDEX="https://you:other@host/simple", UV_INDEX_MINE_PASSWORD="other")
    assert first != key(UV_INDEX="https://other/simple")
    assert key() != sources.key(user, tool="pip")
    before = key()
    write(tmp_path / ".config/uv/uv.toml", 'find-links = ["/x"]\n')
    assert key() != before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"at https://me:{SECRET}@host/simple/x", "at https://host/simple/x"),
        (f"https://{SECRET}@host", "https://host"),
        (f"https://me:a@{SECRET}@host/x", "https://host/x"),
        (f"(https://host/x.whl?token={SECRET}&y=1#frag), and", "(https://host/x.whl), and"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("a@b.example wrote to https://host/@scope", "a@b.example wrote to https://host/@scope"),
    ],
)
def test_addresses_lose_what_may_be_secret(text, expected):
    assert clean(text) == expected


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1))
def test_no_user_and_no_password_is_left(word):
    user = "".join(c for c in word if c not in "/?#@") or "u"
    assert clean(f"see https://{user}:{user}pass@host.example/x.") == "see https://host.example/x."
