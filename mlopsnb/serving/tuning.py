"""A short self-test at load: how long the model takes, and from that how it is best run here.

`measure` calls the model on its golden example; `decide` is pure. Nothing here is fixed for good: each choice has
an option that overrules it, and the metadata shows what was measured and chosen.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlopsnb.extras import loaded
from mlopsnb.serving import batcher
from mlopsnb.serving.errors import summary
from mlopsnb.tensors import Array, take_rows

if TYPE_CHECKING:
    from mlopsnb.serving.model import Model

SIZES = tuple(2**n for n in range(13))
BUDGET_SECONDS = 0.3
INLINE_SECONDS = 0.0003
INLINE_BATCH_SECONDS = 0.005
"""What one row, and any batch, may take where it holds the event loop up."""

MAX_INSTANCES = 8
_REPEATS = 15
_FEW_SECONDS = 0.001
_NEAR_BEST = 0.95
_WORSE = 1.1
_ENOUGH_ROWS = 64
_GOOD_USE = 0.8
_TRIAL_ROWS = 3
_TRIAL_SECONDS = 0.1
_SWITCH_SECONDS = 0.0005
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 16 << 20
_FREE_THE_GIL = ("torch", "tensorflow", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator asks for; None leaves the choice to the self-test. 0 instances: on the event loop."""

    batching: Literal["auto", "off"] = "auto"
    max_batch_size: int | None = None
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_ms: float = 0.0
    instances: int | None = None
    max_queue_rows: int = 65_536

    @property
    def asks_for_sizes(self) -> bool:
        """Whether the operator knows better which batches are good."""
        return bool(self.max_batch_size or self.preferred_batch_size or self.max_queue_delay_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The least seconds of a call by its rows, and of one row by the threads that the framework used.

    No more than `limit` rows were seen to go well, or were tried. `apart` says why requests must not share a call; empty if they may. `tried` is false if the model is too
    slow to find out. `parallel` says whether several threads can run models of this framework at a time.
    """

    seconds: Mapping[int, float]
    by_threads: Mapping[int, float] = field(default_factory=dict)
    apart: str = ""
    tried: bool = True
    parallel: bool = False
    limit: int = SIZES[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the model is run: inline on the event loop, or in a thread for each instance.

    `threads` are the framework's own in each call, 0 if they are left alone. Batches of more than `inline_rows`
    never hold the event loop up. `row_seconds` is what a row takes in a full batch. From `enough_rows` on more rows in
    a call gain nothing, so that a request of so many is not copied to join others; 0: nobody knows.
    """

    inline: bool
    instances: int
    threads: int
    joins: bool
    max_batch_size: int
    inline_rows: int
    row_seconds: float
    forward_seconds: float
    enough_rows: int = 0
    apart: str = ""


def measure(
    model: Model,
    cpus: int,
    *,
    budget: float = BUDGET_SECONDS,
    anew: Callable[[int], Model] | None = None,
) -> Measured:
    """Time *model*, loaded for one thread, on its golden example for about *budget* seconds.

    If a call takes long, up to *cpus* threads are tried; *anew* loads it for so many, if it must know them at load.
    """
    end = time.perf_counter() + budget
    has_rows = batcher.may_join(model.signature)
    one = take_rows(model.golden, 1) if has_rows else model.golden
    set_threads(1)
    seconds = {1: _least(partial(model.call, one), budget / 4)}
    by_threads = _by_threads(model, one, seconds[1], cpus, budget / 8, anew)
    tried = has_rows and seconds[1] < _TRIAL_SECONDS
    apart = _trial(model) if tried else "" if has_rows else "an input or output has no free first axis"
    limit = SIZES[-1]
    for rows in SIZES[1:] if tried and not apart else ():
        left = end - time.perf_counter()
        if 4 * seconds[rows // 2] > left:  # it is called twice at least, and may take twice as long
            break
        try:
            seconds[rows] = _least(partial(model.call, take_rows(model.golden, rows)), left / 4)
            if seconds[rows] > 2 * _WORSE * seconds[rows // 2] and rows >= _ENOUGH_ROWS:
                break  # the caches are full, and it gets worse from here; a little may be a busy machine
        except Exception:  # noqa: BLE001  so many rows are too many; what ran is the limit
            limit = max(seconds)
            break
    parallel = any(loaded(name) is not None for name in _FREE_THE_GIL)
    return Measured(
        seconds=seconds, by_threads=by_threads, apart=apart, tried=tried, parallel=parallel, limit=limit
    )


def _by_threads(
    model: Model,
    row: Mapping[str, Array],
    alone: float,
    cpus: int,
    budget: float,
    anew: Callable[[int], Model] | None,
) -> dict[int, float]:
    """Return the least seconds of a call by the threads it uses: of more and more, as long as they are used well."""
    found = {1: alone}
    at_load = threads_are_loaded()
    if alone <= INLINE_SECONDS or (anew is None if at_load else loaded("torch") is None):
        return found
    for threads in sorted({n for n in (2, 4, 8, 16, 32, cpus) if 1 < n <= cpus}):
        if anew is not None and at_load:
            model = anew(threads)
        set_threads(threads)
        found[threads] = _least(partial(model.call, row), budget)
        if alone / found[threads] < _GOOD_USE * threads:
            break
    set_threads(1)
    return found


def _least(call: Callable[[], object], budget: float) -> float:
    """Return the least of a few calls after a first one, of fewer if *budget* seconds are over; never of none.

    Whatever else the machine does makes a call slower, never faster, and may use the budget up at once.
    """
    call()
    end = time.perf_counter() + budget
    found: list[float] = []
    while len(found) < _REPEATS and (time.perf_counter() < end or sum(found) < _FEW_SECONDS):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)


def _trial(model: Model) -> str:
    """Run a few rows together and apart; say why requests must not share a call, or nothing if they may."""
    together = take_rows(model.golden, _TRIAL_ROWS)
    rows = [{name: a[i : i + 1] for name, a in together.items()} for i in range(_TRIAL_ROWS)]
    try:
        joint = model.call(together)
        apart = [model.call(row) for row in rows]
    except Exception as exc:  # noqa: BLE001  it runs one request at a time, and that is how it will be run
        return f"{_TRIAL_ROWS} rows in a call fail: {summary(exc)}"
    if any(a.shape[:1] != (n,) for n, out in [(_TRIAL_ROWS, joint), (1, apart[0])] for a in out.values()):
        return "the outputs do not follow the rows"
    if not all(_same(a[i : i + 1], apart[i][name]) for name, a in joint.items() for i in range(_TRIAL_ROWS)):
        return "rows change each other's answers when they share a call"
    return ""


def _same(one: Array, other: Array) -> bool:
    """Say whether two answers are equal but for what floats lose when a sum is taken in another order."""
    if one.shape != other.shape or one.dtype.kind != "f":
        return np.array_equal(one, other)
    scale = float(np.max(np.abs(other), initial=0.0, where=np.isfinite(other)))
    rough = one.dtype.itemsize < 4
    return np.allclose(
        one, other, rtol=1e-2 if rough else 1e-3, atol=(1e-2 if rough else 1e-4) * scale, equal_nan=True
    )


def decide(measured: Measured, options: Options, cpus: int) -> Plan:
    """Choose how to run a model that was *measured* so; what *options* say goes first."""
    one = measured.seconds[1]
    if options.instances is not None:
        inline = options.instances == 0
    else:
        few = measured.seconds.get(8, math.inf if measured.tried and not measured.apart else one)
        inline = one < INLINE_SECONDS and few < 4 * INLINE_SECONDS
    asked = options.instances or 0
    threads = 1 if inline else _threads(measured.by_threads, cpus // max(asked, 1))
    fitting = cpus // threads if measured.parallel else 1
    instances = 1 if inline else asked or max(1, min(fitting, MAX_INSTANCES))
    wanted = measured.tried or options.max_batch_size is not None
    joins = options.batching == "auto" and wanted and not measured.apart
    most, its_seconds = max(measured.seconds.items())
    inline_rows = max(1, int(most * INLINE_BATCH_SECONDS / its_seconds))
    enough = _best_size(measured.seconds)
    # To cut a request costs time, so that no size is cut because it was not measured, or on a bad moment.
    size = options.max_batch_size or (min(measured.limit, inline_rows) if inline else enough)
    return Plan(
        inline=inline,
        instances=instances,
        threads=threads,
        joins=joins,
        max_batch_size=size if joins else 1,
        enough_rows=0 if options.asks_for_sizes else min(enough, size),
        inline_rows=inline_rows,
        row_seconds=its_seconds / most,
        forward_seconds=one,
        apart=measured.apart,
    )


def _threads(by_threads: Mapping[int, float], most: int) -> int:
    """Return how many threads a call uses well, up to *most*; more calls at a time use the rest better."""
    good = [n for n, s in by_threads.items() if n <= most and by_threads[1] / s >= _GOOD_USE * n]
    return max(good, default=1)


def _best_size(seconds: Mapping[int, float]) -> int:
    """Return the smallest batch that gives nearly as many rows a second as any."""
    rates = {rows: rows / s for rows, s in seconds.items()}
    return min(rows for rows, rate in rates.items() if rate >= _NEAR_BEST * max(rates.values()))


def threads_are_loaded() -> bool:
    """Say whether the framework takes its threads when a model is loaded, and at no later time."""
    return loaded("onnxruntime") is not None


def set_threads(threads: int) -> None:
    """Let the framework use *threads* threads in each call from this thread, where it can be told so late; 0: its own."""
    torch = loaded("torch")
    if torch is not None and threads:
        torch.set_num_threads(threads)


def let_threads_in() -> None:
    """Let a thread that has run the model have the interpreter soon.

    The event loop lets go of it for moments only while it takes requests in, and by default is asked for it after 5 ms:
    longer than many models take, and the processor idles meanwhile.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)


def settle_memory() -> None:
    """Let the system have what large batches took and freed, and keep what requests free. Nothing without glibc.

    glibc gives memory at the end of its heap back when there is somewhat more than the largest block so far. The bodies
    and arrays of one large request can be that, and the system would have to clear the same pages for each again.
    """
    import ctypes  # numpy has imported it

    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt"):
        libc.malloc_trim(0)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 4)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
