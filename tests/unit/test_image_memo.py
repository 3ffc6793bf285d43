from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from mlopsnb.images import memo
from mlopsnb.images.cache import Store
from mlopsnb.images.image import Destination, Image, ImageLayer
from mlopsnb.images.lock import Lock, LockedPackage

IMAGE = Image(
    reference="oci:/nowhere:v3-1",
    tagged="oci:/nowhere:v3-1",
    digest="sha256:1",
    id="sha256:2",
    destination=Destination(place="layout", path=Path("/nowhere")),
    builder="oci",
    platform="linux/amd64",
    base="python:3.11-slim@sha256:3",
    layers=(ImageLayer(kind="wheel", name="torch", digest="d", diff_id="i", size=1, unpacked=2),),
    lock=Lock(
        python="3.11",
        platform="linux/amd64",
        packages=(LockedPackage(name="a", version="1", filename="f", sha256="s", wanted_by=("b",)),),
    ),
    package_digest="sha256:4",
    labels={"k": "v"},
    sent=7,
)


def test_a_record_survives_the_store(tmp_path):
    store = Store(tmp_path)
    memo.remember(store, "key", IMAGE)
    assert memo._image(store.note("builds", "key")) == replace(IMAGE, sent=0)


def test_an_image_that_is_gone_is_not_recalled(tmp_path):
    store = Store(tmp_path)
    memo.remember(store, "key", IMAGE)
    assert memo.recall(store, "key") is None
    assert memo.recall(store, "other") is None


def test_a_note_of_another_version_is_no_image(tmp_path):
    store = Store(tmp_path)
    store.set_note("builds", "key", {"destination": {}})
    assert memo.recall(store, "key") is None


def test_the_key_changes_with_all_that_could_change_an_image(monkeypatch):
    first = memo.key({"name": "a"})
    assert memo.key({"name": "a"}) == first
    assert memo.key({"name": "b"}) != first
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@index.example/simple")
    other = memo.key({"name": "a"})
    assert other != first


def test_files_are_told_by_their_state_not_by_reading(tmp_path):
    file = tmp_path / "model" / "weights"
    file.parent.mkdir()
    file.write_bytes(b"1")
    before = list(memo.files_seen([tmp_path]))
    assert json.dumps(before)
    assert list(memo.files_seen([tmp_path])) == before
    os.utime(file, ns=(1, 1))
    assert list(memo.files_seen([tmp_path])) != before
    assert list(memo.files_seen([file])) == list(memo.files_seen([tmp_path]))
    assert list(memo.files_seen([tmp_path], suffix=".py")) == []
