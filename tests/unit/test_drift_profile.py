from __future__ import annotations

import pickle
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from mlopsnb import profiles
from mlopsnb.errors import UserError
from mlopsnb.events import reporting_to
from mlopsnb.monitoring import statistics as st
from mlopsnb.monitoring.live import compare_profile, count_table
from mlopsnb.monitoring.profiling import ProfileBuilder, profile
from mlopsnb.profiles import Tally

ROWS = 20_000
NAN = float("nan")


def rng(seed=0):
    return np.random.default_rng(seed)


def mixed(rows=ROWS, seed=0):
    r = rng(seed)
    return pd.DataFrame(
        {
            "normal": r.normal(size=rows),
            "heavy": np.exp(r.normal(0, 2, rows)),
            "count": r.poisson(4, rows),
            "wide": r.integers(0, 100_000, rows),
            "zeros": np.where(r.random(rows) < 0.6, 0, r.exponential(size=rows)),
            "holes": np.where(r.random(rows) < 0.1, NAN, r.normal(size=rows)),
            "flag": r.random(rows) < 0.3,
            "few": r.choice([0.1, 0.2, 0.3], rows).astype("float32"),
            "text": r.choice(["a", "b", "c"], rows),
            "many": r.choice([f"v{i}" for i in range(300)], rows),
            "when": np.full(rows, datetime(2024, 1, 1), "datetime64[s]"),
            "empty": np.full(rows, NAN),
        }
    )


@pytest.fixture(scope="module")
def made():
    return profile(mixed())


def feature(made, name):
    return next(f for f in made.features if f.name == name)


def test_every_column_is_counted_or_says_why(made):
    assert {f.name: f.kind for f in made.features if not f.skipped} == {
        **dict.fromkeys(("normal", "heavy", "count", "wide", "zeros", "holes"), "numeric"),
        **dict.fromkeys(("flag", "few", "text", "many"), "category"),
    }
    assert feature(made, "when").skipped.startswith("datetime64")
    assert feature(made, "empty").skipped == "all values are missing"
    for f in made.features:
        assert sum(f.counts) + f.missing == (ROWS if not f.skipped or f.missing else 0)
    assert profiles.from_json(profiles.to_json(made)) == made


def test_bins_are_quantiles_with_tails(made):
    f = feature(made, "heavy")
    x = np.sort(mixed()["heavy"])
    assert 64 <= len(f.edges) <= 90
    assert np.diff(np.r_[0, np.searchsorted(x, f.edges, "right"), ROWS]).tolist() == list(f.counts)
    assert max(f.counts) < ROWS / 40
    assert (f.low, f.high) == pytest.approx(st.tails(x), rel=0.05)
    clipped = np.clip(x, f.low, f.high)
    assert (f.mean, f.std) == pytest.approx((clipped.mean(), clipped.std()), rel=0.02)


def test_whole_numbers_have_an_edge_each(made):
    f = feature(made, "count")
    assert f.whole
    assert f.edges == tuple(np.unique(mixed()["count"]).astype(float))
    assert not feature(made, "wide").whole


def test_levels_are_ranked_and_rare_ones_known(made):
    f = feature(made, "many")
    assert (len(f.levels), len(f.rare), f.complete) == (200, 100, True)
    assert f.counts[-2:] == (ROWS - sum(f.counts[:200]), 0)
    assert list(f.counts[:200]) == sorted(f.counts[:200], reverse=True)
    assert feature(made, "flag").levels == (False, True)


def test_the_band_is_small_for_like_parts_and_large_for_parts_that_differ(made):
    for f in made.features:
        assert f.band is None or f.band < 0.08
    assert feature(made, "normal").band > 0
    trend = profile(np.linspace(0, 1, ROWS) + rng().normal(size=ROWS) / 10)
    assert trend.features[0].band > 1
    assert profile(rng().normal(size=5000)).features[0].band is None


def tallied(made, frame, start=0.0):
    tally = Tally(made)
    for index, f in enumerate(made.features):
        if not f.skipped:
            column = frame[f.name]
            tally.add_column(index, column.to_numpy(object if column.dtype == "str" else None))
    tally.rows = len(frame)
    return tally.take(start, start + 300)


def test_a_tally_of_the_reference_is_the_profile(made):
    snapshot = tallied(made, mixed())
    for f, place in zip(made.features, made.places, strict=True):
        if not f.skipped:
            assert snapshot.cells[place].tolist() == [*f.counts, f.missing, f.infinite]
    report = compare_profile(made, [snapshot])
    assert {row.feature: row.effect for row in report.rows if row.effect} == {}
    assert report.drifted == ()


