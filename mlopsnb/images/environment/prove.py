"""Serves the model from the environment that goes into the image, before it goes there, and keeps what was compiled.

In a process of its own that sees the stripped packages, the model server and local modules, and nothing else of the
kernel: what is missing is missing in the image. The server answers over HTTP and gRPC, and must answer the golden example
as the notebook's model did. What was imported meanwhile is what an image needs compiled.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlopsnb import manifest, plugins
from mlopsnb.events import StepLog, step
from mlopsnb.images import contents
from mlopsnb.images.cache import Store
from mlopsnb.images.digests import digest_of
from mlopsnb.images.environment import Bytecode, Environment, kernel
from mlopsnb.images.environment.kernel import canonical
from mlopsnb.images.environment.prober import PROBE, Prober, take
from mlopsnb.images.environment.request import here, minor
from mlopsnb.images.errors import Incomplete, storing
from mlopsnb.images.planning import site_packages
from mlopsnb.settings import settings

if TYPE_CHECKING:
    from mlopsnb.images.plan import File
    from mlopsnb.manifest import Manifest

_FORMAT = "2"
_NOT_INSTALLED = re.compile(r"No module named '([\w.]+)'|'([\w.]+)' is not installed")
_NAME = re.compile(r"[^A-Za-z0-9._-]")
_SERVER = (
    *("mlopsnb.serving.__main__", "mlopsnb.serving.app", "mlopsnb.serving.engine", "mlopsnb.serving.server"),
    *("mlopsnb.serving.worker", "mlopsnb.serving.rpc.server", "mlopsnb.serving.rpc.service"),
    *(
        "mlopsnb.serving.payloads",
        "mlopsnb.serving.stages",
        "mlopsnb.serving.tokens",
        "mlopsnb.serving.tracing",
    ),
    *("grpc.experimental", "prometheus_client", "uvicorn.lifespan.off", "uvloop"),
)
"""What every server imports, some of it only when it starts: imported once, for all models."""

_TOLD_LINES = 12


def prove(
    environment: Environment,
    package: Path,
    *,
    python: str = "",
    code_paths: Iterable[Path] = (),
    cache: Path | None = None,
) -> Bytecode:
    """Serve the model *package* from *environment* and return the modules that this compiled; see `Proof`."""
    with Proof(environment, package, python=python, code_paths=code_paths, cache=cache) as proof:
        return proof.result()


class Proof:
    """A model that is being served from its environment, in a process beside us, so that packing need not wait.

    *python* is the interpreter to run (the kernel's), *code_paths* are local modules that go into the image, *cache* is
    the store of builds. The same package in the same environment is proved once. Whatever ends the block ends the
    process and leaves nothing of it.
    """

    def __init__(
        self,
        environment: Environment,
        package: Path,
        *,
        python: str = "",
        code_paths: Iterable[Path] = (),
        cache: Path | None = None,
    ) -> None:
        self._python = python or sys.executable
        self._store = Store(cache or settings().cache_dir / "images")
        self._environment = environment
        self._files = (*contents.runtime_files(), *contents.code_files(code_paths))
        self._place = f"/{site_packages(environment.lock.python)}"
        self._key = self._digest(environment, self._files)
        described = manifest.read(package)
        self._proof_key = _hash(self._key, described.digest)
        self._package = package
        self._ends = ExitStack()
        self._log = StepLog()
        self._prober: Prober | None = None
        self._format = described.format
        self._modules = _modules(environment, described)
        self._done: Bytecode | None = None

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            ends.enter_context(self._store.using())
            self._done = self._not_here() or self._kept()
            if self._done is None:
                self._log = ends.enter_context(step("prove", "serving the model from its environment"))
                self._prober = self._start(ends)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.__exit__(kind, exc, trace)

    def result(self) -> Bytecode:
        """Wait for the end and return what was compiled.

        Raises `Incomplete` if the model could not be loaded or run there, or answered otherwise than in the notebook;
        `DiskFull` if the result cannot be kept.
        """
        if self._done is None:
            assert self._prober is not None
            self._done = self._finish(self._prober.wait())
            self._prober.rest()
            self._log.result = f"answers as the notebook's model; {len(self._done.files)} modules compiled"
        return self._done

    def _digest(self, environment: Environment, files: Sequence[File]) -> str:
        """Name what compiled modules depend on, and so what all models in this environment share."""
        ours = PROBE.read_bytes()
        return _hash(
            *(_FORMAT, environment.root.parent.name, environment.lock.digest, self._place),
            *(platform.python_version(), sys.implementation.cache_tag or "", self._python),
            *(hashlib.sha256(ours).hexdigest(), *(f"{f.path} {f.sha256}" for f in files)),
        )

    def _not_here(self) -> Bytecode | None:
        lock = self._environment.lock
        if (lock.platform, lock.python) == (here(), minor()):
            return None
        note = f"an environment for {lock.platform} and Python {lock.python} cannot be run here: the model was not loaded"
        return Bytecode(
            files={}, notes=(f"{note} from it before it was packed, and no modules are compiled",)
        )

    def _kept(self) -> Bytecode | None:
        used = self._store.note("proofs", self._proof_key)
        known = self._known()
        if used is None or known is None or not set(used["packages"]) <= known["index"].keys():
            return None
        return self._bytecode(used, known)

    def _known(self) -> Any:
        """Return where modules lie that were compiled for this environment before, or None."""
        note = self._store.note("bytecode", self._key)
        if note is None or (file := self._store.find(note["digest"], note["size"])) is None:
            return None
        return {"file": str(file), "index": note["index"]}

    def _bytecode(self, used: Mapping[str, Sequence[str]], known: Mapping[str, Any]) -> Bytecode:
        data = Path(known["file"]).read_bytes()
        where = {path: known["index"][path] for path in sorted(used["packages"])}
        files = {path: data[start : start + size] for path, (start, size) in where.items()}
        return Bytecode(files=files, standard=tuple(used["standard"]))

    def _start(self, ends: ExitStack) -> Prober:
        tmp = self._store.root / "tmp"
        try:
            tmp.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix="proof-", dir=tmp)).resolve()
            ends.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            key = _hash(self._key, *self._modules)
            prober = take(key) or Prober(key, self._python)
            ends.push(prober)  # ended unless it answers
            if not prober.started:
                prober.start(
                    self._environment, self._files, self._place, self._format, self._modules, self._known()
                )
            prober.ask(self._package, self._scratch, self._known())
        except OSError as exc:
            raise storing(tmp, exc) from exc
        return prober

    def _finish(self, status: int) -> Bytecode:
        try:
            told = json.loads((self._scratch / "result.json").read_bytes())
        except (OSError, ValueError):
            assert self._prober is not None
            raise _crashed(status, self._prober.said(self._scratch)) from None
        if "error" in told:
            raise _incomplete(told["error"])
        try:
            known = self._merged(told["compiled"])
        except OSError as exc:
            raise storing(self._scratch, exc) from exc
        self._store.set_note("proofs", self._proof_key, told["used"])
        return self._bytecode(told["used"], known)

    def _merged(self, compiled: Mapping[str, tuple[int, int]]) -> Any:
        """Keep what was *compiled* with what was known, for the next model in this environment."""
        known = self._known()
        if known is not None and not compiled:
            return known
        data = Path(known["file"]).read_bytes() if known else b""
        shift = len(data)
        data += (self._scratch / "compiled").read_bytes()
        index = {**(known["index"] if known else {})}
        index |= {path: [start + shift, size] for path, (start, size) in compiled.items()}
        digest = digest_of(data)
        with self._store.writing() as file:
            file.write(data)
            place = file.keep(digest)
        self._store.set_note("bytecode", self._key, {"digest": digest, "size": len(data), "index": index})
        return {"file": str(place), "index": index}


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _incomplete(error: str) -> Incomplete:
    """Say that the environment does not do, and which package would help."""
    missing = _NOT_INSTALLED.search(error)
    hint = "the image has only what the model's format, its server and requirements=[…] name"
    if missing:
        module = (missing[1] or missing[2]).partition(".")[0]
        package = kernel.providers([module]).get(module, module)
        version = kernel.versions().get(package)
        what = f"{package}=={version}" if version else package
        hint = f"the image would lack {module!r}: add {what!r} to requirements=[…], or its path to code_paths=[…]"
    return Incomplete(f"the model does not run in the environment meant for its image: {error}", hint=hint)


def _crashed(status: int, said: str) -> Incomplete:
    last = " / ".join(line.strip() for line in said.splitlines()[-_TOLD_LINES:] if line.strip())
    how = f"ended with {status}"
    if status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    hint = "is there memory enough for a second copy of the model?" if status == -signal.SIGKILL else ""
    return Incomplete(
        f"the process that served the model from the environment meant for its image {how}: {last[-800:]}",
        hint=hint,
    )


def _modules(environment: Environment, described: Manifest) -> tuple[str, ...]:
    """Return what any model of this format imports: the server, the format, and the packages that it names."""
    named = {canonical(_NAME.split(text.strip(), maxsplit=1)[0]) for text in described.requirements}
    found = [
        module
        for name in sorted(named)
        for module in sorted(_top_level(environment, name))
        if name == canonical(module) or name.startswith(f"{canonical(module)}-")
    ]
    built_in = plugins.BUILT_IN.get(("format", described.format), "").partition(":")[0]
    return (*_SERVER, *found, *filter(None, [built_in]))


def _top_level(environment: Environment, name: str) -> set[str]:
    files = environment.packages.get(name, ())
    return {
        f.path.partition("/")[0] for f in files if f.path.endswith("/__init__.py") and f.path.count("/") == 1
    }
