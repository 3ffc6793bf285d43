"""Which requests go to the model together. Pure: it is told the time and waits for nothing.

Natural batching: a batch is what waits already, so that a lone request waits for nobody. Batches are counted in
rows. Requests whose free axes differ are never mixed; those of more rows than the limit are cut into pieces and
their answers joined. Requests of one shape leave in the order in which they came, and the oldest always leaves next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from mlopsnb.tensors import Array

if TYPE_CHECKING:
    from mlopsnb.records import Signature
    from mlopsnb.serving.model import Ran

Outputs = Mapping[str, Array]
QUEUE_BYTES = 256 << 20
_SWEEP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a batch and the queue may hold, in rows. `max_queue_delay` is in seconds.

    A batch of `enough_rows`, if that is not 0, takes no more, though larger requests need not be cut there.
    With `joins` false each request goes alone and whole, whatever its size. A request that comes to an empty
    queue is always taken, so that the queue never holds more than its limit and one request.
    """

    joins: bool = True
    max_batch_size: int = 32
    enough_rows: int = 0
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay: float = 0.0
    max_queue_rows: int = 65_536
    max_queue_bytes: int = QUEUE_BYTES


class Watcher(Protocol):
    """Is told of the calls of the model that a request had part in."""

    def ran(self, job: Job, batch: Batch, ran: Ran) -> None:
        """*job*, or a piece of it, was run in *batch*."""


class Job(msgspec.Struct, eq=False):
    """One request. `done` is called once, with its outputs or with what went wrong, unless it was cancelled.

    `deadline` and `arrived` are on the clock that the queue is told; `stamp` is when it came, on the clock that
    times it, and `seconds` the time that the model took. A `check` is no traffic. The queue keeps the rest: `weight` and `nbytes` are what
    waits of it, `parts` the answers of its pieces by their first row, `answered` how many rows those have.
    """

    inputs: Mapping[str, Array]
    rows: int
    done: Callable[[Job, Outputs | Exception], None]
    deadline: float | None = None
    arrived: float = 0.0
    stamp: float = 0.0
    seconds: float = 0.0
    settled: bool = False
    nbytes: int = 0
    weight: int = 0
    parts: dict[int, Outputs] | None = None
    answered: int = 0
    span: Watcher | None = None
    check: bool = False


