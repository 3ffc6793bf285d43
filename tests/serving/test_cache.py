from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
import tracemalloc
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving.cache import ByRows, Store, Whole
from mlopsnb.serving.caching import Cached, Wish, read_wish
from mlopsnb.serving.engine import Engine
from mlopsnb.serving.errors import BadRequest, DeadlineExceeded, ModelFailure, NotCached, Overloaded
from mlopsnb.serving.metrics import Metrics
from mlopsnb.serving.model import Model, Package
from mlopsnb.serving.tuning import Options, Plan

PLAN = Plan(
    inline=True,
    instances=1,
    threads=0,
    joins=True,
    max_batch_size=8,
    inline_rows=100,
    row_seconds=0.5,
    forward_seconds=0.001,
)
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=(None, 2), allow_nan=True),
        TensorSpec(name="s", dtype="str", shape=(None,)),
        TensorSpec(name="b", dtype="bool", shape=(None, 3)),
    ),
    outputs=(
        TensorSpec(name="y", dtype="float64", shape=(None, 2)),
        TensorSpec(name="t", dtype="str", shape=(None, 2)),
        TensorSpec(name="n", dtype="int8", shape=(None,)),
        TensorSpec(name="h", dtype="float16", shape=(None, 1, 1)),
    ),
)


class Exact:
    """A model whose rows do not touch each other. Waits at `gate`; some values make trouble."""

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.mixes = False

    def __call__(self, inputs):
        x, s, b = inputs["x"], inputs["s"], inputs["b"]
        self.calls.append(len(x))
        self.entered.set()
        assert self.gate.wait(30)
        if (x == 666).any():
            raise ValueError("not for me")
        if self.mixes and len(x) > 1:
            return {name: array[:1] for name, array in self.answer(x, s, b).items()}
        return self.answer(x, s, b)

    def answer(self, x, s, b):
        return {
            "y": x.astype(np.float64) / 3,
            "t": np.array([[text * 2, text[:1]] for text in s], object).reshape(len(x), 2),
            "n": b.sum(axis=1).astype(np.int8),
            "h": x[:, :1, None].astype(np.float16),
        }


def rows_of(*rows):
    return {
        "x": np.array([r[0] for r in rows], np.float32).reshape(len(rows), 2),
        "s": np.array([r[1] for r in rows], object),
        "b": np.array([r[2] for r in rows], bool).reshape(len(rows), 3),
    }


GOLDEN = rows_of(((1, 2), "é", (True, False, True)), ((0, -1), "", (False, False, False)))


@dataclass
class Asker:
    headers: dict = field(default_factory=dict)
    told: tuple = ()
    degraded: str = ""
    span: None = None


@pytest.fixture
def model():
    return Exact()


@pytest.fixture
def cached(model):
    """Make a cache around an engine around the model; keywords replace parts of the plan."""
    made = []

    def make(limit=1 << 20, options=None, **plan):
        package = Package(
            path=Path(), manifest=Manifest(format="none", signature=SIGNATURE, files={}), golden=GOLDEN
        )
        engine = Engine(
            package, Model(package, model), replace(PLAN, **plan), options or Options(), Metrics("m", "1")
        )
        made.append(engine)
        return Cached(engine, limit)

    yield make
    model.gate.set()
    for engine in made:
        engine.close()


async def infer(stage, asker, inputs, *, rows, deadline):
    """Submit to *stage* and wait; whoever is cancelled is forgotten."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def done(_, outcome):
        (future.set_exception if isinstance(outcome, Exception) else future.set_result)(outcome)

    handle = stage.submit(asker, inputs, rows, done, deadline=deadline, loop=loop)
    try:
        return await future
    except asyncio.CancelledError:
        if handle is not None:
            stage.cancel(handle)
        raise


async def ask(cached, *rows, deadline=None, **wish):
    """Return the values of y's first column and the status of the cache."""
    asker = Asker({b"cache-control": wish["wish"].encode()} if wish else {})
    outputs = await infer(cached, asker, rows_of(*rows), rows=len(rows), deadline=deadline)
    [(name, status)] = asker.told
    assert name == b"cache-status"
    return [round(v * 3, 3) for v in outputs["y"][:, 0].tolist()], status.decode()


