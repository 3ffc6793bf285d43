"""Rows captured to Parquet: by a real server, and by the capture alone where time, space and disks matter."""

from __future__ import annotations

import datetime
import json
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import capture
from mlopsnb.serving.capture import Capture
from mlopsnb.serving.errors import BadOption

NAN = float("nan")
OPTIONS = ("--port", "0", "--workers", "1")


def files(directory):
    return sorted(directory.glob("*.parquet"))


def read(directory):
    return pa.concat_tables([parquet.read_table(path) for path in files(directory)])


def test_what_was_captured_joins_with_labels(serve, make_package, body, tmp_path):
    place = tmp_path / "captured"
    runtime = serve(
        make_package(), *OPTIONS, "--version", "7", "--capture", "1", "--capture-dir", place, "--mask", "n"
    )
    before = datetime.datetime.now(datetime.UTC)
    for name, rows in (("one", [[1, 2, 3, 4]]), ("two", [[0, 0, 0, -9], [0, None, 0, 1]])):
        assert runtime.infer(body(rows), {"x-request-id": name}).status == 200
    given = runtime.infer(body()).headers["x-request-id"]
    assert runtime.infer(body([[666, 0, 0, 0]])).status == 422
    assert runtime.stop() == 0
    table = read(place)
    times = table["time"].to_pylist()
    assert all(
        before - datetime.timedelta(seconds=1) < t < datetime.datetime.now(datetime.UTC) for t in times
    )
    rows = [
        ("one", 0, [1.0, 2.0, 3.0, 4.0], 25.0, "+"),
        ("two", 0, [0.0, 0.0, 0.0, -9.0], -13.0, "-"),
        ("two", 1, [0.0, NAN, 0.0, 1.0], NAN, "+"),
        (given, 0, [1.0, 2.0, 3.0, 4.0], 25.0, "+"),
    ]
    names = ("request_id", "row", "input.x", "output.y", "output.sign")
    expected = [dict(zip(names, row, strict=True)) for row in rows]
    assert repr(table.drop(["time"]).to_pylist()) == repr(expected)  # NaN is not equal to itself
    about = table.schema.metadata
    assert (about[b"model"], about[b"version"], about[b"digest"][:7]) == (b"affine", b"7", b"sha256:")
    labels = pd.DataFrame({"request_id": ["two", "one"], "row": [1, 0], "label": [1, 0]})
    joined = table.to_pandas().merge(labels, on=["request_id", "row"])
    assert joined[["request_id", "label"]].to_numpy().tolist() == [["one", 0], ["two", 1]]
    assert [path.stat().st_mode & 0o777 for path in files(place)] == [0o600]


def test_columns_are_features_and_some_can_be_masked(serve, make_echo, tmp_path):
    place = tmp_path / "captured"
    package = make_echo({"a": np.zeros((2, 3), np.float32)}, features=("age", "name", "income"))
    runtime = serve(package, *OPTIONS, "--capture", "1", "--capture-dir", place, "--mask", "name,out_a")
    body = {"inputs": [{"name": "a", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}
    assert runtime.request("POST", "/v2/models/echo/infer", json.dumps(body)).status == 200
    assert runtime.stop() == 0
    table = read(place)
    assert table.column_names == ["request_id", "row", "time", "input.age", "input.income"]
    assert table.select(["row", "input.age", "input.income"]).to_pydict() == {
        "row": [0, 1],
        "input.age": [1, 4],
        "input.income": [3, 6],
    }


def test_without_pyarrow_the_server_says_so_at_the_start(serve, make_package, tmp_path, environment):
    site = tmp_path / "site"
    site.mkdir()
    (site / "pyarrow.py").write_text('raise ModuleNotFoundError("no pyarrow", name="pyarrow")\n')
    path = os.pathsep.join((str(site), environment["PYTHONPATH"]))
    options = ("--capture", "0.5", "--capture-dir", tmp_path / "captured")
    runtime = serve(make_package(), *OPTIONS, *options, PYTHONPATH=path)
    assert runtime.report["ready"] is False
    assert runtime.process.wait(30) == 4
    assert "mlopsnb[capture]" in runtime.errors


def test_where_there_can_be_no_files_the_server_does_not_start(serve, make_package, tmp_path):
    (tmp_path / "file").touch()
    runtime = serve(make_package(), *OPTIONS, "--capture", "1", "--capture-dir", tmp_path / "file" / "x")
    assert runtime.process.wait(30) == 2
    assert "nothing can be captured in" in runtime.errors


SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float64", shape=(None, 2, 2)),
        TensorSpec(name="word", dtype="str", shape=(None, 1)),
        TensorSpec(name="free", dtype="float32", shape=(None, None)),
    ),
    outputs=(TensorSpec(name="y", dtype="int64", shape=(None,)),),
)


