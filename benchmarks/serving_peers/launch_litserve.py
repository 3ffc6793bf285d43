"""LitServe with our model: `python -m serving_peers.launch_litserve PORT`."""

from __future__ import annotations

import sys

import litserve
import numpy as np

from serving_peers import launch_common


class Runtime(litserve.LitAPI):
    """One TorchScript file, in each of two workers."""

    def setup(self, device):
        self._run = launch_common.load()

    def decode_request(self, request, **kwargs):
        return launch_common.array(request["inputs"][0])

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, x, **kwargs):
        return self._run(x)

    def unbatch(self, output):
        return [output[i : i + 1] for i in range(len(output))]

    def encode_response(self, output, **kwargs):
        return {"outputs": [launch_common.tensor(output)]}


if __name__ == "__main__":
    batched = {"max_batch_size": launch_common.MAX_BATCH_SIZE, "batch_timeout": 0.0}
    api = Runtime(**(batched if launch_common.BATCH else {}))
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=2)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
