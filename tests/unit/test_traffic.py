"""From counters to figures: differences, restarts, replicas, quantiles, and how they are shown."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from traffic_pages import Busy, Counters, window

from mlopsnb.monitoring.counting import FIGURES, Buckets, Counts, Levels, Sample, figure_text, joined, read
from mlopsnb.monitoring.prometheus import arranged, cells
from mlopsnb.monitoring.sampling import Sampler, merged
from mlopsnb.monitoring.traffic import RevisionTraffic, Traffic, span_text

BOUNDS = (0.01, 0.1, 1.0, math.inf)


def buckets(*counts):
    """A histogram with so many observations in each bucket, of which each is at its bound (the last at 2)."""
    below, so_far = {}, 0.0
    for bound, count in zip(BOUNDS, counts, strict=True):
        so_far += count
        below[bound] = so_far
    return Buckets(below, sum(min(b, 2.0) * n for b, n in zip(BOUNDS, counts, strict=True)))


COUNT = st.integers(0, 50)
HISTOGRAM = st.builds(buckets, COUNT, COUNT, COUNT, COUNT)
COUNTS = st.builds(
    lambda codes, duration, cpu: Counts(
        codes={code: float(n) for code, n in codes.items()}, duration=duration, cpu=float(cpu)
    ),
    st.dictionaries(st.sampled_from([200, 400, 429, 499, 500, 503, 504]), COUNT, max_size=4),
    HISTOGRAM,
    COUNT,
)


def same(a, b):
    """Compare counts; codes that were not counted are zero."""
    codes = {k: v for k, v in a.codes.items() if v} == {k: v for k, v in b.codes.items() if v}
    return (
        codes and a.duration.below == b.duration.below and a.duration.total == pytest.approx(b.duration.total)
    )


def sample(counts, at=0.0, started=0.0):
    return Sample(at=at, counts=counts, levels=Levels(replicas=1), started=started)


@examples(deadline=None)
@given(COUNTS, COUNTS)
def test_what_came_after_is_the_difference(before, after):
    now = sample(before + after, started=5.0)
    assert same(now.since(sample(before, started=5.0)), after)


@examples(deadline=None)
@given(COUNTS, COUNTS)
def test_a_process_that_started_again_counts_from_zero(before, after):
    assert sample(after, started=90.0).since(sample(before, started=5.0)) == after
    if after.fell(before):
        assert sample(after).since(sample(before)) == after


def test_a_replica_seen_for_the_first_time_counts_from_then_on():
    counts = Counts(codes={200: 7.0})
    assert sample(counts).since(None) == Counts()
    new, old = sample(counts, at=20.0, started=15.0), sample(counts, at=20.0, started=5.0)
    assert merged({"a": new, "b": old}, {}, 10.0, 20.0).counts == counts


@examples(deadline=None)
@given(COUNTS, COUNTS, COUNTS)
def test_replicas_add_up_in_any_order(a, b, c):
    assert same((a + b) + c, c + (b + a))
    assert (a + b).errors == a.errors + b.errors
    assert sum((a + b).kinds.values()) == a.errors + b.errors


def test_servers_with_other_bounds_add_up_where_they_agree():
    other = Buckets({0.1: 3.0, math.inf: 5.0}, 1.0)
    assert (buckets(1, 2, 3, 4) + other).below == {0.1: 6.0, math.inf: 15.0}


def test_kinds_of_errors():
    counts = Counts(codes={200: 5.0, 400: 1.0, 422: 2.0, 429: 3.0, 499: 9.0, 500: 4.0, 503: 5.0, 504: 6.0})
    assert counts.kinds == {"server error": 4, "overloaded": 8, "deadline passed": 6, "client error": 3}
    assert (counts.errors, counts.server_errors, counts.requests) == (21, 18, 35)


@examples(deadline=None)
@given(HISTOGRAM, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_rise_and_stay_within_the_bounds(histogram, a, b):
    low, high = histogram.quantile(min(a, b)), histogram.quantile(max(a, b))
    if not histogram.count:
        assert math.isnan(low)
        return
    assert 0 <= low <= high <= 1.0


@pytest.mark.parametrize(
    ("counts", "q", "value"),
    [
        ((10, 0, 0, 0), 0.5, 0.005),
        ((0, 10, 0, 0), 0.5, 0.055),
        ((5, 5, 0, 0), 0.99, 0.01 + 0.09 * 0.98),
        ((0, 0, 0, 10), 0.5, 1.0),
        ((5, 0, 5, 0), 0.5, 0.01),
    ],
)
def test_quantiles_as_prometheus_has_them(counts, q, value):
    assert buckets(*counts).quantile(q) == pytest.approx(value)


@pytest.mark.prometheus
@examples(max_examples=3, deadline=None)
@given(st.lists(HISTOGRAM.filter(lambda h: h.count), min_size=25, max_size=25))
def test_quantiles_are_those_of_prometheus_itself(tmp_path_factory, histograms):
    series, wanted = [], []
    for i, histogram in enumerate(histograms):
        for bound, count in histogram.below.items():
            le = "+Inf" if bound == math.inf else repr(bound)
            series.append({"series": f'h{i}_bucket{{le="{le}"}}', "values": str(count)})
        for q in (0.5, 0.9, 0.99):
            value = histogram.quantile(q)
            wanted.append(
                {
                    "expr": f"abs(histogram_quantile({q}, h{i}_bucket) - {value!r}) < bool 1e-12",
                    "eval_time": "0m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
            )
    path = tmp_path_factory.mktemp("promtool") / "test.yml"
    path.write_text(json.dumps({"tests": [{"input_series": series, "promql_expr_test": wanted}]}))
    done = subprocess.run([shutil.which("promtool"), "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_of_a_real_server_is_read():
    counters = Counters()
    counters.count(90, errors=10, code=503, seconds=0.006)
    found = read(counters.page(), 12.0)
    assert found.counts.codes == {200: 90.0, 503: 10.0}
    assert found.counts.duration.count == 100
    assert found.counts.duration.mean == pytest.approx(0.006)
    assert found.levels.replicas == 1
    assert found.levels.memory > 1e6
    assert found.started > 1e9
    assert 0.005 < found.counts.duration.quantile(0.5) < 0.01


def test_windows_join_to_one():
    a, b = window(30, over=1.0), replace(window(10, errors=10), at=5.0)
    whole = joined([a, b])
    assert (whole.at, whole.seconds, whole.counts.requests) == (5.0, 11.0, 50)
    assert FIGURES["qps"].of(whole) == pytest.approx(50 / 11)
    assert FIGURES["error_rate"].of(whole) == pytest.approx(0.2)
    assert joined([]) is None


def test_ticks_tell_what_came_between_them():
    target = Busy({1: {"rate": 10, "before": 5}, 2: {"rate": 1, "errors": 1}})
    sampler = Sampler(target, "m", [1, 2])
    assert sampler.tick() == {}
    target.sleep(3)
    windows = sampler.tick()
    assert windows[1].counts.codes == {200: 30.0}
    assert {code: n for code, n in windows[2].counts.codes.items() if n} == {200: 3.0, 500: 3.0}
    assert sampler.totals()[1].counts.requests == 35
    assert sampler.tick()[1].counts.requests == 0


EVIL = "<script>x</script>"


def traffic(points=3):
    def side(revision, role, share, good, errors):
        windows = tuple(replace(window(good, errors=errors), at=float(i)) for i in range(points))
        return RevisionTraffic(
            revision=revision, source="s", role=role, share=share, total=window(good * 9), points=windows
        )

    return Traffic(
        name=EVIL,
        target="docker",
        source="pages",
        revisions=(side(1, "stable", 90, 90, 0), side(2, "canary", 10, 9, 1)),
    )


def test_it_is_text_with_a_column_for_each_revision_and_time():
    lines = str(traffic()).splitlines()
    assert lines[0] == f"Traffic of {EVIL} on docker, from pages"
    assert "revision 1, stable, 90 %: last 30 s" in lines[1]
    assert "revision 2, canary, 10 %: all its 10 s" in lines[1]
    rows = {line.split("  ")[1].strip(): line.split() for line in lines[2:]}
    assert rows["error rate"][-4:] == ["0.00%", "0.00%", "10.00%", "0.00%"]
    assert any(line.strip().startswith("server error") and "500: 3" in line for line in lines)
    assert traffic().figures()["requests"] == 270  # of the one with most of the traffic
    assert traffic().figures(2)["error_rate"] == pytest.approx(0.1)
    assert "none" in str(traffic(points=0))


def test_it_is_a_page_without_scripts_and_a_line_for_each_revision():
    page = traffic()._repr_html_()
    assert EVIL not in page
    assert page.count('role="img"') == 8
    assert (
        page.count("stroke-dasharray") == 7
    )  # the line of the canary in the legend and where there are figures
    assert 'aria-label="error rate over 2 s, at most 10.00%"' in page
    assert "<svg" not in traffic(points=1)._repr_html_()


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (123456.0, "123456"), (0.12345, "0.123"), (math.nan, "none")]
)
def test_figures_are_short(value, text):
    assert figure_text("p99_ms", value) == text
    assert figure_text("error_rate", 0.00001) == "1e-05"


def test_spans_are_short():
    assert [span_text(s) for s in (1.5, 90, 600, 7200, 200000)] == [
        "1.5 s",
        "90 s",
        "10 min",
        "2 h",
        "2.31 d",
    ]


def test_scraped_samples_become_windows():
    def series(name, values, **labels):
        return {"metric": {"__name__": name, "instance": "a:1", **labels}, "values": values}

    found = [
        series("mlopsnb_request_total", [[0, "0"], [10, "50"], [20, "5"]], code="200"),  # it started again
        series("mlopsnb_request_duration_seconds_bucket", [[0, "0"], [10, "50"], [20, "5"]], le="+Inf"),
        series("process_resident_memory_bytes", [[0, "1e6"], [10, "2e6"], [20, "3e6"]]),
        series("process_resident_memory_bytes", [[5, "9e9"]], instance="b:1"),  # no server of ours
    ]
    scraped = arranged(found)
    assert list(scraped) == ["a:1"]
    windows = cells(scraped, 0.0, 20.0)
    assert [w.counts.requests for w in windows] == [0.0, 55.0] or [w.counts.requests for w in windows] == [
        50.0,
        5.0,
    ]
    assert joined(windows).counts.requests == 55
    assert windows[-1].levels.memory == 3e6
    assert cells({}, 0.0, 20.0) == ()
