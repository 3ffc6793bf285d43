"""Target `process`: each revision is a process of its own on this machine, in its own session.

It outlives the kernel that started it and is found again by its files. All revisions of a name share one listening
socket, which is handed from the old process to the new one: it is never closed in between, so no connection is
refused or reset while traffic moves. Linux and macOS.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlopsnb import interrupts
from mlopsnb.errors import DeployError, NotReady
from mlopsnb.events import report_line, report_progress
from mlopsnb.rollout import Action, Check, Forget, Gate, Route, Scale, Shift, Start, Stop, version
from mlopsnb.settings import settings
from mlopsnb.targets import process_control
from mlopsnb.targets.asking import get
from mlopsnb.targets.process_state import KEEP_REVISIONS, ReleaseFiles, RevisionFiles

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlopsnb.protocols import Delivery
    from mlopsnb.records import Release, Revision, RevisionState

HOST = "127.0.0.1"
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
_CHILD_READY_FD, _CHILD_ALIVE_FD = 3, 4


class Process:
    """Runs revisions as local processes. *state_dir* defaults to the setting of that name."""

    def __init__(self, *, state_dir: Path | None = None) -> None:
        self.root = (state_dir or settings().state_dir) / "process"

    def delivery(self) -> Delivery:
        """Say that it runs packages."""
        return "package"

    def takes(self) -> Collection[str]:
        """Say that only the time to live is its own: a process may use what the machine has."""
        return ("ttl",)

    def check(self, name: str, draft: Revision) -> None:
        """Find nothing wrong: what a process cannot be given is not among the fields that it takes."""

    def splits(self, name: str) -> bool:
        """Say that one revision at a time has the socket, and all traffic with it."""
        return False

    def names(self) -> Sequence[str]:
        """List the names that have a state file of this user here."""
        mine = (p.parent for p in self.root.glob("*/release.json") if p.stat().st_uid == os.geteuid())
        return sorted(directory.name for directory in mine)

    def claim(self, name: str) -> AbstractContextManager[None]:
        """Hold *name* against other deploys; `DeployError` if one runs, or if another user has the name."""
        return self._files(name).claim()

    def observe(self, name: str) -> Release:
        """Return what is written of *name*, corrected by which processes live."""
        return self._observe(name)[0]

    def apply(self, name: str, action: Action, *, timeout: float) -> None:
        """Carry out *action*; see `protocols.Target`."""
        match action:
            case Start(revision):
                self._start(name, revision, timeout)
            case Shift(weights):
                self._shift(name, weights)
            case Stop(revision_id, failed):
                self._stop(name, revision_id, failed=failed)
            case Forget():
                self._forget(name)
            case Scale():
                raise DeployError(
                    "the process target runs one replica of a revision",
                    hint="workers= gives one server several processes",
                )
            case Check() | Gate() | Route():
                raise AssertionError("made by whoever carries out the plan, or by none without a Gateway")

    def logs(self, name: str, revision_id: int) -> Iterator[str]:
        """Yield the lines that the revision's process has written so far."""
        return self._files(name).revision(revision_id).lines()

    @contextlib.contextmanager
    def reach(self, name: str, revision_id: int) -> Iterator[str]:
        """Yield the address of the revision's own socket."""
        files = self._files(name).revision(revision_id)
        if not files.is_alive():
            raise DeployError(f"revision {revision_id} of {name!r} does not run", hint="deploy it again")
        yield f"unix:{files.http}"

    def ask(self, name: str, revision_id: int, path: str) -> Mapping[str, bytes]:
        """GET *path* from the revision's process, the one replica that there is."""
        files = self._files(name).revision(revision_id)
        answer = get(f"unix:{files.http}", path) if files.is_alive() else None
        return {} if answer is None else {"process": answer}

    def _files(self, name: str) -> ReleaseFiles:
        return ReleaseFiles(self.root / name)

    def _observe(self, name: str) -> tuple[Release, int | None]:
        files = self._files(name)
        written, port = files.read()
        revisions = tuple(_observed(r, files.revision(r.id)) for r in written.revisions)
        alive = {r.id for r in revisions if r.state == "running"}
        weights = {k: v for k, v in written.weights.items() if k in alive}
        url = f"http://{HOST}:{port}" if weights and port else None
        grpc = next((f"{HOST}:{r.grpc_port}" for r in revisions if r.id in weights and r.grpc_port), None)
        return replace(written, revisions=revisions, weights=weights, url=url, grpc=grpc), port

    def _update(self, name: str, revision: Revision) -> None:
        """Write *revision* into the history, in the place of the one with its number or as the newest."""
        files = self._files(name)
        release, port = files.read()
        others = [r for r in release.revisions if r.id != revision.id]
        kept = sorted([*others, revision], key=lambda r: r.id)
        files.write(replace(release, revisions=tuple(kept)), port)

    # ------------------------------------------------------------------------------------------ start
    def _start(self, name: str, revision: Revision, timeout: float) -> None:
        files = self._files(name)
        files.check_owner()
        if revision.package is None:
            raise DeployError(f"revision {revision.id} of {name!r} has no package on this machine")
        release, port = self._observe(name)
        if revision.port not in (None, port):
            _bind(revision.port).close()  # a taken port is told before the model is loaded, not after
        grpc_port = _grpc_port(release, revision.grpc_port)
        mine = files.revision(revision.id)
        spare = revision.fallback and mine.fallback
        started = replace(
            revision,
            package=mine.package,
            fallback=spare,
            captured=mine.captured if revision.capture else None,
            grpc_port=grpc_port,
            state="starting",
        )
        self._update(name, started)
        try:
            _copy(revision.package, mine.package)
            if revision.fallback is not None:
                _copy(revision.fallback, mine.fallback)
            _go_on_counting(files, release, started)
            _Launch(name, started, mine).wait(timeout)
            self._update(name, replace(started, state="running"))
        except BaseException:
            self._stop(name, revision.id, failed=True)
            raise

    # ------------------------------------------------------------------------------------------ traffic
    def _shift(self, name: str, weights: Mapping[int, int]) -> None:
        if len(weights) != 1:
            raise DeployError("the process target gives all traffic to one revision; it cannot split it")
        [new] = weights
        files = self._files(name)
        release, port = self._observe(name)
        revision = next(r for r in release.revisions if r.id == new)
        live = [r.id for r in release.revisions if r.state == "running"]
        _grpc_port(release, revision.grpc_port)  # somebody may have taken it meanwhile
        listener = self._listener(files, release, port, revision)
        with listener:
            process_control.take(files.revision(new).control, listener)
            port = listener.getsockname()[1]
        files.write(replace(files.read()[0], weights=dict(weights)), port)
        for other in live:
            if other != new:
                process_control.release(files.revision(other).control)

    def _listener(
        self, files: ReleaseFiles, release: Release, port: int | None, revision: Revision
    ) -> socket.socket:
        """Return the public socket: the one in use if the port stays, else a new one."""
        if revision.port in (None, port):
            for holder in release.weights:
                if found := process_control.give(files.revision(holder).control):
                    return found
        if revision.port is None and port is not None:
            with contextlib.suppress(DeployError):  # after a restart of the machine its port may be another's
                return _bind(port)
        return _bind(revision.port)

    # ------------------------------------------------------------------------------------------ stop
    def _stop(self, name: str, revision_id: int, *, failed: bool) -> None:
        files = self._files(name)
        release, port = files.read()
        mine = files.revision(revision_id)
        _signal(mine, signal.SIGTERM)
        if failed:
            _wait_end(mine)
            for package in (mine.package, mine.fallback):
                shutil.rmtree(package, ignore_errors=True)  # its log stays, to be read
        state: RevisionState = "failed" if failed else "stopped"
        revisions = tuple(replace(r, state=state) if r.id == revision_id else r for r in release.revisions)
        weights = {k: v for k, v in release.weights.items() if k != revision_id}
        files.write(replace(release, revisions=revisions, weights=weights), port)
        self._prune(name)

    def _prune(self, name: str) -> None:
        files = self._files(name)
        release, port = files.read()
        old = [r for r in release.revisions[:-KEEP_REVISIONS] if not files.revision(r.id).is_alive()]
        if old:
            gone = {r.id for r in old}
            files.write(
                replace(release, revisions=tuple(r for r in release.revisions if r.id not in gone)), port
            )
            for revision in old:
                shutil.rmtree(files.revision(revision.id).root, ignore_errors=True)

    def _forget(self, name: str) -> None:
        files = self._files(name)
        release, _ = files.read()
        mine = [files.revision(r.id) for r in release.revisions]
        for revision in mine:
            _signal(
                revision, signal.SIGINT
            )  # nobody takes over: requests in flight end, idle clients are not waited for
        for revision in mine:
            _wait_end(revision)
        (files.root / "release.json").unlink(missing_ok=True)
        shutil.rmtree(files.root / "revisions", ignore_errors=True)