def row(value, text="a"):
    return (value, value), text, (True, True, False)


def counts(cached):
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in cached.families({})
        for sample in family.samples
    }


def test_only_the_rows_that_are_not_known_are_run(cached, model):
    cache = cached()

    async def run():
        return [
            await ask(cache, row(1), row(2), row(3)),
            await ask(cache, row(3), row(4), row(1), row(4), row(5)),
            await ask(cache, row(5), row(5), row(2)),
            await ask(cache, row(5, "other")),
        ]

    assert asyncio.run(run()) == [
        ([1, 2, 3], "mlopsnb; fwd=miss; stored"),
        ([3, 4, 1, 4, 5], 'mlopsnb; fwd=partial; detail="2 of 5 rows"; stored'),
        ([5, 5, 2], "mlopsnb; hit"),
        ([5], "mlopsnb; fwd=miss; stored"),
    ]
    assert model.calls == [3, 2, 1]
    found = counts(cache)
    assert 0 < found.pop("mlopsnb_cache_bytes") < 1 << 20
    assert found == {
        "mlopsnb_cache_rows_totalhit": 5,
        "mlopsnb_cache_rows_totalmiss": 7,
        "mlopsnb_cache_evictions_total": 0,
        "mlopsnb_cache_entries": 6,
    }


def test_requests_have_one_key_where_rows_may_not_share_a_call(cached, model):
    cache = cached(joins=False)

    async def run():
        return [await ask(cache, *rows) for rows in [(row(1), row(2)), (row(1),), (row(1), row(2))]]

    told = [status for _, status in asyncio.run(run())]
    assert told == ["mlopsnb; fwd=miss; stored", "mlopsnb; fwd=miss; stored", "mlopsnb; hit"]
    assert model.calls == [2, 1]
    assert cache.parameters == {"cache": {"max_bytes": 1 << 20, "keys": "request"}}


def test_a_request_without_rows_goes_to_the_model(cached, model):
    cache = cached()
    assert asyncio.run(ask(cache)) == ([], "mlopsnb; fwd=bypass")
    assert model.calls == [0]


WISHES = {
    None: Wish(),
    b"": Wish(),
    b"no-transform, min-fresh=3": Wish(),
    b"No-Cache": Wish(reads=False),
    b"no-store": Wish(reads=False, stores=False),
    b"max-age=60": Wish(max_age=60),
    b'max-age="60" , only-if-cached': Wish(max_age=60, only_cached=True),
    b"max-age=0": Wish(reads=False, max_age=0),
    b"max-age=soon": Wish(reads=False, max_age=0),
    b"max-age=-1": Wish(reads=False, max_age=0),
    b"max-age": Wish(reads=False, max_age=0),
    b"max-age=" + b"9" * 400: Wish(max_age=9999999999),
    b'x="no-store, no-cache"': Wish(),
    b"x=1, no-store": Wish(reads=False, stores=False),
}


@pytest.mark.parametrize("header", WISHES)
def test_what_a_request_may_ask_of_the_cache(header):
    assert read_wish(header) == WISHES[header]


@given(st.binary(max_size=60))
def test_any_header_is_read(header):
    assert read_wish(header).max_age >= 0


def test_no_cache_refreshes_no_store_leaves_alone_and_age_counts(cached, model, monkeypatch):
    cache = cached()

    async def run():
        told = [
            (await ask(cache, row(1), wish="no-store"))[1],
            (await ask(cache, row(1), wish="no-cache"))[1],
            (await ask(cache, row(1), wish="max-age=600"))[1],
            (await ask(cache, row(1), wish="no-store"))[1],
            (await ask(cache, row(1), wish="only-if-cached"))[1],
        ]
        with pytest.raises(NotCached) as caught:
            await ask(cache, row(1), row(2), wish="only-if-cached")
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda real=loop.time: real() + 2)
        told += [(await ask(cache, row(1), wish="max-age=1"))[1], (await ask(cache, row(1)))[1]]
        return told, caught.value.message

    assert asyncio.run(run()) == (
        [
            "mlopsnb; fwd=request",
            "mlopsnb; fwd=request; stored",
            "mlopsnb; hit",
            "mlopsnb; fwd=request",
            "mlopsnb; hit",
            "mlopsnb; fwd=miss; stored",
            "mlopsnb; hit",
        ],
        "only-if-cached, but the answers to 1 of 2 rows are not kept",
    )
    assert model.calls == [1] * 4


