"""The plan as a Dockerfile of three stages. Pure; `context` says which files it needs.

pip installs the hashed lock, and of that only what was proved goes on; the model is served once and asked for its golden
example, which yields the bytecode; the image copies both, then the runtime, then the model. Nothing in it needs BuildKit.
Source: https://docs.docker.com/reference/dockerfile/.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from mlopsnb.errors import BuildError, UserError
from mlopsnb.images.plan import PACKAGE, ROOT, USER, VENV, WEIGHTS_MOUNT, Layer
from mlopsnb.images.planning import site_packages

if TYPE_CHECKING:
    from mlopsnb.images.plan import ImagePlan

HEADER = "# Made by mlopsnb; README.md says how to build it."

BUILD = "/build"
"""Where the first two stages work; it is not in the image."""

CACHED_STAGE = "dependencies"
"""The stage that is worth keeping for the next build."""

_BYTECODE = "/tmp/bytecode"  # noqa: S108  in a stage of its own
_APT = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?")
"""A package of Debian, with an architecture and a version if wanted (Debian Policy, 5.6.1 and 5.6.12)."""


def installed(plan: ImagePlan) -> dict[str, Layer]:
    """Return the layers whose files pip installs, by the name that each has in the build."""
    layers = [layer for layer in plan.layers if layer.kind in ("wheel", "dependencies")]
    return {f"{n}-{_word(layer)}": layer for n, layer in enumerate(layers, 1)}


def copied(plan: ImagePlan) -> dict[str, Layer]:
    """Return the layers whose files come along, by their directory in the context; it stands for `/opt/mlopsnb`."""
    layers = [layer for layer in plan.layers if layer.kind not in ("wheel", "dependencies", "bytecode")]
    weights = (f"weights-{n}" for n in count(1))
    return {next(weights) if layer.kind == "weights" else layer.kind: layer for layer in layers}


def kept_out(plan: ImagePlan) -> dict[str, Layer]:
    """Return the layers of weights that are not in the image but needed to try it; theirs stands for `/mnt/models`."""
    return {f"kept-out-{n}": layer for n, layer in enumerate(plan.weights, 1)}


def _word(layer: Layer) -> str:
    if layer.kind == "dependencies" or not layer.name.strip():
        return layer.kind
    return re.sub(r"[^a-z0-9.-]+", "-", layer.name.split(maxsplit=1)[0].lower())


def render(
    plan: ImagePlan,
    *,
    fetched: bool,
    brought: bool,
    base: str = "",
    apt: Sequence[str] = (),
    steps: Sequence[str] = (),
) -> str:
    """Return the text of the Dockerfile.

    *fetched* says that some wheels come from an index, *brought* that some come along. *base* is what to call the base
    if not by name and digest. *apt* names Debian packages, and
    *steps* are instructions of a Dockerfile, that are carried out on the base first; `UserError` if one cannot be.
    """
    stages = (
        _base(base or plan.base.pinned, apt, steps),
        _dependencies(plan, fetched=fetched, brought=brought),
        _check(plan),
        _final(plan),
    )
    return "\n\n".join([HEADER, *("\n".join(stage) for stage in stages)]) + "\n"


def _base(base: str, apt: Sequence[str], steps: Sequence[str]) -> Iterator[str]:
    yield f"FROM {base} AS base"
    if apt or steps:
        yield "USER 0"
    if apt:
        for name in apt:
            if not _APT.fullmatch(name):
                raise UserError(
                    f"apt: {name!r} is no name of a Debian package", hint="give names such as 'libgomp1'"
                )
        yield (
            "RUN apt-get update \\\n"
            f" && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {' '.join(apt)} \\\n"
            " && rm -rf /var/cache/apt/* /var/lib/apt/lists/*"
        )
    for step in steps:
        if re.match(r"\s*(FROM\b|#)", step, re.IGNORECASE) or not step.strip():
            raise UserError(
                f"{step!r} cannot be a step: it would begin another stage, or do nothing",
                hint="give instructions such as 'RUN …' or 'ENV …'; base=… says what to build on",
            )
        yield step.rstrip()


def _dependencies(plan: ImagePlan, *, fetched: bool, brought: bool) -> Iterator[str]:
    python = shlex.quote(plan.base.python)
    site = f"/{site_packages(plan.lock.python)}"
    lists = " ".join(f"{BUILD}/lists/{name}.txt" for name in installed(plan))
    sources = [f"--find-links {BUILD}/wheels"] * brought + ["--no-index"] * (not fetched)
    yield f"FROM base AS {CACHED_STAGE}"
    yield "USER 0"
    if fetched:
        yield "ARG PIP_INDEX_URL"
    yield f"COPY requirements.txt scripts/assemble.py {BUILD}/"
    if brought:
        yield f"COPY wheels/ {BUILD}/wheels/"
    yield f"COPY lists/ {BUILD}/lists/"
    yield (
        f"RUN {python} -m pip install --disable-pip-version-check --no-cache-dir --no-compile --no-deps \\\n"
        f"      --require-hashes --only-binary :all: {' '.join(sources)} \\\n"
        f"      --target {BUILD}/site --requirement {BUILD}/requirements.txt \\\n"
        f" && {python} {BUILD}/assemble.py {BUILD}/site {site} {BUILD}/layers {lists}"
    )


def _check(plan: ImagePlan) -> Iterator[str]:
    command = [*plan.config.get("Entrypoint", ()), *(plan.config.get("Cmd") or ())]
    yield f"FROM {CACHED_STAGE} AS check"
    yield f"COPY {' '.join(f'{name}/' for name in copied(plan))} /{ROOT}/"
    if plan.weights:
        yield f"COPY {' '.join(f'{name}/' for name in kept_out(plan))} /{WEIGHTS_MOUNT}/"
    yield f"COPY scripts/check.py {BUILD}/"
    yield from _environment(plan)
    yield f"USER {USER}"
    yield "RUN " + _array([f"/{VENV}/bin/python", f"{BUILD}/check.py", _BYTECODE, f"/{PACKAGE}", *command])


def _final(plan: ImagePlan) -> Iterator[str]:
    directory = plan.config.get("WorkingDir")
    names = {id(layer): name for name, layer in (installed(plan) | copied(plan)).items()}
    yield "FROM base"
    if directory and directory != (plan.base.config.get("config") or {}).get("WorkingDir"):
        yield f"WORKDIR {_quoted(directory, 'the working directory')}"
    for layer in plan.layers:
        name = names.get(id(layer), "")
        if layer.kind == "bytecode":
            yield f"COPY --from=check --chown=0:0 {_BYTECODE}/ /"
        elif layer.kind in ("wheel", "dependencies"):
            yield f"COPY --from={CACHED_STAGE} --chown=0:0 {BUILD}/layers/{name}/ /"
        else:
            yield f"COPY {name}/ /{ROOT}/"
    yield from _environment(plan)
    yield from _settings(plan.config)


def _environment(plan: ImagePlan) -> Iterator[str]:
    """Set what the base does not set so already; what it sets and the plan does not is left empty."""
    lines = (plan.base.config.get("config") or {}).get("Env") or (), plan.config.get("Env", ())
    theirs, ours = (dict(line.partition("=")[::2] for line in each) for each in lines)
    values = {**dict.fromkeys(theirs, ""), **ours}
    yield from _assignments("ENV", {k: v for k, v in values.items() if theirs.get(k) != v})


def _settings(config: Mapping[str, Any]) -> Iterator[str]:
    if ports := config.get("ExposedPorts"):
        yield f"EXPOSE {' '.join(sorted(ports))}"
    if stop := config.get("StopSignal"):
        yield f"STOPSIGNAL {stop}"
    if health := config.get("Healthcheck"):
        yield _healthcheck(health)
    if user := config.get("User"):
        yield f"USER {user}"
    yield from _assignments("LABEL", config.get("Labels") or {})
    if entrypoint := config.get("Entrypoint"):
        yield f"ENTRYPOINT {_array(entrypoint)}"
    if command := config.get("Cmd"):
        yield f"CMD {_array(command)}"


def _healthcheck(health: Mapping[str, Any]) -> str:
    how, *test = health["Test"]
    if how == "NONE":
        return "HEALTHCHECK NONE"
    options = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}
    words = [f"--{option}={health[key] / 1e9:g}s" for option, key in options.items() if health.get(key)]
    words += [f"--retries={health['Retries']}"] * bool(health.get("Retries"))
    return " ".join(["HEALTHCHECK", *words, "CMD", test[0] if how == "CMD-SHELL" else _array(test)])


def _assignments(instruction: str, values: Mapping[str, str]) -> Iterator[str]:
    """Yield one instruction for all values: each would be a step of its own, which takes engines their time."""
    if values:
        pairs = (f"{_quoted(k, 'a name')}={_quoted(v, k)}" for k, v in sorted(values.items()))
        yield f"{instruction} " + " \\\n      ".join(pairs)


def _array(words: Sequence[str]) -> str:
    return json.dumps(list(words), ensure_ascii=False)


def _quoted(value: str, what: str) -> str:
    """Return *value* as a word of a Dockerfile: quoted, and without expansion of variables."""
    if "\n" in value or "\r" in value or "\0" in value:
        raise BuildError(f"{what} has a line break, which a Dockerfile cannot hold: {value!r}")
    escaped = re.sub(r'(["\\$])', r"\\\1", value)
    return f'"{escaped}"'
