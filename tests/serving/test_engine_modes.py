from __future__ import annotations

import asyncio
import itertools
import logging
import threading

import numpy as np
import pytest
import uvloop

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving.calls import begin
from mlopsnb.serving.errors import BadRequest, DeadlineExceeded, ModelFailure, Overloaded
from mlopsnb.serving.tuning import Options

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(None, None)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
)
GOLDEN = {"x": np.ones((2, 2), np.float32)}


class Sums:
    """A model that keeps the shapes and the threads of its calls. Waits at `gate`; some values make trouble."""

    def __init__(self):
        self.calls = []
        self.threads = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.broken = False

    def __call__(self, inputs):
        x = inputs["x"]
        self.calls.append(x.shape)
        self.threads.add(threading.current_thread() is threading.main_thread())
        self.entered.set()
        assert self.gate.wait(30)
        if self.broken or (x == 1300).any():
            self.broken = True
            raise RuntimeError("gone")
        if (x == 666).any():
            raise ValueError("not for me")
        y = x.sum(axis=1)
        return {"y": y[:1] if (x == 700).any() and len(y) > 1 else y}


@pytest.fixture
def model():
    return Sums()


@pytest.fixture
def engine(model, build_engine):
    """Make an engine around the model; keywords replace parts of the plan."""
    made = []

    def make(options=None, **plan):
        made.append(build_engine(model, SIGNATURE, GOLDEN, options, **plan))
        return made[-1]

    yield make
    model.gate.set()
    for one in made:
        one.close()


def call():
    return begin("POST", "/v2/models/m/infer", {}, ())


def rows(*values, width=2):
    return {"x": np.array([[v] * width for v in values], np.float32).reshape(len(values), width)}