@pytest.mark.parametrize("rows", [400, 20_000])
@pytest.mark.parametrize("shift", [0.0, 0.05, 0.2, 1.0])
def test_counters_say_what_the_rows_say(made, rows, shift):
    current = mixed(rows, seed=7)
    current["normal"] += shift
    current["heavy"] *= 1 + shift
    current["count"] += rng().random(rows) < shift
    current["zeros"] = np.where(rng(1).random(rows) < shift / 3, 0, current["zeros"])
    live = {row.feature: row for row in compare_profile(made, [tallied(made, current)]).rows}
    from mlopsnb.monitoring import drift

    for row in drift(mixed(), current).rows:
        if row.effect is not None:
            coarse = row.feature in ("heavy", "many")  # bins of a tail, or of the rarest levels, hold much
            near = pytest.approx(row.effect, abs=0.03 if coarse else 0.006, rel=0.02)
            assert live[row.feature].effect == near, row.feature
            if not (row.q_value <= 0.05 and row.effect < row.threshold) and abs(row.effect - 0.1) > 0.03:
                assert live[row.feature].state == row.state, row.feature
        if row.ks is not None:
            assert row.ks - 0.016 <= live[row.feature].ks <= row.ks + 1e-9


def test_one_pass_over_a_stream_is_near_the_whole(tmp_path, made):
    frame = mixed()
    streamed = profile(frame.iloc[i : i + 3000] for i in range(0, ROWS, 3000))
    frame.to_parquet(tmp_path / "a.parquet")
    seen = []
    with reporting_to(seen.append):
        stored = profile(tmp_path)
    assert [e.message for e in seen if e.state == "progress"] == ["20,000 of 20,000 rows"]
    assert seen[-1].message == "12 features, 20,000 rows"
    for other in (streamed, stored):
        assert [(f.name, f.kind, f.missing, sum(f.counts)) for f in other.features] == [
            (f.name, f.kind, f.missing, sum(f.counts)) for f in made.features
        ]
        x = np.sort(frame["heavy"])
        f = feature(other, "heavy")
        assert np.diff(np.r_[0, np.searchsorted(x, f.edges, "right"), ROWS]).tolist() == list(f.counts)
        assert max(f.counts) < ROWS / 30
        assert f.low == pytest.approx(feature(made, "heavy").low, rel=0.5)


def test_data_far_beyond_the_first_part_is_still_told_apart():
    parts = [rng(i).normal(10.0 * i, 1, 3000) for i in range(4)]
    f = profile(iter(parts)).features[0]
    assert max(f.counts) < 12_000 / 5
    assert f.std == pytest.approx(np.concatenate(parts).std(), rel=0.02)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(some.integers(1, 4000), min_size=1, max_size=6), some.integers(0, 100))
def test_parts_add_up_wherever_they_were_counted(sizes, seed):
    parts = [mixed(n, seed=seed + i) for i, n in enumerate(sizes)]
    first = ProfileBuilder().add(parts[0])
    others = [pickle.loads(pickle.dumps(first.like())).add(part) for part in parts[1:]]
    one = ProfileBuilder()
    for part in parts:
        one.add(part)
    same_counts(sum(others, first).finish(), one.finish(), rows=sum(sizes))


def same_counts(together, alone, *, rows):
    assert together.rows == alone.rows == rows
    for f, g in zip(together.features, alone.features, strict=True):
        assert (f.name, f.edges, f.counts, f.levels, f.missing) == (
            g.name,
            g.edges,
            g.counts,
            g.levels,
            g.missing,
        )


# Dask 2026.8 asks pandas 3.1 for what that no longer likes.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index is deprecated")
def test_partitions_of_a_data_set_are_counted_by_dask_each_where_it_is(tmp_path):
    """The recipe of docs/drift.md, in two processes."""
    import dask
    import dask.dataframe as dd

    frames = [mixed(500, seed=seed) for seed in range(4)]
    for number, frame in enumerate(frames):
        frame.to_parquet(tmp_path / f"part-{number}.parquet", index=False)
    parts = dd.read_parquet(tmp_path).to_delayed()
    first = ProfileBuilder().add(parts[0].compute(scheduler="synchronous"))
    tasks = [dask.delayed(first.like().add)(part) for part in parts[1:]]
    others = dask.compute(*tasks, scheduler="processes", num_workers=2)
    same_counts(sum(others, first).finish(), profile(iter(frames)), rows=2000)


def test_builders_that_do_not_fit_say_so():
    a, b = (ProfileBuilder().add({"x": rng(i).normal(size=50)}) for i in range(2))
    with pytest.raises(UserError, match="'x' was counted on different bins"):
        a + b
    with pytest.raises(UserError, match="different columns"):
        a + ProfileBuilder().add({"y": [1, 2]})
    with pytest.raises(UserError, match="the reference has no rows"):
        ProfileBuilder().finish()
    with pytest.raises(UserError, match="the reference has no rows"):
        profile(iter([]))
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        profile("/nowhere.parquet")


def test_a_column_that_changes_its_type_is_skipped():
    f = profile(iter([{"x": [1, 2]}, {"x": ["a", "b"]}])).features[0]
    assert f.skipped == "its type changes from part to part: numbers and other values"


