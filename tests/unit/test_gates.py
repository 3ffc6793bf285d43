"""Rules, and gates that go by them: first what the rules say, then a gate over traffic that a model target makes up."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from traffic_pages import Busy, window

from mlopsnb import rollout
from mlopsnb.errors import DeployError, GateRejected, NotEnoughRequests, UserError
from mlopsnb.events import reporting_to
from mlopsnb.monitoring import gates, rules
from mlopsnb.monitoring.counting import FIGURES
from mlopsnb.monitoring.rules import MINIMUM, Comparison, Rule, hopeless, judge, parse

FIGURE = st.sampled_from(sorted(FIGURES))
LIMIT = st.floats(allow_nan=False, allow_infinity=False)
RULES = st.lists(st.builds(Comparison, FIGURE, st.sampled_from(["<", "<=", ">", ">="]), LIMIT), max_size=4)


def test_a_rule_is_read():
    assert parse("error_rate<0.01 and p99_ms <= 200").comparisons == (
        Comparison("error_rate", "<", 0.01),
        Comparison("p99_ms", "<=", 200.0),
    )
    assert parse("error_rate < 1%") == parse("error_rate<.01") == parse("  error_rate<1e-2 ")
    assert parse("") == parse("  ") == Rule()


@settings(deadline=None)
@given(RULES)
def test_what_is_written_is_read_again(comparisons):
    rule = Rule(tuple(comparisons))
    assert parse(str(rule)) == rule


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_clear_error(text):
    with suppress(UserError):
        assert parse(str(parse(text))) == parse(text)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["p99_ms", "<", ">=", "5", "%", "and", "1e999", "qps", "()"]), max_size=9))
def test_any_order_of_words_is_a_rule_or_a_clear_error(words):
    try:
        rule = parse(" ".join(words))
    except UserError:
        return
    assert len(rule.comparisons) == (words.count("and") + 1 if words else 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p99ms<200", "no figure named 'p99ms'; there are requests.*\n.*did you mean 'p99_ms'"),
        ("p99_ms=200", "p99_ms is compared by <"),
        ("p99_ms<", "p99_ms < wants a number"),
        ("p99_ms<abc", "p99_ms < wants a number"),
        ("p99_ms<1e999", "1e999 is too large"),
        ("<5", "a comparison begins with a figure"),
        ("qps>1 or qps<5", "comparisons are joined by 'and'"),
        ("qps>1 and", "it ends with 'and'"),
        ("qps>1 qps<5", "comparisons are joined by 'and'"),
        ("__import__('os')<1", "no figure named '__import__'"),
        (7, "a rule is a text, found int"),
    ],
)
def test_what_is_no_rule_says_why(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_kept_broken_or_too_few():
    rule = parse("error_rate<0.1 and p99_ms<100")
    assert judge(rule, window(100, seconds=0.02)).outcome == "kept"
    assert judge(rule, window(MINIMUM - 1, seconds=0.02)).outcome == "not enough requests"
    verdict = judge(rule, window(80, errors=20, seconds=0.3))
    assert verdict.outcome == "broken"
    assert [rules.told(c, v) for c, v in verdict.broken] == [
        "error_rate is 20.00%, the limit is < 10.00%",
        "p99_ms is 498, the limit is < 100",
    ]


def test_the_rule_may_say_how_many_are_enough():
    assert judge(parse("error_rate<0.1 and requests>=5"), window(5)).outcome == "kept"
    assert judge(parse("error_rate<0.1 and requests>=500"), window(100)).outcome == "not enough requests"
    assert judge(parse("memory_mb>0"), window(0)).outcome == "kept"
    assert judge(parse(""), window(0)).outcome == "kept"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.floats(0.001, 0.5), st.sampled_from([0.003, 0.04, 0.4]))
def test_what_is_hopeless_is_broken(good, bad, limit, seconds):
    rule = parse(f"error_rate<{limit!r} and p99_ms<50")
    seen = window(good, errors=bad, seconds=seconds)
    if verdict := hopeless(rule, seen):
        assert judge(rule, seen).outcome in ("broken", "not enough requests")
        assert all(not c.holds(value) for c, value in verdict.broken)


def test_a_little_too_bad_is_not_hopeless_and_far_too_bad_is():
    rule = parse("error_rate<0.01")
    assert hopeless(rule, window(97, errors=3)) is None
    assert hopeless(rule, window(70, errors=30)).outcome == "broken"
    assert hopeless(rule, window(5, errors=1)) is None
    assert hopeless(rule, window(0, errors=2)) is None
    assert hopeless(rule, window(0, errors=3)).outcome == "broken"
    assert hopeless(parse("error_rate<=0"), window(999, errors=1)).outcome == "broken"
    assert hopeless(parse("error_rate<1"), window(0, errors=9)) is None
    assert hopeless(parse("p50_ms<1"), window(100, seconds=0.3)).outcome == "broken"
    assert hopeless(parse("qps>1000000"), window(100)) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.data(), st.floats(0.0005, 0.9))
def test_the_tail_is_that_of_the_binomial_distribution(n, data, share):
    hits = data.draw(st.integers(0, n))
    if hits > n * share:
        assert rules.tail(hits, n, share) == pytest.approx(binom.sf(hits - 1, n, share), rel=1e-6, abs=1e-100)


def held(target, rule, seconds=30.0, revision=2):
    """Hold a gate on *target*, whose clock is the one that is waited by."""
    said = []
    with reporting_to(said.append):
        try:
            result = gates.hold(
                target, "m", rollout.Gate(revision, rule, seconds), clock=target.clock, sleep=target.sleep
            )
        except Exception as exc:
            exc.events = said
            raise
    return result, said


def test_a_gate_that_is_kept_waits_for_all_its_time_and_tells_the_figures():
    target = Busy({1: {"rate": 90}, 2: {"rate": 10}})
    result, said = held(target, "error_rate<0.01 and p99_ms<200")
    assert target.now == pytest.approx(30)
    assert result == "revision 2: error_rate 0.00%, p99_ms 9.95, 300 requests"
    assert [e.step for e in said] == ["gate"] * len(said)
    assert said[-1].fraction == 1.0
    assert said[0].message == "revision 2: error_rate 0.00%, p99_ms 9.95, 10 requests"


def test_a_gate_that_is_broken_at_the_end_says_figure_limit_window_and_what_the_stable_one_has():
    target = Busy({1: {"rate": 90, "errors": 1}, 2: {"rate": 49, "errors": 1}})
    with pytest.raises(GateRejected) as caught:
        held(target, "error_rate<0.015")
    assert target.now == pytest.approx(30)
    assert caught.value.message == (
        "revision 2 did not pass its gate: error_rate is 2.00%, the limit is < 1.50%, in 1,500 requests over 30.0 s; "
        "revision 1 in the same time: error_rate 1.10% in 2,730 requests"
    )
    assert caught.value.hint == "its log may say why: logs(revision=2)"


def test_a_gate_that_cannot_be_kept_any_more_is_ended_early():
    target = Busy({1: {"rate": 90}, 2: {"rate": 5, "errors": 5}})
    with pytest.raises(GateRejected, match="error_rate is 50.00%, the limit is < 1.00%"):
        held(target, "error_rate<0.01")
    assert target.now < 3


def test_a_gate_without_enough_requests_says_how_many_came():
    target = Busy({1: {"rate": 90}, 2: {"rate": 1}})
    with pytest.raises(NotEnoughRequests) as caught:
        held(target, "error_rate<0.01")
    assert (
        caught.value.message == "only 30 requests came to revision 2 in 30 s; the gate needs 50 to judge by"
    )
    assert isinstance(caught.value, GateRejected)


def test_after_a_switch_the_old_revision_is_told_with_all_its_time():
    target = Busy({1: {"rate": 0, "before": 400}, 2: {"rate": 5, "errors": 5}})
    with pytest.raises(GateRejected, match="revision 1 in all its time: error_rate 0.00% in 400 requests"):
        held(target, "error_rate<0.01")


def test_a_gate_of_the_only_revision_has_nothing_beside_it():
    target = Busy({2: {"rate": 5, "errors": 5}})
    with pytest.raises(GateRejected) as caught:
        held(target, "error_rate<0.01")
    assert "; revision" not in caught.value.message


def test_a_pause_waits_and_judges_nothing():
    target = Busy({1: {"rate": 1}, 2: {"rate": 1, "errors": 99}})
    assert held(target, "", 3.0)[0] == "revision 2: 300 requests"
    assert held(target, "", 0.0)[0] == "revision 2: 0 requests"


def test_a_revision_that_ends_meanwhile_is_told():
    target = Busy({1: {"rate": 9}, 2: {"rate": 9}}, dies=(2, 4.0))
    with pytest.raises(DeployError, match="revision 2 of 'm' ended while its gate was watching"):
        held(target, "error_rate<0.01")
    assert target.now < 6


def test_what_came_before_the_gate_does_not_count():
    target = Busy({1: {"rate": 9}, 2: {"rate": 9, "before": 1000, "before_errors": 900}})
    assert held(target, "error_rate<0.01")[0] == "revision 2: error_rate 0.00%, 270 requests"


def test_figures_without_requests_are_no_numbers():
    empty = replace(window(0))
    assert math.isnan(FIGURES["error_rate"].of(empty))
    assert math.isnan(FIGURES["p99_ms"].of(empty))
    assert not Comparison("p99_ms", "<", 5.0).holds(math.nan)
