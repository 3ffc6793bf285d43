from __future__ import annotations

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import mlopsnb
from mlopsnb.serving.metrics import Metrics

MODEL = {"model_name": "affine", "model_version": "1"}
TYPES = {
    "mlopsnb_batch_size": "histogram",
    "mlopsnb_build_info": "gauge",
    "mlopsnb_check": "counter",
    "mlopsnb_model_seconds": "histogram",
    "mlopsnb_queue_rows": "gauge",
    "mlopsnb_queue_seconds": "histogram",
    "mlopsnb_request": "counter",
    "mlopsnb_request_duration_seconds": "histogram",
    "mlopsnb_request_in_progress": "gauge",
}
PROCESS = {
    "process_cpu_seconds": "counter",
    "process_max_fds": "gauge",
    "process_open_fds": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
    "process_virtual_memory_bytes": "gauge",
}
FINE = ["1e-05", "2.5e-05", "5e-05", "0.0001", "0.00025"]
SECONDS = ["0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5"]
SECONDS += ["1.0", "2.5", "5.0", "10.0", "30.0", "+Inf"]
ROWS = [f"{2.0**n}" for n in range(11)] + ["+Inf"]
BUCKETS = {
    "mlopsnb_batch_size": ROWS,
    "mlopsnb_model_seconds": FINE + SECONDS,
    "mlopsnb_queue_seconds": FINE + SECONDS,
    "mlopsnb_request_duration_seconds": SECONDS,
}


def families(answer, parse=text_string_to_metric_families):
    return {family.name: family for family in parse(answer.body.decode())}


def test_the_exposition_whole(served, body):
    served.infer(body([[1, 2, 3, 4]] * 3))
    served.infer(body())
    served.infer(b"{")
    served.get("/ready")
    found = families(served.get("/metrics"))
    assert {name: family.type for name, family in found.items()} == TYPES | PROCESS
    assert all(family.documentation for family in found.values())
    ours = {s.name: {} for name in TYPES for s in found[name].samples}
    for name in TYPES:
        for sample in found[name].samples:
            assert MODEL.items() <= sample.labels.items()
            rest = {k: v for k, v in sample.labels.items() if k not in MODEL}
            ours[sample.name][tuple(rest.items())] = sample.value
    assert {name: set(labels) for name, labels in ours.items() if name.endswith("_bucket")} == {
        f"{name}_bucket": {(("le", bound),) for bound in bounds} for name, bounds in BUCKETS.items()
    }
    plain = {k: v for k, v in ours.items() if not k.endswith(("_bucket", "_sum"))}
    assert plain == {
        "mlopsnb_batch_size_count": {(): 2},
        "mlopsnb_build_info": {(("format", "affine"), ("version", mlopsnb.__version__)): 1},
        "mlopsnb_model_seconds_count": {(): 2},
        "mlopsnb_queue_rows": {(): 0},
        "mlopsnb_queue_seconds_count": {(): 2},
        "mlopsnb_request_duration_seconds_count": {(): 3},
        "mlopsnb_request_in_progress": {(): 0},
        "mlopsnb_request_total": {(("code", "200"),): 2, (("code", "400"),): 1},
    }
    assert ours["mlopsnb_batch_size_sum"] == {(): 4}
    assert {k for k in ours if k.endswith("_sum")} == {f"{name}_sum" for name in BUCKETS}
    for name, bounds in BUCKETS.items():
        counts = [ours[f"{name}_bucket"][(("le", bound),)] for bound in bounds]
        assert counts == sorted(counts)
        assert counts[-1] == ours[f"{name}_count"][()]
    assert {name: [dict(s.labels) for s in found[name].samples] for name in PROCESS} == {
        name: [{}] for name in PROCESS
    }


def test_openmetrics_for_who_asks(served, body):
    served.infer(body())
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    answer = served.request("GET", "/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    )
    found = families(answer, openmetrics.text_string_to_metric_families)
    types = {**TYPES, **PROCESS, "mlopsnb_build": "info"}
    del types["mlopsnb_build_info"]
    assert {name: family.type for name, family in found.items()} == types
    for other in ({}, {"accept": "*/*"}, {"accept": "nonsense;;="}):
        answer = served.request("GET", "/metrics", headers=other)
        assert answer.headers["content-type"].startswith("text/plain; version=")


def test_a_label_may_be_any_text():
    metrics = Metrics('a"b\\c\nd', "1")
    metrics.started()
    metrics.finished(200, 0.1)
    text, _ = metrics.expose()
    [family] = [f for f in text_string_to_metric_families(text.decode()) if f.name == "mlopsnb_request"]
    assert [s.labels["model_name"] for s in family.samples] == ['a"b\\c\nd']


@pytest.mark.parametrize("calls", [0, 1, 7])
def test_what_is_in_progress(calls):
    metrics = Metrics("m", "1")
    for _ in range(calls):
        metrics.started()
    text, _ = metrics.expose()
    assert f'mlopsnb_request_in_progress{{model_name="m",model_version="1"}} {float(calls)}' in text.decode()
