"""What the two bare servers share: the protocol's JSON to an array, the model, and back. No checks, no metrics, no log."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import orjson

from serving_peers import launch_common


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class _Request(msgspec.Struct):
    inputs: list[_Tensor]


_decode = msgspec.json.Decoder(_Request).decode


def decode(body):
    """Return the first input as an array."""
    tensor = _decode(body).inputs[0]
    return np.array(tensor.data, np.float32).reshape(tensor.shape)


def encode(y):
    """Return the answer's body."""
    return orjson.dumps({"model_name": "m", "outputs": [launch_common.tensor(y)]})


class Direct:
    """One forward a request: at once for light models, in one of two threads for heavy ones."""

    def __init__(self):
        self._run = launch_common.load()
        self._pool = ThreadPoolExecutor(2) if launch_common.HEAVY else None

    def submit(self, x):
        """Return a future of the answer to *x*."""
        loop = asyncio.get_running_loop()
        if self._pool is not None:
            return loop.run_in_executor(self._pool, self._run, x)
        future = loop.create_future()
        future.set_result(self._run(x))
        return future


class PerTurn:
    """One forward for all that came in one turn of the event loop; no timer."""

    def __init__(self):
        self._run = launch_common.load()
        self._waiting = []

    def submit(self, x):
        """Return a future of the answer to *x*."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((x, future))
        return future

    def _flush(self):
        waiting, self._waiting = self._waiting, []
        answers = self._run(waiting[0][0] if len(waiting) == 1 else np.concatenate([x for x, _ in waiting]))
        start = 0
        for x, future in waiting:
            if not future.cancelled():
                future.set_result(answers[start : start + len(x)])
            start += len(x)


def engine():
    """Return the engine that the environment asks for."""
    return PerTurn() if launch_common.BATCH and not launch_common.HEAVY else Direct()
