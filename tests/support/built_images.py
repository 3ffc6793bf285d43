"""Fixtures for tests that build serving images for real; `tests/conftest.py` takes them in."""

from __future__ import annotations

import contextlib
import os

import pytest
from served_plans import make_parts

LABELS = {"test.odd": "quotes \" and ' and \\, $HOME, # and ünïcode"}


@pytest.fixture(scope="session")
def parts(tmp_path_factory, base_image):
    """Return a function that makes a plan of another name, always of the same parts."""
    place = tmp_path_factory.mktemp("image-parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPSNB_CACHE_DIR", str(place))
        found = make_parts(place, base_image)
    return lambda name: found.plan(name, LABELS)


@pytest.fixture
def fresh(parts, engine):
    """A plan of a name of its own; what the engine has of it in the end is removed."""
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


def leftovers(engine):
    """Images without a name, and containers, that a build has left for somebody to clear up."""
    dangling = [image["Id"] for image in engine.api.images(filters={"dangling": True})]
    containers = engine.api.containers(all=True)
    images = {image for image in dangling if any(_is_of_a_build(how) for how in _history(engine, image))}
    return images | {container["Id"] for container in containers if _is_of_a_build(container["Command"])}


def _history(engine, image):
    import docker

    try:
        return [step["CreatedBy"] for step in engine.api.history(image)]
    except docker.errors.NotFound:  # somebody else's, and gone
        return []


def _is_of_a_build(command):
    return "/build/" in command or "/opt/mlopsnb" in command
