"""Layers that are packed and sent before all is certain: they are there, or it is told; what is called off leaves nothing."""

from __future__ import annotations

import hashlib
import os

import pytest
from fake_registry import FakeRegistry

from mlopsnb.images.ahead import Ahead
from mlopsnb.images.cache import Store
from mlopsnb.images.errors import RegistryFull
from mlopsnb.images.layers import find
from mlopsnb.images.plan import Entry, Layer
from mlopsnb.images.registry import connect


@pytest.fixture
def fake():
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    with store.using():
        yield store


def layer(name, data, *, compress=True):
    key = f"sha256:{hashlib.sha256(data).hexdigest()}"
    entry = Entry(path=f"opt/{name}", source=data)
    return Layer(kind="wheel", name=name, key=key, entries=(entry,), compress=compress, size=len(data))


def test_layers_are_packed_and_sent(fake, store):
    wheel, weights = layer("wheel", os.urandom(3000)), layer("weights", os.urandom(5000), compress=False)
    with Ahead(store, connect(fake.host), "team/net") as ahead:
        ahead.take([weights])
        ahead.take([wheel])
        packed, sent = ahead.result()
    assert [found.name for found in packed] == ["weights", "wheel"]
    assert sent == sum(found.size for found in packed)
    assert {("team/net", found.digest) for found in packed} == fake.blobs.keys()
    assert find(wheel, store) is not None
    with Ahead(store, connect(fake.host), "team/net") as ahead:
        ahead.take([weights, wheel])
        assert ahead.result() == (packed[:1] + packed[1:], 0)


def test_without_a_registry_they_are_packed_alone(store):
    with Ahead(store) as ahead:
        ahead.take([layer("wheel", b"x" * 100)])
        assert ahead.result()[1] == 0
    assert find(layer("wheel", b"x" * 100), store) is not None


def test_what_fails_is_told(fake, store):
    def send():
        with Ahead(store, connect(fake.host), "team/net") as ahead:
            ahead.take([layer("weights", os.urandom(3000))])
            ahead.result()

    fake.faults = [None, "507"]
    with pytest.raises(RegistryFull):
        send()
    assert fake.left() == []


def test_what_fails_elsewhere_calls_it_off(fake, store):
    def fail():
        with Ahead(store, connect(fake.host), "team/net") as ahead:
            ahead.take([layer("weights", os.urandom(3000))])
            raise ZeroDivisionError

    fake.faults = ["503"] * 10_000  # it would be tried for a minute
    with pytest.raises(ZeroDivisionError):
        fail()
    fake.faults = []
    assert fake.left() == []
    assert not fake.blobs
