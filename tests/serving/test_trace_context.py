from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.serving import tracecontext

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"
INFER = "/v2/models/affine/infer"


def accept(*parents, state=()):
    fields = [(b"host", b"x"), *((b"traceparent", p.encode()) for p in parents)]
    return tracecontext.accept([*fields, *((b"tracestate", s.encode()) for s in state)])


@pytest.mark.parametrize(
    ("sent", "flags"),
    [
        (GOOD, 1),
        (f" {GOOD}\t", 1),
        (f"00-{TRACE}-{PARENT}-00", 0),
        (f"00-{TRACE}-{PARENT}-03", 3),
        (f"00-{TRACE}-{PARENT}-ff", 3),  # what we do not know of is not passed on
        (f"cc-{TRACE}-{PARENT}-01", 1),  # a later version, read as ours
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", 1),
    ],
)
def test_a_valid_header_gives_a_span_of_our_own_in_its_trace(sent, flags):
    found = accept(sent)
    assert (found.trace_id, found.parent_id, found.flags) == (TRACE, PARENT, flags)
    assert re.fullmatch("[0-9a-f]{16}", found.span_id)
    assert found.span_id != PARENT
    assert found.traceparent == f"00-{TRACE}-{found.span_id}-{flags:02x}"
    assert accept(sent).span_id != found.span_id


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "foo",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"{GOOD}-",
        f"{GOOD}-more",
        f"{GOOD}.",
        f"cc-{TRACE}-{PARENT}-01.more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}0-01",
        f"00-{TRACE}-{PARENT}-1",
        f"0-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-0x",
        GOOD.replace("-", "_"),
    ],
)
def test_an_invalid_header_counts_as_none(sent):
    assert accept(sent) is None


def test_two_parents_are_none_and_the_states_are_joined():
    assert accept() is None
    assert accept(GOOD, GOOD) is None
    assert accept(GOOD, state=["a=1", "b=2"]).state == "a=1,b=2"
    assert accept(GOOD, state=["a=" + "1" * 511]).state == ""  # longer than anybody has to pass on


@given(
    st.binary(max_size=80)
    | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").map(str.encode)
)
def test_any_bytes_are_a_valid_trace_or_none(sent):
    found = tracecontext.accept([(b"traceparent", sent)])
    if found is not None:
        again = tracecontext.accept([(b"traceparent", found.traceparent.encode())])
        assert (again.trace_id, again.parent_id, again.flags) == (found.trace_id, found.span_id, found.flags)


@pytest.mark.parametrize("path", [INFER, f"{INFER}?slow", "/v2"], ids=["fast lane", "ASGI", "GET"])
def test_the_answer_names_our_span_and_the_log_has_it(served, body, path):
    method, content = ("GET", None) if path == "/v2" else ("POST", json.dumps(body()))
    headers = {"traceparent": GOOD, "tracestate": "a=1"}
    answer = served.request(method, path, content, headers)
    without = served.request(method, path, content)
    invalid = served.request(method, path, content, {"traceparent": GOOD.upper()})
    assert (answer.status, "traceparent" in without.headers, "traceparent" in invalid.headers) == (
        200,
        False,
        False,
    )
    version, trace_id, span_id, flags = answer.headers["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert served.stop() == 0
    with_ids, *others = [json.loads(line) for line in served.log_lines]
    assert (with_ids["trace_id"], with_ids["span_id"]) == (TRACE, span_id)
    assert [{"trace_id", "span_id"} & line.keys() for line in others] == [set(), set()]


def test_an_error_belongs_to_the_trace_too(served):
    for path in (INFER, f"{INFER}?slow", "/nowhere"):
        answer = served.request("POST", path, b"{", {"traceparent": GOOD})
        assert answer.status >= 400
        assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")


def test_over_grpc_the_trailing_metadata_has_it(serve, make_package):
    grpc = pytest.importorskip("grpc")
    from mlopsnb.serving.rpc.messages import SERVICE, message

    runtime = serve(make_package(), "--port", "0", "--grpc-port", "0")
    request = message("ModelInferRequest")(model_name="affine")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
    broken = request.SerializeToString()
    request.inputs.add(name="n", datatype="INT8", shape=[1]).contents.int_contents.append(5)
    spans = []
    with grpc.insecure_channel(runtime.report["grpc"]) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for content in (request.SerializeToString(), broken):
            for metadata in ([("traceparent", GOOD)], []):
                call = infer.future(content, metadata=metadata, timeout=30)
                assert call.code().name == ("INVALID_ARGUMENT" if content is broken else "OK")
                spans.append([value for key, value in call.trailing_metadata() if key == "traceparent"])
    assert [len(found) for found in spans] == [1, 0, 1, 0]
    assert runtime.stop() == 0
    lines = [json.loads(line) for line in runtime.log_lines]
    assert [[f"00-{TRACE}-{line['span_id']}-01"] if "span_id" in line else [] for line in lines] == spans