def test_too_many_levels_are_put_together():
    ids = [{"id": [f"p{part}-{i}" for i in range(60_000)] + ["common"] * 60_000} for part in range(2)]
    f = profile(iter(ids)).features[0]
    assert (f.complete, f.levels[0], f.counts[0], sum(f.counts)) == (False, "common", 120_000, 240_000)


def test_outputs_come_first():
    x = rng().normal(size=(ROWS, 2))
    made = profile(x, outputs=x[:, 0] > 0)
    tally = Tally(made)
    for index in (0, 1):
        tally.add_column(index, x[:, index])
    tally.add_column(2, np.ones(ROWS, bool))
    rows = compare_profile(made, [tally.take(0, 1)]).rows
    assert [(r.feature, r.kind, r.state) for r in rows][:2] == [
        ("output", "output", "drift"),
        ("feature_0", "numeric", "ok"),
    ]


@pytest.fixture(scope="module")
def over_time(made):
    taken = []
    for i in range(10):
        frame = mixed(2000, seed=50 + i)
        if i >= 6:
            frame["normal"] += 0.5
        if i == 9:
            frame.loc[:500, "text"] = "new"
        half = len(frame) // 2
        taken += [tallied(made, frame[:half], 300.0 * i), tallied(made, frame[half:], 300.0 * i)]
    return compare_profile(made, taken)


def test_windows_show_when_it_began(over_time):
    row = over_time.find("normal")
    assert [w.state for w in row.windows] == ["ok"] * 6 + ["drift"] * 4
    assert [w.rows for w in row.windows] == [2000] * 10
    assert over_time.span == (0.0, 3000.0)
    assert over_time.current_rows == 20_000
    assert set(over_time.drifted) == {"normal", "text"}
    quiet = over_time.find("wide")
    assert {w.state for w in quiet.windows} == {"ok"}


def test_what_the_latest_window_shows_counts_though_the_whole_hides_it(over_time):
    row = over_time.find("text")
    assert row.state == "drift"
    assert row.effect < 0.1
    assert row.windows[-1].state == "drift"
    assert "of rows have levels that the reference had not" in row.note


def test_many_windows_are_put_together(made):
    tally = Tally(made)
    report = compare_profile(made, [tally.take(60.0 * i, 60.0 * i + 60) for i in range(1000)])
    assert len(report.rows[0].windows) == 48
    assert report.state == "no-data"
    assert report.find("normal").windows[0].state == "no-data"


def test_no_windows_are_no_data(made):
    report = compare_profile(made, [])
    assert (report.state, report.current_rows, report.span) == ("no-data", 0, None)


def test_an_effect_within_the_natural_band_is_a_shift_at_most():
    made = profile(np.linspace(0, 1, ROWS) + rng().normal(size=ROWS) / 10)
    tally = Tally(made)
    tally.add_column(0, np.linspace(0, 1, ROWS) + rng(1).normal(size=ROWS) / 10 + 0.1)
    row = compare_profile(made, [tally.take(0, 1)]).rows[0]
    assert row.threshold < row.effect < row.band
    assert row.state == "shift"


def test_a_frame_is_compared_with_a_profile(made):
    from mlopsnb import drift

    current = mixed(3000, seed=9).astype({"text": "category", "few": "float64", "count": "Int64"})
    current["normal"] += 1
    current.loc[:40, "text"] = None
    report = drift(made, current)
    assert report.drifted == ("normal",)
    assert report.find("text").missing_current == pytest.approx(41 / 3000)
    assert (report.span, report.find("normal").windows) == (None, ())
    assert drift(made, [tallied(made, mixed(500, seed=3))]).drifted == ()
    by_place = profile(rng().normal(size=(500, 2)))
    assert drift(by_place, rng(1).normal([0, 1], size=(500, 2))).drifted == ("feature_1",)
    with pytest.raises(UserError, match="the current data no 'normal'"):
        drift(made, {"x": [1]})
    with pytest.raises(UserError, match="'normal' holds numbers in the reference, and others now"):
        drift(made, current.astype({"normal": str}))
    with pytest.raises(UserError, match="method 'evidently' needs the rows"):
        drift(made, current, method="evidently")


def test_many_rare_levels_are_no_drift_in_counters_either():
    """Any sample of 2,000 levels meets some that the reference did not; a tenth of the rows have them here."""

    def rows(seed, weights):
        return {"v": np.array([f"v{i}" for i in range(2000)])[rng(seed).choice(2000, 3000, p=weights)]}

    usual = np.arange(1, 2001) ** -1.1
    moved = usual * (1 + 0.6 * np.cos(np.arange(2000)))
    made = profile(rows(0, usual / usual.sum()))
    alike = compare_profile(made, [count_table(made, rows(1, usual / usual.sum()))])
    assert 0.05 < alike.find("v").checks[1].current < 0.2
    assert (alike.find("v").state, alike.find("v").effect < 0.06) == ("ok", True)
    other = compare_profile(made, [count_table(made, rows(1, moved / moved.sum()))])
    assert other.find("v").state == "drift"