def note(made, name, rows=1, outputs=None, word="w"):
    inputs = {
        "x": np.zeros((rows, 2, 2)),
        "word": np.array([[word]] * rows, object),
        "free": np.zeros((rows, 3), np.float32),
    }
    call = SimpleNamespace(request_id=name, rows=rows)
    made.note(call, inputs, {"y": np.arange(rows)} if outputs is None else outputs)


def counted(made):
    [family] = made.families({})
    return {sample.labels["result"]: sample.value for sample in family.samples}


def test_a_share_is_the_same_for_all_who_see_a_request(tmp_path):
    made = [Capture(tmp_path / str(i), SIGNATURE, rate=0.25) for i in range(2)]
    for one in made:
        for number in range(400):
            note(one, f"request-{number}")
        one.close()
    first, second = (read(tmp_path / str(i))["request_id"].to_pylist() for i in range(2))
    assert first == second
    assert 60 < len(first) < 140
    assert read(tmp_path / "0").schema.field("input.x").type == pa.list_(pa.float64(), 4)
    assert "input.free" not in read(tmp_path / "0").column_names


def test_the_oldest_files_make_room(tmp_path, monkeypatch):
    made = Capture(tmp_path, SIGNATURE, rate=1, max_bytes=20_000)
    for number in range(40):
        note(made, f"r{number}", rows=50)
        made.flush()
        made._settle(wait=True)
    made.close()
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 20_000
    kept = set(read(tmp_path)["request_id"].to_pylist())
    assert kept == {f"r{number}" for number in range(40 - len(kept), 40)}
    assert counted(made) == {"written": 2000, "dropped": 0}


def test_rows_wait_no_longer_than_they_should_and_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "FILE_BYTES", 5000)
    made = Capture(tmp_path, SIGNATURE, rate=1)
    note(made, "large", rows=100)
    note(made, "long", word="w" * 6000)
    assert counted(made) == {"written": 0, "dropped": 101}
    note(made, "kept")
    note(made, "unlike", rows=2, outputs={"y": np.zeros(1)})
    made.tick()
    assert files(tmp_path) == []
    monkeypatch.setattr(capture, "FILE_SECONDS", 0.0)
    made.tick()
    made._settle(wait=True)
    assert counted(made) == {"written": 1, "dropped": 103}
    for number in range(100):
        note(made, f"many-{number}")
    made.close()
    found = counted(made)
    assert found["written"] + found["dropped"] == 204


def test_a_disk_that_fails_ends_the_capture_alone(tmp_path, caplog):
    made = Capture(tmp_path / "captured", SIGNATURE, rate=1)
    note(made, "one")
    (tmp_path / "captured").rmdir()
    made.close()
    note(made, "two")
    made.tick()
    assert "nothing is captured any more" in caplog.text
    assert counted(made) == {"written": 0, "dropped": 0}


def test_drafts_of_killed_processes_are_removed(tmp_path):
    place = tmp_path / "captured"
    place.mkdir()
    old, young = place / ".a.new", place / ".b.new"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    Capture(place, SIGNATURE, rate=1).close()
    assert list(place.iterdir()) == [young]


def test_a_place_that_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadOption, match="nothing can be captured in"):
        Capture(tmp_path / "file", SIGNATURE, rate=1)


def test_both_options_are_needed(serve, make_package, tmp_path):
    runtime = serve(make_package(), *OPTIONS, "--capture", "1")
    assert runtime.process.wait(30) == 2
    assert "--capture and --capture-dir need each other" in runtime.errors
