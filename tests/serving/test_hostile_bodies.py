"""Bodies that are made to cost much: refused, each within its time and memory, by every protocol."""

from __future__ import annotations

import json
import pickle
import time
import zipfile

import numpy as np
import psutil
import pytest

from mlopsnb import manifest
from mlopsnb.records import Signature, TensorSpec
from mlopsnb.serving import v2
from mlopsnb.serving.errors import BadRequest
from mlopsnb.serving.protocols import mlflow, tfserving

MEGABYTE = 1 << 20
SECONDS = 5
SMALL = 64 * MEGABYTE
"""What the allocator may keep of any request."""


def v2_with(data=b"[1,2,3,4]", *, shape=b"[1,4]", extra=b""):
    x = b'{"name":"x","datatype":"FP32","shape":%b,"data":%b%b}' % (shape, data, extra)
    return b'{"inputs":[%b,{"name":"n","datatype":"INT8","shape":[1],"data":[5]}]}' % x


def many(kind, count):
    return b"[" + b",".join([kind] * count) + b"]"


VALUES = {
    "deep lists": b"[" * MEGABYTE + b"]" * MEGABYTE,
    "deep objects": b'{"a":' * MEGABYTE + b"1" + b"}" * MEGABYTE,
    "lists that are never closed": b"[" * MEGABYTE,
    "as deep as is read": b"[" * 500 + b"]" * 500,
    "a number of a million digits": b"[" + b"9" * MEGABYTE + b"]",
    "a number that is no float": b"[" + b"9" * 4000 + b",1,1,1]",
    "a float beyond all": b"[1e999,1,1,1]",
    "a long string": b'["' + b"a" * MEGABYTE + b'"]',
    "many nulls": many(b"null", MEGABYTE),
    "many numbers and one null": many(b"1.5", MEGABYTE)[:-1] + b",null]",
    "many empty lists": many(b"[]", MEGABYTE),
    "many empty objects": many(b"{}", MEGABYTE),
    "many small objects": many(b'{"":0}', MEGABYTE // 2),
    "many keys": b"{" + b",".join(b'"%d":1' % n for n in range(MEGABYTE // 4)) + b"}",
    "one key many times": b"{" + b",".join([b'"a":1'] * (MEGABYTE // 2)) + b"}",
}
SHAPES = {
    "negative": b"[-1,-4]",
    "huge": b"[1,9223372036854775807]",
    "more than an integer holds": b"[9223372036854775808,4]",
    "whose product is enormous": b"[%b,%b]" % (b"9" * 4000, b"9" * 4000),
    "of many axes": many(b"1", MEGABYTE),
    "that has no number": b'["4"]',
}
REQUESTS = {
    "/v2/models/affine/infer": {
        **{f"data: {name}": v2_with(value) for name, value in VALUES.items()},
        **{f"unknown: {name}": b'{"z":%b}' % value for name, value in VALUES.items()},
        **{f"shape: {name}": v2_with(shape=shape) for name, shape in SHAPES.items()},
        "many tensors": b'{"inputs":%b}'
        % many(b'{"name":"x","datatype":"FP32","shape":[1,4],"data":[]}', 20_000),
        "a tensor twice": v2_with(extra=b',"name":"n"'),
        "many outputs": v2_with()[:-1] + b',"outputs":%b}' % many(b'{"name":"z"}', MEGABYTE // 8),
        "a long name": v2_with(extra=b',"name":"%b"' % (b"z" * MEGABYTE)),
    },
    "/v1/models/affine:predict": {
        **{f"inputs: {name}": b'{"inputs":{"x":%b,"n":[1]}}' % value for name, value in VALUES.items()},
        **{f"instances: {name}": b'{"instances":%b}' % value for name, value in VALUES.items()},
        "rows of ever other names": b'{"instances":[%b]}'
        % b",".join(b'{"n%d":1}' % n for n in range(MEGABYTE // 8)),
    },
    "/invocations": {
        **{f"inputs: {name}": b'{"inputs":{"x":%b,"n":[1]}}' % value for name, value in VALUES.items()},
        **{
            f"frame: {name}": b'{"dataframe_split":{"columns":%b,"data":[]}}' % value
            for name, value in VALUES.items()
        },
        **{f"records: {name}": b'{"dataframe_records":%b}' % value for name, value in VALUES.items()},
    },
}
CSV = {
    "empty lines": b"\n" * (4 * MEGABYTE),
    "a quote that is never closed": b'x\n"' + b"a" * MEGABYTE,
    "many columns": b",".join(b"%d" % n for n in range(MEGABYTE // 4)) + b"\n1",
    "many short rows": b"x,n\n" + b"1\n" * MEGABYTE,
    "one row with too many fields": b"x,n\n" + b"," * MEGABYTE,
    "a number of many digits": b"x,n\n1," + b"9" * 100_000,
    "no text": b"\xff" * MEGABYTE,
    "zeros": b"\x00" * MEGABYTE,
}


@pytest.mark.parametrize("path", REQUESTS)
def test_json_is_refused_in_bounded_time_and_memory(serve, make_package, body, path):
    runtime = serve(make_package(), "--port", "0")
    for name, content in REQUESTS[path].items():
        check(runtime, path, content, "application/json", name)
    assert runtime.infer(body()).status == 200
    assert runtime.stop() == 0
    assert runtime.errors == ""


def test_csv_is_refused_in_bounded_time_and_memory(serve, make_package, body):
    runtime = serve(make_package(), "--port", "0")
    for name, content in CSV.items():
        check(runtime, "/invocations", content, "text/csv", name)
    assert runtime.stop() == 0
    assert runtime.errors == ""


def check(runtime, path, content, content_type, name):
    memory = psutil.Process(runtime.process.pid).memory_info
    before, begin = memory().rss, time.monotonic()
    answer = runtime.request("POST", path, content, {"content-type": content_type})
    seconds, grown = time.monotonic() - begin, memory().rss - before
    if name in ("records: as deep as is read", "frame: as deep as is read", "frame: a long string"):
        assert answer.status < 500
    else:
        assert 400 <= answer.status < 500, (name, answer.status, answer.body[:300])
        assert len(answer.body) < 8192, name
    assert seconds < SECONDS, (name, seconds)
    assert grown < SMALL + 40 * len(content), (name, grown)


FREE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(None, None), allow_nan=True),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),),
)


def test_rows_that_hold_nothing_are_not_as_many_as_one_likes():
    def decode(rows):
        tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 0], "data": []}
        return v2.decode_request(json.dumps({"inputs": [tensor]}).encode(), FREE).rows

    assert decode(65_536) == 65_536
    with pytest.raises(
        BadRequest, match="1000000000000000 rows without any value; at most 65536 may be empty"
    ):
        decode(10**15)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_are_taken_up_to_where_they_round_to_infinity(dtype):
    signature = Signature(inputs=(TensorSpec(name="x", dtype=dtype, shape=(None,)),), outputs=FREE.outputs)
    limits = np.finfo(dtype)
    half = (int(limits.max) - int(np.nextafter(limits.max, limits.dtype.type(0)))) // 2
    for sign in (1, -1):
        largest = sign * (int(limits.max) + half // 2 if dtype != "float64" else int(limits.max))
        found = tfserving.decode(b'{"inputs":[%d]}' % largest, signature).inputs["x"]
        assert found.tolist() == [sign * float(limits.max)]
        with pytest.raises(BadRequest, match="a number within|not JSON"):
            tfserving.decode(b'{"inputs":[%d]}' % (sign * (int(limits.max) + half)), signature)


def test_missing_numbers_in_csv_in_any_spelling():
    known = FREE.inputs[0]
    strict = Signature(inputs=(TensorSpec(name="x", dtype="float64", shape=(None,)),), outputs=FREE.outputs)
    lax = Signature(
        inputs=(TensorSpec(name="x", dtype="float64", shape=(None,), allow_nan=known.allow_nan),),
        outputs=FREE.outputs,
    )
    for text in (b"nan", b"-NaN", b"NAN", b"null", b'""'):
        found = mlflow.decode(b"x\n1\n" + text + b"\n", "text/csv", lax).inputs["x"]
        assert found[0] == 1
        assert np.isnan(found[1])
        with pytest.raises(BadRequest, match="found null at data"):
            mlflow.decode(b"x\n1\n" + text + b"\n", "text/csv", strict)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_what_is_sent_is_never_unpickled(serve, make_echo, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"), protocol=0).decode()  # protocol 0 is text
    text = np.array([bomb], object)
    runtime = serve(make_echo({"a": text}), "--port", "0")
    content, length = v2.encode_binary_request({"a": text})
    header = {"inference-header-content-length": str(length)}
    for path, body, headers in (
        ("/v2/models/echo/infer", v2.encode_request({"a": text}), {}),
        ("/v2/models/echo/infer", content, header),
        ("/v1/models/echo:predict", json.dumps({"inputs": {"a": [bomb]}}), {}),
        ("/invocations", json.dumps({"inputs": {"a": [bomb]}}), {"content-type": "application/json"}),
    ):
        answer = runtime.request("POST", path, body, headers)
        assert answer.status == 200
        assert json.dumps(bomb)[1:-1].encode() in answer.body or bomb.encode() in answer.body
    assert not (tmp_path / "exploded").exists()


def test_a_golden_example_is_never_unpickled(serve, make_package, tmp_path):
    package = make_package()
    array = np.array([Bomb(tmp_path / "exploded")], object)
    with (
        zipfile.ZipFile(package / manifest.EXAMPLE_FILE, "w") as archive,
        archive.open("in/x.npy", "w") as file,
    ):
        np.lib.format.write_array(file, array, allow_pickle=True)
    files = manifest.file_digests(package)
    manifest.write(package, manifest.Manifest(format="affine", signature=FREE, files=files))
    runtime = serve(package, "--port", "0")
    assert runtime.process.wait(30) == 3
    assert "Object arrays cannot be loaded when allow_pickle=False" in runtime.errors
    assert len(runtime.errors.splitlines()) == 1
    assert not (tmp_path / "exploded").exists()


def test_a_torchscript_file_is_never_unpickled(serve, make_package, tmp_path):
    torch = pytest.importorskip("torch")
    package = make_package(format="torchscript")
    (package / manifest.MODEL_DIR / "weights.json").unlink()
    torch.save(Bomb(tmp_path / "exploded"), package / manifest.MODEL_DIR / "model.pt")
    read = manifest.read(package)
    files = manifest.file_digests(package)
    manifest.write(package, manifest.Manifest(format="torchscript", signature=read.signature, files=files))
    runtime = serve(package, "--port", "0")
    assert runtime.process.wait(60) == 4
    assert "the model cannot be loaded" in runtime.errors
    assert not (tmp_path / "exploded").exists()


def test_one_changed_byte_of_the_model_ends_the_start(serve, make_package):
    package = make_package()
    path = package / manifest.MODEL_DIR / "weights.json"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    runtime = serve(package, "--port", "0")
    assert (runtime.process.wait(30), runtime.report["ready"]) == (3, False)
    assert runtime.errors == (
        f"mlopsnb.serving: error: {package} is damaged: model/weights.json was changed"
        " (export or fetch the model again)\n"
    )
