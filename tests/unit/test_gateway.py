"""A revision beside the one with the traffic: what may be asked for, what is planned, what the Gateway is told."""

import json

import pytest
from plain_revisions import DATA, PLAIN

from mlopsnb import matching, rollout
from mlopsnb.errors import UserError
from mlopsnb.matching import Match
from mlopsnb.records import Release, Revision, Workload
from mlopsnb.rollout import Check, Route, Shift, Start, Stop
from mlopsnb.strategies import choose
from mlopsnb.targets import gateway_manifests, manifests
from mlopsnb.targets.manifests import Traits

NEW = Revision(
    id=4, source="models:/fraud/8", digest="sha256:1", image="x", workload=Workload(expose="gateway")
)
ROUTE = manifests.route("fraud", NEW, Traits(gateway="shared"))
CASES = {
    "gateway-header": "header:X-Group=b",
    "gateway-pattern": "header:X-User=~[0-3]$",
    "gateway-session": "session:20",
    "gateway-shadow": "shadow",
}


def told(case):
    match = CASES[case]
    return gateway_manifests.beside(ROUTE, "fraud", NEW, matching.parse(match), match)


@pytest.mark.parametrize("case", CASES)
def test_routes_are_as_they_were_written_down(case):
    assert told(case) == json.loads((DATA / f"{case}.json").read_text())


def test_the_service_of_one_revision():
    made = gateway_manifests.own_service("fraud", PLAIN)
    usual = manifests.service("fraud", PLAIN, pinned=True)
    assert made["metadata"]["name"] == "fraud-r3"
    assert made["spec"] == usual["spec"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("header:X-Group=b", Match(kind="exact", header="X-Group", value="b")),
        ("header:X-Group==b", Match(kind="exact", header="X-Group", value="=b")),
        ("header:X-User=~[0-3]$", Match(kind="pattern", header="X-User", value="[0-3]$")),
        ("session:20", Match(kind="session", share=20)),
        ("shadow", Match(kind="shadow")),
    ],
)
def test_what_a_match_says(text, match):
    assert matching.parse(text) == match


@pytest.mark.parametrize(
    "text",
    ["", "X-Group=b", "header:X Group=b", "header:X-Group", "session:0", "session:100", "hash", 3, None],
)
def test_what_is_no_match(text):
    with pytest.raises(UserError, match="match must say a header"):
        matching.parse(text)


def test_a_pattern_has_to_be_one():
    with pytest.raises(UserError, match="'\\[' is no regular expression"):
        matching.parse("header:X-User=~[")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "ab"}, "has to know which requests"),
        ({"strategy": "ab", "match": "shadow"}, "has to know which requests"),
        ({"strategy": "canary", "match": "session:20"}, "does not go with strategy 'canary'"),
        ({"strategy": "shadow", "match": "session:20"}, "does not go with strategy 'shadow'"),
        ({"strategy": "shadow", "gate": "error_rate<0.1"}, "takes no gate"),
        ({"strategy": None, "match": "session:20", "pause": "1m"}, "takes no gate and no pause"),
    ],
)
def test_what_does_not_fit_is_told(given, message):
    with pytest.raises(UserError, match=message):
        choose(**given)


def test_it_needs_what_reads_requests():
    how = choose(strategy="shadow")
    with pytest.raises(UserError, match="needs what reads requests .* target 'docker' has none"):
        how.check(None, "fraud", "docker")


def release(weights, routes=None, states=None):
    revisions = tuple(
        Revision(id=n, source="s", digest="", state=state) for n, state in (states or {1: "running"}).items()
    )
    return Release(name="m", target="t", revisions=revisions, weights=weights, routes=routes or {})


BOTH = {1: "running", 4: "running"}


def test_the_plan():
    how = choose(strategy=None, match="header:X-Group=b")
    assert (how.name, how.note) == ("ab", "ab header:X-Group=b")
    wanted = [Start(NEW), Check(4), Route(4, "header:X-Group=b")]
    assert list(how.plan(release({1: 100}), NEW)) == wanted
    assert list(choose(strategy="shadow").plan(release({1: 100}), NEW))[-1] == Route(4, "shadow")
    nothing = Release(name="m", target="t")
    assert list(how.plan(nothing, NEW)) == [Start(NEW), Check(4), Shift({4: 100})]


def test_it_is_promoted_and_abandoned_as_a_canary_is():
    now = release({1: 100}, {4: "shadow"}, BOTH)
    assert list(rollout.promote(now)) == [Shift({4: 100}), Stop(1)]
    assert list(rollout.abandon(now)) == [Shift({1: 100}), Stop(4, failed=True)]


def test_a_route_that_failed_is_undone_and_one_that_was_there_comes_back():
    before, after = release({1: 100}), release({1: 100}, {4: "shadow"}, BOTH)
    assert list(rollout.restore(after, before)) == [Shift({1: 100}), Stop(4, failed=True)]
    moved = release({4: 100}, {}, BOTH)
    assert list(rollout.restore(moved, after)) == [Shift({1: 100}), Route(4, "shadow")]
    assert list(rollout.restore(after, after)) == []


if __name__ == "__main__":
    for name in CASES:
        (DATA / f"{name}.json").write_text(json.dumps(told(name), indent=2, sort_keys=True) + "\n")
