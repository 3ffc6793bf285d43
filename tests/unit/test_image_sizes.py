from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlopsnb.errors import UserError
from mlopsnb.images.errors import TooLarge
from mlopsnb.images.image import Destination, Image, ImageLayer
from mlopsnb.images.lock import Lock, LockedPackage
from mlopsnb.images.sizes import advice, check_budget, heaviest, moved_text, read_size, size_text

MB = 1_000_000


def layer(kind, name, size):
    return ImageLayer(kind=kind, name=name, digest=f"sha256:{name}", diff_id="", size=size, unpacked=2 * size)


def image(*layers, **versions):
    packages = tuple(
        LockedPackage(name=name.replace("_", "-"), version=version, filename="", sha256="")
        for name, version in versions.items()
    )
    return Image(
        reference="r@sha256:1",
        tagged="r:v1",
        digest="sha256:1",
        id="sha256:2",
        destination=Destination(place="engine"),
        builder="oci",
        platform="linux/amd64",
        base="python:3.11-slim",
        layers=layers,
        lock=Lock(python="3.11", platform="linux/amd64", packages=packages),
        package_digest="sha256:3",
    )


TORCH = image(
    layer("base", "base", 45 * MB),
    layer("wheel", "torch 2.13.0+cpu", 190 * MB),
    layer("dependencies", "12 packages", 30 * MB),
    layer("weights", "model/weights.pt", 100 * MB),
    torch="2.13.0+cpu",
    numpy="2.4.6",
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("900MB", 900 * MB),
        ("900 mb", 900 * MB),
        ("1.5GB", 1500 * MB),
        ("1GiB", 1 << 30),
        ("12k", 12_000),
        ("7", 7),
        ("512B", 512),
    ],
)
def test_sizes_are_read(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", 0, -5, True, 1.5, "1e3", "5TB", "0MB", "5 MBit", None])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="is no size"):
        read_size(text)


@given(st.integers(1, 10**12))
def test_what_is_shown_is_nearly_what_it_was(size):
    assert read_size(size_text(size)) == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (312 * MB, 640 * MB, "312 of 640 MB"),
        (100_000, 3_400_000, "0.1 of 3.4 MB"),
        (5, 812, "5 of 812 B"),
        (2_000, None, "2.0 kB"),
    ],
)
def test_bytes_on_the_way(done, total, text):
    assert moved_text(done, total) == text


def test_the_budget_names_the_heaviest_and_what_to_do():
    check_budget(TORCH.layers, TORCH.lock, 365 * MB)
    with pytest.raises(TooLarge) as raised:
        check_budget(TORCH.layers, TORCH.lock, 300 * MB)
    assert str(raised.value) == (
        "the image has 365 MB compressed, over its budget of 300 MB; the heaviest layers:\n"
        "     190 MB  torch 2.13.0+cpu\n"
        "     100 MB  model/weights.pt\n"
        "    45.0 MB  base\n"
        "    30.0 MB  12 packages\n"
        '  hint: format="onnx" serves the same model without torch, if it can be exported so'
    )


def test_heaviest_is_in_order_and_short():
    assert [x.size for x in heaviest(TORCH.layers, 2)] == [190 * MB, 100 * MB]


def said_of(made):
    return advice(made.layers, made.lock)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (image(torch="2.13.0", nvidia_cublas="13.1"), "CUDA libraries"),
        (image(torch="2.13.0+cu130"), "CUDA libraries"),
        (image(tensorflow="2.21.0"), "tensorflow-cpu"),
        (image(layer("base", "base", 400 * MB)), "python:3.11-slim"),
    ],
)
def test_advice(made, said):
    assert len(said_of(made)) == 1
    assert said in said_of(made)[0]


def test_no_advice_where_there_is_none():
    assert said_of(image(layer("base", "base", 45 * MB), onnxruntime="1.31.0")) == []
