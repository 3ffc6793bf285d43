"""The cache as a stage: asks the model for those rows alone whose answers are not kept. On the event loop.

Rows that are being asked for already are waited for, so that the model is asked once. Errors are never kept. An
answer is what the model gave for those rows, to the bit, when it was asked.
Sources: RFC 9111 (Cache-Control of requests), RFC 9211 (Cache-Status).
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlopsnb.serving.cache import ByRows, Keeping, Store, Whole
from mlopsnb.serving.errors import ModelFailure, NotCached, stack

if TYPE_CHECKING:
    from mlopsnb.serving.batcher import Job, Outputs
    from mlopsnb.serving.engine import Engine
    from mlopsnb.serving.stages import Asker, Done
    from mlopsnb.tensors import Array

_DIRECTIVE = re.compile(
    r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,;"]*))?\s*(?:,|$)'
)
_log = logging.getLogger("mlopsnb.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request's `Cache-Control` asks for. `max_age` is in seconds."""

    reads: bool = True
    stores: bool = True
    max_age: float = math.inf
    only_cached: bool = False


_ANY = Wish()


def read_wish(header: bytes | None) -> Wish:
    """Return what `Cache-Control` says; what is unknown in it is left aside, as RFC 9111 has it.

    A `max-age` that is no number of seconds lets no kept answer be used: its section 4.2.1.
    """
    if header is None:
        return _ANY
    said = {name.lower(): value.strip('"') for name, value in _DIRECTIVE.findall(header.decode("latin-1"))}
    max_age = math.inf
    if "max-age" in said:
        seconds = said["max-age"]
        max_age = float(seconds[:10]) if seconds.isascii() and seconds.isdigit() else 0.0
    return Wish(
        reads="no-cache" not in said and "no-store" not in said and max_age > 0,
        stores="no-store" not in said,
        max_age=max_age,
        only_cached="only-if-cached" in said,
    )


@dataclass(slots=True, eq=False)
class _Asked:
    """One request: its keys, the values that are known, and the places of those that are not.

    `forwarded` says why the model is asked, as Cache-Status does. `alone`: it is asked as if there were no cache.
    `left`: it was answered, or nobody waits for it any more.
    """

    asker: Asker
    inputs: Mapping[str, Array]
    rows: int
    done: Done
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    keys: list[bytes]
    values: list[Any]
    missing: dict[bytes, list[int]]
    wish: Wish
    forwarded: bytes
    joined: list[_Flight] = field(default_factory=list)
    led: list[_Flight] = field(default_factory=list)
    alone: bool = False
    job: Job | None = None
    stored: bool = False
    left: bool = False

    @property
    def ends(self) -> float:
        return math.inf if self.deadline is None else self.deadline


@dataclass(slots=True, eq=False)
class _Flight:
    """Rows for which the model is being asked, the request that it is asked for, and those that wait with it."""

    leader: _Asked
    keys: list[bytes]
    keeping: Keeping
    waiting: dict[_Asked, None] = field(default_factory=dict)
    job: Job | None = None


