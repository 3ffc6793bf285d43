"""Registered models are offered while somebody types: read beside the kernel, from a real store, without making one."""

import mlflow
from served_plans import EXAMPLE, make_model

import mlopsnb as ml
from mlopsnb.tracking import listing


def test_versions_and_aliases_newest_first(home):
    artifact = ml.export(make_model(), EXAMPLE)
    for alias in (None, "champion"):
        ml.log(artifact, name="net", alias=alias)
    mlflow.MlflowClient().create_registered_model("with blank")
    assert listing.models() == ("models:/net/2", "models:/net/1", "models:/net@champion")


def test_a_store_that_is_not_there_is_not_made(home, monkeypatch):
    store = home / "elsewhere" / "none.db"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"sqlite:///{store}")
    monkeypatch.setattr(mlflow, "get_registry_uri", mlflow.get_tracking_uri)
    assert listing.models() == ()
    assert not store.parent.exists()
