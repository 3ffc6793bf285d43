"""The counters by themselves: what they count, in which window, in how much memory, and what outlives them."""

from __future__ import annotations

import mmap
import threading
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from prometheus_client import CollectorRegistry, generate_latest

from mlopsnb import profiles
from mlopsnb.profiles import DriftProfile, Feature
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import counters as counting
from mlopsnb.serving import windows
from mlopsnb.serving.counters import Counters
from mlopsnb.serving.windows import Layout

NAN, INF = float("nan"), float("inf")
EDGES = (-1.0, 0.0, 0.5, 3.0)
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=(None, 3)),
        TensorSpec(name="city", dtype="str", shape=(None,)),
        TensorSpec(name="pair", dtype="str", shape=(None, 2)),
        TensorSpec(name="flag", dtype="bool", shape=(None, 1)),
        TensorSpec(name="size", dtype="int64", shape=(None,)),
        TensorSpec(name="extra", dtype="float32", shape=(None,)),
    ),
    outputs=(TensorSpec(name="y", dtype="float64", shape=(None,)),),
)


def numeric(name, tensor, column=None, role="input", edges=EDGES):
    return Feature(
        name=name,
        tensor=tensor,
        column=column,
        role=role,
        edges=edges,
        counts=(1,) * (len(edges) + 1),
        low=edges[0],
        high=edges[-1],
    )


def category(name, tensor, levels, column=None, **more):
    counts = (1,) * (len(levels) + 2)
    return Feature(
        name=name, kind="category", tensor=tensor, column=column, levels=levels, counts=counts, **more
    )


PROFILE = DriftProfile(
    rows=10,
    features=(
        numeric("a", "x", 0),
        numeric("b", "x", 2),
        category("city", "city", ("Bonn", "Ulm"), rare=("Köln",)),
        category("second", "pair", ("l", "r"), 1, complete=False),
        category("flag", "flag", (True, False), 0),
        numeric("size", "size"),
        numeric("y", "y", role="output"),
        Feature(name="when", skipped="datetime64 is not compared"),
    ),
)  # fmt: skip