async def ask(engine, *values, width=2, deadline=None):
    """Return the values of y; whoever is cancelled is forgotten."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def done(_, outcome):
        (future.set_exception if isinstance(outcome, Exception) else future.set_result)(outcome)

    job = engine.submit(call(), rows(*values, width=width), len(values), done, deadline=deadline, loop=loop)
    try:
        return (await future)["y"].tolist()
    except asyncio.CancelledError:
        engine.cancel(job)
        raise


async def all_of(*asked):
    return await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("inline", [True, False])
def test_what_comes_in_one_turn_shares_a_call(engine, model, inline):
    served = engine(inline=inline)

    async def run():
        return await all_of(*(ask(served, n, n + 1) for n in range(3)), ask(served, 1, 2, 3))

    assert asyncio.run(run()) == [[0, 2], [2, 4], [4, 6], [2, 4, 6]]
    assert model.calls == [(6, 2), (3, 2)]
    assert model.threads == {inline}


def test_requests_gather_while_all_instances_are_busy(engine, model):
    served = engine(inline=False)
    model.gate.clear()

    async def run():
        first = asyncio.ensure_future(ask(served, 1))
        await asyncio.to_thread(model.entered.wait, 30)
        others = [asyncio.ensure_future(ask(served, n)) for n in range(20)]
        await asyncio.sleep(0)
        model.gate.set()
        return [await f for f in (first, *others)]

    assert asyncio.run(run()) == [[2.0], *([2.0 * n] for n in range(20))]
    assert model.calls == [(1, 2), (8, 2), (8, 2), (4, 2)]


def test_an_instance_that_cannot_be_loaded_leaves_the_first_to_serve(engine, model, caplog):
    served = engine(inline=False, instances=2)  # the package that would be loaded again is none

    async def run():
        return await all_of(*(ask(served, n) for n in range(20)))

    assert asyncio.run(run()) == [[2.0 * n] for n in range(20)]
    served._instances._threads.shutdown(wait=True)
    assert "another instance of the model cannot be loaded" in caplog.text


def test_a_large_request_is_cut_and_its_answers_joined(engine, model):
    served = engine()
    assert asyncio.run(ask(served, *range(19))) == [2.0 * n for n in range(19)]
    assert model.calls == [(8, 2), (8, 2), (3, 2)]


def test_without_batching_every_request_has_a_call_of_its_own(engine, model):
    served = engine(joins=False)

    async def run():
        return await all_of(ask(served, *range(19)), ask(served, 1), ask(served, 2))

    assert asyncio.run(run()) == [[2.0 * n for n in range(19)], [2], [4]]
    assert model.calls == [(19, 2), (1, 2), (1, 2)]


def test_shapes_are_never_mixed(engine, model):
    served = engine()

    async def run():
        return await all_of(*(ask(served, n, width=w) for n, w in itertools.product((1, 2), (2, 3))))

    assert asyncio.run(run()) == [[2], [3], [4], [6]]
    assert model.calls == [(2, 2), (2, 3)]


def test_a_request_without_rows(engine):
    served = engine()

    async def run():
        return await all_of(ask(served), ask(served, 1))

    assert asyncio.run(run()) == [[], [2]]


@pytest.mark.parametrize("inline", [True, False])
def test_only_the_guilty_request_of_a_batch_fails(engine, inline):
    served = engine(inline=inline)

    async def run():
        return await all_of(ask(served, 1), ask(served, 666), ask(served, 2, 3))

    one, bad, two = asyncio.run(run())
    assert (one, two) == ([2], [4, 6])
    assert isinstance(bad, BadRequest)
    assert (bad.kind, bad.message) == (
        "rejected",
        "the model cannot take this input: ValueError: not for me; the inputs were 'x' float32 [1, 2]",
    )
    assert served.ready


def test_a_large_request_with_a_bad_part_fails_once_and_the_rest_of_it_is_not_run(engine, model):
    served = engine()

    async def run():
        return await all_of(ask(served, *[666] * 8, *range(30)), ask(served, 5))

    bad, good = asyncio.run(run())
    assert isinstance(bad, BadRequest)
    assert good == [10]
    assert model.calls == [(8, 2), (2, 2), (1, 2)]  # its first part, the golden example, the other request


def test_a_broken_model_fails_all_and_is_no_longer_ready(engine):
    served = engine()

    async def run():
        return await all_of(ask(served, 1), ask(served, 1300))

    one, two = asyncio.run(run())
    assert {type(one), type(two)} == {ModelFailure}
    assert not served.ready


def test_outputs_that_stop_following_the_rows_end_the_joining(engine, model, caplog):
    served = engine()

    async def run():
        first = await all_of(ask(served, 700), ask(served, 1))
        return first, await all_of(ask(served, 1), ask(served, 2))

    assert asyncio.run(run()) == ([[1400], [2]], [[2], [4]])
    assert model.calls == [(2, 2), *[(1, 2)] * 4]
    assert served.batching["enabled"] is False
    assert served.batching["reason"] == "the outputs do not follow the rows"
    assert "no longer share a call" in caplog.text


def test_a_model_that_holds_the_loop_up_again_and_again_moves_into_a_thread(engine, model, monkeypatch):
    monkeypatch.setattr("mlopsnb.serving.engine._TOO_LONG_SECONDS", 0.0)
    served = engine()

    async def run():
        modes = []
        for _ in range(4):
            await ask(served, 1)
            modes.append((served.batching["mode"], served.waits))
        return modes

    assert asyncio.run(run()) == [("inline", False)] * 2 + [("threads", True)] * 2
    assert model.threads == {True, False}


def test_a_batch_that_would_hold_the_loop_up_goes_to_the_thread(engine, model):
    served = engine(inline_rows=3)
    assert asyncio.run(ask(served, 1, 2, 3, 4)) == [2, 4, 6, 8]
    assert model.threads == {False}


def test_the_delay_waits_for_a_fuller_batch(engine, model):
    served = engine(Options(max_queue_delay_ms=20_000))

    async def run():
        first = asyncio.ensure_future(ask(served, 1))
        for _ in range(5):
            await asyncio.sleep(0)
        assert model.calls == []
        return await asyncio.gather(first, ask(served, *range(7)))

    assert asyncio.run(run())[0] == [2]
    assert model.calls == [(8, 2)]


def test_after_the_delay_what_is_there_goes(engine, model):
    served = engine(Options(max_queue_delay_ms=5))

    async def run():
        return await asyncio.gather(ask(served, 1), ask(served, 2))

    assert asyncio.run(run()) == [[2], [4]]
    assert model.calls == [(2, 2)]


def test_beyond_the_queue_requests_are_turned_away(engine, model):
    served = engine(Options(max_queue_rows=4), inline=False)
    model.gate.clear()

    async def run():
        first = asyncio.ensure_future(ask(served, 1))
        await asyncio.to_thread(model.entered.wait, 30)
        served.admit()
        waiting = asyncio.ensure_future(ask(served, 1, 2, 3, 4))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as told:
            served.admit()
        refused = (await all_of(ask(served, 5)))[0]
        model.gate.set()
        return told.value, refused, await first, await waiting

    told, refused, first, waiting = asyncio.run(run())
    assert (told.retry_after, refused.retry_after, first, waiting) == (2, 2, [2], [2, 4, 6, 8])


def test_what_is_late_is_told_so_while_the_model_is_busy_and_is_not_run(engine, model):
    served = engine(inline=False)
    model.gate.clear()

    async def run():
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(ask(served, 1))
        await asyncio.to_thread(model.entered.wait, 30)
        late = (await all_of(ask(served, 2, deadline=loop.time() + 0.02)))[0]
        assert not first.done()
        model.gate.set()
        return await first, late

    first, late = asyncio.run(run())
    assert (first, type(late)) == ([2], DeadlineExceeded)
    assert late.message.endswith("s in the queue; the model was not called")
    assert model.calls == [(1, 2)]


def test_a_deadline_that_has_passed_when_it_comes_is_kept_on_uvloop(engine, model):
    served = engine(inline=False)
    model.gate.clear()

    async def run():
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(ask(served, 1))
        await asyncio.to_thread(model.entered.wait, 30)
        late = await all_of(*(ask(served, n, deadline=loop.time() - n) for n in (1, 2)))
        model.gate.set()
        return await first, late

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        first, late = runner.run(run())
    assert (first, [type(one) for one in late]) == ([2], [DeadlineExceeded] * 2)
    assert model.calls == [(1, 2)]


@pytest.mark.parametrize("waits_for_it", [True, False])
def test_a_full_batch_is_with_the_thread_in_advance_and_not_run_for_those_who_left(
    engine, model, waits_for_it
):
    served = engine(inline=False)
    model.gate.clear()

    async def run():
        first = asyncio.ensure_future(ask(served, 1))
        await asyncio.to_thread(model.entered.wait, 30)
        full = [asyncio.ensure_future(ask(served, n)) for n in range(8)]
        rest = asyncio.ensure_future(ask(served, 9))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert served.metrics.queue_rows() == 1
        for asked in [] if waits_for_it else full:
            asked.cancel()
        await all_of(*([] if waits_for_it else full))
        model.gate.set()
        return await first, await rest, await all_of(*full)

    first, rest, full = asyncio.run(run())
    assert (first, rest) == ([2], [18])
    if waits_for_it:
        assert full == [[2.0 * n] for n in range(8)]
    assert model.calls == [(1, 2), *([(8, 2)] if waits_for_it else []), (1, 2)]


def test_a_model_that_takes_long_has_nothing_in_advance_so_that_deadlines_hold(engine, model):
    served = engine(inline=False, forward_seconds=1.0)
    model.gate.clear()

    async def run():
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(ask(served, 1))
        await asyncio.to_thread(model.entered.wait, 30)
        late = await all_of(*(ask(served, n, deadline=loop.time() + 0.02) for n in range(8)))
        model.gate.set()
        return await first, late

    first, late = asyncio.run(run())
    assert (first, {type(one) for one in late}) == ([2], {DeadlineExceeded})
    assert model.calls == [(1, 2)]


def test_what_was_cancelled_is_not_run(engine, model):
    served = engine(inline=False)
    model.gate.clear()

    async def run():
        first = asyncio.ensure_future(ask(served, 1))
        await asyncio.to_thread(model.entered.wait, 30)
        gone, kept = (asyncio.ensure_future(ask(served, n)) for n in (2, 3))
        await asyncio.sleep(0)
        gone.cancel()
        await all_of(gone)
        model.gate.set()
        return await asyncio.gather(first, kept)

    assert asyncio.run(run()) == [[2], [6]]
    assert model.calls == [(1, 2), (1, 2)]


def test_alone_it_is_run_at_once(engine, model):
    served = engine()
    answers = []

    async def run():
        loop = asyncio.get_running_loop()
        served.submit(
            call(),
            rows(4),
            1,
            lambda _, outcome: answers.append(outcome),
            deadline=None,
            loop=loop,
            at_once=True,
        )

    asyncio.run(run())
    assert answers[0]["y"].tolist() == [8]


def test_an_answer_that_cannot_be_handed_on_harms_nobody(engine, caplog):
    served = engine()

    def fail(job, outcome):
        raise OSError("no")

    async def run():
        loop = asyncio.get_running_loop()
        served.submit(call(), rows(4), 1, fail, deadline=None, loop=loop)
        return await ask(served, 1)

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(run()) == [2]
    assert "could not be handed on" in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), {"mode": "inline", "instances": 1, "enabled": True}),
        (("--instances", "2"), {"mode": "threads", "instances": 2, "enabled": True}),
        (("--batching", "off"), {"enabled": False, "max_batch_size": None}),
        (
            ("--max-batch-size", "5", "--preferred-batch-size", "2,4", "--max-queue-delay-ms", "1.5"),
            {"max_batch_size": 5, "preferred_batch_size": [2, 4], "max_queue_delay_ms": 1.5},
        ),
    ],
)
def test_the_metadata_shows_how_the_model_is_run(serve, make_package, body, options, told):
    runtime = serve(make_package(), "--port", "0", *options)
    shown = runtime.get("/v2/models/affine").json()["parameters"]["batching"]
    assert {name: shown[name] for name in told} == told
    answers = [runtime.infer(body([[n, 0, 0, 0]] * 9)).json()["outputs"][0]["data"] for n in range(3)]
    assert answers == [[2.0 * n + 5] * 9 for n in range(3)]
