"""A sink that has a model trained again: a function or a command, once for each incident, beside the watch.

It decides when, not whether: what comes of it is deployed by the run itself, behind whatever gate that sets.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlopsnb.errors import StepError, UserError

if TYPE_CHECKING:
    from mlopsnb.monitoring.alerts import Notice

    Run = Callable[[Notice], object] | Sequence[str]

NOTICE = "MLOPSNB_NOTICE"
"""The environment variable in which a command finds the notice, as JSON (`Notice.plain`)."""

_TOLD_LINES = 3


class RetrainFailed(StepError):
    """The command that should have trained the model again ended with an error, or could not be started."""


def retrain(run: Run) -> Retrain:
    """Return a sink that starts *run* when an alert fires: a function of the `Notice`, or a command as a list of words.

    A command has the notice in the environment variable `MLOPSNB_NOTICE`; a notebook is one too:
    ``["papermill", "train.ipynb", "trained.ipynb"]``. An incident of a deployment begins with the first alert that fires
    and is over when none does; it starts one run, and none while another is under way.
    """
    if callable(run):
        return Retrain(run)
    if isinstance(run, str) or not run or not all(isinstance(word, str) for word in run):
        raise UserError(
            f"retrain takes a function or a command as a list of words, found {run!r}",
            hint='for example ["papermill", "train.ipynb", "trained.ipynb"]',
        )
    words = list(run)
    return Retrain(lambda notice: _command(words, notice))


class Retrain:
    """The sink that `retrain` makes. It returns at once: the future of the run that it started, or None."""

    def __init__(self, run: Callable[[Notice], object]) -> None:
        self._run = run
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mlopsnb-retrain")
        self._lock = threading.Lock()
        self._firing: dict[tuple[str, str], set[tuple[str, int]]] = {}
        self._runs: dict[tuple[str, str], Future[object]] = {}

    def __call__(self, notice: Notice) -> Future[object] | None:
        """Take a notice; start a run if it begins an incident."""
        deployment, alert = (notice.target, notice.deployment), (str(notice.alert), notice.revision)
        with self._lock:
            firing = self._firing.setdefault(deployment, set())
            if notice.status == "resolved":
                firing.discard(alert)
                return None
            begins = not firing
            firing.add(alert)
            under_way = deployment in self._runs and not self._runs[deployment].done()
            if not begins or under_way:
                return None
            self._runs[deployment] = self._pool.submit(self._run, notice)
            return self._runs[deployment]


def _command(words: Sequence[str], notice: Notice) -> None:
    environment = {**os.environ, NOTICE: json.dumps(notice.plain())}
    try:
        done = subprocess.run(  # noqa: S603  the user's own command, without a shell
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as exc:
        raise RetrainFailed(f"{words[0]} cannot be started: {exc.strerror or exc}") from exc
    if done.returncode:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_TOLD_LINES:])
        raise RetrainFailed(f"{words[0]} ended with {done.returncode}: {last}")
