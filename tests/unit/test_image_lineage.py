"""Labels of where a model came from: what helps to find it, and nothing of the machine or the user."""

from __future__ import annotations

import pytest

from mlopsnb.images.lineage import labels
from mlopsnb.records import ModelVersion


def version(**tags):
    return ModelVersion(
        name="fraud", version=3, uri="models:/fraud/3", digest="sha256:0a", run_id="r1", tags=tags
    )


def test_a_model_without_a_version_has_no_labels():
    assert labels(None) == {}


def test_commit_data_and_model_are_named():
    found = labels(version(**{"mlflow.source.git.commit": "1a2b3c4", "mlopsnb.data_digest": "sha256:0d"}))
    assert found == {
        "mlopsnb.data": "sha256:0d",
        "mlopsnb.model": "models:/fraud/3",
        "mlopsnb.run": "r1",
        "org.opencontainers.image.revision": "1a2b3c4",
    }


@pytest.mark.parametrize("path", ["/home/ann/secret-project/train.ipynb", r"C:\Users\ann\train.ipynb"])
def test_the_notebook_is_named_without_its_directory(path):
    assert labels(version(**{"mlopsnb.notebook": path}))["mlopsnb.notebook"] == "train.ipynb"


def test_tags_of_the_user_stay_out():
    found = labels(version(**{"token": "s3cret", "mlflow.user": "ann", "mlflow.source.name": "/home/ann/x"}))
    assert not any("s3cret" in v or "ann" in v for v in found.values())
