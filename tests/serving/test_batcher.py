from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import batcher
from mlopsnb.serving.batcher import Job, Limits, NotByRows, Queue


@dataclass
class Asked:
    """One request of a run, and what came of it."""

    job: Job
    width: int
    answers: list = field(default_factory=list)
    cancelled: bool = False


def double(inputs):
    return {"y": inputs["x"] * 2 + inputs["n"][:, None]}


def request(rows, width, at=0.0, deadline=None):
    start = rows * 31 + width
    inputs = {
        "x": np.arange(start, start + rows * width, dtype=float).reshape(rows, width),
        "n": np.arange(rows, dtype=float),
    }
    asked = Asked(Job(inputs, rows, lambda _, outcome: asked.answers.append(outcome), deadline, at), width)
    return asked, double(inputs)


LIMITS = st.builds(
    Limits,
    joins=st.booleans(),
    max_batch_size=st.integers(1, 9),
    preferred_batch_size=st.lists(st.integers(1, 9), max_size=2).map(tuple),
    max_queue_delay=st.sampled_from([0.0, 2.0]),
    max_queue_rows=st.integers(1, 40),
    max_queue_bytes=st.integers(1, 4000),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"), st.integers(0, 25), st.sampled_from([1, 3]), st.sampled_from([None, 1, 4])
        ),
        st.tuples(st.just("take")),
        st.tuples(st.just("cancel"), st.integers(0, 100)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0])),
    ),
    max_size=40,
)


class Run:
    """Plays the engine: keeps the clock, runs every batch with `double`, and checks what is always true."""

    def __init__(self, limits):
        self.limits = limits
        self.queue = Queue(limits, ["x"])
        self.now = 0.0
        self.taken = []
        self.asked = []
        self.expected = []

    def push(self, rows, width, seconds):
        deadline = None if seconds is None else self.now + seconds
        asked, expected = request(rows, width, self.now, deadline)
        waiting = self.queue.rows
        if self.queue.push(asked.job):
            self.asked.append(asked)
            self.expected.append(expected)
            assert waiting == 0 or self.queue.rows <= self.limits.max_queue_rows
        else:
            assert waiting > 0

    def take(self):
        self.queue.expire(self.now, lambda job: TimeoutError())
        batch = self.queue.take(self.now)
        if batch is None:
            assert not self.queue.rows or self.queue.wake() > self.now
            return False
        jobs = [piece.job for piece in batch]
        assert sum(p.weight for p in batch) <= self.limits.max_batch_size or len(batch) == 1
        assert self.limits.joins or (all(piece.whole for piece in batch) and len(batch) == 1)
        assert len({piece.inputs["x"].shape[1] for piece in batch}) == 1
        assert not any(job.settled or (job.deadline or math.inf) <= self.now for job in jobs)
        self.taken += [(piece.number, piece.inputs["x"].shape[1]) for piece in batch]
        for piece, part in zip(batch, batcher.split(double(batcher.joined(batch)), batch), strict=True):
            if batcher.gather(piece, part):
                parts = [piece.job.parts[start] for start in sorted(piece.job.parts)]
                self.queue.settle(piece.job, batcher.join(parts))
        return True

    def cancel(self, index):
        waiting = [a for a in self.asked if not a.job.settled]
        if waiting:
            asked = waiting[index % len(waiting)]
            asked.cancelled = True
            self.queue.cancel(asked.job)

    def wait(self, seconds):
        self.now += seconds

    def finish(self):
        while self.queue.rows:
            if not self.take():
                self.now = max(self.now, self.queue.wake())


@given(LIMITS, STEPS)
def test_every_request_is_answered_once_as_if_it_were_alone_and_in_order(limits, steps):
    run = Run(limits)
    for name, *arguments in steps:
        getattr(run, name)(*arguments)
    run.finish()
    for asked, expected in zip(run.asked, run.expected, strict=True):
        assert len(asked.answers) == (0 if asked.cancelled else 1)
        if asked.answers and not isinstance(asked.answers[0], TimeoutError):
            np.testing.assert_array_equal(asked.answers[0]["y"], expected["y"])
        elif asked.answers:
            assert asked.job.deadline is not None
    for width in (1, 3):
        numbers = [number for number, found in run.taken if found == width]
        assert numbers == sorted(numbers)
    assert (run.queue.rows, run.queue.nbytes, bool(run.queue)) == (0, 0, False)


