"""The build step: from whatever a person has to a serving image.

Each stage is one call: package, base, environment, proof, plan, builder. Nothing is left half done, and what a stage made
stays in the cache for the next build. A build whose inputs are those of an earlier one only asks whether that one's
image is still there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb import manifest, plugins
from mlopsnb.deployment import check_name
from mlopsnb.errors import UserError
from mlopsnb.events import step
from mlopsnb.images import attestations, destinations, lineage, memo, sbom, scanning, sizes, weights, wish
from mlopsnb.images.ahead import Ahead, measure
from mlopsnb.images.base import inspect
from mlopsnb.images.cache import Store
from mlopsnb.images.contents import code_files, package_files, runtime_files
from mlopsnb.images.environment.install import install
from mlopsnb.images.environment.locking import resolve
from mlopsnb.images.environment.prove import Proof
from mlopsnb.images.environment.request import minor
from mlopsnb.images.environment.roots import roots
from mlopsnb.images.errors import storing
from mlopsnb.images.oci import Oci, place_of
from mlopsnb.images.planning import plan_image, weight_layers, wheel_layers
from mlopsnb.images.registry import connect
from mlopsnb.images.standard import Standard
from mlopsnb.packages import export as export_model
from mlopsnb.packages import fetch, find, name_of, pick_format
from mlopsnb.records import Artifact, ModelVersion
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from mlopsnb.images.image import Destination, Image
    from mlopsnb.images.lock import Lock
    from mlopsnb.images.plan import ImagePlan
    from mlopsnb.images.wish import Wish
    from mlopsnb.protocols import Builder

_URI = ("models:/", "runs:/")


def build(
    what: object,
    *,
    name: str | None = None,
    example: object = None,
    format: str | None = None,
    builder: str = "auto",
    base: str | None = None,
    registry: str | None = None,
    push: bool | None = None,
    load: str | None = None,
    output: str | Path | None = None,
    export: str | Path | None = None,
    platform: str | None = None,
    accelerator: str = "cpu",
    requirements: Sequence[str] = (),
    code_paths: Sequence[str | Path] = (),
    max_size: int | str | None = None,
    separate_weights: bool | None = None,
    scan: str | None = None,
    sign: str | Path | None = None,
    apt: Sequence[str] = (),
    steps: Sequence[str] = (),
) -> Any:
    """Build a serving image of *what*, running the steps that are missing, and bring it to where it is needed.

    No container engine is needed, and no root: the image is put together from wheels and sent as it is packed. Before
    that, its environment has to load the model and answer the golden example as the original did, without anything of
    the notebook. The same inputs give the same digest, anywhere.

    Args:
        what: a model (give *example*), an `Artifact`, the directory of one, a `ModelVersion`, or a URI:
            `models:/fraud/3`, `models:/fraud@champion`, `runs:/…`.
        name: the image's name, a DNS label; by default that of the model version.
        example, format: as for `export`.
        builder: `oci` (needs no engine) or `docker`; `auto` is `oci` if that can do what is asked for.
        base: the image to stand on; by default the setting `base_image`, else `python:3.X-slim` of this kernel's
            version. Its Python must be of that version. A tag is looked up once in ten minutes.
        registry: where to push: a host, with a namespace if there is one (`ghcr.io/team`); by default the setting.
        push: True pushes to the registry or fails; False does not, even if one is set.
        load: bring it into `engine` (Docker), `kind`, `minikube` or `k3d`.
        output: write it as an OCI layout: a directory, or a tar if the name ends in `.tar`.
        export: write a Dockerfile and all it needs into this directory and build nothing.
        platform: what it runs on, as OCI writes it (`linux/arm64`); by default this machine's processor.
        accelerator: `cpu`, or `cuda` for an environment with CUDA's libraries.
        requirements: packages that the model needs besides those that are known, as pip takes them.
        code_paths: modules and packages of your own that the model imports: files or directories.
        max_size: the most that all layers together may take compressed: bytes, or text such as `900MB`.
        separate_weights: keep the largest file of the model in an image of its own, which pods mount or copy from; by
            default files of 1 GiB and more. Not with *export*.
        scan: have trivy or grype look for known vulnerabilities first, and stop at one of this severity or graver:
            `low`, `medium`, `high` or `critical`.
        sign: sign the image in its registry with the private key in this file, as cosign does; the password of the
            key is in the variable COSIGN_PASSWORD.
        apt, steps: Debian packages, and instructions of a Dockerfile (`"RUN …"`), that the base is given first; these
            need an engine, or *export*.

    Returns:
        The `Image`: its reference by digest, its layers with their sizes, its lock; with *export* the directory's `Path`.
        If nothing says where to, it is in the registry of the settings, else in a running engine, else in an OCI
        layout in the cache.

    Raises:
        BuildError: what went wrong has a class of its own in `mlopsnb.images.errors`: the registry
            (`RegistryUnreachable`, `Unauthorized`, `RegistryFull`, `ManifestRejected`), the engine (`EngineNotRunning`,
            `EngineForbidden`), the base (`BaseWithoutPython`, `WrongPython`, `WrongPlatform`), the environment
            (`Unresolvable`, `NoWheel`, `Incomplete`), the room (`DiskFull`, `TooLarge`). No tag and no half image is left.
        UserError, ExportError, TrackingError: from the steps before.
    """
    chosen = settings(registry=registry, base_image=base)
    name = check_name(name or name_of(what, of="an image"), of="an image")
    asked = wish.read(
        base=chosen.base_image,
        platform=platform,
        accelerator=accelerator,
        requirements=requirements,
        code_paths=code_paths,
        max_size=max_size,
        separate_weights=False if export is not None else separate_weights,
        scan=scan,
        sign=sign,
    )
    key_to_sign = attestations.key_of(asked.sign)
    maker = _builder(builder, {"apt": tuple(apt), "steps": tuple(steps)})
    to = wish.destination(chosen, name, push=push, load=load, output=output)
    attestations.check(to, asked.sign)
    found = _found(what, example, format)
    store = Store(chosen.cache_dir / "images", limit=chosen.image_cache_bytes)
    with store.using(), tempfile.TemporaryDirectory(prefix="mlopsnb-") as scratch:
        key = _key(asked, name, to, [builder, *apt, *steps], found)
        if export is None and (image := _unchanged(store, key)) is not None:
            _scan(asked, image.lock, image.base)
            return _loaded(image, name, load)
        artifact = found if isinstance(found, Artifact) else fetch(found, Path(scratch) / "package")
        with _ahead(asked, to, name, maker if export is None else None, store) as ahead:
            plan, sent = _plan(asked, name, found, artifact, store, ahead)
        if asked.budget is not None:
            sizes.check_budget(measure(plan, store), plan.lock, asked.budget)
        if export is not None:
            return _dockerfile(plan, Path(export).expanduser().absolute(), apt=apt, steps=steps)
        _make_room(to)
        image = _made(plan, to, maker)
        image = replace(image, sent=image.sent + sent)
        attestations.attest(image, key_to_sign)
        memo.remember(store, key, image)
        return _loaded(image, name, load)


def _builder(name: str, options: dict[str, tuple[str, ...]]) -> Builder:
    """Return the builder *name*; `auto` is the one that can do what *options* ask for."""
    given = {key: value for key, value in options.items() if value}
    if name == "auto":
        name = "docker" if given else "oci"
    if given and name == "oci":
        raise UserError(
            f"builder 'oci' carries out no {' and no '.join(given)}",
            hint="leave builder out, or give builder='docker'",
        )
    maker: Builder = plugins.create("builder", name, **given)
    return maker


def _found(what: object, example: object, format: str | None) -> Artifact | ModelVersion:
    """Return the package that *what* is or becomes, or the version that has it."""
    if isinstance(what, Artifact | ModelVersion):
        return what
    if isinstance(what, str) and what.startswith(_URI):
        return find(what)
    if isinstance(what, str | Path) and (isinstance(what, Path) or Path(what).is_dir()):
        return manifest.artifact(Path(what).expanduser().absolute())
    if example is None:
        pick_format(what, format)  # a model of no known kind is the first thing to say
        raise UserError(
            "a model needs an example to be exported with", hint="build(model, example=X_test[:10], …)"
        )
    return export_model(what, example, format=format)


def _key(asked: Wish, name: str, to: Destination, how: Sequence[str], found: Artifact | ModelVersion) -> str:
    """Return the memo's key: what the image is made from, and where it goes."""
    files = sorted(memo.files_seen([found.path])) if isinstance(found, Artifact) else []
    return memo.key(
        {
            "wish": asdict(asked),
            "name": name,
            "to": asdict(to),
            "how": how,
            "base": memo.pinned(asked.base),
            "package": [found.digest, _version_of(found), files],
            "code": sorted(memo.files_seen(asked.code_paths)),
            "sign": sorted(memo.files_seen([asked.sign] if asked.sign else [])),
        }
    )


