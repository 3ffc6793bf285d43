from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

import mlopsnb
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.protocols import mlflow

Y = TensorSpec(name="y", dtype="float32", shape=(None,))
FRAME = Signature(
    inputs=(
        TensorSpec(
            name="x", dtype="float64", shape=(None, 3), feature_names=("age", "debt", "rate"), allow_nan=True
        ),
    ),
    outputs=(Y,),
)
PLAIN = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 2)),), outputs=(Y,))
SEVERAL = Signature(
    inputs=(
        TensorSpec(name="v", dtype="float32", shape=(None, 2)),
        TensorSpec(name="n", dtype="int8", shape=(None,)),
        TensorSpec(name="s", dtype="str", shape=(None,)),
    ),
    outputs=(Y,),
)
JSON = "application/json"


def read(content, what, content_type=JSON):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return mlflow.decode(body, content_type, what)


def lists(request):
    return {name: array.tolist() for name, array in request.inputs.items()}


FORMS = {
    "split": {
        "dataframe_split": {
            "columns": ["rate", "id", "age", "debt"],
            "index": [7, 9],
            "data": [[0.5, "a", 30, 1], [0.25, "b", 40, 2]],
        }
    },
    "records": {
        "dataframe_records": [
            {"rate": 0.5, "age": 30, "debt": 1},
            {"age": 40, "debt": 2, "rate": 0.25, "id": 1},
        ]
    },
    "inputs": {"inputs": {"age": [30, 40], "debt": [1, 2], "rate": [0.5, 0.25]}},
    "rows": {"instances": [{"age": 30, "debt": 1, "rate": 0.5}, {"age": 40, "debt": 2, "rate": 0.25}]},
    "array": {"inputs": [[30, 1, 0.5], [40, 2, 0.25]]},
    "named": {"inputs": {"x": [[30, 1, 0.5], [40, 2, 0.25]]}},
    "without columns": {"dataframe_split": {"data": [[30, 1, 0.5], [40, 2, 0.25]]}},
}


@pytest.mark.parametrize("form", FORMS)
def test_features_are_matched_by_name(form):
    request = read(FORMS[form], FRAME)
    assert (request.rows, lists(request)) == (2, {"x": [[30.0, 1.0, 0.5], [40.0, 2.0, 0.25]]})
    assert request.inputs["x"].flags.c_contiguous


def test_what_a_record_lacks_is_missing():
    request = read({"dataframe_records": [{"age": 1, "debt": 2}, {"rate": 3, "age": None, "debt": 4}]}, FRAME)
    assert str(lists(request)) == "{'x': [[1.0, 2.0, nan], [nan, 4.0, 3.0]]}"


def test_several_inputs_are_columns_of_their_names():
    content = {
        "columns": ["s", "n", "v"],
        "data": [["a", 1, [1, 2]], ["b", 2, [3, 4]]],
    }
    assert lists(read({"dataframe_split": content}, SEVERAL)) == {
        "v": [[1.0, 2.0], [3.0, 4.0]],
        "n": [1, 2],
        "s": ["a", "b"],
    }


def test_columns_without_features_go_by_position():
    content = {"dataframe_split": {"columns": ["b", "a"], "data": [[1, 2]]}}
    assert lists(read(content, PLAIN)) == {"x": [[1.0, 2.0]]}
    single = Signature(inputs=(TensorSpec(name="x", dtype="int64", shape=(None,)),), outputs=(Y,))
    assert lists(read({"dataframe_records": [{"whatever": 3}]}, single)) == {"x": [3]}


@pytest.mark.timeout(30)
def test_rows_of_ever_other_names_cost_what_they_hold():
    many = 100_000
    for rows in ([{f"c{i}": 1} for i in range(many)], [{f"c{i}": 1 for i in range(many)}] + [{}] * many):
        for what in (FRAME, PLAIN, SEVERAL):
            with pytest.raises(BadRequest):
                read({"dataframe_records": rows}, what)


@pytest.mark.parametrize(
    "content",
    [
        {"dataframe_split": {"columns": ["age", "debt", "rate"], "data": []}},
        {"dataframe_records": []},
        {"instances": []},
        {"inputs": []},
        b"age,debt,rate\n",
    ],
)
def test_no_rows_are_rows(content):
    request = read(content, FRAME, "text/csv" if isinstance(content, bytes) else JSON)
    assert (request.inputs["x"].shape, request.rows) == ((0, 3), 0)


@pytest.mark.parametrize("content_type", ["text/csv", "text/csv; charset=utf-8", 'TEXT/CSV;charset="UTF-8"'])
def test_csv(content_type):
    body = b'\xef\xbb\xbf,rate,age,debt\r\n0,0.5,30,"1"\r\n1,,4e1,NaN\r\n'
    assert str(lists(read(body, FRAME, content_type))) == "{'x': [[30.0, 1.0, 0.5], [40.0, nan, nan]]}"


