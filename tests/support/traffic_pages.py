"""Traffic made up to the last request: the pages of real counters, and a target whose clock the test moves."""

from __future__ import annotations

from mlopsnb.monitoring.counting import Window, read
from mlopsnb.records import Release, Revision
from mlopsnb.serving.metrics import Metrics


class Counters:
    """The server's own counters of one replica."""

    def __init__(self):
        self.metrics = Metrics("m", "1")

    def count(self, good=0, *, errors=0, code=500, seconds=0.006):
        for number, n in ((200, good), (code, errors)):
            for _ in range(round(n)):
                self.metrics.started()
                self.metrics.finished(number, seconds)

    def page(self):
        return self.metrics.expose()[0]


def window(good=0, *, errors=0, seconds=0.006, over=10.0):
    """The traffic of one replica over some time."""
    counters = Counters()
    counters.count(good, errors=errors, seconds=seconds)
    sample = read(counters.page(), 0.0)
    return Window(at=0.0, seconds=over, counts=sample.counts, levels=sample.levels)


class Busy:
    """A target whose revisions answer so many requests a second; `before` are those of earlier times.

    One that dies ends after so many seconds.
    """

    def __init__(self, revisions, dies=None):
        self.now = 0.0
        self.revisions = revisions
        self.dies = dies
        self.counters = {number: Counters() for number in revisions}
        for number, how in revisions.items():
            self.counters[number].count(
                how.get("before", 0) - how.get("before_errors", 0), errors=how.get("before_errors", 0)
            )

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for number, how in self.revisions.items():
            self.counters[number].count(how["rate"] * seconds, errors=how.get("errors", 0) * seconds)

    def gone(self, number):
        return self.dies is not None and number == self.dies[0] and self.now > self.dies[1]

    def observe(self, name):
        revisions = tuple(
            Revision(id=n, source="s", digest="", state="stopped" if self.gone(n) else "running")
            for n in self.revisions
        )
        share = 100 // len(self.revisions)
        return Release(
            name=name, target="busy", revisions=revisions, weights=dict.fromkeys(self.revisions, share)
        )

    def ask(self, name, revision_id, path):
        # Rows are counted nowhere here: only a server with a reference has a page on them.
        return (
            {}
            if self.gone(revision_id) or path != "/metrics"
            else {"process": self.counters[revision_id].page()}
        )
