"""BentoML's service with our model, on `/infer`: `bentoml serve serving_peers.launch_bentoml:Service`."""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np

from serving_peers import launch_common

_BATCHED = {"batchable": True, "max_batch_size": launch_common.MAX_BATCH_SIZE, "max_latency_ms": 1000}


@bentoml.service(workers=2, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Service:
    """One TorchScript file, in each of two workers."""

    def __init__(self) -> None:
        self._run = launch_common.load()

    @bentoml.api(route="/infer", **(_BATCHED if launch_common.BATCH else {}))
    def infer(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        arrays = [launch_common.array(tensor) for tensor in inputs]
        answers = self._run(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
        ends = np.cumsum([len(a) for a in arrays])[:-1]
        return [launch_common.tensor(part) for part in np.split(answers, ends)]
