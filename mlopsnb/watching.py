"""Watch a deployment and tell sinks when an alert fires and when it is over."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from mlopsnb import durations, plugins, rollout
from mlopsnb.errors import MlopsnbError, UserError
from mlopsnb.events import report_progress
from mlopsnb.masking import masked
from mlopsnb.monitoring import alerts
from mlopsnb.monitoring.counting import Counts, Levels, Window
from mlopsnb.monitoring.sampling import Sampler

if TYPE_CHECKING:
    from mlopsnb.deployment import Deployment
    from mlopsnb.monitoring.alerts import Alert, Notice
    from mlopsnb.monitoring.performance import PerformanceReport
    from mlopsnb.protocols import Target

    Sink = Callable[[Notice], object]


class Watcher:
    """Looks at a deployment every so many seconds. What it has told is in `notices`; ends with `stop()` or a `with` block.

    It follows the deployment through deploys, rollbacks and restarts. A target that cannot be asked, or a sink that
    fails, is noted in `troubles`, once, and the watch goes on.
    """

    def __init__(
        self,
        dep: Deployment,
        rules: Sequence[Alert],
        *,
        sinks: Sequence[Sink],
        every: float,
        performance: Callable[[], PerformanceReport] | None = None,
    ) -> None:
        self.notices: list[Notice] = []
        self.troubles: list[str] = []
        self._name = dep.name
        self._target: Target = plugins.create("target", dep.target)
        self._board = alerts.Board(dep.name, dep.target, rules)
        self._sampler = Sampler(self._target, dep.name, ())
        self._on_drift = any(rule.on_drift for rule in rules)
        self._performance = performance if any(rule.on_performance for rule in rules) else None
        self._sinks = tuple(sinks)
        self._every = every
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "ended" if self._ended.is_set() else f"every {self._every:g} s"
        return f"<Watcher of {self._name!r}, {state}: {len(self.firing)} firing, {len(self.notices)} notices>"

    @property
    def firing(self) -> tuple[tuple[Alert, int], ...]:
        """The alerts that fire now, each with the revision."""
        return self._board.firing

    def start(self) -> Self:
        """Watch in a thread of its own, which ends with the process."""
        self._thread = threading.Thread(target=self.run, name=f"mlopsnb-watch-{self._name}", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the watch; a look that is under way is finished."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def run(self, looks: int | None = None) -> None:
        """Watch here until it is stopped, or for so many *looks*."""
        self._look()  # where the counters stand; what came before is nobody's alert
        while looks is None or looks > 0:
            if self._ended.wait(self._every):
                return
            self._look()
            looks = None if looks is None else looks - 1

    def _look(self) -> None:
        try:
            release = self._target.observe(self._name)
            revisions = rollout.running(release)
            self._sampler.follow([r.id for r in revisions])
            windows = dict(self._sampler.tick())
        except MlopsnbError as exc:
            self._trouble(exc.message)
            return
        now = time.time()
        if not revisions and release.revisions:  # nothing runs: no requests, no replicas
            nothing = Window(at=now, seconds=self._every, counts=Counts(), levels=Levels())
            windows = {max(r.id for r in release.revisions): nothing}
        elif self._on_drift:
            windows |= {
                r.id: replace(windows[r.id], drifted=self._drifted(r.id))
                for r in revisions
                if r.id in windows
            }
        current = rollout.serving(release)
        if self._performance is not None and current is not None and current.id in windows:
            told = self._told_performance(self._performance)
            windows[current.id] = replace(windows[current.id], performance=told)
        for notice in self._board.advance(windows, now):
            self.notices.append(notice)
            report_progress("watch", notice.text)
            for sink in self._sinks:
                self._tell(sink, notice)

    def _drifted(self, revision_id: int) -> float:
        """Return how many features and outputs `Deployment.drift` names; NaN if it cannot tell, which is noted."""
        from mlopsnb.monitoring.replicas import live_drift

        try:
            report = live_drift(self._target, self._name, revision_id, seconds=None, threshold=0.1, q=0.05)
        except MlopsnbError as exc:
            self._trouble(exc.message)
            return math.nan
        return float(len(report.drifted))

    def _told_performance(self, ask: Callable[[], PerformanceReport]) -> dict[str, float]:
        """Return the model's latest metrics; none if they cannot be told, which is noted."""
        try:
            return ask().latest
        except Exception as exc:  # noqa: BLE001  the user's own code, and the other alerts must be watched all the same
            self._trouble(f"the performance cannot be told: {exc}")
            return {}

    def _tell(self, sink: Sink, notice: Notice) -> None:
        try:
            begun = sink(notice)
        except Exception as exc:  # noqa: BLE001  a sink is the user's own code, and the others must be told all the same
            self._trouble(f"a sink failed: {exc}")
            return
        if isinstance(begun, Future):
            begun.add_done_callback(lambda done: self._begun_ended(done, sink, notice))

    def _begun_ended(self, done: Future[object], sink: Sink, notice: Notice) -> None:
        """Note that what *sink* had begun has failed, and tell the others, if it has."""
        exc = done.exception()
        if exc is None:
            return
        self._trouble(f"a sink failed: {exc}")
        failed = replace(notice, at=time.time(), trouble=masked(str(exc)))
        self.notices.append(failed)
        for other in self._sinks:
            if other is not sink:
                self._tell(other, failed)

    def _trouble(self, what: str) -> None:
        what = masked(what)  # the user's own code and commands say what they like
        if what in self.troubles:  # it may be so at each look, for days
            return
        self.troubles.append(what)
        report_progress("watch", what)


