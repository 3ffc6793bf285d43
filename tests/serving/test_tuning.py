from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlopsnb.manifest import Manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import tuning
from mlopsnb.serving.model import Model, Package
from mlopsnb.serving.tuning import Measured, Options, decide

ROWS = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 2)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
)
GOLDEN = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}


def model_of(predict, signature=ROWS, golden=GOLDEN):
    package = Package(
        path=Path(), manifest=Manifest(format="none", signature=signature, files={}), golden=golden
    )
    return Model(package, predict)


def growing(one, by):
    """The seconds of a model that takes *one* for a call and *by* for each row."""
    return {rows: one + by * rows for rows in tuning.SIZES}


MICRO = Measured(seconds=growing(10e-6, 1e-6), by_threads={1: 11e-6}, parallel=True)
MILLI = Measured(
    seconds={1: 4e-3, 2: 8e-3, 4: 16e-3, 8: 32e-3}, by_threads={1: 4e-3, 2: 3e-3, 4: 2.5e-3}, parallel=True
)
SPREADS = replace(MILLI, by_threads={1: 4e-3, 2: 2.1e-3, 4: 1.1e-3})


def chosen(measured, options=None, cpus=4):
    plan = decide(measured, options or Options(), cpus)
    return plan.inline, plan.instances, plan.threads, plan.joins, plan.max_batch_size


@pytest.mark.parametrize(
    ("measured", "options", "plan"),
    [
        (MICRO, Options(), (True, 1, 1, True, 4096)),
        (MICRO, Options(batching="off"), (True, 1, 1, False, 1)),
        (MICRO, Options(max_batch_size=5), (True, 1, 1, True, 5)),
        (MICRO, Options(instances=3), (False, 3, 1, True, 256)),
        (MILLI, Options(), (False, 4, 1, True, 1)),
        (MILLI, Options(instances=0), (True, 1, 1, True, 1)),
        (replace(MILLI, parallel=False), Options(), (False, 1, 1, True, 1)),
        (SPREADS, Options(), (False, 1, 4, True, 1)),
        (SPREADS, Options(instances=2), (False, 2, 2, True, 1)),
        (replace(MICRO, apart="why"), Options(), (True, 1, 1, False, 1)),
        (replace(MICRO, apart="why"), Options(max_batch_size=9), (True, 1, 1, False, 1)),
        (Measured(seconds={1: 0.5}, tried=False), Options(), (False, 1, 1, False, 1)),
        (Measured(seconds={1: 0.5}, tried=False), Options(max_batch_size=9), (False, 1, 1, True, 9)),
        (Measured(seconds=growing(1e-4, 8e-4)), Options(), (False, 1, 1, True, 4)),
        (Measured(seconds={1: 1e-4}), Options(), (False, 1, 1, True, 1)),
        (Measured(seconds={1: 1e-4}, apart="why"), Options(), (True, 1, 1, False, 1)),
    ],
)
def test_what_is_chosen(measured, options, plan):
    assert chosen(measured, options) == plan


def test_no_more_threads_than_processors():
    assert chosen(SPREADS, cpus=2) == (False, 1, 2, True, 1)
    assert chosen(MILLI, cpus=1) == (False, 1, 1, True, 1)
    assert chosen(MILLI, cpus=64)[:2] == (False, tuning.MAX_INSTANCES)


def test_an_inline_batch_is_cut_where_it_would_hold_the_loop_up():
    plan = decide(Measured(seconds={rows: 100e-6 * rows for rows in tuning.SIZES}), Options(), 2)
    assert (plan.inline, plan.inline_rows, plan.max_batch_size) == (True, 50, 50)


