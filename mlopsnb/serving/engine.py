"""The engine: takes requests on the event loop, lets the model run them in batches, and answers each. No protocol.

It is the last stage, see `stages`.

Models of microseconds run inline: one call a turn of the event loop, for all that arrived in it. Other models run
in a thread for each instance, and requests gather while all are busy. Which of the two is found out at load.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from mlopsnb.serving import batcher, cpu, tuning
from mlopsnb.serving.batcher import Batch, Job, Limits, Outputs, Queue
from mlopsnb.serving.errors import DeadlineExceeded, ModelFailure, Overloaded, stack
from mlopsnb.serving.metrics import Metrics
from mlopsnb.serving.model import Model, Package, Ran
from mlopsnb.serving.tuning import Options, Plan

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from mlopsnb.serving.stages import Asker
    from mlopsnb.tensors import Array

_TOO_LONG_SECONDS = 0.05
_SOON_SECONDS = 0.05
_TOO_OFTEN = 3
_QUICK_AGAIN = 500
_SMALL_BYTES = 32 << 20
_log = logging.getLogger("mlopsnb.serving")


class Instances:
    """The models and as many threads that call them, unless one is called inline. None is called twice at a time.

    The threads share one line of batches, so that whichever is done first takes the next at once. The first model
    serves while the threads load the others, which join it.
    """

    def __init__(self, package: Package, count: int, threads: int, model: Model) -> None:
        self._threads = ThreadPoolExecutor(
            count, thread_name_prefix="model", initializer=tuning.set_threads, initargs=(threads,)
        )
        self.models = [model]
        self._free: SimpleQueue[Model] = SimpleQueue()
        self._free.put(model)
        for _ in range(count - 1):
            self._threads.submit(self._join, package, threads)

    def _join(self, package: Package, threads: int) -> None:
        try:
            another = Model.load(package, threads)
        except Exception as exc:  # noqa: BLE001  those that are there go on
            _log.error("another instance of the model cannot be loaded\n%s", stack(exc))
            return
        self.models.append(another)
        self._free.put(another)

    def start(
        self, batch: Batch, done: Callable[[Batch, Ran], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Run *batch* in a thread, but for what is settled by then; then call *done* on *loop* with what was run."""

        def run() -> None:
            model = self._free.get()
            alive = [piece for piece in batch if not piece.job.settled]
            ran = _run(model, alive)
            self._free.put(model)
            loop.call_soon_threadsafe(done, alive, ran)

        self._threads.submit(run)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False)


def _run(model: Model, batch: Batch) -> Ran:
    try:
        return model.run(batch)
    except BaseException as exc:  # noqa: BLE001  a thread that dies would leave its requests unanswered
        _log.error("a batch failed\n%s", stack(exc))
        return Ran(
            begin=time.perf_counter(),
            results=[ModelFailure(f"the model's thread failed: {type(exc).__name__}") for _ in batch],
        )


