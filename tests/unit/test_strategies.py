"""From the parameters of `deploy` to a strategy, and what is wrong with them."""

from dataclasses import replace

import pytest

from mlopsnb import durations
from mlopsnb.errors import UserError
from mlopsnb.events import reporting_to
from mlopsnb.records import Release, Revision
from mlopsnb.strategies import Strategy, choose, keep


@pytest.mark.parametrize(
    ("given", "strategy", "note"),
    [
        ({}, Strategy(), ""),
        ({"strategy": "rolling"}, Strategy(), ""),
        (
            {"gate": "error_rate<1% and p99_ms<200"},
            Strategy(gate="error_rate < 0.01 and p99_ms < 200.0", pause=30.0),
            "gate error_rate < 0.01 and p99_ms < 200.0",
        ),
        ({"strategy": "blue-green", "pause": "5m"}, Strategy(name="blue-green", pause=300.0), "blue-green"),
        ({"strategy": "canary"}, Strategy(name="canary", steps=(10,)), "canary 10 %"),
        ({"canary": 25}, Strategy(name="canary", steps=(25,)), "canary 25 %"),
        (
            {"canary": "10,50", "gate": "qps>1", "pause": 5},
            Strategy(name="canary", steps=(10, 50), gate="qps > 1.0", pause=5.0),
            "canary 10 %, 50 %; gate qps > 1.0",
        ),
        (
            {"canary": (5, 20), "pause": "1m"},
            Strategy(name="canary", steps=(5, 20), pause=60.0),
            "canary 5 %, 20 %",
        ),
    ],
)
def test_what_is_said_becomes_a_strategy(given, strategy, note):
    chosen = choose(**{"strategy": None, **given})
    assert chosen == strategy
    assert chosen.note == note


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "rollin"}, "no strategy named 'rollin'.*\n.*did you mean 'rolling'"),
        ({"strategy": "rolling", "canary": 10}, "canary=10 does not go with strategy 'rolling'"),
        ({"gate": "p99<5"}, "no figure named 'p99'"),
        ({"gate": "qps>1", "pause": 0}, "a gate needs time"),
        ({"pause": "soon"}, "pause must be a span of time, found 'soon'"),
        ({"pause": -1}, "pause must be a span of time, found -1"),
        ({"canary": (50, 10)}, "canary must be shares in percent that grow"),
        ({"canary": 100}, "canary must be shares in percent that grow"),
        ({"canary": "ten"}, "canary must be shares in percent that grow"),
        ({"canary": ()}, "canary must be shares in percent that grow"),
        ({"canary": "10,50"}, "neither a gate nor a pause.*\n.*canary=10, which stays"),
    ],
)
def test_what_does_not_fit_is_told(given, message):
    with pytest.raises(UserError, match=message):
        choose(**{"strategy": None, **given})


class Splitting:
    """A target that can split traffic, and has this release."""

    def __init__(self, weights, can=True):
        self.release = Release(
            name="m",
            target="t",
            revisions=tuple(Revision(id=n, source="s", digest="", state="running") for n in weights),
            weights=weights,
        )
        self.can = can

    def splits(self, name):
        return self.can

    def observe(self, name):
        return self.release


def test_a_second_canary_has_to_wait_and_some_targets_have_none():
    canary = choose(strategy="canary")
    canary.check(Splitting({1: 100}), "m", "docker")
    with pytest.raises(UserError, match="a canary of 'm' is under way: revision 2 has 10 %\n.*promote"):
        canary.check(Splitting({1: 90, 2: 10}), "m", "docker")
    with pytest.raises(UserError, match="target 'process' gives all traffic of 'm' to one revision"):
        canary.check(Splitting({1: 100}, can=False), "m", "process")
    choose(strategy="rolling").check(Splitting({1: 90, 2: 10}, can=False), "m", "process")


def test_a_version_that_is_named_is_more_than_its_content():
    now = Splitting({1: 100}).release
    now = replace(now, revisions=(replace(now.revisions[0], digest="d", source="models:/m/1"),))
    again = Revision(id=2, source="models:/m/2", digest="d")
    said = []
    with reporting_to(said.append):
        assert not keep(now, again, named=True)
        assert not said
        assert keep(now, again, named=False)
        assert keep(now, replace(again, source="models:/m/1"), named=True)
    assert said[-1].message.startswith("nothing changed: revision 1 serves this already (models:/m/1)")


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("30s", 30), ("5m", 300), ("1.5 h", 5400), ("7d", 604800), ("250ms", 0.25), (2, 2), ("9", 9)],
)
def test_spans_of_time(span, seconds):
    assert durations.seconds(span, of="it") == seconds


@pytest.mark.parametrize("span", ["", "s", "1 parsec", "-1s", float("inf"), float("nan"), True, None, "1h30"])
def test_what_is_no_span_of_time(span):
    with pytest.raises(UserError, match="it must be a span of time, found "):
        durations.seconds(span, of="it")