@pytest.mark.parametrize(
    ("predict", "apart"),
    [
        (lambda x: x.sum(axis=1), ""),
        (lambda x: x.sum(axis=1) * (1 + 1e-6 * len(x)), ""),
        (lambda x: np.full(len(x), np.nan, np.float32), ""),
        (lambda x: x.sum(axis=1) - x.mean(), "rows change each other's answers when they share a call"),
        (lambda x: x.sum(axis=1, keepdims=True)[:1, 0], "the outputs do not follow the rows"),
        (lambda x: x.sum(axis=1).reshape(1 if len(x) == 1 else -1), ""),
    ],
)
def test_rows_that_must_not_share_a_call_are_found_out(predict, apart):
    model = model_of(lambda inputs: {"y": predict(inputs["x"]).astype(np.float32)})
    assert tuning.measure(model, 2, budget=0.02).apart == apart


def test_a_model_that_fails_on_several_rows_runs_them_one_by_one():
    def predict(inputs):
        if len(inputs["x"]) > 2:
            raise ValueError("too many")
        return {"y": inputs["x"][:, 0]}

    measured = tuning.measure(model_of(predict), 2, budget=0.02)
    assert measured.apart == "3 rows in a call fail: ValueError: too many"


def test_a_model_with_a_limit_of_its_own_keeps_it():
    def predict(inputs):
        if len(inputs["x"]) > 9:
            raise ValueError("too many")
        return {"y": inputs["x"][:, 0]}

    measured = tuning.measure(model_of(predict), 2, budget=0.1)
    assert max(measured.seconds) == measured.limit == 8
    assert decide(measured, Options(), 2).max_batch_size <= 8


def test_a_size_that_was_not_measured_is_not_cut_on_the_event_loop():
    few = Measured(seconds={rows: 1e-5 + 1e-6 * rows for rows in (1, 2, 4, 8)})
    plan = decide(few, Options(), 2)
    assert (plan.inline, plan.max_batch_size, plan.enough_rows) == (True, 2222, 8)
    assert decide(replace(few, limit=8), Options(), 2).max_batch_size == 8


@pytest.mark.parametrize(
    ("options", "enough"),
    [
        (Options(), 256),
        (Options(instances=3), 256),
        (Options(max_batch_size=512), 0),
        (Options(preferred_batch_size=(512,)), 0),
        (Options(max_queue_delay_ms=1), 0),
    ],
)
def test_who_asks_for_sizes_gets_batches_that_are_as_full(options, enough):
    assert decide(MICRO, options, 4).enough_rows == enough


def test_a_model_without_rows_is_timed_as_it_is():
    signature = replace(ROWS, inputs=(TensorSpec(name="x", dtype="float32", shape=(3, 2)),))
    measured = tuning.measure(model_of(lambda inputs: {"y": inputs["x"][:, 0]}, signature), 2, budget=0.02)
    assert (list(measured.seconds), measured.apart) == ([1], "an input or output has no free first axis")


def test_the_self_test_keeps_to_its_time():
    calls = []

    def predict(inputs):
        calls.append(len(inputs["x"]))
        end = tuning.time.perf_counter() + 0.004 * len(inputs["x"])
        while tuning.time.perf_counter() < end:
            pass
        return {"y": inputs["x"][:, 0]}

    measured = tuning.measure(model_of(predict), 2, budget=0.1)
    assert set(measured.seconds) < set(tuning.SIZES)
    assert sum(calls) * 0.004 < 0.3


def test_what_takes_its_threads_at_load_is_loaded_anew_while_that_pays(monkeypatch):
    monkeypatch.setattr(tuning, "threads_are_loaded", lambda: True)
    loads = []

    def anew(threads):
        loads.append(threads)
        return taking(0.008 / min(threads, 4))

    def taking(seconds):
        def predict(inputs):
            tuning.time.sleep(seconds)
            return {"y": inputs["x"][:, 0]}

        return model_of(predict)

    by_threads = tuning.measure(taking(0.008), 32, budget=0.3, anew=anew).by_threads
    assert loads == [2, 4, 8]
    assert (
        decide(Measured(seconds={1: 0.008}, by_threads=by_threads, parallel=True), Options(), 32).threads == 4
    )
    loads.clear()
    assert set(tuning.measure(taking(0), 32, budget=0.1, anew=anew).by_threads) == {1}
    assert loads == []
