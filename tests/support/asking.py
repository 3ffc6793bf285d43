"""Asks what is served the same thing, once or all the time; the tests' two models answer it with opposite signs."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import numpy as np

from mlopsnb.client import Client

SECONDS = 200.0
X = np.ones((2, 4), "float32")


def sign(url, name):
    with Client(url, name) as client:
        return float(np.sign(client.infer({"x": X})["y"][0, 0]))


@contextmanager
def load(url, name):
    """Ask all the time, each time over a new connection; yield what was answered and what failed."""
    answers, failures, end = [], [], threading.Event()

    def send():
        while not end.is_set():
            try:
                answers.append(sign(url, name))
            except Exception as exc:  # noqa: BLE001
                failures.append(exc)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers, failures
    finally:
        end.set()
        for thread in threads:
            thread.join(SECONDS)


def until(holds):
    end, never = time.monotonic() + SECONDS, threading.Event()
    while not holds():
        assert time.monotonic() < end
        never.wait(0.1)
