"""Fixtures for tests that build serving images for real; `tests/conftest.py` takes them in."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
import time

import pytest
from served_plans import WEIGHTS, make_package, make_parts

from mlopsnb import manifest

LABELS = {"test.odd": "quotes \" and ' and \\, $HOME, # and ünïcode"}


@pytest.fixture(scope="session")
def image_place(tmp_path_factory):
    """A directory for what images are made from, and the cache of builds that several tests share."""
    return tmp_path_factory.mktemp("image-parts")


class Served:
    """Two models that answer with opposite signs, as packages and as images of the engine."""

    def __init__(self, engine, packages, images):
        self.engine, self.packages, self.images = engine, packages, images

    def image_with(self, name, files):
        """Make an image like the first one, but with other *files* in its package; return its name."""
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for path, content in {**files, "Dockerfile": _dockerfile(self.images[0], files)}.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        context.seek(0)
        tag = f"{self.images[0].partition(':')[0]}:{name}"
        self.engine.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
        return tag


def _dockerfile(image, files):
    return "\n".join(
        [f"FROM {image}", *(f"COPY {path} /opt/mlopsnb/model/{path}" for path in files)]
    ).encode()


@pytest.fixture(scope="session")
def served(engine, image_place, base_image):
    """Two models and their images, which `build` has brought into the engine."""
    from mlopsnb.building import build

    packages = [
        manifest.artifact(make_package(image_place / f"served-{n}", factor * WEIGHTS))
        for n, factor in enumerate((1, -1))
    ]
    name = f"test-served-{os.urandom(4).hex()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPSNB_CACHE_DIR", str(image_place))
        images = [build(package, name=name, base=base_image, load="engine").reference for package in packages]
    yield Served(engine, packages, images)
    forget(engine, name)


@pytest.fixture(scope="session")
def parts(image_place, base_image):
    """Return a function that makes a plan of another name, always of the same parts."""
    place = image_place
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
    """Remove every name that has *name* in it, and so the images; pods that are ending may hold them for a while."""
    end, never = time.monotonic() + 120, threading.Event()
    while not _forgotten(engine, name):
        assert time.monotonic() < end, f"something holds the images {name}"
        never.wait(0.5)


def _forgotten(engine, name):
    import docker

    held = False
    for image in engine.api.images():
        for tag in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
            if name in tag:
                try:
                    engine.api.remove_image(tag)
                except docker.errors.NotFound:  # the last tag takes the digest with it
                    continue
                except docker.errors.APIError as exc:
                    if exc.status_code != 409:
                        raise
                    held = True
                    _remove_ended(engine, tag)
    return not held


def _remove_ended(engine, image):
    """Remove the containers of an image that have ended; a kubelet takes a minute or more to do so."""
    import docker

    found = {"ancestor": image, "status": "exited"}
    for container in engine.api.containers(all=True, filters=found):
        with contextlib.suppress(docker.errors.APIError):  # somebody else was quicker
            engine.api.remove_container(container)


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
