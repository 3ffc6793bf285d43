"""Runs the tools that resolve, install and prove, in processes of their own. Nothing of what they say is shown as it is.

They run in a session of their own: an interrupt meant for the notebook reaches us alone, and we end them, with all that
they started.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

from mlopsnb import interrupts

_USER = re.compile(r"(?<=://)[^/?#\s@]*(?:@[^/?#\s@]*)*@")
_QUERY = re.compile(r"(://[^\s?#'\"]+)[?#][^\s'\"),]*")
_STYLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_END_SECONDS = 5.0


def clean(text: str) -> str:
    """Return *text* without colours, and without what an address may hold of secrets: user, password, query."""
    return _QUERY.sub(r"\1", _USER.sub("", _STYLE.sub("", text)))


class Done(NamedTuple):
    """What came of a process: its exit status, what it printed, and what it said beside, cleaned."""

    status: int
    out: str
    said: str


class Tool:
    """A process that runs until `wait` or the end of the block; whatever ends the block ends the process."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        given: str = "",
    ) -> None:
        self._command, self._env, self._given = [str(part) for part in command], dict(env), given
        self._started: subprocess.Popen[str] | None = None
        self._out: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            with interrupts.held():
                self._start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def _start(self) -> None:
        self._out = tempfile.TemporaryFile(  # noqa: SIM115  closed by `end`
            "w+", encoding="utf-8", errors="replace"
        )
        with tempfile.TemporaryFile("w+", encoding="utf-8") as text:
            text.write(self._given)
            text.seek(0)
            self._started = subprocess.Popen(  # noqa: S603  tools of the user's own Python
                self._command,
                stdin=text,
                stdout=self._out,
                stderr=subprocess.PIPE,
                env=self._env,
                start_new_session=True,
                text=True,
                encoding="utf-8",
                errors="replace",
            )

    def wait(self, on_line: Callable[[str], None] = lambda line: None) -> Done:
        """Return what came of it; *on_line* is called here with each line that it says meanwhile."""
        assert self._started is not None
        assert self._started.stderr is not None
        assert self._out is not None
        said: list[str] = []
        for raw in self._started.stderr:
            line = clean(raw.rstrip())
            said.append(line)
            on_line(line)
        status = self._started.wait()
        self._out.seek(0)
        return Done(status, self._out.read(), "\n".join(said))

    def end(self) -> None:
        """End the process and what it started, if they still run."""
        if self._out is not None:
            self._out.close()
        if (process := self._started) is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
