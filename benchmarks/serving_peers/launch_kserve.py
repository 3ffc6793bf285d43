"""KServe's Python server with our model: `python -m serving_peers.launch_kserve PORT WORKERS GRPC_PORT`, 0 for none."""

from __future__ import annotations

import logging
import sys

import kserve

from serving_peers import launch_common

_GRPC_PORT = int(sys.argv[3])


class Runtime(kserve.Model):
    """One TorchScript file."""

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_run"}

    def __setstate__(self, state):
        """Arrive in a worker: each loads the model for itself."""
        self.__dict__.update(state)
        self.load()

    def load(self):
        self._run = launch_common.load()
        self.ready = True
        return True

    async def predict(self, payload, headers=None, response_headers=None):
        answer = self._run(payload.inputs[0].as_numpy())
        output = kserve.InferOutput(name="y", shape=list(answer.shape), datatype="FP32")
        output.set_data_from_numpy(answer, binary_data=_GRPC_PORT > 0 or launch_common.BINARY)
        return kserve.InferResponse(
            response_id=payload.id or "", model_name=self.name, infer_outputs=[output]
        )


if __name__ == "__main__":
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    model = Runtime("m")
    model.load()
    kserve.ModelServer(
        http_port=int(sys.argv[1]),
        workers=int(sys.argv[2]),
        enable_grpc=_GRPC_PORT > 0,
        grpc_port=_GRPC_PORT or 8081,
        enable_latency_logging=False,
    ).start([model])