class Clock:
    def __init__(self, now=1_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def layout(profile=PROFILE, parts=1, **options):
    return Layout.fitting(profile.digest, profile.cells, 2 * len(profile.features), parts, **options)


def made(clock=time.time, profile=PROFILE, signature=SIGNATURE, **options):
    return Counters(profile, signature, windows.in_memory(layout(profile, **options), clock))


def read(document, profile=PROFILE):
    return [profiles.read_snapshot(one, profile) for one in document["windows"]]


def cells(counters):
    """All that is counted, by feature."""
    whole = profiles.merge(read(counters.document()))
    places = zip(PROFILE.features, PROFILE.places, strict=True)
    return {feature.name: whole.cells[place].tolist() for feature, place in places}


def rows(x, city, pair, flag, size):
    return {
        "x": np.array(x, np.float32).reshape(-1, 3),
        "city": np.array(city, object),
        "pair": np.array(pair, object).reshape(-1, 2),
        "flag": np.array(flag, bool).reshape(-1, 1),
        "size": np.array(size, np.int64),
        "extra": np.zeros(len(city), np.float32),
    }


VALUES = some.sampled_from([-INF, -7.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0, 3.5, INF, NAN])
ROW = some.tuples(
    some.tuples(VALUES, VALUES, VALUES),
    some.sampled_from(["Bonn", "Ulm", "Köln", "Rom", "", "x" * 1000, None]),
    some.tuples(some.text(max_size=2), some.sampled_from(["l", "r", "m"])),
    some.booleans(),
    some.integers(-(2**63), 2**63 - 1),
    VALUES,
)


def histogram(values, edges=EDGES):
    """numpy's, whose bins are open on the right: of the negative numbers."""
    values = np.asarray(values, float)
    finite = values[np.isfinite(values)]
    bounds = [-INF, *(-e for e in reversed(edges)), INF]
    bins = np.histogram(-finite, bounds)[0][::-1].tolist() if len(finite) else [0] * (len(edges) + 1)
    return [*bins, len(values) - len(finite), int(np.isinf(values).sum())]


@settings(max_examples=60, deadline=None)
@given(some.lists(some.lists(ROW, max_size=6), max_size=6))
def test_counts_are_numpys_histogram_of_any_rows(requests):
    counters = made()
    for request in requests:
        x, city, pair, flag, size, y = zip(*request, strict=True) if request else ((), (), (), (), (), ())
        counters.note(len(request), rows(x, city, pair, flag, size), {"y": np.array(y, float)})
    everything = [row for request in requests for row in request]
    if not everything:
        assert counters.document()["windows"] == []
        return
    x, city, pair, flag, size, y = zip(*everything, strict=True)
    found = cells(counters)
    assert counters.notes == []
    assert found["a"] == histogram([v[0] for v in x])
    assert found["b"] == histogram([v[2] for v in x])
    assert found["size"] == histogram(size)
    assert found["y"] == histogram(y)
    told = [city.count(c) for c in ("Bonn", "Ulm", "Köln")]
    missing = city.count(None)
    assert found["city"] == [*told, len(city) - sum(told) - missing, missing, 0]
    second = [p[1] for p in pair]
    assert found["second"] == [second.count("l"), second.count("r"), second.count("m"), 0, 0, 0]
    assert found["flag"] == [flag.count(True), flag.count(False), 0, 0, 0, 0]
    assert found["when"] == [0, 0]


def test_a_request_larger_than_the_ring_is_counted_whole():
    counters, count = made(), 10_001
    values = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    inputs = rows(values, ["Ulm"] * count, [("l", "r")] * count, [True] * count, range(count))
    counters.note(1, {name: a[:1] for name, a in inputs.items()}, {"y": np.zeros(1)})
    counters.note(count, inputs, {"y": np.ones(count)})
    found = cells(counters)
    assert found["a"] == (np.array(histogram(values[:, 0])) + histogram(values[:1, 0])).tolist()
    assert sum(found["size"][:-2]) == sum(found["city"][:-2]) == count + 1
    assert found["y"] == [0, 1, 0, count, 0, 0, 0]


def test_of_more_rows_than_a_second_allows_a_sample_is_counted(monkeypatch):
    monkeypatch.setattr(counting, "MOST_VALUES", 7 * 1000)
    counters = made()

    def send(count):
        values = np.arange(count) % 100 / 100
        x = np.repeat(values[:, None], 3, axis=1)
        inputs = rows(x, ["Ulm"] * count, [("l", "r")] * count, [True] * count, [1] * count)
        counters.note(count, inputs, {"y": values})

    send(400)
    send(1000)  # of which every second is within the 600 that are left
    send(100)
    send(1)
    found = cells(counters)
    assert {sum(found[name][:-2]) for name in ("a", "city", "y")} == {1000}
    assert found["a"] == found["y"]
    assert found["a"] == histogram(
        np.r_[np.arange(400) % 100, np.arange(0, 1000, 2) % 100, np.arange(100)] / 100
    )
    assert counters.document()["notes"] == [
        "501 rows came beyond the 1000 a second that are counted; a sample of them was"
    ]
    send(1)
    assert sum(cells(counters)["a"]) == 1001


def test_what_has_no_counters_is_named():
    features = (
        numeric("a", "x", 7),
        numeric("b", "other", 0),
        numeric("c", "city"),
        numeric("d", "free", 0),
        numeric("e", "fixed"),
        Feature(name="f", skipped="it has no values"),
        numeric("b", "b", role="output"),
    )
    signature = Signature(
        inputs=(
            *SIGNATURE.inputs[:2],
            TensorSpec(name="free", dtype="float32", shape=(None, None)),
            TensorSpec(name="fixed", dtype="float32", shape=(3,)),
        ),
        outputs=(replace(SIGNATURE.outputs[0], name="b"), *SIGNATURE.outputs),
    )
    profile = DriftProfile(rows=1, features=features)
    counters = made(profile=profile, signature=signature)
    inputs = rows([[1, 2, 3]], ["Ulm"], [("l", "r")], [True], [1])
    outputs = {"b": np.zeros(1), "y": np.zeros(1)}
    counters.note(1, inputs | {"free": np.zeros((1, 9)), "fixed": np.zeros(3)}, outputs)
    [window] = read(counters.document(), profile)
    assert (window.rows, window.cells.sum()) == (1, 1)  # an output may be called as an input is
    assert 'feature="b",kind="expected",model_name="m",role="output"} 1.0' in exposed(counters)
    assert {one["name"]: one["why"] for one in counters.document()["uncounted"]} == {
        "a": "x has 3 columns, and this would be column 7",
        "b": "the model has no input 'other'",
        "c": "city is text, and the reference had numbers",
        "d": "free has rows of different sizes",
        "e": "fixed has no rows: its shape is [3]",
        "f": "it has no values",
        "y": "the reference has no such output",
    }


def test_answers_with_other_rows_are_not_counted_and_that_is_said():
    counters = made()
    inputs = rows([[1, 2, 3]] * 2, ["Ulm"] * 2, [("l", "r")] * 2, [True] * 2, [1, 2])
    for _ in range(2):
        counters.note(2, inputs, {"y": np.zeros(1)})
    counters.note(2, inputs, {"y": np.zeros(2)})
    found = cells(counters)
    assert (sum(found["a"]), sum(found["y"])) == (6, 2)
    assert counters.document()["notes"] == [
        "some answers are not counted, as their rows are not the request's: y has 1 for 2"
    ]


def test_an_error_ends_the_counting_and_not_the_answers(caplog):
    counters = made()
    counters.note(1, {"x": "no array"}, {})
    counters.note(1, {}, {})
    assert counters.document()["notes"] == ["counting ended with an error (KeyError), which the log has"]
    assert "live rows are no longer counted" in caplog.text


def note(counters, count=1, value=0.25):
    x = np.full((count, 3), value, np.float32)
    inputs = rows(x, ["Ulm"] * count, [("l", "r")] * count, [True] * count, [1] * count)
    counters.note(count, inputs, {"y": np.zeros(count)})


def test_windows_follow_the_clock_and_a_day_of_them_is_kept(clock):
    counters = made(clock)
    clock.now = 300 * 5000 + 299.9
    note(counters, 2)
    counters.count()
    clock.now = 300 * 5001
    note(counters, 3)
    found = read(counters.document())
    assert [(s.start, s.end, s.rows) for s in found] == [
        (1_500_000, 1_500_300, 2),
        (1_500_300, 1_500_600, 3),
    ]
    assert counters.document()["window_seconds"] == 300
    clock.now += 86_400 - 300
    note(counters)
    assert [s.rows for s in read(counters.document())] == [2, 3, 1]
    clock.now += 300
    assert [s.rows for s in read(counters.document())] == [3, 1]
    for _ in range(600):
        clock.now += 300
        note(counters)
        counters.count()
    found = read(counters.document())
    assert len(found) == 289
    assert found[-1].end - found[0].start == 289 * 300
    clock.now -= 450  # set back by two windows, which are told again when their time comes
    note(counters)
    assert [s.rows for s in read(counters.document())] == [1] * 286 + [2]
    clock.now += 450
    assert [s.rows for s in read(counters.document())] == [1] * 286 + [2, 1, 1]


def test_replicas_and_processes_add_up(clock):
    one, other = made(clock), made(clock)
    memory = mmap.mmap(-1, windows.MOST_BYTES)
    parts = [
        Counters(PROFILE, SIGNATURE, windows.in_memory(layout(parts=2), clock, shared=memory, part=part))
        for part in (0, 1)
    ]
    for counters, count in ((one, 1), (other, 2), (parts[0], 4), (parts[1], 8)):
        note(counters, count)
        counters.count()
    assert [read(part.document())[0].rows for part in parts] == [12, 12]
    snapshots = [s for c in (one, other, parts[0]) for s in read(c.document())]
    [merged] = profiles.by_window(snapshots)
    assert merged.rows == 15
    assert sum(merged.cells[PROFILE.places[0]]) == 15


def test_memory_is_bounded_by_longer_windows():
    wide = layout(parts=8, most=200_000)
    assert wide.nbytes <= 200_000
    assert (wide.seconds, wide.slots) == (2400, 37)
    assert layout(most=5_000) is None
    assert layout(parts=64).nbytes <= windows.MOST_BYTES
    assert layout(seconds=200_000).slots == 2


def test_requests_take_no_more_memory(clock):
    counters = made(clock)
    tracemalloc.start()
    try:
        note(counters, 5000)
        counters.document()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            note(counters, 997)
        counters.count()
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()


def test_a_file_outlives_its_process(tmp_path, clock):
    def begin(parts=1, profile=PROFILE, **options):
        made = windows.in_directory(tmp_path / "counts", layout(profile, parts, **options), clock)
        return Counters(profile, SIGNATURE, made)

    first = begin(parts=3)
    note(first, 4)
    first.count()
    beside = windows.beside(tmp_path / "counts", layout(parts=3), 2, clock)
    assert sum(beside.counted().values()) == 4
    note(first, 100)  # not counted when the process ends
    second = begin()
    note(second, 2)
    assert second.document()["saved"] is True
    assert [s.rows for s in read(second.document())] == [6]
    assert 'feature="a",kind="expected",model_name="m",role="input"} 6.0' in exposed(second)
    clock.now += 300
    third = begin(seconds=600)
    note(third, 1)
    assert sum(s.rows for s in read(third.document())) == 7
    assert {s.end - s.start for s in read(third.document())} == {600}
    other = DriftProfile(rows=1, features=PROFILE.features[:1])
    assert begin(profile=other).document()["windows"] == []
    assert [p.name for p in (tmp_path / "counts").iterdir()] == [windows.FILE]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"{}" + bytes(5000), b"\0" * 100_000, b'{"digest": 1}']
)
def test_a_damaged_file_is_begun_anew(tmp_path, content, clock):
    (tmp_path / windows.FILE).write_bytes(content)
    counters = Counters(PROFILE, SIGNATURE, windows.in_directory(tmp_path, layout(), clock))
    note(counters)
    assert [s.rows for s in read(counters.document())] == [1]


