"""The cache between requests and the model: which rows are asked for, and what is answered."""

from __future__ import annotations

import asyncio
import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving.caching import Cached, Wish, read_wish
from mlopsnb.serving.calls import begin
from mlopsnb.serving.errors import BadRequest, DeadlineExceeded, ModelFailure, NotCached, Overloaded
from mlopsnb.serving.tuning import Options

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


def asker(headers=None):
    """Return a request, as the cache looks at it."""
    return begin("POST", "/v2/models/m/infer", headers or {}, ())


@pytest.fixture
def model():
    return Exact()


@pytest.fixture
def cached(model, build_engine):
    """Make a cache around an engine around the model; keywords replace parts of the plan."""

    made = []

    def make(limit=1 << 20, options=None, **plan):
        made.append(build_engine(model, SIGNATURE, GOLDEN, options, **plan))
        return Cached(made[-1], limit)

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
    asked = asker({b"cache-control": wish["wish"].encode()} if wish else {})
    outputs = await infer(cached, asked, rows_of(*rows), rows=len(rows), deadline=deadline)
    [(name, status)] = asked.told
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
    assert cache.parameters["cache"] == {"max_bytes": 1 << 20, "keys": "request"}


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
        cache.submit(asker(), rows_of(row(1)), 1, fail, deadline=None, loop=loop)
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


def test_a_model_that_answers_differently_each_time_is_not_cached(build_engine):
    engine = build_engine(Dice(), SIGNATURE, GOLDEN)
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
def test_any_requests_are_answered_as_without_a_cache_to_the_bit_and_within_the_bound(
    build_engine, turns, limit, joins
):
    model = Exact()
    engine = build_engine(model, SIGNATURE, GOLDEN, joins=joins)
    cache = Cached(engine, limit)

    async def one(rows, wish):
        inputs = rows_of(*rows)
        asked = asker({b"cache-control": wish.encode()})
        outputs = await infer(cache, asked, inputs, rows=len(rows), deadline=None)
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
