"""The builder `docker` as a user meets it: own steps, failing steps, engines that are not there, the exported directory."""

from __future__ import annotations

import gc
import json
import os
import subprocess
from dataclasses import replace

import pytest
from built_images import forget, leftovers

from mlopsnb import manifest
from mlopsnb.errors import BuildError
from mlopsnb.images import context
from mlopsnb.images.docker import CACHE, Docker, exported
from mlopsnb.images.engine_builds import BuildEngine
from mlopsnb.images.errors import EngineNotRunning, RegistryError, RegistryUnreachable
from mlopsnb.images.image import Destination

pytestmark = [pytest.mark.engine, pytest.mark.registry, pytest.mark.timeout(600)]
ENGINE = Destination(place="engine")


def test_own_steps_are_in_the_image_below_ours(fresh, engine):
    image = Docker(steps=["RUN echo mine >/etc/mine", 'ENV MINE="yes"']).build(fresh, ENGINE)
    assert [layer.name for layer in image.layers if layer.kind == "base"][-1] == "Dockerfile steps"
    assert engine.containers.run(image.id, ["/etc/mine"], entrypoint="/bin/cat", remove=True) == b"mine\n"
    assert engine.images.get(image.id).attrs["Config"]["User"] == "65532:65532"


def test_debian_packages_are_installed_below_ours(fresh, engine):
    try:
        image = Docker(apt=["hello"]).build(fresh, ENGINE)
    except BuildError as exc:
        if any(words in exc.message for words in ("Failed to fetch", "Temporary failure resolving")):
            pytest.skip("containers of this engine reach no mirror of Debian")
        raise
    assert engine.containers.run(image.id, entrypoint="/usr/bin/hello", remove=True) == b"Hello, world!\n"
    command = ["-A", "/var/lib/apt/lists", "/var/cache/apt"]
    left = engine.containers.run(image.id, command, entrypoint="/bin/ls", remove=True)
    assert left.split() == [b"/var/cache/apt:", b"/var/lib/apt/lists:"], "what apt keeps is of no use there"


def test_a_base_that_only_the_engine_has(fresh, engine, base_image):
    local = f"{fresh.repository}-base:1"
    engine.images.get(base_image).tag(*local.split(":"))
    plan = replace(fresh, base=replace(fresh.base, reference=local, digest=f"sha256:{'0' * 64}"))
    assert engine.images.get(Docker().build(plan, ENGINE).tagged)


def test_a_step_that_fails_says_which_and_what_it_wrote_and_leaves_nothing(fresh, engine):
    before = leftovers(engine)
    with pytest.raises(BuildError) as caught:
        Docker(steps=["RUN echo about to fail && exit 3"]).build(fresh, ENGINE)
    assert (
        "of the Dockerfile failed: RUN echo about to fail && exit 3\nabout to fail\n" in caught.value.message
    )
    assert "non-zero code: 3" in caught.value.message
    assert leftovers(engine) <= before
    assert not engine.images.list(fresh.repository)


def test_words_that_are_no_instruction_are_told_before_anything_is_built(fresh):
    with pytest.raises(BuildError, match="(?i)unknown instruction: INSTALL"):
        Docker(steps=["INSTALL libgomp1"]).build(fresh, ENGINE)


def test_a_model_that_answers_otherwise_fails_the_build(fresh, engine, tmp_path):
    package = tmp_path / "package"
    subprocess.run(["cp", "-r", str(fresh.package), str(package)], check=True)
    found = manifest.read(package)
    inputs, outputs = manifest.read_example(package)
    manifest.write_example(package, inputs, {name: value + 1 for name, value in outputs.items()})
    manifest.write(package, replace(found, files=manifest.file_digests(package)))
    other = replace(fresh, layers=tuple(moved(layer, fresh.package, package) for layer in fresh.layers))
    with pytest.raises(
        BuildError, match="the model answers otherwise than it was exported with: .*output 'y'"
    ):
        Docker().build(other, ENGINE)
    assert not engine.images.list(fresh.repository)


def moved(layer, old, new):
    """The layer with the files of package *new* in place of those of *old*, and what was read of it read again."""
    entries = []
    for entry in layer.entries:
        name = entry.path.removeprefix("opt/mlopsnb/model/")
        is_of_package = name != entry.path and (old / name).is_file()
        entries.append(replace(entry, source=new / name) if is_of_package else entry)
    return replace(layer, entries=tuple(entries))