class Engine:
    """A package that is served. `ready` turns false for good when even the golden example no longer runs."""

    def __init__(
        self, package: Package, model: Model, plan: Plan, options: Options, metrics: Metrics
    ) -> None:
        self.manifest = package.manifest
        self.package = package
        self.metrics = metrics
        self.plan = plan
        limits = Limits(
            joins=plan.joins,
            max_batch_size=plan.max_batch_size,
            enough_rows=plan.enough_rows,
            preferred_batch_size=options.preferred_batch_size,
            max_queue_delay=options.max_queue_delay_ms / 1000,
            max_queue_rows=options.max_queue_rows,
        )
        self._queue = Queue(limits, batcher.free_inputs(package.manifest.signature))
        self._instances = Instances(package, plan.instances, plan.threads, model)
        self._started = 0
        self._row_seconds = plan.row_seconds
        self._took = plan.forward_seconds
        self._slow = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pump_is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._rings = math.inf
        metrics.queue_rows = lambda: self._queue.rows
        metrics.format = self.manifest.format

    @classmethod
    def load(
        cls,
        path: Path,
        options: Options | None = None,
        metrics: Metrics | None = None,
        *,
        cpus: int | None = None,
        plan: Plan | None = None,
    ) -> Engine:
        """Load the package in *path*, warm it up on its golden example, and find out how it is best run.

        It may use *cpus* processors, by default all that this process has. With *plan* that was found out already.
        Raises `BadPackage` if it is damaged, `UnknownBackend` or `MissingExtra` if its format is not installed,
        `ModelFailure` if the model cannot be loaded, does not run, or does not answer as its signature says.
        """
        options = options or Options()
        package = Package.read(path)
        model = Model.load(package)
        if plan is None:
            cpus = cpus or max(1, math.floor(cpu.limit()))
            measured = tuning.measure(model, cpus, anew=partial(Model.load, package))
            plan = tuning.decide(measured, options, cpus)
        tuning.set_threads(plan.threads)
        if tuning.threads_are_loaded() and (plan.threads > 1 or package.bytes < _SMALL_BYTES):
            model = Model.load(package, plan.threads)  # without what the self-test's batches made it take
        tuning.settle_memory()
        if not plan.inline:
            tuning.let_threads_in()
        engine = cls(package, model, plan, options, metrics or Metrics("model", "1"))
        _log.info("batching: %s", engine.batching)
        return engine

    @property
    def ready(self) -> bool:
        """Whether the model works."""
        return not any(model.broken for model in self._instances.models)

    @property
    def batching(self) -> dict[str, Any]:
        """How the model is run, for people and for the metadata."""
        plan, limits = self.plan, self._queue.limits
        told: dict[str, Any] = {
            "mode": "inline" if plan.inline else "threads",
            "instances": plan.instances,
            "threads_per_instance": plan.threads,
            "enabled": limits.joins,
            "max_batch_size": limits.max_batch_size if limits.joins else None,
            "preferred_batch_size": list(limits.preferred_batch_size),
            "max_queue_delay_ms": limits.max_queue_delay * 1000,
            "max_queue_rows": limits.max_queue_rows,
            "forward_ms": round(plan.forward_seconds * 1000, 4),
        }
        return told | ({"reason": plan.apart} if plan.apart else {})

    @property
    def waits(self) -> bool:
        """Whether a request may have to wait for others, so that it pays to see if its client is still there."""
        return not self.plan.inline

    def golden_answer(self) -> Outputs:
        """Return what the model answers to its own example; not while it is served."""
        model = self._instances.models[0]
        return model.call(model.golden)

    def admit(self) -> None:
        """Raise `Overloaded` if nothing more is taken in now; ask before work is put into a request."""
        if self._queue.full:
            raise self._overloaded()

    @property
    def parameters(self) -> Mapping[str, Any]:
        """How the model is run, for its metadata."""
        return {"batching": self.batching}

    def families(self, labels: Mapping[str, str]) -> Iterable[Metric]:
        """Return nothing: what it counts is in `metrics`."""
        return ()

    def submit(
        self,
        asker: Asker,
        inputs: Mapping[str, Array],
        rows: int,
        done: Callable[[Job, Outputs | Exception], None],
        *,
        deadline: float | None,
        loop: asyncio.AbstractEventLoop,
        at_once: bool = False,
    ) -> Job:
        """Let the model run on *inputs*, then call *done* on *loop*, on which this is called; *deadline* is its time.

        The inputs fit the signature and have *rows* rows. With *at_once* nobody else can come in this turn of the
        loop, so that there is nothing to wait for. The asker's span is told of the calls before *done* is.
        Raises `Overloaded` if too much waits already. *done* is told the outputs, `BadRequest` (rejected) if the
        model fails on them alone, `ModelFailure` if it fails altogether, or `DeadlineExceeded` if it was not called
        in time. What is returned may be given to `cancel`.
        """
        self._loop = loop
        now = time.perf_counter()
        job = Job(inputs, rows, done, deadline, loop.time(), now, span=asker.span, check=asker.check)
        if not self._queue.push(job):
            raise self._overloaded()
        if not self._takes_more():
            if deadline is not None:
                self._set_timer()
        elif not self._pump_is_due:
            if at_once:
                self._pump()
            else:
                self._pump_is_due = True
                loop.call_soon(self._pump)
        return job

    def cancel(self, job: Job) -> None:
        """Forget *job*; the model is not called for it any more, and it is not answered."""
        self._queue.cancel(job)

    def close(self) -> None:
        """Let the threads end when they are done."""
        self._instances.close()

    @property
    def _idles(self) -> bool:
        """Whether a model has nothing to do."""
        return self._started < len(self._instances.models)

    def _takes_more(self) -> bool:
        """Say whether a batch can be handed out now: to a model that idles, or to one that is done soon.

        A thread that waits until the event loop comes round to it leaves a processor idle, which shows with models of
        milliseconds. A batch that is full gains nothing by waiting here, so each thread has one in advance, unless it
        takes so long that a deadline would be missed unseen.
        """
        most = len(self._instances.models)
        if self._started < most:
            return True
        if self.plan.inline or self._started >= 2 * most or not self._queue.has_full_batch:
            return False
        return self._took < _SOON_SECONDS

    def _overloaded(self) -> Overloaded:
        seconds = self._queue.rows * self._row_seconds / len(self._instances.models)
        return Overloaded(min(max(1, math.ceil(seconds)), 60))

    def _pump(self) -> None:
        """Hand out batches while somebody takes them; inline one a turn, so that I/O has its turn as well."""
        assert self._loop is not None
        self._pump_is_due = False
        queue = self._queue
        now = self._loop.time()
        queue.expire(now, lambda job: DeadlineExceeded(now - job.arrived))
        while queue.rows and self._takes_more():
            batch = queue.take(now)
            if batch is None:
                break
            if (
                self.plan.inline
                and not self._started
                and sum([p.stop - p.start for p in batch]) <= self.plan.inline_rows
            ):
                ran = _run(self._instances.models[0], batch)
                if self._slow or ran.seconds > _TOO_LONG_SECONDS:
                    self._watch(ran)
                self._answer(batch, ran)
                if queue.rows:
                    self._pump_is_due = True
                    self._loop.call_soon(self._pump)
                    return
            else:
                self._started += 1
                self._instances.start(batch, self._back, self._loop)
        if queue.rows:
            self._set_timer()

    def _set_timer(self) -> None:
        """Look again when the next deadline or the end of the wait for a fuller batch comes."""
        assert self._loop is not None
        when = self._queue.wake() if self._idles else self._queue.earliest
        if self._timer is not None:
            if self._rings <= when:
                return
            self._timer.cancel()
        self._rings = when  # uvloop's timer does not know it if it is due already
        self._timer = None if when == math.inf else self._loop.call_at(when, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        self._pump()

    def _back(self, batch: Batch, ran: Ran) -> None:
        self._started -= 1
        self._took = ran.seconds
        if self._slow:  # it ran inline once
            self._watch(ran)
        self._pump()  # first, as a thread may wait for it
        self._answer(batch, ran)

    def _answer(self, batch: Batch, ran: Ran) -> None:
        """Give each request of *batch* what came of it."""
        if stamps := [piece.job.stamp for piece in batch if not piece.job.check]:
            self.metrics.waited(ran.begin, stamps)
            for rows, seconds in ran.calls:
                self.metrics.ran(rows, seconds)
        if not ran.joinable:
            self._stop_joining()
        rows = sum([p.stop - p.start for p in batch])
        if rows:
            self._row_seconds += 0.1 * (ran.seconds / rows - self._row_seconds)
        settle = self._queue.settle
        for piece, outcome in zip(batch, ran.results, strict=True):
            job = piece.job
            job.seconds += ran.seconds
            if job.span is not None:
                job.span.ran(job, batch, ran)
            try:
                if piece.whole or isinstance(outcome, Exception):
                    settle(job, outcome)
                elif batcher.gather(piece, outcome):
                    settle(job, _assembled(job))
            except Exception as exc:  # noqa: BLE001  the others in the batch must have their answers all the same
                _log.error("an answer could not be handed on\n%s", stack(exc))

    def _stop_joining(self) -> None:
        """Run each request alone from now on: what the self-test saw no longer holds."""
        if self._queue.limits.joins:
            self._queue.limits = replace(self._queue.limits, joins=False)
            self.plan = replace(self.plan, joins=False, apart="the outputs do not follow the rows")
            _log.warning("requests no longer share a call: %s", self.plan.apart)

    def _watch(self, ran: Ran) -> None:
        """Move a model that holds the event loop up, again and again, into a thread; back, if the machine was at fault."""
        if self.plan.inline:
            self._slow = self._slow + 1 if ran.seconds > _TOO_LONG_SECONDS else 0
            if self._slow >= _TOO_OFTEN:
                self.plan = replace(self.plan, inline=False)
                self._slow = -_QUICK_AGAIN
                _log.warning("the model runs in a thread from now on: a call took %.3g s", ran.seconds)
        else:
            self._slow = self._slow + 1 if ran.seconds < tuning.INLINE_BATCH_SECONDS else -_QUICK_AGAIN
            if not self._slow:
                self.plan = replace(self.plan, inline=True)
                _log.warning("the model runs on the event loop again: %d calls were quick", _QUICK_AGAIN)


def _assembled(job: Job) -> Outputs | Exception:
    """Return the answers of all pieces as one."""
    assert job.parts is not None
    try:
        return batcher.join([job.parts[start] for start in sorted(job.parts)])
    except ValueError as exc:
        return ModelFailure(f"the answers of {job.rows} rows, run in parts, do not fit together: {exc}")