class _Launch:
    """One process being started: spawned, then waited for through the pipe on which it says that it is ready."""

    def __init__(self, name: str, revision: Revision, files: RevisionFiles) -> None:
        self.name, self.revision, self.files = name, revision, files
        self.pid = 0
        self.pipe = self._spawn()

    def _spawn(self) -> int:
        """Spawn the server and return the reading end of its readiness pipe."""
        # Above the numbers that the child gets, so that arranging one cannot overwrite the other.
        read, write = (_above(fd) for fd in os.pipe())
        alive = _above(os.open(self.files.alive, os.O_RDWR | os.O_CREAT, 0o600))
        log = _above(os.open(self.files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        fcntl.flock(alive, fcntl.LOCK_EX)
        try:
            with interrupts.held():  # a process must not exist before its number is written down
                self.pid = os.posix_spawn(
                    sys.executable,
                    self._command(),
                    {**os.environ, "PYTHONUNBUFFERED": "1", **self.revision.env},
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, log, 1),
                        (os.POSIX_SPAWN_DUP2, log, 2),
                        (os.POSIX_SPAWN_DUP2, write, _CHILD_READY_FD),
                        (os.POSIX_SPAWN_DUP2, alive, _CHILD_ALIVE_FD),
                        *((os.POSIX_SPAWN_CLOSE, fd) for fd in _left_to_children()),
                    ],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=[signal.SIGINT],
                )
                self.files.pid_file.write_text(str(self.pid))
        except BaseException:
            os.close(read)
            raise
        finally:
            for fd in (write, alive, log):
                os.close(fd)
        return read

    def _command(self) -> list[str]:
        return [
            *(
                sys.executable,
                "-P",
                "-m",
                "mlopsnb.serving",
                str(self.files.package),
            ),  # -P: not from the notebook's folder
            *("--name", self.name, "--version", version(self.revision)),
            *("--uds", str(self.files.http), "--control", str(self.files.control)),
            *("--profile-dir", str(self.files.profile)),
            *("--log-file", str(self.files.log)),  # the same as descriptors 1 and 2, which it keeps bounded
            *("--workers", str(self.revision.workers)),
            *(("--grpc-port", str(self.revision.grpc_port)) if self.revision.grpc_port else ()),
            *("--ready-fd", str(_CHILD_READY_FD), "--alive-fd", str(_CHILD_ALIVE_FD)),
            *(("--cache-bytes", str(self.revision.cache_bytes)) if self.revision.cache_bytes else ()),
            *(("--fallback", str(self.revision.fallback)) if self.revision.fallback else ()),
            *self._capture(),
        ]

    def _capture(self) -> tuple[str, ...]:
        rate, mask = self.revision.capture, ",".join(self.revision.mask)
        if not rate:
            return ()
        where = ("--capture", str(rate), "--capture-dir", str(self.files.captured))
        return (*where, f"--mask={mask}") if mask else where

    def wait(self, timeout: float) -> None:
        """Return when the server says that it is ready; raise `NotReady` when it ends, fails or takes too long."""
        started = time.monotonic()
        said, logged = b"", [""]
        try:
            while not said.endswith(b"\n"):
                waited = time.monotonic() - started
                if waited > timeout:
                    raise self._not_ready(f"was not ready after {timeout:g} s")
                # Short slices: an interrupt is seen at once, and the person sees that time passes.
                if select.select([self.pipe], [], [], min(0.2, timeout))[0]:
                    chunk = os.read(self.pipe, 65536)
                    if not chunk:
                        raise self._not_ready("ended while starting")
                    said += chunk
                report_progress("start", f"revision {self.revision.id}, process {self.pid}")
                if (last := self.files.last_lines(1)) and last != logged:
                    logged = last
                    report_line("start", last[0])
        finally:
            os.close(self.pipe)
        answer: dict[str, Any] = json.loads(said)
        if not answer["ready"]:
            raise self._not_ready(f"could not start: {answer['error']}", hint=answer.get("hint", ""))

    def _not_ready(self, what: str, *, hint: str = "") -> NotReady:
        lines = self.files.last_lines()
        log = "\n  last lines of its log:\n    " + "\n    ".join(lines) if lines else ""
        return NotReady(f"revision {self.revision.id} of {self.name!r} {what}{log}", hint=hint)