@pytest.mark.parametrize("where", ["new", "with other files"])
def test_the_exported_directory_is_built_by_docker_alone(fresh, engine, tmp_path, where):
    into = tmp_path / "context"
    if where == "with other files":
        into.mkdir()
        (into / "secret.env").write_text("PASSWORD=hunter2")
    context.export(exported(fresh), into)
    name, before = f"{fresh.repository}:by-hand", leftovers(engine)
    built = subprocess.run(
        ["docker", "build", "--quiet", "--tag", name, str(into)],
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        text=True,
    )
    try:
        assert built.returncode == 0, built.stderr
        image = Docker().build(fresh, ENGINE)
        assert engine.images.get(name).id == image.id  # the very same: the engine took all from its cache
        assert "secret" not in json.dumps(engine.images.get(name).history())
    finally:
        for image in leftovers(engine) - before:  # docker build leaves the end of each stage
            engine.api.remove_image(image)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # docker-py leaves its socket open
def test_an_engine_that_is_not_there(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(
        EngineNotRunning, match=f"no container engine answers at unix://{tmp_path}/docker.sock"
    ):
        Docker().build(fresh, ENGINE)
    gc.collect()


def test_a_registry_that_is_not_there_leaves_no_tag(fresh, engine):
    before = leftovers(engine)
    with pytest.raises(RegistryUnreachable, match="127.0.0.1:9 cannot be reached"):
        Docker().build(fresh, Destination(place="registry", registry="127.0.0.1:9"))
    names = [
        tag for image in engine.api.images() for tag in image["RepoTags"] or () if fresh.repository in tag
    ]
    assert names == [f"{CACHE}:{fresh.repository}"]
    assert leftovers(engine) <= before


@pytest.fixture
def two_images(engine):
    """Two images of a few bytes under names of their own; both are gone in the end."""
    name = f"test-{os.urandom(4).hex()}"
    for tag in ("1", "2"):
        engine.api.import_image_from_data(
            b"\0" * 1024, repository=name, tag=tag, changes=[f"LABEL n={name}{tag}"]
        )
    yield name, *(engine.images.get(f"{name}:{tag}").id for tag in ("1", "2"))
    forget(engine, name)


@pytest.mark.parametrize("taken", [True, False])
def test_a_name_is_given_back_when_what_it_was_for_fails(engine, two_images, taken):
    name, first, second = two_images
    moved = f"{name}:{'1' if taken else '3'}"

    def named():
        with BuildEngine() as ours, ours.naming(second, moved):
            assert engine.images.get(moved).id == second
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        named()
    if taken:
        assert engine.images.get(moved).id == first
    else:
        assert not [i for i in engine.api.images() if moved in (i["RepoTags"] or ())]
    assert engine.images.get(f"{name}:2").id == second


def test_what_loses_its_last_name_to_another_image_goes(engine, two_images):
    name, first, second = two_images
    with BuildEngine() as ours:
        ours.name(second, f"{name}:1")
    assert engine.images.get(f"{name}:1").id == second
    assert first not in [i["Id"] for i in engine.api.images(all=True)]


def test_what_an_engine_says_of_a_push_becomes_our_error():
    from mlopsnb.images.delivery import translated
    from mlopsnb.images.errors import ManifestRejected, RegistryFull, Unauthorized

    def kind(said):
        return type(translated("r.io", "push r.io/a:b", said))

    assert kind("denied: requested access to the resource is denied") is Unauthorized
    assert kind("unauthorized: authentication required") is Unauthorized
    assert kind("received unexpected HTTP status: 507 Insufficient Storage") is RegistryFull
    assert kind("filesystem: write /data: no space left on device") is RegistryFull
    assert kind("manifest invalid: manifest invalid") is ManifestRejected
    assert kind('Get "https://r.io/v2/": dial tcp: lookup r.io: no such host') is RegistryUnreachable
    assert kind("something else") is RegistryError
    plain = translated("r.io", "push x", "http: server gave HTTP response to HTTPS client")
    assert "insecure-registries" in plain.hint
