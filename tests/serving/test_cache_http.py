"""The cache as clients and operators see it, over real sockets."""

from __future__ import annotations

import json

import pytest

PATHS = ["/v2/models/affine/infer", "/v2/models/affine/infer?not=plain"]


@pytest.mark.parametrize("path", PATHS)
def test_over_http(serve, make_package, body, path):
    runtime = serve(make_package(), "--port", "0", "--cache-bytes", "64MB")
    told = []
    answers = set()
    for wish in (None, None, "no-cache", "no-store", "max-age=60, only-if-cached"):
        answer = runtime.request(
            "POST", path, json.dumps(body([[1, 2, 3, 4]])), {"cache-control": wish} if wish else {}
        )
        told.append((answer.status, answer.headers["cache-status"]))
        answers.add(answer.body)
    assert told == [
        (200, "mlopsnb; fwd=miss; stored"),
        (200, "mlopsnb; hit"),
        (200, "mlopsnb; fwd=request; stored"),
        (200, "mlopsnb; fwd=request"),
        (200, "mlopsnb; hit"),
    ]
    assert len(answers) == 1
    refused = runtime.request(
        "POST", path, json.dumps(body([[9, 2, 3, 4]])), {"cache-control": "only-if-cached"}
    )
    assert (refused.status, refused.json()) == (
        504,
        {"error": "only-if-cached, but the answers to 1 of 1 rows are not kept"},
    )
    assert runtime.get("/v2/models/affine").json()["parameters"]["cache"] == {
        "max_bytes": 64_000_000,
        "keys": "row",
    }
    label = 'model_name="affine",model_version="1"'
    assert runtime.samples("mlopsnb_cache_rows_total") == {
        f'mlopsnb_cache_rows_total{{{label},result="hit"}}': 2,
        f'mlopsnb_cache_rows_total{{{label},result="miss"}}': 3,
    }
    assert list(runtime.samples("mlopsnb_cache_entries").values()) == [1]
    assert runtime.errors.count("\n") == 0


def test_the_protocols_share_what_is_kept(serve, make_package, body):
    runtime = serve(make_package(), "--port", "0", "--cache-bytes", "1000000")
    runtime.infer(body([[1, 2, 3, 4]]))
    rows = {"instances": [{"x": [1, 2, 3, 4], "n": 5}, {"x": [0, 0, 0, -9], "n": 5}]}
    answer = runtime.request("POST", "/v1/models/affine:predict", json.dumps(rows))
    assert answer.headers["cache-status"] == 'mlopsnb; fwd=partial; detail="1 of 2 rows"; stored'
    assert answer.json() == {"predictions": [{"y": 25.0, "sign": "+"}, {"y": -13.0, "sign": "-"}]}


def test_without_the_option_there_is_no_cache(served, body):
    answer = served.infer(body(), {"cache-control": "only-if-cached"})
    assert answer.status == 200
    assert "cache-status" not in answer.headers
    assert served.samples("mlopsnb_cache") == {}
    assert "cache" not in served.get("/v2/models/affine").json()["parameters"]


@pytest.mark.parametrize("given", ["0", "64TB", "MB", "-1", "1.5MB"])
def test_a_size_that_is_none(serve, make_package, given):
    runtime = serve(make_package(), "--port", "0", "--cache-bytes", given)
    assert runtime.stop() == 2
    assert f"{given!r} is no number of bytes; expected one such as 500000 or 64MB" in runtime.errors