def _observed(revision: Revision, files: RevisionFiles) -> Revision:
    if revision.state not in ("starting", "running"):
        return revision
    if not files.is_alive():
        return replace(revision, state="stopped" if revision.state == "running" else "failed")
    return replace(revision, address=f"unix:{files.http}")


def _copy(package: Path, place: Path) -> None:
    """Give the revision a package of its own: the user's may change or go, and a rollback needs it."""
    try:
        place.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        shutil.copytree(package, place)
    except OSError as exc:
        raise DeployError(
            f"the model package cannot be copied to {place}: {exc.strerror or exc}",
            hint="free some space there, or set MLOPSNB_STATE_DIR to another disk",
        ) from exc


def _go_on_counting(files: ReleaseFiles, release: Release, revision: Revision) -> None:
    """Let *revision* go on from what the last one that served the very same package has counted of live rows so far.

    What that one counts until it hands over is not in it: seconds of traffic, which drift can do without.
    """
    same = [r for r in release.revisions if r.digest == revision.digest and r.id != revision.id]
    for earlier in reversed(same):
        if (counted := files.revision(earlier.id).profile).is_dir():
            with contextlib.suppress(OSError):  # it begins anew
                shutil.copytree(counted, files.revision(revision.id).profile)
            return


def _left_to_children() -> Iterator[int]:
    """Yield the descriptors of others that a child would get, besides those that it has for itself.

    A shell leaves us some. A server that kept them would hold locks and pipes for as long as it runs.
    """
    for fd in sorted(int(entry.name) for entry in os.scandir("/dev/fd")):
        with contextlib.suppress(OSError):  # closed meanwhile
            if fd > _CHILD_ALIVE_FD and os.get_inheritable(fd):
                yield fd


