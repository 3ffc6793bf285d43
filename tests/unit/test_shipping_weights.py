"""An image whose weights lie in an image of their own is deployed with both."""

import pytest

from mlopsnb import shipping
from mlopsnb.errors import DeployError
from mlopsnb.images import holding
from mlopsnb.images.weights import LABEL
from mlopsnb.records import Revision
from mlopsnb.targets.docker import Docker

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("image", "weights"),
    [
        (f"ghcr.io/team/fraud@{DIGEST}", f"ghcr.io/team/fraud-weights@{DIGEST}"),
        ("fraud:v3", f"fraud-weights@{DIGEST}"),
    ],
)
def test_weights_are_beside_their_image(monkeypatch, image, weights):
    said = {holding.PACKAGE_DIGEST: "sha256:1", LABEL: f"fraud-weights@{DIGEST}"}
    monkeypatch.setattr(holding, "labels", lambda reference: said)
    cargo = shipping.of_image(image, "engine", target="kubernetes")
    assert (cargo.image, cargo.weights) == (image, weights)
    del said[LABEL]
    assert shipping.of_image(image, "engine", target="kubernetes").weights == ""


def test_the_docker_target_refuses_what_it_cannot_mount(tmp_path):
    revision = Revision(id=1, source="s", digest="d", image="fraud:v3", weights="fraud-weights:v3")
    with pytest.raises(DeployError, match="weights in an image of their own") as caught:
        Docker(state_dir=tmp_path)._start("m", revision, 1.0)
    assert "separate_weights=False" in caught.value.hint
