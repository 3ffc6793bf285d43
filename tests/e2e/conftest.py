"""End-to-end tests log to a real MLflow store; its tables are made once and copied for each test."""

from __future__ import annotations

import shutil
import warnings

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    place = tmp_path_factory.mktemp("mlflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, of SQLAlchemy's deprecations
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(f"sqlite:///{place / 'mlflow.db'}", str(place / "mlruns"))
    return place / "mlflow.db"


@pytest.fixture(autouse=True)
def store(empty_store, home):
    """The store that the fixture `home` named, with its tables."""
    shutil.copy(empty_store, home / "mlflow.db")