def sizes_taken(limits, sizes, now=0.0):
    queue = Queue(limits)
    for rows in sizes:
        assert queue.push(request(rows, 1)[0].job)
    found = []
    while batch := queue.take(now):
        found.append([piece.stop - piece.start for piece in batch])
    return found


@pytest.mark.parametrize(
    ("limits", "sizes", "found"),
    [
        (Limits(max_batch_size=8), [3, 3, 3, 1], [[3, 3], [3, 1]]),
        (Limits(max_batch_size=4), [10, 1], [[4], [4], [2, 1]]),
        (Limits(max_batch_size=4), [0, 0, 0, 0, 0], [[0, 0, 0, 0], [0]]),
        (Limits(joins=False, max_batch_size=1), [10, 1], [[10], [1]]),
        (Limits(max_batch_size=8, enough_rows=4), [1, 1, 3, 1, 6, 9], [[1, 1, 3], [1, 6], [8], [1]]),
        (Limits(max_batch_size=8, enough_rows=4, max_queue_delay=1.0), [3, 3], [[3, 3]]),
        (Limits(max_batch_size=8, preferred_batch_size=(4,)), [1] * 7, [[1] * 4, [1] * 3]),
        (Limits(max_batch_size=8, preferred_batch_size=(2, 6)), [1] * 7, [[1] * 6, [1]]),
        (Limits(max_batch_size=8, max_queue_delay=1.0), [3, 3], []),
        (Limits(max_batch_size=8, max_queue_delay=1.0), [3, 5, 1], [[3, 5]]),
        (Limits(max_batch_size=8, max_queue_delay=1.0, preferred_batch_size=(4,)), [1] * 5, [[1] * 4]),
    ],
)
def test_what_goes_together(limits, sizes, found):
    assert sizes_taken(limits, sizes) == found


def test_after_the_delay_what_is_there_goes():
    assert sizes_taken(Limits(max_batch_size=8, max_queue_delay=1.0), [3, 3], now=1.0) == [[3, 3]]


def test_the_oldest_goes_first_whatever_its_shape():
    queue = Queue(Limits(), ["x"])
    for rows, width in ((1, 1), (2, 3), (3, 1)):
        queue.push(request(rows, width)[0].job)
    assert [[p.job.rows for p in queue.take(0.0)] for _ in range(2)] == [[1, 3], [2]]


def test_a_full_queue_takes_no_more_but_an_empty_one_takes_anything():
    queue = Queue(Limits(max_queue_rows=4))
    assert queue.push(request(9, 1)[0].job)
    assert (queue.full, queue.push(request(1, 1)[0].job)) == (True, False)
    queue = Queue(Limits(max_queue_bytes=100))
    assert [queue.push(request(3, 1)[0].job) for _ in range(3)] == [True, True, False]


def test_what_was_cancelled_does_not_pile_up():
    queue = Queue(Limits(max_queue_rows=10))
    for _ in range(1000):
        asked, _ = request(1, 1)
        assert queue.push(asked.job)
        queue.cancel(asked.job)
    assert sum(map(len, queue._groups.values())) < 100
    assert (queue.rows, queue.nbytes, queue.take(0.0)) == (0, 0, None)


def test_text_is_counted_by_its_length():
    queue = Queue(Limits())
    queue.push(Job({"t": np.array(["a" * 1000, "b"], dtype=object)}, 2, print))
    assert 1000 < queue.nbytes < 1200


def spec(*shape):
    return TensorSpec(name="t", dtype="float32", shape=shape)


@pytest.mark.parametrize(
    ("inputs", "outputs", "may"),
    [
        ([spec(None, 3)], [spec(None)], True),
        ([spec(2, 3)], [spec(None)], False),
        ([spec(None), spec()], [spec(None)], False),
        ([spec(None)], [spec(None), spec(1)], False),
    ],
)
def test_only_what_has_rows_everywhere_may_share_a_call(inputs, outputs, may):
    assert batcher.may_join(Signature(inputs=tuple(inputs), outputs=tuple(outputs))) is may


def test_outputs_that_do_not_follow_the_rows_are_not_split():
    asked, _ = request(2, 1)
    queue = Queue(Limits())
    queue.push(asked.job)
    with pytest.raises(NotByRows, match="outputs of 2 rows have the shapes"):
        batcher.split({"y": np.zeros(3)}, queue.take(0.0))
