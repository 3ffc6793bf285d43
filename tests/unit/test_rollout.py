from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.records import Release, Revision
from mlopsnb.rollout import Check, Forget, Shift, Start, Stop, next_id, restore, rolling, running, serving


def revision(number, state="running"):
    return Revision(id=number, source=f"models:/m/{number}", digest="sha256:0", state=state)


EMPTY = Release(name="m", target="process")
ONE = replace(EMPTY, revisions=(revision(1),), weights={1: 100}, url="http://x")


def apply(release, action):
    """What a perfect target would do."""
    match action:
        case Start(new):
            return replace(release, revisions=(*release.revisions, replace(new, state="running")))
        case Shift(weights):
            return replace(release, weights=dict(weights))
        case Stop(number, failed):
            state = "failed" if failed else "stopped"
            revisions = tuple(replace(r, state=state) if r.id == number else r for r in release.revisions)
            return replace(
                release,
                revisions=revisions,
                weights={k: v for k, v in release.weights.items() if k != number},
            )
        case Forget():
            return replace(release, revisions=(), weights={})
        case Check():
            return release


def test_the_first_revision_starts_is_checked_and_gets_all_traffic():
    new = revision(1, "starting")
    assert tuple(rolling(EMPTY, new)) == (Start(new), Check(1), Shift({1: 100}))


def test_the_next_one_replaces_it_only_after_the_shift():
    new = revision(2, "starting")
    assert tuple(rolling(ONE, new)) == (Start(new), Check(2), Shift({2: 100}), Stop(1))


def test_a_first_deploy_that_failed_leaves_nothing():
    assert tuple(restore(ONE, EMPTY)) == (Forget(),)
    assert tuple(restore(EMPTY, EMPTY)) == ()


def test_what_has_ended_is_not_given_traffic_again():
    now = replace(ONE, revisions=(revision(1, "stopped"), revision(2)), weights={2: 100})
    assert tuple(restore(now, ONE)) == (Stop(2, failed=True),)


@st.composite
def releases(draw):
    states = draw(st.lists(st.sampled_from(["running", "stopped", "failed"]), min_size=1, max_size=5))
    revisions = tuple(revision(i + 1, s) for i, s in enumerate(states))
    alive = [r.id for r in revisions if r.state == "running"]
    weights = {draw(st.sampled_from(alive)): 100} if alive and draw(st.booleans()) else {}
    return replace(EMPTY, revisions=revisions, weights=weights)


@given(releases(), st.data())
def test_stopping_anywhere_before_the_old_one_ends_and_restoring_brings_back_what_served(before, data):
    plan = tuple(rolling(before, revision(next_id(before), "starting")))
    undoable = [a for a in plan if not isinstance(a, Stop)]
    now = before
    for action in undoable[: data.draw(st.integers(0, len(undoable)))]:
        now = apply(now, action)
    for action in restore(now, before):
        now = apply(now, action)
    assert dict(now.weights) == dict(before.weights) or not before.weights
    assert running(now) == running(before)
    assert serving(now) == serving(before)


@given(releases())
def test_after_a_whole_plan_the_new_one_alone_serves(before):
    new = revision(next_id(before), "starting")
    now = before
    for action in rolling(before, new):
        now = apply(now, action)
    assert [r.id for r in running(now)] == [new.id]
    assert serving(now).id == new.id
    assert new.id not in {r.id for r in before.revisions}