def test_errors_are_not_kept(cached, model):
    cache = cached()

    async def run():
        for _ in range(2):
            with pytest.raises(BadRequest):
                await ask(cache, row(1), row(666))
        return await ask(cache, row(1))

    assert asyncio.run(run()) == ([1], "mlopsnb; fwd=miss; stored")
    assert model.calls == [2, 2, 2, 2, 1]  # each time the golden example is asked as well
    assert counts(cache)["mlopsnb_cache_entries"] == 1


@pytest.mark.parametrize("inline", [True, False])
def test_rows_that_are_asked_for_already_are_waited_for(cached, model, inline):
    cache = cached(inline=inline)

    async def run():
        return await asyncio.gather(
            ask(cache, row(1), row(2)), ask(cache, row(2)), ask(cache, row(2), row(3)), ask(cache, row(3))
        )

    assert asyncio.run(run()) == [
        ([1, 2], "mlopsnb; fwd=miss; stored"),
        ([2], "mlopsnb; fwd=miss; collapsed"),
        ([2, 3], "mlopsnb; fwd=miss; stored"),
        ([3], "mlopsnb; fwd=miss; collapsed"),
    ]
    assert sum(model.calls) == 3
    assert not cache._flights


def test_one_that_waits_fares_alone_if_the_other_fails(cached, model):
    cache = cached()

    async def run():
        return await asyncio.gather(
            ask(cache, row(1), row(666)), ask(cache, row(1)), ask(cache, row(1)), return_exceptions=True
        )

    bad, good, other = asyncio.run(run())
    assert isinstance(bad, BadRequest)
    assert [good, other] == [([1], "mlopsnb; fwd=miss; stored"), ([1], "mlopsnb; fwd=miss; collapsed")]
    assert not cache._flights


def test_one_that_may_wait_less_long_does_not_wait_for_another(cached, model):
    cache = cached(inline=False)
    model.gate.clear()

    async def run():
        now = asyncio.get_running_loop().time()
        busy = asyncio.ensure_future(ask(cache, row(0)))
        await asyncio.to_thread(model.entered.wait, 30)
        patient = asyncio.ensure_future(ask(cache, row(1), deadline=now + 30))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await ask(cache, row(1), deadline=now + 0.05)
        also = asyncio.ensure_future(ask(cache, row(1), deadline=now + 31))
        await asyncio.sleep(0)
        model.gate.set()
        return [await one for one in (busy, patient, also)]

    assert [status for _, status in asyncio.run(run())] == [
        "mlopsnb; fwd=miss; stored",
        "mlopsnb; fwd=miss; stored",
        "mlopsnb; fwd=miss; collapsed",
    ]
    assert model.calls == [1, 1]


@pytest.mark.parametrize("another_waits", [True, False])
def test_the_model_is_asked_for_one_that_has_gone_if_another_waits(cached, model, another_waits):
    cache = cached(inline=False)
    model.gate.clear()

    async def run():
        busy = asyncio.ensure_future(ask(cache, row(0)))
        await asyncio.to_thread(model.entered.wait, 30)
        gone = asyncio.ensure_future(ask(cache, row(1)))
        kept = [asyncio.ensure_future(ask(cache, row(n))) for n in ((1, 2) if another_waits else (2,))]
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        model.gate.set()
        return [await one for one in (busy, *kept)]

    assert len(asyncio.run(run())) == 2 + another_waits
    assert sum(model.calls) == 2 + another_waits
    assert not cache._flights


def test_the_model_is_not_asked_when_all_who_waited_have_gone(cached, model):
    cache = cached(inline=False)
    model.gate.clear()

    async def run():
        busy = asyncio.ensure_future(ask(cache, row(0)))
        await asyncio.to_thread(model.entered.wait, 30)
        gone = [asyncio.ensure_future(ask(cache, row(1))) for _ in range(3)]
        await asyncio.sleep(0)
        for one in gone:
            one.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert len(cache._flights) == 1
        model.gate.set()
        return await busy

    asyncio.run(run())
    assert model.calls == [1]


