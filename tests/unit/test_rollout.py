"""Strategies against a perfect target: it does what each action says, and no more."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlopsnb.records import Release, Revision, Workload
from mlopsnb.rollout import (
    Check,
    Forget,
    Gate,
    Scale,
    Shift,
    Start,
    Stop,
    abandon,
    blue_green,
    canary,
    next_id,
    promote,
    restore,
    rolling,
    running,
    serving,
    trial,
    unchanged,
)


def revision(number, state="running", replicas=1):
    return Revision(
        id=number,
        source=f"models:/m/{number}",
        digest=f"sha256:{number}",
        state=state,
        workload=Workload(replicas=replicas),
    )


EMPTY = Release(name="m", target="process")
ONE = replace(EMPTY, revisions=(revision(1),), weights={1: 100}, url="http://x:8000")
SPLIT = replace(EMPTY, revisions=(revision(1), revision(2)), weights={1: 90, 2: 10})


@dataclass
class World:
    """A target that does what it is told, and notes what it saw."""

    release: Release
    replicas: dict = field(default_factory=dict)
    checked: set = field(default_factory=set)

    def __post_init__(self):
        self.replicas = {r.id: r.workload.replicas for r in running(self.release)}
        self.checked = set(self.replicas)  # what ran before was checked before

    def apply(self, action):
        now = self.release
        match action:
            case Start(new):
                assert new.id not in {r.id for r in now.revisions}
                now = replace(now, revisions=(*now.revisions, replace(new, state="running")))
                self.replicas[new.id] = 1  # the fewest that a target may start with
            case Check(number):
                assert self.replicas[number]
                self.checked.add(number)
            case Shift(weights):
                assert sum(weights.values()) == 100
                assert all(share > 0 for share in weights.values())
                assert set(weights) <= self.checked & set(self.replicas), "traffic for one that is not ready"
                known = {r.id: r.workload.replicas for r in now.revisions}
                for number, share in weights.items():
                    wanted = -(-known[number] * share // 100)
                    self.replicas[number] = max(self.replicas[number], wanted)
                now = replace(now, weights=dict(weights))
            case Scale(number, replicas):
                self.replicas[number] = replicas
                now = self.with_(now, number, workload=Workload(replicas=replicas))
            case Stop(number, failed):
                assert failed or number not in now.weights, "a revision is stopped that has traffic"
                del self.replicas[number]
                now = self.with_(now, number, state="failed" if failed else "stopped")
                now = replace(now, weights={k: v for k, v in now.weights.items() if k != number})
            case Forget():
                now = replace(now, revisions=(), weights={})
                self.replicas = {}
            case Gate(number, _, seconds):
                assert now.weights[number]
                assert seconds >= 0
        self.release = now

    @staticmethod
    def with_(release, number, **changes):
        return replace(
            release,
            revisions=tuple(replace(r, **changes) if r.id == number else r for r in release.revisions),
        )

    @property
    def capacity(self):
        """The replicas that have traffic."""
        return sum(self.replicas[number] for number in self.release.weights)


@st.composite
def releases(draw, split=False):
    count = draw(st.integers(2 if split else 1, 5))
    states = draw(st.lists(st.sampled_from(["running", "stopped", "failed"]), min_size=count, max_size=count))
    if split:
        states[-2:] = "running", "running"
    revisions = tuple(revision(i + 1, s, draw(st.integers(1, 6))) for i, s in enumerate(states))
    alive = [r.id for r in revisions if r.state == "running"]
    weights = {draw(st.sampled_from(alive)): 100} if alive and draw(st.booleans()) else {}
    if split:
        share = draw(st.integers(1, 99))
        weights = {count - 1: 100 - share, count: share}
    return replace(EMPTY, revisions=revisions, weights=weights)


STEPS = st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True).map(sorted)
PLANS = st.one_of(
    st.builds(
        lambda gate, pause: (rolling, {"gate": gate, "pause": pause}),
        st.sampled_from(["", "qps>1"]),
        st.just(5.0),
    ),
    st.builds(
        lambda gate, pause: (blue_green, {"gate": gate, "pause": pause}),
        st.sampled_from(["", "qps>1"]),
        st.just(5.0),
    ),
    st.builds(
        lambda steps, gate, pause: (canary, {"steps": steps, "gate": gate, "pause": pause}),
        STEPS,
        st.sampled_from(["", "qps>1"]),
        st.sampled_from([None, 5.0]),
    ),
)


@st.composite
def situations(draw):
    """What runs, and a plan for it."""
    kind = draw(st.sampled_from(["deploy", "promote", "abandon"]))
    if kind != "deploy":
        before = draw(releases(split=True))
        return before, tuple((promote if kind == "promote" else abandon)(before))
    before = draw(releases())
    strategy, options = draw(PLANS)
    new = revision(next_id(before), "starting", draw(st.integers(1, 6)))
    return before, tuple(strategy(before, new, **options))


@settings(deadline=None)
@given(situations())
def test_traffic_goes_only_where_it_is_ready_and_capacity_is_never_lost(situation):
    before, plan = situation
    world = World(before)
    heirs = {a.revision_id for a in plan if isinstance(a, Check)} | {r.id for r in trial(before) or ()}
    asked = [a.revision for a in plan if isinstance(a, Start)] + list(running(before))
    wanted = min([world.capacity, *(r.workload.replicas for r in asked if r.id in heirs)])
    for action in plan:
        served = bool(world.release.weights)
        world.apply(action)
        assert world.release.weights or not served, "nothing serves"
        assert world.capacity >= wanted or not before.weights


@settings(deadline=None)
@given(situations(), st.data())
def test_restoring_after_any_prefix_brings_back_what_served(situation, data):
    before, plan = situation
    world = World(before)
    for action in plan[: data.draw(st.integers(0, len(plan)))]:
        world.apply(action)
    lost = {r.id for r in running(before)} - set(world.replicas)
    served = set(world.release.weights)
    for action in restore(world.release, before):
        world.apply(action)
    if before.weights and not lost & set(before.weights):
        assert dict(world.release.weights) == dict(before.weights)
        assert {r.id for r in running(world.release)} == {r.id for r in running(before)} - lost
        assert serving(world.release) == serving(before)
    elif before.weights:  # what served has ended, after something else took over
        assert set(world.release.weights) & (served | set(before.weights))
    else:
        assert {r.id for r in running(world.release)} == {r.id for r in running(before)} - lost


@settings(deadline=None)
@given(releases(), PLANS)
def test_after_a_whole_plan_the_new_one_alone_serves_or_the_canary_has_its_first_share(before, plan):
    strategy, options = plan
    new = revision(next_id(before), "starting")
    world = World(before)
    for action in strategy(before, new, **options):
        world.apply(action)
    if strategy is canary and options["pause"] is None and serving(before):
        stable, trying = trial(world.release)
        assert (stable.id, trying.id) == (serving(before).id, new.id)
        assert world.release.weights[new.id] == options["steps"][0]
        for action in promote(world.release):
            world.apply(action)
    assert [r.id for r in running(world.release)] == [new.id]
    assert serving(world.release).id == new.id


@settings(deadline=None)
@given(releases(split=True))
def test_promoting_and_abandoning_leave_one(before):
    stable, trying = trial(before)
    for verb, left in ((promote, trying), (abandon, stable)):
        world = World(before)
        for action in verb(before):
            world.apply(action)
        assert dict(world.release.weights) == {left.id: 100}


def test_the_first_revision_starts_is_checked_and_gets_all_traffic():
    new = revision(1, "starting")
    whole = (Start(new), Check(1), Shift({1: 100}))
    assert tuple(rolling(EMPTY, new, gate="qps>1", pause=9)) == whole
    assert tuple(blue_green(EMPTY, new, gate="qps>1", pause=9)) == whole
    assert tuple(canary(EMPTY, new)) == whole


def test_the_next_one_replaces_it_only_after_the_shift():
    new = revision(2, "starting")
    assert tuple(rolling(ONE, new)) == (Start(new), Check(2), Shift({2: 100}), Stop(1))


def test_rolling_with_a_gate_keeps_the_old_one_until_it_is_passed():
    new = revision(2, "starting")
    assert tuple(rolling(ONE, new, gate="error_rate<0.01", pause=30)) == (
        *(Start(new), Check(2), Shift({2: 100})),
        *(Gate(2, "error_rate<0.01", 30), Stop(1)),
    )


def test_blue_green_is_whole_before_the_switch():
    new = revision(2, "starting", replicas=3)
    assert tuple(blue_green(ONE, new, pause=60)) == (
        *(Start(new), Scale(2, 3), Check(2), Shift({2: 100})),
        *(Gate(2, "", 60), Stop(1)),
    )


def test_a_canary_goes_up_in_steps_with_a_gate_at_each():
    new = revision(2, "starting")
    assert tuple(canary(ONE, new, steps=(10, 50), gate="p99_ms<200", pause=30)) == (
        *(Start(new), Check(2)),
        *(Shift({1: 90, 2: 10}), Gate(2, "p99_ms<200", 30)),
        *(Shift({1: 50, 2: 50}), Gate(2, "p99_ms<200", 30)),
        *(Shift({2: 100}), Stop(1)),
    )


def test_a_canary_without_a_pause_stays_until_it_is_promoted_or_rolled_back():
    new = revision(2, "starting")
    assert tuple(canary(ONE, new, steps=(10,), pause=None)) == (Start(new), Check(2), Shift({1: 90, 2: 10}))
    assert tuple(promote(SPLIT)) == (Shift({2: 100}), Stop(1))
    assert tuple(abandon(SPLIT)) == (Shift({1: 100}), Stop(2, failed=True))
    assert tuple(promote(ONE)) == tuple(abandon(ONE)) == ()


def test_the_newest_is_the_canary_even_with_most_of_the_traffic():
    assert [r.id for r in trial(replace(SPLIT, weights={1: 10, 2: 90}))] == [1, 2]
    assert trial(ONE) is None


def test_a_first_deploy_that_failed_leaves_nothing():
    assert tuple(restore(ONE, EMPTY)) == (Forget(),)
    assert tuple(restore(EMPTY, EMPTY)) == ()


def test_what_serves_is_kept_where_what_served_before_has_ended():
    now = replace(ONE, revisions=(revision(1, "stopped"), revision(2)), weights={2: 100})
    assert tuple(restore(now, ONE)) == ()
    unserved = replace(now, weights={})
    assert tuple(restore(unserved, ONE)) == (Stop(2, failed=True),)


def test_of_a_split_of_which_one_has_ended_the_other_gets_all():
    now = replace(SPLIT, revisions=(revision(1), revision(2, "stopped")), weights={1: 90})
    assert tuple(restore(now, SPLIT)) == (Shift({1: 100}),)


def test_replicas_come_back_too():
    now = replace(ONE, revisions=(revision(1, replicas=1),))
    before = replace(ONE, revisions=(revision(1, replicas=4),))
    assert tuple(restore(now, before)) == (Scale(1, 4),)


def test_the_same_again_is_seen():
    again = replace(revision(2, "starting"), digest="sha256:1", source="models:/m/9")
    assert unchanged(ONE, again).id == 1
    assert unchanged(ONE, replace(again, port=8000)).id == 1
    assert unchanged(EMPTY, again) is None
    assert unchanged(SPLIT, again) is None


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:2"},
        {"digest": ""},
        {"image": "m@sha256:3"},
        {"env": {"A": "1"}},
        {"workload": Workload(cpu=1.0)},
        {"workers": 2},
        {"cache_bytes": 1},
        {"capture": 0.5},
        {"mask": ("age",)},
        {"port": 800},
        {"grpc_port": 0},
        {"fallback": "elsewhere"},
    ],
)
def test_what_differs_is_no_repetition(change):
    again = replace(revision(2, "starting"), digest="sha256:1")
    assert unchanged(ONE, replace(again, **change)) is None


def test_every_action_of_every_strategy_is_one_that_targets_know():
    kinds = Counter()
    for strategy, options in ((rolling, {"gate": "qps>1"}), (blue_green, {"pause": 1.0}), (canary, {})):
        kinds.update(type(a).__name__ for a in strategy(ONE, revision(2, "starting", 2), **options))
    assert set(kinds) == {"Start", "Check", "Gate", "Shift", "Scale", "Stop"}
