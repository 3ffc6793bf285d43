import json

import numpy as np
import pytest

from mlopsnb import manifest
from mlopsnb.manifest import BadPackage, Manifest
from mlopsnb.records import ParityCheck, ParityReport, Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=(None, 2), feature_names=("a", "b"), allow_nan=True),
    ),
    outputs=(TensorSpec(name="y", dtype="str", shape=(None,)),),
)
PARITY = ParityReport(
    checks=(
        ParityCheck(case="c", output="y", equal=True, max_abs_error=0.0, max_rel_error=0.0, worst=(1, 2)),
    ),
    tolerance=1e-4,
    original_ms=1.0,
    exported_ms=0.5,
    rows=3,
    notes=("n",),
)


@pytest.fixture
def package(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"123")
    made = Manifest(
        format="f",
        signature=SIGNATURE,
        files=manifest.file_digests(tmp_path),
        requirements=("a==1",),
        parity=PARITY,
    )
    manifest.write(tmp_path, made)
    return tmp_path


def test_what_is_written_is_read(package):
    read = manifest.read(package)
    assert read == Manifest(
        format="f", signature=SIGNATURE, files=dict(read.files), requirements=("a==1",), parity=PARITY
    )
    manifest.verify(package, read)
    artifact = manifest.artifact(package)
    assert (artifact.digest, artifact.signature, artifact.parity) == (read.digest, SIGNATURE, PARITY)


def test_the_digest_is_of_the_content_not_of_when_or_where(package):
    read = manifest.read(package)
    later = Manifest(**{**_fields(read), "created": "2030", "python": "3.99"})
    other = Manifest(**{**_fields(read), "files": {"model/weights": "sha256:0"}})
    assert later.digest == read.digest
    assert other.digest != read.digest


def _fields(m):
    return {f: getattr(m, f) for f in m.__dataclass_fields__}


def test_a_damaged_package_names_what_is_wrong(package):
    read = manifest.read(package)
    (package / "model" / "weights").write_bytes(b"124")
    (package / "model" / "more").write_bytes(b"")
    with pytest.raises(BadPackage, match=r"model/weights was changed; model/more does not belong there"):
        manifest.verify(package, read)
    (package / "model" / "weights").unlink()
    with pytest.raises(BadPackage, match="model/weights is missing"):
        manifest.verify(package, read)


def test_weights_that_are_kept_apart_are_named_by_their_place(package):
    weights = package / "model" / "weights"
    weights.unlink()
    weights.symlink_to("/mnt/models/model/weights")
    with pytest.raises(BadPackage, match="kept apart, and /mnt/models/model/weights is not there"):
        manifest.verify(package, manifest.read(package))


def test_what_is_no_package_says_so(tmp_path):
    with pytest.raises(BadPackage, match=r"holds no model\.json"):
        manifest.read(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(BadPackage, match="cannot be read"):
        manifest.read(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"protocol": 99}))
    with pytest.raises(BadPackage, match="has protocol 99; this mlopsnb reads 1"):
        manifest.read(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"protocol": 1, "parity": None}))
    with pytest.raises(BadPackage, match="is not a manifest"):
        manifest.read(tmp_path)


def test_the_golden_example_keeps_names_dtypes_and_text(tmp_path):
    inputs = {"x/1": np.ones((2, 1), "float16"), "text": np.array(["é", ""], dtype=object)}
    outputs = {"y": np.array([True, False])}
    manifest.write_example(tmp_path, inputs, outputs)
    got_inputs, got_outputs = manifest.read_example(tmp_path)
    assert {k: (v.dtype, v.tolist()) for k, v in got_inputs.items()} == {
        k: (v.dtype, v.tolist()) for k, v in inputs.items()
    }
    np.testing.assert_array_equal(got_outputs["y"], outputs["y"])