def test_csv_of_other_dtypes():
    specs = [("n", "int8"), ("s", "str"), ("b", "bool"), ("f", "float16")]
    what = Signature(inputs=tuple(TensorSpec(name=n, dtype=d, shape=(None,)) for n, d in specs), outputs=(Y,))
    request = read('s,b,n,f\n"a, ""b""\nü",True, -3,1.5\n12,false,7,-0\n'.encode(), what, "text/csv")
    assert lists(request) == {"n": [-3, 7], "s": ['a, "b"\nü', "12"], "b": [True, False], "f": [1.5, 0.0]}


def test_whole_numbers_may_look_like_floats():
    what = Signature(inputs=(TensorSpec(name="n", dtype="int64", shape=(None,)),), outputs=(Y,))
    expected = {"n": [3, -4, 9007199254740993]}
    assert lists(read({"inputs": [3.0, -4, 9007199254740993]}, what)) == expected
    assert lists(read(b"n\n3.0\n-4\n9007199254740993\n", what, "text/csv")) == expected


BAD = {
    "none": ({}, FRAME, JSON, "none"),
    "two": ({"inputs": [], "instances": []}, FRAME, JSON, "instances, inputs"),
    "params": ({"inputs": [], "params": {"t": 1}}, FRAME, JSON, "the model takes no params"),
    "no params": ({"inputs": [], "params": False}, FRAME, JSON, "the model takes no params"),
    "header": (b"age,dept\n", FRAME, "text/csv", "missing: debt, rate; unknown: dept"),
    "columns": (
        {"dataframe_split": {"columns": ["age", "dept"], "data": []}},
        FRAME,
        JSON,
        "missing: debt, rate; unknown: dept",
    ),
    "column": (
        {"dataframe_split": {"columns": ["age", "dept"], "data": [[1, 2]]}},
        FRAME,
        JSON,
        "missing: debt, rate; unknown: dept",
    ),
    "cell": (
        {"dataframe_records": [{"age": "old", "debt": 2, "rate": 3}]},
        FRAME,
        JSON,
        (
            "input 'x', column 'age': expected a number within float64's range or null, found \"old\" at data[0]"
        ),
    ),
    "row": (
        {"dataframe_split": {"columns": ["age"], "data": [[1], [2, 3]]}},
        FRAME,
        JSON,
        "row 1 of dataframe_split should have 1 values, one a column; found 2 values",
    ),
    "split": ({"dataframe_split": []}, FRAME, JSON, 'dataframe_split should be {"columns"'),
    "names": (
        {"dataframe_split": {"columns": ["a", "a"], "data": []}},
        FRAME,
        JSON,
        "should be a list of different names",
    ),
    "records": ({"dataframe_records": {"age": [1]}}, FRAME, JSON, "should be a list of objects"),
    "width": (
        {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}},
        PLAIN,
        JSON,
        "input 'x': a row has the shape [2], found 3 columns",
    ),
    "lengths": (
        {"inputs": {"age": [1, 2], "debt": [1], "rate": [1]}},
        FRAME,
        JSON,
        "the columns disagree on the number of rows: 'age' has 2, 'debt' has 1, 'rate' has 1",
    ),
    "csv cell": (
        b"age,debt,rate\n1,2,x\n",
        FRAME,
        "text/csv",
        "column 'rate': expected a number within float64's range or null, found \"x\" at data[0]",
    ),
    "csv infinity": (b"a,b\ninf,1\n", PLAIN, "text/csv", "found infinity at data[0]"),
    "csv row": (b"a,b\n1\n", PLAIN, "text/csv", "row 0 has 1 fields; the header has 2"),
    "csv header": (b"a,a\n1,2\n", PLAIN, "text/csv", "the header of the CSV names a column twice"),
    "csv empty": (b"\n", PLAIN, "text/csv", "expected CSV with a header line"),
    "csv bytes": (b"\xff", PLAIN, "text/csv", "the request is not CSV in UTF-8"),
    "csv quote": (b'a,b\n"1,2', PLAIN, "text/csv", "the request is not CSV in UTF-8: unexpected end of data"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_says_what_was_expected_and_what_came(name):
    content, what, content_type, message = BAD[name]
    with pytest.raises(BadRequest, match=re.escape(message)) as caught:
        read(content, what, content_type)
    assert caught.value.kind != "unsupported"


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/x-www-form-urlencoded",
        "application/vnd.apache.parquet",
        "text/csv; charset=latin-1",
        "application/json; version=1",
    ],
)
def test_other_content_types_are_refused(content_type):
    with pytest.raises(BadRequest, match="the content-type") as caught:
        read({"inputs": [[1, 2]]}, PLAIN, content_type)
    assert caught.value.kind == "unsupported"