def test_an_overloaded_model_still_gives_what_is_kept(cached, model):
    cache = cached(inline=False, options=Options(max_queue_rows=1))

    async def run():
        known = await ask(cache, row(1))
        model.gate.clear()
        model.entered.clear()
        busy = asyncio.ensure_future(ask(cache, row(2)))
        await asyncio.to_thread(model.entered.wait, 30)
        waits = asyncio.ensure_future(ask(cache, row(3)))
        await asyncio.sleep(0)
        cache.admit()
        with pytest.raises(Overloaded):
            await ask(cache, row(4))
        again = await ask(cache, row(1))
        model.gate.set()
        return known[0] == again[0], again[1], (await busy)[0], (await waits)[0]

    assert asyncio.run(run()) == (True, "mlopsnb; hit", [2], [3])
    assert not cache._flights


def test_an_answer_that_cannot_be_handed_on_harms_nobody(cached, caplog):
    cache = cached()

    def fail(_, outcome):
        raise OSError("no")

    async def run():
        loop = asyncio.get_running_loop()
        cache.submit(Asker(), rows_of(row(1)), 1, fail, deadline=None, loop=loop)
        return await ask(cache, row(1))

    assert asyncio.run(run()) == ([1], "mlopsnb; fwd=miss; collapsed")
    assert "could not be handed on" in caplog.text


def test_a_model_that_begins_to_mix_rows_is_kept_by_request(cached, model, caplog):
    cache = cached()

    async def run():
        first = await ask(cache, row(1), row(2))
        model.mixes = True
        # Two requests share a call whose answer has one row; each is then asked alone.
        mixed = await asyncio.gather(ask(cache, row(3)), ask(cache, row(4)))
        return first, mixed, await ask(cache, row(3)), await ask(cache, row(3))

    first, mixed, after, again = asyncio.run(run())
    assert [first[0], *(values for values, _ in mixed)] == [[1, 2], [3], [4]]
    assert (after, again) == (([3], "mlopsnb; fwd=miss; stored"), ([3], "mlopsnb; hit"))
    assert cache.parameters["cache"]["keys"] == "request"
    assert "the cache now keeps whole requests" in caplog.text


class Dice(Exact):
    def answer(self, x, s, b):
        return {**super().answer(x, s, b), "y": np.random.default_rng().normal(size=(len(x), 2))}


def test_a_model_that_answers_differently_each_time_is_not_cached():
    package = Package(
        path=Path(), manifest=Manifest(format="none", signature=SIGNATURE, files={}), golden=GOLDEN
    )
    engine = Engine(package, Model(package, Dice()), PLAN, Options(), Metrics("m", "1"))
    try:
        with pytest.raises(ModelFailure) as caught:
            Cached.around(engine, 1 << 20)
    finally:
        engine.close()
    assert caught.value.message == (
        "the model answers its own example differently each time (output 'y'), so that its answers cannot be kept"
    )


VALUE = st.sampled_from([0.0, -0.0, 1.5, math.nan, 1e-45, -2.25])
ROW = st.tuples(
    st.tuples(VALUE, VALUE), st.sampled_from(["", "a", "é", "a" * 300]), st.tuples(*[st.booleans()] * 3)
)
REQUEST = st.tuples(
    st.lists(ROW, max_size=12), st.sampled_from(["", "no-cache", "no-store", "max-age=1", "max-age=0"])
)


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(st.lists(REQUEST, min_size=1, max_size=4), max_size=8),
    limit=st.sampled_from([1, 500, 2000, 5000, 1 << 20]),
    joins=st.booleans(),
)
def test_any_requests_are_answered_as_without_a_cache_to_the_bit_and_within_the_bound(turns, limit, joins):
    model = Exact()
    package = Package(
        path=Path(), manifest=Manifest(format="none", signature=SIGNATURE, files={}), golden=GOLDEN
    )
    engine = Engine(package, Model(package, model), replace(PLAN, joins=joins), Options(), Metrics("m", "1"))
    cache = Cached(engine, limit)

    async def one(rows, wish):
        asker = Asker({b"cache-control": wish.encode()})
        inputs = rows_of(*rows)
        outputs = await infer(cache, asker, inputs, rows=len(rows), deadline=None)
        assert cache._store.nbytes <= limit
        expected = model.answer(**inputs)
        assert list(outputs) == list(expected)
        for name, array in expected.items():
            found = outputs[name]
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert (
                found.tolist() == array.tolist()
                if array.dtype == object
                else found.tobytes() == array.tobytes()
            )

    async def run():
        for turn in turns:
            await asyncio.gather(*(one(*request) for request in turn))

    try:
        asyncio.run(run())
    finally:
        engine.close()
    assert not cache._flights
    entries = cache._store._entries
    assert cache._store.nbytes == sum(size for _, _, size in entries.values())


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

