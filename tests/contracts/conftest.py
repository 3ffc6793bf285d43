"""What the contract of builders needs: a plan, and the image that each builder makes of it, once."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace

import pytest
from served_plans import make_parts

from mlopsnb import plugins
from mlopsnb.images.image import Destination

LABELS = {"test.odd": "quotes \" and ' and \\, $HOME, # and ünïcode"}


@pytest.fixture(scope="session")
def parts(tmp_path_factory, base_image):
    """Return a function that makes a plan of another name, always of the same parts."""
    place = tmp_path_factory.mktemp("image-parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPSNB_CACHE_DIR", str(place))
        found = make_parts(place, base_image)
    return lambda name: found.plan(name, LABELS)


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
        image = plugins.create("builder", builder_name).build(
            plan, Destination(place="registry", registry=registry)
        )
    engine.images.pull(image.reference)
    yield SimpleNamespace(plan=plan, image=image)
    forget(engine, name)


@pytest.fixture
def fresh(parts, engine):
    """A plan of a name of its own; what engines have of it in the end is removed."""
    name = f"test-{os.urandom(4).hex()}"
    yield parts(name)
    forget(engine, name)


def forget(engine, name):
    """Remove every name that has *name* in it, and so the images."""
    import docker

    for image in engine.api.images():
        for tag in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
            if name in tag:
                with contextlib.suppress(docker.errors.NotFound):  # the last tag takes the digest with it
                    engine.api.remove_image(tag)