class Piece(msgspec.Struct, eq=False):
    """Rows *start* to *stop* of a job; `whole` if those are all it has. Counts as one row if it has none."""

    job: Job
    start: int
    stop: int
    whole: bool
    number: int = 0

    @property
    def weight(self) -> int:
        """The rows it counts for."""
        return self.stop - self.start or 1

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Its rows of the inputs."""
        if self.whole:
            return self.job.inputs
        return {name: a[self.start : self.stop] for name, a in self.job.inputs.items()}


Batch = list[Piece]


class NotByRows(ValueError):
    """Outputs do not have one row for each row of the inputs, so that they cannot be told apart."""


class Queue:
    """The requests that wait for the model, and the choice of the next batch.

    `rows` and `nbytes` are what waits; `earliest` is a time before which no deadline passes.
    """

    def __init__(self, limits: Limits, free: Sequence[str] = ()) -> None:
        self.limits = limits
        self.rows = 0
        self.nbytes = 0
        self._free = tuple(free)
        self._groups: dict[tuple[tuple[int, ...], ...], deque[Piece]] = {}
        self.earliest = math.inf
        self._count = 0
        self._dead = 0

    def __bool__(self) -> bool:
        return self.rows > 0

    @property
    def full(self) -> bool:
        """Whether not even one row more is taken."""
        return self.rows >= self.limits.max_queue_rows or self.nbytes >= self.limits.max_queue_bytes

    @property
    def has_full_batch(self) -> bool:
        """Whether the next batch gains nothing by waiting for more."""
        if not self.limits.joins:
            return self.rows > 0
        most, enough = self.limits.max_batch_size, self.limits.enough_rows
        return (self.rows >= most or 0 < enough <= self.rows) and len(self._groups) == 1

    def push(self, job: Job) -> bool:
        """Let *job* wait; False, and it is not taken, if it would go beyond the limits."""
        limits = self.limits
        nbytes = 0
        for array in job.inputs.values():
            nbytes += _text_size(array) if array.dtype.hasobject else array.nbytes
        weight = job.rows or 1
        if self.rows and (
            self.rows + weight > limits.max_queue_rows or self.nbytes + nbytes > limits.max_queue_bytes
        ):
            return False
        job.nbytes, job.weight = nbytes, weight
        self.nbytes += nbytes
        self.rows += weight
        key = tuple([job.inputs[name].shape[1:] for name in self._free]) if self._free else ()
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = deque()
        if weight <= limits.max_batch_size or not limits.joins:
            self._count += 1
            group.append(Piece(job, 0, job.rows, True, self._count))
        else:
            for start in range(0, weight, limits.max_batch_size):
                self._count += 1
                stop = min(start + limits.max_batch_size, weight)
                group.append(Piece(job, start, stop, False, self._count))
        if job.deadline is not None and job.deadline < self.earliest:
            self.earliest = job.deadline
        return True

    def cancel(self, job: Job) -> None:
        """Forget *job*: what waits of it will not be run, and it is not answered."""
        job.settled = True
        if job.weight:
            if job.weight == (job.rows or 1):  # else a thread may be reading them
                job.inputs = {}
            self._forget(job)
            if self._dead > max(_SWEEP, self.rows):
                self._sweep()

    def settle(self, job: Job, outcome: Outputs | Exception) -> None:
        """Answer *job*, unless it is answered or was cancelled; what waits of it will not be run."""
        if not job.settled:
            job.settled = True
            if job.weight:
                self.cancel(job)
            job.done(job, outcome)

    def _forget(self, job: Job) -> None:
        """Take *job* out of the counts. Its pieces are dropped when they are met, or swept out."""
        self.rows -= job.weight
        self.nbytes -= job.nbytes
        self._dead += job.weight
        job.weight = job.nbytes = 0

    def _sweep(self) -> None:
        """Drop the pieces of settled jobs, so that the queue cannot grow by what nobody waits for."""
        for key, group in list(self._groups.items()):
            alive = deque(p for p in group if not p.job.settled)
            if alive:
                self._groups[key] = alive
            else:
                del self._groups[key]
        self._dead = 0

    def expire(self, now: float, error: Callable[[Job], Exception]) -> None:
        """Answer the jobs whose deadline has passed with *error*."""
        if now < self.earliest:
            return
        waiting = [p.job for group in self._groups.values() for p in group if not p.job.settled]
        for job in waiting:
            if job.deadline is not None and job.deadline <= now:
                self.settle(job, error(job))
        left = (j.deadline for j in waiting if not j.settled and j.deadline is not None)
        self.earliest = min(left, default=math.inf)

    def take(self, now: float) -> Batch | None:
        """Return the next batch, or None if nothing waits or it pays to wait; see `wake`. Call `expire` first."""
        groups = self._groups
        keys = list(groups)
        if len(keys) > 1:
            keys.sort(key=lambda key: groups[key][0].number)
        for key in keys:
            batch = self._choose(groups[key], now)
            if not groups[key]:
                del groups[key]
            if batch:
                return batch
        return None

    def _choose(self, group: deque[Piece], now: float) -> Batch:
        """Take the next batch out of *group*; nothing if it is not due."""
        while group and group[0].job.settled:
            group.popleft()
        limits = self.limits
        most, asked = limits.max_batch_size, limits.preferred_batch_size
        chosen: Batch = []
        rows = reached = 0
        full = not limits.joins
        preferred = (0, 0)
        for index, piece in enumerate(group, start=1):
            if piece.job.settled:
                continue
            weight = piece.stop - piece.start or 1
            if chosen and rows + weight > most:
                full = True
                break
            chosen.append(piece)
            rows, reached = rows + weight, index
            if rows in asked:
                preferred = len(chosen), index
            if full or rows >= most or 0 < limits.enough_rows <= rows:
                full = True
                break
        if preferred[0]:
            chosen, reached = chosen[: preferred[0]], preferred[1]
        elif chosen and not full and now < chosen[0].job.arrived + limits.max_queue_delay:
            return []
        if reached == len(group):
            left = list(group)
            group.clear()
        else:
            left = [group.popleft() for _ in range(reached)]
        for piece in left:
            self._left(piece)
        return chosen

    def _left(self, piece: Piece) -> None:
        job = piece.job
        if not job.settled:
            share = job.weight if piece.whole else min(piece.weight, job.weight)
            self.rows -= share
            job.weight -= share
            if not job.weight:
                self.nbytes -= job.nbytes
                job.nbytes = 0

    def wake(self) -> float:
        """Return when to look again at the latest, on the queue's clock; infinity if nothing waits."""
        if not self.rows:
            return math.inf
        if not self.limits.max_queue_delay:
            return self.earliest
        oldest = min(group[0].job.arrived for group in self._groups.values())
        return min(self.earliest, oldest + self.limits.max_queue_delay)


def _text_size(array: Array) -> int:
    """Return about what the characters of *array* take, in bytes."""
    return sum(56 + len(text) for text in array.ravel())


def may_join(signature: Signature) -> bool:
    """Say whether every input and output of *signature* has rows, so that requests may share a call."""
    return all(s.shape and s.shape[0] is None for s in (*signature.inputs, *signature.outputs))


def free_inputs(signature: Signature) -> tuple[str, ...]:
    """Return the inputs with free axes besides the rows; only requests that agree in them may share a call."""
    return tuple(s.name for s in signature.inputs if None in s.shape[1:])


def joined(batch: Batch) -> Mapping[str, Array]:
    """Return the inputs of all pieces of *batch*, one after the other."""
    if len(batch) == 1:
        return batch[0].inputs
    return join([piece.inputs for piece in batch])


def gather(piece: Piece, outputs: Outputs) -> bool:
    """Keep the answer of *piece* with its job; say whether the job has the answers of all its rows now."""
    job = piece.job
    if job.parts is None:
        job.parts = {}
    job.parts[piece.start] = outputs
    job.answered += piece.stop - piece.start
    return job.answered == job.rows


def join(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return named arrays joined along their rows; ValueError if their other axes differ."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(outputs: Outputs, batch: Sequence[Piece]) -> list[Outputs]:
    """Return the rows of *outputs* for each piece of *batch*; `NotByRows` if there are not as many rows."""
    total = sum([piece.stop - piece.start for piece in batch])
    wrong = {name: a.shape for name, a in outputs.items() if not a.ndim or a.shape[0] != total}
    if wrong:
        raise NotByRows(f"the outputs of {total} rows have the shapes {wrong}")
    parts: list[Outputs] = []
    begin = 0
    for piece in batch:
        end = begin + piece.stop - piece.start
        parts.append({name: a[begin:end] for name, a in outputs.items()})
        begin = end
    return parts
