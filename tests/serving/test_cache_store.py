"""What is kept of answers: by which keys, how much of it, and what goes first."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving.cache import ByRows, Store, Whole

FREE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="int16", shape=(None, None)),
        TensorSpec(name="z", dtype="int8", shape=(None, 0)),
    ),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
)


def test_rows_of_other_shapes_have_other_keys():
    keeping = ByRows(FREE)
    z = np.empty((2, 0), np.int8)
    narrow = keeping.keys({"x": np.zeros((2, 2), np.int16), "z": z}, 2)
    wide = keeping.keys({"x": np.zeros((2, 4), np.int16), "z": z}, 2)
    none = keeping.keys({"x": np.zeros((2, 0), np.int16), "z": z}, 2)
    assert len({*narrow, *wide, *none}) == 3
    assert {len(key) for key in (*narrow, *wide, *none)} == {16}


def test_texts_are_told_apart_wherever_they_are_cut():
    both = Signature(
        inputs=tuple(TensorSpec(name=n, dtype="str", shape=(None,)) for n in "ab"), outputs=FREE.outputs
    )
    pairs = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")]
    inputs = {"a": np.array([a for a, _ in pairs], object), "b": np.array([b for _, b in pairs], object)}
    for keeping in (ByRows(both), Whole()):
        found = [keeping.keys({n: a[i : i + 1] for n, a in inputs.items()}, 1)[0] for i in range(4)]
        assert len(set(found)) == 4


def test_long_rows_are_known_by_a_digest():
    wide = Signature(inputs=(TensorSpec(name="x", dtype="float64", shape=(None, 100)),), outputs=FREE.outputs)
    x = np.zeros((3, 100))
    x[2, 99] = 1e-300
    one, same, other = ByRows(wide).keys({"x": x}, 3)
    assert one == same != other
    assert len(one) == 16


def test_outputs_with_free_axes_are_kept_by_request():
    assert not ByRows.fits(
        Signature(inputs=FREE.inputs, outputs=(TensorSpec(name="y", dtype="float32", shape=(None, None)),))
    )
    assert ByRows.fits(FREE)


def test_outputs_that_are_not_as_the_signature_says_are_not_cut():
    keeping = ByRows(FREE)
    assert keeping.cut({"y": np.zeros((2, 1), np.float32)}, 2) is None
    assert keeping.cut({"y": np.zeros(3, np.float32)}, 2) is None
    assert keeping.cut({"y": np.zeros(2, np.float64)}, 2) is None
    assert keeping.cut({"y": np.zeros(2, np.float32)}, 2) == [bytes(4)] * 2


def test_the_least_recently_used_go_first_and_what_is_too_large_is_not_kept():
    store = Store(2000)
    for key in (b"a", b"b", b"c"):
        assert store.put(key, key, 100, 0)
    assert store.find([b"a"], 0) == [b"a"]
    assert store.put(b"d", b"d", 100, 0)
    assert store.find([b"a", b"b", b"c", b"d"], 0) == [b"a", None, b"c", b"d"]
    assert (store.evicted, len(store)) == (1, 3)
    assert not store.put(b"a", b"huge", 2000, 0)
    assert store.find([b"a", b"c"], 0) == [None, b"c"]
    store.clear()
    assert (len(store), store.nbytes) == (0, 0)


@pytest.mark.parametrize(("width", "text"), [(1, False), (64, False), (2000, False), (1, True)])
def test_python_takes_no_more_than_the_bound(width, text):
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, width)),),
        outputs=(TensorSpec(name="y", dtype="str" if text else "float32", shape=(None,)),),
    )
    limit = 2_000_000
    keeping, store = ByRows(signature), Store(limit)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        most = number = 0
        while store.evicted < 3000:
            x = np.full((16, width), number, np.float32)
            x[:, 0] = np.arange(number, number + 16)
            number += 16
            y = np.array([str(v) for v in x[:, 0]], object) if text else x[:, 0] + 0
            for key, value in zip(keeping.keys({"x": x}, 16), keeping.cut({"y": y}, 16), strict=True):
                store.put(key, value, keeping.nbytes(value), float(number))
            if store.evicted or not number % 1024:
                del x, y, key, value
                most = max(most, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert limit * 0.9 < store.nbytes <= limit
    assert limit * 0.4 < most <= limit


def test_whole_requests_are_counted_with_all_they_hold():
    keeping = Whole()
    big = np.zeros((1000, 1000), np.float32)
    [value] = keeping.cut({"y": big[:10, :10], "t": np.array(["a" * 1000] * 3, object)}, 1)
    assert value["y"].base is None
    assert not value["y"].flags.writeable
    assert 400 + 3000 < keeping.nbytes(value) < 5000


# Over a server.
