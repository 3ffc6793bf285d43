"""A process that serves models from one environment, and stays for a while: the next model need not import it all again.

It imports what any model of its kind does, and serves each in a fork, so one model leaves nothing for another. It ends
with the kernel, when another environment is proved, or when nothing was asked of it for five minutes.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from mlopsnb.images.environment.tools import clean

if TYPE_CHECKING:
    from mlopsnb.images.environment import Environment
    from mlopsnb.images.plan import File

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH")
"""What the interpreter may need to start at all; of the rest a model in a container knows nothing either."""

PROBE = Path(__file__).with_name("probe.py")

_lock = Lock()
_resting: list[Prober] = []


def take(key: str) -> Prober | None:
    """Return the resting process for *key*, if there is one that can still be asked; it rests no more."""
    with _lock:
        found = next((p for p in _resting if p.key == key), None)
        if found is None:
            return None
        _resting.remove(found)
    if found.runs:
        return found
    found.end()
    return None


def end_all() -> None:
    """End the processes that rest, and remove what they left."""
    with _lock:
        ended = _resting.copy()
        _resting.clear()
    for prober in ended:
        prober.end()


atexit.register(end_all)


class Prober:
    """One such process, by the *key* of what it has imported; *python* runs it."""

    def __init__(self, key: str, python: str) -> None:
        self.key = key
        self._python = python
        self._home = Path(tempfile.mkdtemp(prefix="mlopsnb-")).resolve()
        self._process: subprocess.Popen[str] | None = None
        self._anyway: list[str] = []
        self._rests = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._rests:
            self.end()

    @property
    def started(self) -> bool:
        """Whether it runs, or did."""
        return self._process is not None

    @property
    def runs(self) -> bool:
        """Whether it runs still."""
        return self._process is not None and self._process.poll() is None

    def start(
        self,
        environment: Environment,
        files: Iterable[File],
        place: str,
        format: str,
        modules: Sequence[str],
        known: Any,
    ) -> None:
        """Start it in *environment*, with *files* beside the packages, as they will all lie in *place* in the image.

        It imports what models of *format* run on, and *modules*, at once; *known* is where modules lie that were compiled before.
        """
        stage = self._home / "site-packages"
        self._anyway = [str(path) for path in _staged(files, stage) if path.suffix == ".py"]
        (self._home / "home").mkdir()
        home = str(self._home / "home")
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with (self._home / "said").open("wb") as said:
            self._process = subprocess.Popen(  # noqa: S603  our own script
                [self._python, "-I", "-S", PROBE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env={**env, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"},
                cwd=home,
                start_new_session=True,
                encoding="utf-8",
            )
        roots = [str(environment.root.resolve()), str(stage)]
        message = {
            "roots": roots,
            "place": place,
            "format": format,
            "modules": list(modules),
            "known": known,
            "elsewhere": _compiled() if self._python == sys.executable else [],
            "home": str(self._home),
        }
        self._send(self._home / "start.json", message)

    def ask(self, package: Path, out: Path, known: Any) -> None:
        """Have the model *package* served, the result written to the directory *out*."""
        self._rests = False
        asked = {"package": str(package.absolute()), "out": str(out), "compiled_anyway": self._anyway}
        self._send(out / "asked.json", {**asked, "known": known})

    def _send(self, path: Path, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        path.write_text(json.dumps(message), encoding="utf-8")
        with suppress(BrokenPipeError):  # it has ended; `wait` says how
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()

    def wait(self) -> int:
        """Return the exit status of what was asked for last, or of the whole process if that ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return int(line) if line else self._process.wait()

    def said(self, out: Path) -> str:
        """Return what it and its model, whose result is in *out*, said on standard error."""
        texts = (p.read_text(errors="replace") for p in (self._home / "said", out / "said") if p.exists())
        return clean("\n".join(texts))

    def rest(self) -> None:
        """Let it stay for the next model; it alone."""
        end_all()
        with _lock:
            self._rests = True
            _resting.append(self)

    def end(self) -> None:
        """End the process, and what it runs, at once; remove its files."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                if self._process.poll() is None:
                    os.killpg(self._process.pid, signal.SIGKILL)  # it has nothing to put in order
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.close()
        shutil.rmtree(self._home, ignore_errors=True)


def _compiled() -> list[str]:
    """Return the directories that this kernel imports from, and where it keeps what it compiled."""
    return [str(Path(path).absolute()) for path in sys.path if Path(path).is_dir()]


def _staged(files: Iterable[File], stage: Path) -> list[Path]:
    """Lay *files* out below *stage* as they will lie in the image, those of the disk as links."""
    found = []
    for file in files:
        path = stage / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file.source, Path):
            path.symlink_to(file.source.absolute())
        else:
            path.write_bytes(file.source)
        found.append(path)
    return found
