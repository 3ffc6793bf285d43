"""What the contract of builders needs: the image that each of them makes of one plan, once."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from built_images import forget

from mlopsnb import plugins
from mlopsnb.images.image import Destination


@pytest.fixture(scope="session", params=sorted(plugins.available("builder")))
def builder_name(request):
    return request.param


@pytest.fixture
def make_builder(builder_name):
    return lambda **options: plugins.create("builder", builder_name, **options)


@pytest.fixture(scope="session")
def built(builder_name, parts, registry, engine, tmp_path_factory):
    """One plan, its image in the registry, and the same image pulled into the engine."""
    name = f"test-{builder_name}-{os.urandom(4).hex()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPSNB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        plan = parts(name)
        builder = plugins.create("builder", builder_name)
        image = builder.build(plan, Destination(place="registry", registry=registry))
    engine.images.pull(image.reference)
    yield SimpleNamespace(plan=plan, image=image)
    forget(engine, name)