PATHS = ["/v2/models/affine/infer", "/v2/models/affine/infer?not=plain"]


def sample(runtime, name):
    lines = runtime.get("/metrics").body.decode().splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)
    }


@pytest.mark.parametrize("path", PATHS)
def test_over_http(serve, make_package, body, path):
    runtime = serve(make_package(), "--port", "0", "--cache-bytes", "64MB")
    told = []
    answers = set()
    for wish in (None, None, "no-cache", "no-store", "max-age=60, only-if-cached"):
        answer = runtime.request(
            "POST", path, json.dumps(body([[1, 2, 3, 4]])), {"cache-control": wish} if wish else {}
        )
        told.append((answer.status, answer.headers["cache-status"]))
        answers.add(answer.body)
    assert told == [
        (200, "mlopsnb; fwd=miss; stored"),
        (200, "mlopsnb; hit"),
        (200, "mlopsnb; fwd=request; stored"),
        (200, "mlopsnb; fwd=request"),
        (200, "mlopsnb; hit"),
    ]
    assert len(answers) == 1
    refused = runtime.request(
        "POST", path, json.dumps(body([[9, 2, 3, 4]])), {"cache-control": "only-if-cached"}
    )
    assert (refused.status, refused.json()) == (
        504,
        {"error": "only-if-cached, but the answers to 1 of 1 rows are not kept"},
    )
    assert runtime.get("/v2/models/affine").json()["parameters"]["cache"] == {
        "max_bytes": 64_000_000,
        "keys": "row",
    }
    label = 'model_name="affine",model_version="1"'
    assert sample(runtime, "mlopsnb_cache_rows_total") == {
        f'mlopsnb_cache_rows_total{{{label},result="hit"}}': 2,
        f'mlopsnb_cache_rows_total{{{label},result="miss"}}': 3,
    }
    assert list(sample(runtime, "mlopsnb_cache_entries").values()) == [1]
    assert runtime.errors.count("\n") == 0


def test_the_protocols_share_what_is_kept(serve, make_package, body):
    runtime = serve(make_package(), "--port", "0", "--cache-bytes", "1000000")
    runtime.infer(body([[1, 2, 3, 4]]))
    rows = {"instances": [{"x": [1, 2, 3, 4], "n": 5}, {"x": [0, 0, 0, -9], "n": 5}]}
    answer = runtime.request("POST", "/v1/models/affine:predict", json.dumps(rows))
    assert answer.headers["cache-status"] == 'mlopsnb; fwd=partial; detail="1 of 2 rows"; stored'
    assert answer.json() == {"predictions": [{"y": 25.0, "sign": "+"}, {"y": -13.0, "sign": "-"}]}


def test_without_the_option_there_is_no_cache(served, body):
    answer = served.infer(body(), {"cache-control": "only-if-cached"})
    assert answer.status == 200
    assert "cache-status" not in answer.headers
    assert sample(served, "mlopsnb_cache") == {}
    assert "cache" not in served.get("/v2/models/affine").json()["parameters"]


@pytest.mark.parametrize("given", ["0", "64TB", "MB", "-1", "1.5MB"])
def test_a_size_that_is_none(serve, make_package, given):
    runtime = serve(make_package(), "--port", "0", "--cache-bytes", given)
    assert runtime.stop() == 2
    assert f"{given!r} is no number of bytes; expected one such as 500000 or 64MB" in runtime.errors