class Cached:
    """The engine behind a cache of at most *limit* bytes."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self.engine = engine
        self._store = Store(limit)
        signature = engine.manifest.signature
        self._keeping: Keeping = (
            ByRows(signature) if engine.plan.joins and ByRows.fits(signature) else Whole()
        )
        self._flights: dict[bytes, _Flight] = {}
        self._rows = {"hit": 0, "miss": 0}

    @classmethod
    def around(cls, engine: Engine, limit: int) -> Cached:
        """Return *engine* behind a cache; `ModelFailure` if its model does not answer alike twice."""
        first, second = engine.golden_answer(), engine.golden_answer()
        other = [name for name, array in first.items() if not _identical(array, second[name])]
        if other:
            raise ModelFailure(
                f"the model answers its own example differently each time (output {', '.join(map(repr, other))}), "
                "so that its answers cannot be kept",
                hint="leave --cache-bytes out, or make the model deterministic",
            )
        made = cls(engine, limit)
        _log.info("cache: %s", made.parameters["cache"])
        return made

    @property
    def ready(self) -> bool:
        """Whether the model works."""
        return self.engine.ready

    @property
    def waits(self) -> bool:
        """Whether requests may have to wait."""
        return self.engine.waits

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What it may hold, and what one key stands for."""
        keys = "row" if self._keeping.by_rows else "request"
        return {**self.engine.parameters, "cache": {"max_bytes": self._store.limit, "keys": keys}}

    def families(self, labels: Mapping[str, str]) -> Iterable[Metric]:
        """Return what was found and what is held."""
        names, values = list(labels), list(labels.values())
        rows = CounterMetricFamily(
            "mlopsnb_cache_rows", "Rows whose answer was kept, or not.", labels=[*names, "result"]
        )
        for result, count in self._rows.items():
            rows.add_metric([*values, result], count)
        evicted = CounterMetricFamily(
            "mlopsnb_cache_evictions", "Answers that made room for others.", labels=names
        )
        evicted.add_metric(values, self._store.evicted)
        nbytes = GaugeMetricFamily(
            "mlopsnb_cache_bytes", "Memory of the answers that are kept.", labels=names
        )
        nbytes.add_metric(values, self._store.nbytes)
        entries = GaugeMetricFamily("mlopsnb_cache_entries", "Answers that are kept.", labels=names)
        entries.add_metric(values, len(self._store))
        return rows, evicted, nbytes, entries

    def admit(self) -> None:
        """Take every request in: whether the model is needed for it is not known before it is read."""

    def submit(
        self,
        asker: Asker,
        inputs: Mapping[str, Array],
        rows: int,
        done: Done,
        *,
        deadline: float | None,
        loop: asyncio.AbstractEventLoop,
        at_once: bool = False,
    ) -> _Asked | None:
        """Answer from what is kept, and ask the model for the rest; see `Engine.submit`.

        Raises `NotCached` if the request allows no more than what is kept.
        """
        wish = read_wish(asker.headers.get(b"cache-control"))
        keeping = self._current()
        keys = keeping.keys(inputs, rows) if rows and (wish.reads or wish.stores) else []
        values = self._store.find(keys, loop.time() - wish.max_age) if wish.reads else [None] * len(keys)
        if keys and None not in values:
            self._rows["hit"] += rows
            asker.told += ((b"cache-status", b"mlopsnb; hit"),)
            done(None, keeping.join(values))
            return None
        missing: dict[bytes, list[int]] = {}
        for place, value in enumerate(values):
            if value is None:
                missing.setdefault(keys[place], []).append(place)
        hits = len(values) - values.count(None)
        if wish.only_cached and rows:
            raise NotCached(rows - hits, rows)
        self._rows["hit"] += hits
        self._rows["miss"] += rows - hits
        why = _why(wish, hits, rows)
        asked = _Asked(asker, inputs, rows, done, deadline, loop, keys, values, missing, wish, why)
        if keys:
            self._pursue(asked, list(missing), keeping, at_once=at_once)
        else:
            self._ask_alone(asked, at_once=at_once)
        return asked

    def cancel(self, handle: _Asked) -> None:
        """Forget a request. The model is asked all the same for rows that another one waits for."""
        handle.left = True
        if handle.job is not None:
            self.engine.cancel(handle.job)
        for flight in handle.joined:
            flight.waiting.pop(handle, None)
        for flight in (*handle.led, *handle.joined):
            self._abandon(flight)

    def _abandon(self, flight: _Flight) -> None:
        if flight.leader.left and not flight.waiting and flight.job is not None:
            self.engine.cancel(flight.job)
            self._landed(flight)

    def _current(self) -> Keeping:
        """Return how answers are kept: no longer by rows once the model was seen to mix them."""
        if self._keeping.by_rows and not self.engine.plan.joins:
            self._keeping = Whole()
            self._store.clear()
            _log.warning("the cache now keeps whole requests: %s", self.engine.plan.apart)
        return self._keeping

    def _pursue(self, asked: _Asked, keys: list[bytes], keeping: Keeping, *, at_once: bool) -> None:
        """Wait with others for those of *keys* that they ask for, and ask the model for the rest."""
        own = []
        joined: dict[_Flight, None] = {}
        for key in keys:
            flight = self._flights.get(key) if asked.wish.reads else None
            # One that may wait longer could keep this one beyond its own deadline.
            if flight is None or flight.leader.ends > asked.ends or flight.keeping is not keeping:
                own.append(key)
            else:
                joined[flight] = None
        if own:
            self._lead(asked, own, keeping, at_once=at_once and not joined)
        for flight in joined:
            flight.waiting[asked] = None
        asked.joined += joined

    def _lead(self, asked: _Asked, keys: list[bytes], keeping: Keeping, *, at_once: bool) -> None:
        """Ask the model for *keys*, each once; `Overloaded` if it does not take them."""
        flight = _Flight(asked, keys, keeping)
        asked.led.append(flight)
        for key in keys:
            self._flights.setdefault(key, flight)
        if len(keys) == len(asked.keys):
            inputs, rows = asked.inputs, asked.rows
        else:
            places = [asked.missing[key][0] for key in keys]
            inputs, rows = keeping.take(asked.inputs, places), len(places)

        def arrived(_: object, outcome: Outputs | Exception) -> None:
            self._arrived(flight, outcome)

        try:
            flight.job = self.engine.submit(
                asked.asker,
                inputs,
                rows,
                arrived,
                deadline=asked.deadline,
                loop=asked.loop,
                at_once=at_once,
            )
        except Exception:
            self._landed(flight)
            raise

    def _landed(self, flight: _Flight) -> None:
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _arrived(self, flight: _Flight, outcome: Outputs | Exception) -> None:
        """Keep what came of *flight*, and tell all who wait for it."""
        self._landed(flight)
        if isinstance(outcome, Exception):
            self._failed(flight, outcome)
            return
        keeping, leader, count = flight.keeping, flight.leader, len(flight.keys)
        values = keeping.cut(outcome, count) if keeping is self._current() else None
        waiting = [asked for asked in (leader, *flight.waiting) if not (asked.left or asked.alone)]
        if values is None:  # the rows of the answer are not those of the request: nobody else can have them
            for asked in waiting:
                self._ask_again(asked)
            return
        fresh = dict(zip(flight.keys, values, strict=True))
        if leader.wish.stores:
            now = leader.loop.time()
            kept = [self._store.put(key, v, keeping.nbytes(v), now) for key, v in fresh.items()]
            leader.stored = any(kept)
        for asked in waiting:
            if asked is leader and count == len(leader.keys):
                self._answer(leader, outcome)
            else:
                self._fill(asked, fresh, keeping)

    def _fill(self, asked: _Asked, fresh: Mapping[bytes, Any], keeping: Keeping) -> None:
        """Give *asked* the values that it waits for; answer it if none is missing any more."""
        for key in asked.missing.keys() & fresh.keys():
            for place in asked.missing.pop(key):
                asked.values[place] = fresh[key]
        if not asked.missing:
            self._answer(asked, keeping.join(asked.values))

    def _failed(self, flight: _Flight, outcome: Exception) -> None:
        """Tell the request that asked; those that waited with it may fare better alone."""
        self._answer(flight.leader, outcome)
        for asked in flight.waiting:
            if asked.left or asked.alone:
                continue
            keys = [key for key in flight.keys if key in asked.missing]
            try:
                self._pursue(asked, keys, flight.keeping, at_once=False)
            except Exception as exc:  # noqa: BLE001  handed on as the answer
                self._answer(asked, exc)

    def _ask_again(self, asked: _Asked) -> None:
        try:
            self._ask_alone(asked, at_once=False)
        except Exception as exc:  # noqa: BLE001  handed on as the answer
            self._answer(asked, exc)

    def _ask_alone(self, asked: _Asked, *, at_once: bool) -> None:
        """Ask the model for all rows, as if there were no cache."""
        asked.alone = True

        def arrived(_: object, outcome: Outputs | Exception) -> None:
            self._answer(asked, outcome)

        asked.job = self.engine.submit(
            asked.asker,
            asked.inputs,
            asked.rows,
            arrived,
            deadline=asked.deadline,
            loop=asked.loop,
            at_once=at_once,
        )

    def _answer(self, asked: _Asked, outcome: Outputs | Exception) -> None:
        if asked.left:
            return
        asked.left = True
        if not isinstance(outcome, Exception):
            stored = b"; stored" if asked.stored else b""
            collapsed = b"; collapsed" if asked.joined and not asked.led else b""
            asked.asker.told += ((b"cache-status", b"mlopsnb; " + asked.forwarded + stored + collapsed),)
        try:
            asked.done(None, outcome)
        except Exception as exc:  # noqa: BLE001  the others that wait must have their answers all the same
            _log.error("an answer could not be handed on\n%s", stack(exc))


def _why(wish: Wish, hits: int, rows: int) -> bytes:
    """Return why the model is asked, in the words of RFC 9211."""
    if not wish.reads:
        return b"fwd=request"
    if not rows:
        return b"fwd=bypass"
    return b'fwd=partial; detail="%d of %d rows"' % (hits, rows) if hits else b"fwd=miss"


def _identical(one: Array, other: Array) -> bool:
    """Say whether two answers are equal to the bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return np.array_equal(one, other) if one.dtype == object else one.tobytes() == other.tobytes()
