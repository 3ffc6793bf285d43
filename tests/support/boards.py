"""What a dashboard looks at, made up to the last digit, and a target that a test moves."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace

from traffic_pages import Counters, window

from mlopsnb.monitoring.counting import read
from mlopsnb.notebook.dashboard.model import Look
from mlopsnb.records import Release, Revision
from mlopsnb.rollout import Forget, Scale, Shift, Stop

EVIL = "<img src=x onerror=alert(1)>"


def revision(number, state="running", **more):
    given = {"source": f"models:/fraud/{number}", "digest": f"sha256:{number}", **more}
    return Revision(id=number, state=state, **given)


def release(*revisions, weights=None, name="fraud", target="process"):
    """A release whose newest running revision has all traffic, if *weights* do not say otherwise."""
    running = [r.id for r in revisions if r.state == "running"]
    shares = weights if weights is not None else dict.fromkeys(running[-1:], 100)
    url = "http://127.0.0.1:8080" if shares else None
    return Release(name=name, target=target, revisions=revisions, weights=shares, url=url)


CANARY = release(revision(1), revision(2), weights={1: 90, 2: 10})


def look(of, at, *, rate=0, errors=0, seconds=0.006, **more):
    """A look two seconds after the one before; each running revision had so many requests."""
    done = replace(window(rate, errors=errors, seconds=seconds, over=2.0), at=at)
    running = [r.id for r in of.revisions if r.state == "running"]
    known = {"windows": dict.fromkeys(running, done), "totals": dict.fromkeys(running, done)}
    return Look(release=of, at=at, **{"ready": True, "source": "pages", **known, **more})


class Pretend:
    """A target that holds releases in memory and carries actions out on them. Set `away` and it cannot be asked."""

    def __init__(self, *releases, scales=True):
        self.releases = {r.name: r for r in releases}
        self.counters = Counters()
        self.away = None
        self.hold = None
        self.scales = scales
        self.actions = []
        self.asked = threading.Semaphore(0)

    def names(self):
        if self.hold is not None:
            self.hold.wait(60)
        if self.away is not None:
            raise self.away
        self.asked.release()
        return sorted(self.releases)

    def observe(self, name):
        return self.releases.get(name, Release(name=name, target="pretend"))

    def takes(self):
        return ("replicas",) if self.scales else ()

    def ask(self, name, revision_id, path):
        return {"pod-a": self.counters.page() if path == "/metrics" else b"{}"}

    def logs(self, name, revision_id):
        yield from (f"line {i} token=abc{i}" for i in range(100))

    @contextmanager
    def claim(self, name):
        yield

    def apply(self, name, action, *, timeout):
        self.actions.append(action)
        now = self.releases[name]
        match action:
            case Shift(weights):
                self.releases[name] = replace(now, weights=weights)
            case Stop(number):
                stopped = [replace(r, state="stopped") if r.id == number else r for r in now.revisions]
                self.releases[name] = replace(now, revisions=tuple(stopped))
            case Scale(number, n):
                scaled = [
                    replace(r, workload=replace(r.workload, replicas=n)) if r.id == number else r
                    for r in now.revisions
                ]
                self.releases[name] = replace(now, revisions=tuple(scaled))
            case Forget():
                del self.releases[name]


def sample(counters, at=0.0):
    """What a replica with these counters says."""
    return read(counters.page(), at)
