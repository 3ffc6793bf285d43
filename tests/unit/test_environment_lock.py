from __future__ import annotations

import json
import platform
import re
from importlib.metadata import Distribution, version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.tracking.environment import canonical, installable, lock, without_user


class Installed(Distribution):
    def __init__(self, name, version, origin=None):
        self.files_ = {
            "METADATA": f"Metadata-Version: 2.1\nVersion: {version}\n" + (f"Name: {name}\n" if name else "")
        }
        if origin is not None:
            self.files_["direct_url.json"] = json.dumps(origin)

    def read_text(self, filename):
        return self.files_.get(filename)

    def locate_file(self, path):
        raise NotImplementedError


def pins(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_lines_are_sorted_by_canonical_name_and_keep_local_versions():
    found = [Installed("torch", "2.13.0+cpu"), Installed("Flask_Cors", "6.0"), Installed("abc.d", "1")]
    assert pins(lock(found)) == ["abc-d==1", "flask-cors==6.0", "torch==2.13.0+cpu"]


def test_the_header_says_python_and_platform():
    first, second = lock([]).splitlines()
    assert first == f"# python {platform.python_version()} ({platform.python_implementation()})"
    assert second.startswith("# platform ")
    assert platform.node() not in second


def test_this_environment_is_locked_whole_and_the_same_each_time():
    text = lock()
    assert f"numpy=={version('numpy')}" in text.splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+(  # .+)?", line) for line in pins(text))
    assert pins(text) == sorted(pins(text), key=lambda line: line.partition("==")[0])
    assert lock() == text


ORIGINS = {
    "editable file:///home/me/mlopsnb": {"url": "file:///home/me/mlopsnb", "dir_info": {"editable": True}},
    "git+https://git.example/a/b.git@0123abc": {
        "url": "https://me:secret@git.example/a/b.git",
        "vcs_info": {"vcs": "git", "commit_id": "0123abc"},
    },
    "https://files.example:8443/a.whl": {
        "url": "https://token@files.example:8443/a.whl?key=secret#sha256=secret",
        "archive_info": {},
    },
}


@pytest.mark.parametrize("expected", ORIGINS)
def test_an_install_from_elsewhere_says_so_without_credentials(expected):
    text = lock([Installed("a", "1", ORIGINS[expected])])
    assert pins(text) == [f"a==1  # {expected}"]
    assert "secret" not in text
    assert "token" not in text


def test_the_first_of_two_and_nothing_without_a_name():
    assert pins(lock([Installed("a", "1"), Installed("A", "2"), Installed("", "3")])) == ["a==1"]


def test_a_broken_record_is_no_reason_to_stop():
    broken = Installed("a", "1")
    broken.files_["direct_url.json"] = "{"
    assert pins(lock([broken])) == ["a==1  # installed from an unknown URL"]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("torch==2.13.0+cpu", "torch==2.13.0"),
        ("torch==2.13.0", "torch==2.13.0"),
        ("torch == 2.13.0+cu126 ; python_version > '3'", "torch == 2.13.0 ; python_version > '3'"),
        ("a>=1", "a>=1"),
    ],
)
def test_requirements_lose_the_local_version_only(given_, expected):
    assert installable(given_) == expected


@given(st.text("abcXYZ019-_.", min_size=1))
def test_canonical_names_are_stable(name):
    assert canonical(canonical(name)) == canonical(name)
    assert canonical(name.upper()) == canonical(name)


@given(st.text("abc:@%!", min_size=1), st.text("abc:%!", min_size=1))
def test_no_password_survives(user, password):
    assert without_user(f"at https://{user}:{password}@host/x?y@z") == "at https://host/x?y@z"