def _version_of(found: Artifact | ModelVersion) -> str:
    """Return the version that the image bears; 0 stands for a package that was never logged."""
    return str(found.version) if isinstance(found, ModelVersion) else "0"


def _unchanged(store: Store, key: str) -> Image | None:
    image = memo.recall(store, key)
    if image is not None:
        with step("upload") as said:
            said.result = f"nothing has changed: {image.tagged} is there"
    return image


def _ahead(
    asked: Wish, to: Destination, name: str, maker: Builder | None, store: Store
) -> AbstractContextManager[Ahead | None]:
    """Return what packs layers before all is certain, and sends them if they go to a registry; of use to `Oci` alone."""
    if not isinstance(maker, Oci):
        return nullcontext()
    if to.place != "registry" or asked.budget is not None:
        return Ahead(store)
    host, repository = place_of(name, to)
    return Ahead(store, connect(host), repository)


def _plan(
    asked: Wish,
    name: str,
    found: Artifact | ModelVersion,
    artifact: Artifact,
    store: Store,
    ahead: Ahead | None,
) -> tuple[ImagePlan, int]:
    """Decide what the image is, from what it has to hold and what was found to work.

    While that is found out, *ahead* is given the layers that are certain; how many bytes it sent is returned too.
    """
    described = manifest.read(artifact.path)
    manifest.verify(artifact.path, described)
    files = package_files(artifact.path)
    apart = weights.kept_out(files, asked.separate_weights)
    if ahead is not None:
        ahead.take(weight_layers(files, apart))
    python = minor()
    base = inspect(asked.base, platform=asked.platform, python=python, store=store)
    wanted = roots(described, extra=asked.requirements, code_paths=asked.code_paths)
    lock = resolve(wanted, platform=asked.platform, python=python, accelerator=asked.accelerator)
    _scan(asked, lock, base.pinned)
    with Standard(base, store) as standard:
        environment = install(lock, store.root)
        with Proof(environment, artifact.path, code_paths=asked.code_paths) as proof:
            if ahead is not None:
                ahead.take(wheel_layers(environment))
            sent = ahead.result()[1] if ahead is not None else 0
            bytecode = proof.result()
        compiled = standard.compiled(bytecode.standard)
    plan = plan_image(
        name=name,
        version=_version_of(found),
        base=base,
        environment=environment,
        bytecode=bytecode,
        standard=compiled,
        runtime=runtime_files(),
        package=artifact.path,
        package_digest=described.digest,
        files=files,
        kept_out=apart,
        code=code_files(asked.code_paths),
        labels=lineage.labels(found if isinstance(found, ModelVersion) else None),
    )
    return plan, sent


