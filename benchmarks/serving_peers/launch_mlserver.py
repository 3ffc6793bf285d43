"""MLServer's runtime for our model; `mlserver start DIR` finds it by the name in model-settings.json."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

from serving_peers import launch_common


class Runtime(MLModel):
    """One TorchScript file."""

    async def load(self):
        self._run = launch_common.load()
        return True

    async def predict(self, payload):
        answer = self._run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", answer)])