def _above(fd: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return moved


def _bind(port: int | None) -> socket.socket:
    """Return a socket bound to *port* of the loopback interface, or to a free one; it does not listen yet."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port or 0))
    except OSError as exc:
        sock.close()
        raise DeployError(
            f"port {port} of {HOST} cannot be used: {exc.strerror}",
            hint="choose another port, or leave port out",
        ) from exc
    return sock


def _grpc_port(release: Release, port: int | None) -> int | None:
    """Return *port*, or for 0 one that is free; `DeployError` if somebody else has it.

    The revision that serves may have it, which shares it while the next one takes over.
    """
    if port is None or port in (r.grpc_port for r in release.revisions if r.id in release.weights):
        return port
    with _bind(port) as free:
        number: int = free.getsockname()[1]
    return number


def _signal(files: RevisionFiles, number: signal.Signals) -> None:
    if files.is_alive() and (pid := files.pid or files.found()) is not None:
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:  # the workers too, of whom it is the leader
                os.killpg(pid, number)
            else:
                os.kill(pid, number)


def _wait_end(files: RevisionFiles) -> None:
    """Wait until the process has ended; kill it if it does not within some seconds."""
    end = time.monotonic() + _STOP_SECONDS
    while files.is_alive():
        if time.monotonic() > end:
            _signal(files, signal.SIGKILL)
            end = float("inf")
        time.sleep(_POLL_SECONDS)