def _scan(asked: Wish, lock: Lock, base: str) -> None:
    """Raise `GateRejected` if *lock*, or *base* (by name and digest), has too grave a vulnerability for what is asked."""
    if asked.fail_on is None:
        return
    with step("scan", base) as said:
        name, _, digest = base.partition("@")
        listed = sbom.bill(name="image", tag="", base=name, base_digest=digest, lock=lock)
        found = scanning.gate(sbom.text(listed), base, fail_on=asked.fail_on)
        said.result = f"{len(found)} known vulnerabilities, none of severity {asked.fail_on} or graver"


def _made(plan: ImagePlan, to: Destination, maker: Builder) -> Image:
    """Build the image, after one of the weights that it does not hold."""
    if not plan.weights:
        return maker.build(plan, to)
    oci: Builder = plugins.create("builder", "oci")
    held = oci.build(weights.plan_weights(plan), weights.beside(to))
    image = maker.build(weights.naming(plan, held), to)
    return replace(image, weights=held.reference)


def _make_room(to: Destination) -> None:
    if to.path is not None:
        try:
            to.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise storing(to.path.parent, exc) from exc


def _loaded(image: Image, name: str, load: str | None) -> Image:
    """Bring an image that was written to an archive into the local cluster that was asked for."""
    if load is None or load == "engine":
        return image
    assert image.destination.path is not None
    destinations.load(load, image.destination.path)
    there = f"{name}:{image.tagged.rpartition(':')[2]}"
    return replace(image, reference=there, tagged=there)


def _dockerfile(plan: ImagePlan, into: Path, *, apt: Sequence[str], steps: Sequence[str]) -> Path:
    from mlopsnb.images import context
    from mlopsnb.images.docker import exported

    return context.export(exported(plan, apt=apt, steps=steps), into)
