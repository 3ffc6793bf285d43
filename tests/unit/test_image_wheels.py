"""Wheels that a context brings along: found here, or downloaded as the user's pip does it."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from mlopsnb.errors import BuildError
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.images.wheels import bring

NAME = "ours-1.0+corp-py3-none-any.whl"


@pytest.fixture
def wheel(tmp_path):
    """A wheel of no content in a directory of its own."""
    path = tmp_path / "links" / NAME
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ours.py", "")
        info = "ours-1.0+corp.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: ours\nVersion: 1.0+corp\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def brought(wheel, cache, url, sha256=""):
    digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = LockedPackage(name="ours", version="1.0+corp", filename=NAME, sha256=digest, url=url)
    return bring([package], Lock(python="3.11", platform="linux/amd64", packages=(package,)), cache)


def test_a_file_of_this_machine_is_taken_where_it_is(wheel, tmp_path):
    assert brought(wheel, tmp_path / "cache", wheel.as_uri()) == {NAME: wheel}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("url", ["https://index.corp/ours.whl", "file:///gone/ours.whl", ""])
def test_others_are_downloaded_once_with_the_users_settings(wheel, tmp_path, monkeypatch, url):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    found = brought(wheel, tmp_path / "cache", url)[NAME]
    assert found.read_bytes() == wheel.read_bytes()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert brought(wheel, tmp_path / "cache", url)[NAME] == found


def test_what_cannot_be_had_is_told_with_what_pip_said(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        BuildError, match=r"pip cannot download ours-1\.0\+corp.*: ERROR: No matching distribution"
    ):
        brought(wheel, tmp_path / "cache", "")


def test_another_wheel_than_the_locked_one_is_refused(wheel, tmp_path):
    with pytest.raises(BuildError, match=r"is not the wheel that was locked: its SHA-256 should be 00"):
        brought(wheel, tmp_path / "cache", wheel.as_uri(), sha256="00" * 32)