def watch(
    dep: Deployment,
    rules: Sequence[Alert | str],
    *,
    sinks: Sequence[Sink] = (),
    every: float | str = "30s",
    performance: Callable[[], PerformanceReport] | None = None,
    start: bool = True,
) -> Watcher:
    """Watch *dep* from now on, and tell *sinks* when an alert fires and when it is over.

    Its traffic is watched, and its drift and its performance if a rule names them.

    Args:
        dep: a deployment.
        rules: alerts such as ``"severe: error_rate>0.05 and qps>1 for 5m"``: a severity (`info`, `warning`, `severe`,
            `critical`), what must not be, and for how long it must be so. `drifted_features` is how many features and
            outputs `Deployment.drift` names, of all rows that the servers keep; `accuracy`, `precision`, `recall`, `f1`,
            `roc_auc`, `mae` and `rmse` are the latest that *performance* tells; the other figures are of the traffic.
        sinks: callables that take a `Notice`: your own, `monitoring.sinks.webhook`, `slack` and `email`, or
            `monitoring.retraining.retrain`. One that returns a future has begun something: its failure is told to the
            others.
        every: how often it looks; rates and quantiles are over that time.
        performance: what is asked at each look how well the model does, such as
            ``lambda: dep.performance("labels.parquet", reference=known)``; a rule on its metrics needs it.
        start: begin at once, in a thread; without, call `run()`.

    Returns:
        The `Watcher`: `.firing`, `.notices`, `.stop()`.

    Raises:
        UserError: a rule cannot be read, or there is none, or nobody tells the performance that one names.
    """
    read = [alerts.parse(rule) if isinstance(rule, str) else rule for rule in rules]
    if not read:
        raise UserError("there is no rule to watch by", hint="for example ['severe: error_rate>0.05 for 5m']")
    seconds = durations.seconds(every, of="every")
    if seconds <= 0:
        raise UserError("every must be longer than nothing", hint="every='30s'")
    if performance is None and (asks := [rule for rule in read if rule.on_performance]):
        raise UserError(
            f"alert '{asks[0]}' is on the model's performance, which nobody tells",
            hint="performance=lambda: dep.performance(labels, reference=…)",
        )
    watcher = Watcher(dep, read, sinks=sinks, every=seconds, performance=performance)
    return watcher.start() if start else watcher
