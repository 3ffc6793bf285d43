"""End-to-end tests log to a real MLflow store; its tables are made once and copied for each test. Builds share a cache."""

from __future__ import annotations

import shutil
import warnings

import pytest
from fake_registry import FakeRegistry
from real_lab import chromium, jupyterlab
from served_plans import make_package
from tiny_base import put_base

import mlopsnb as ml


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


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A cache with one environment, and a package."""
    place = tmp_path_factory.mktemp("shared")
    return place / "cache", make_package(place / "package")


@pytest.fixture
def package(shared, monkeypatch):
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(shared[0]))
    return shared[1]


@pytest.fixture
def fake():
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def build(fake, package):
    """Build the package, or something else, on a tiny base into the registry."""
    base = put_base(fake)

    def build(what=package, **options):
        return ml.build(what, **{"name": "net", "base": base, "registry": f"{fake.host}/team", **options})

    return build


@pytest.fixture
def place(image_place, base_image, monkeypatch):
    """Deploys go to the engine and their builds share one cache; what a test deploys is gone afterwards."""
    monkeypatch.setenv("MLOPSNB_CACHE_DIR", str(image_place))
    monkeypatch.setenv("MLOPSNB_BASE_IMAGE", base_image)
    monkeypatch.setenv("MLOPSNB_TARGET", "docker")
    yield image_place
    for deployment in ml.deployments(target="docker"):
        deployment.delete()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(place):
    """A JupyterLab in the `place` of the test's own module: a directory, the variables that belong to it, and more."""
    root, own, _ = place
    with jupyterlab(root, root / "work", **own) as address:
        yield address