def test_who_reads_meanwhile_sees_whole_windows(clock):
    memory = mmap.mmap(-1, windows.MOST_BYTES)
    writer = windows.in_memory(layout(parts=2), clock, shared=memory)
    reader = windows.in_memory(layout(parts=2), clock, shared=memory, part=1)
    ones = np.ones(PROFILE.cells, np.int64)

    def write():
        for _ in range(300):
            clock.now += 300
            writer.add(1, ones, np.zeros(2 * len(PROFILE.features)))

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        for number in reader.counted():
            assert set(reader.read(number).cells.tolist()) in ({0}, {1})
    thread.join()


def exposed(counters):
    class Collector:
        def collect(self):
            yield from counters.families({"model_name": "m"})

    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry).decode()


def test_series_tell_what_the_reference_did_not_have():
    counters = made()
    x = [[9, 0, 0.1], [-9, 0, 0.1], [NAN, 0, 0.1], [0.1, 0, 0.1]]
    inputs = rows(x, ["Ulm", "Rom", "Köln", "Ulm"], [("l", "r")] * 4, [True] * 4, [1] * 4)
    counters.note(4, inputs, {"y": np.zeros(4)})
    lines = [line for line in exposed(counters).splitlines() if "{" in line and not line.endswith(" 0.0")]
    series = {}
    for line in lines:
        name, _, value = line.removeprefix('mlopsnb_feature_values_total{feature="').rpartition(" ")
        feature, kind = name.partition('",model_name="m"')[0].split('",kind="')
        series[feature, kind] = float(value)
    assert series == {
        ("a", "expected"): 1,
        ("a", "tail"): 2,
        ("a", "missing"): 1,
        ("b", "expected"): 4,
        ("city", "expected"): 3,
        ("city", "new"): 1,
        ("second", "expected"): 4,
        ("flag", "expected"): 4,
        ("size", "expected"): 4,
        ("y", "expected"): 4,
    }


def test_series_are_bounded_however_many_features_there_are():
    width = counting.MOST_FEATURES + 50
    profile = DriftProfile(rows=1, features=tuple(numeric(f"f{i}", "x", i) for i in range(width)))
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(None, width)),), outputs=())
    counters = made(profile=profile, signature=signature)
    counters.note(1, {"x": np.zeros((1, width), np.float32)}, {})
    text = exposed(counters)
    assert text.count("\nmlopsnb_feature_values_total{") == 3 * (counting.MOST_FEATURES + 1)
    assert '{feature="(others)",kind="expected",model_name="m",role="input"} 50.0' in text