CELLS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers())
)
NAMES = st.sampled_from(["age", "debt", "rate", "x", "v", "n", "s"]) | st.text(max_size=3)
ANY = st.recursive(
    CELLS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
SPLITS = st.fixed_dictionaries(
    {},
    optional={
        "columns": st.lists(NAMES | ANY, max_size=4),
        "data": st.lists(st.lists(CELLS, max_size=4)) | ANY,
    },
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs"]),
    SPLITS | ANY,
    st.sampled_from([FRAME, PLAIN, SEVERAL]),
)
def test_any_json_is_a_request_or_a_bad_request(key, content, what):
    assert_read_or_refused(json.dumps({key: content}).encode("utf-8", "surrogatepass"), JSON, what)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60) | st.text('age,debtrate\n\r"0159.-NaN', max_size=60).map(str.encode),
    st.sampled_from([JSON, "text/csv"]) | st.text(max_size=10),
    st.sampled_from([FRAME, PLAIN, SEVERAL]),
)
def test_any_bytes_are_a_request_or_a_bad_request(raw, content_type, what):
    assert_read_or_refused(raw, content_type, what)


def assert_read_or_refused(raw, content_type, what):
    try:
        request = mlflow.decode(raw, content_type, what)
    except BadRequest:
        return
    for spec in what.inputs:
        assert request.inputs[spec.name].dtype == (object if spec.dtype == "str" else spec.dtype)
        assert request.inputs[spec.name].shape[1:] == spec.shape[1:]


def test_answers():
    request = read({"inputs": [[1, 2]]}, PLAIN)
    y, s = np.array([[0.1, np.inf]], np.float32), np.array(["é"], object)
    assert json.loads(request.encode({"y": y}).body) == {"predictions": [[0.1, None]]}
    assert json.loads(request.encode({"y": y, "s": s}).body) == {
        "predictions": {"y": [[0.1, None]], "s": ["é"]}
    }


@pytest.mark.parametrize("dtype", sorted(v2.DATATYPES))
def test_every_dtype_over_a_server_by_mlflows_client(serve, make_echo, dtype):
    texts = dtype == "str"
    array = np.array([["a", "é"], ["", "b"]], object) if texts else np.array([[0, 1], [1, 0]], dtype)
    runtime = serve(make_echo({"a": array}), "--port", "0")
    client = ScoringServerClient("127.0.0.1", runtime.port)
    client.ping()
    assert client.get_version() == mlopsnb.__version__
    assert client.invoke(array).get_predictions("ndarray").tolist() == array.tolist()
    assert (
        client.invoke(pd.DataFrame(array, columns=["p", "q"])).get_predictions("ndarray").tolist()
        == array.tolist()
    )


def test_a_frame_over_a_server_by_mlflows_client(serve, make_echo):
    frame = pd.DataFrame({"age": [30, 40], "debt": [1.5, np.nan]})
    runtime = serve(make_echo({"x": frame.to_numpy()}, features=("age", "debt")), "--port", "0")
    client = ScoringServerClient("127.0.0.1", runtime.port)
    answer = client.invoke(frame[["debt", "age"]].assign(name=["a", "b"])).get_predictions()
    assert str(answer.to_numpy(dtype=float).tolist()) == "[[30.0, 1.5], [40.0, nan]]"
    by_csv = runtime.request(
        "POST", "/invocations", frame[["debt", "age"]].to_csv(), {"content-type": "text/csv"}
    )
    assert by_csv.json() == {"predictions": [[30.0, 1.5], [40.0, None]]}


def test_errors_are_in_mlflows_form(served):
    runtime = served
    answers = [
        runtime.request("POST", "/invocations", "{}", {"content-type": JSON}),
        runtime.request("POST", "/invocations", "{}"),
        runtime.request("POST", "/invocations", b" " * 20_000, {"content-type": JSON}),
        runtime.get("/invocations"),
    ]
    assert [(a.status, a.json()["error_code"]) for a in answers] == [
        (400, "BAD_REQUEST"),
        (415, "BAD_REQUEST"),
        (413, "BAD_REQUEST"),
        (405, "BAD_REQUEST"),
    ]
    assert answers[0].json()["message"].startswith("expected an object with exactly one of dataframe_split")
    with pytest.raises(Exception, match=r"Invocation failed \(error code 400.*give each by its name"):
        ScoringServerClient("127.0.0.1", runtime.port).invoke(np.zeros((1, 4)))
