"""What was deployed from a notebook outlives its kernel, and a new kernel finds it."""

import os

import pytest
from jupyter_client.manager import KernelManager

TRAIN = """
import torch, numpy as np, mlopsnb as ml
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
x = np.linspace(0, 1, 12, dtype="float32").reshape(3, 4)
dep = ml.deploy(model, name="survivor", example=x)
print(dep.url, model(torch.from_numpy(x)).detach().numpy().round(5).tolist())
"""
FIND = """
import numpy as np, mlopsnb as ml
x = np.linspace(0, 1, 12, dtype="float32").reshape(3, 4)
dep = ml.get("survivor")
[same] = ml.deployments()
assert dep.status == "ready" and same.name == "survivor"
print(dep.url, dep.predict(x).round(5).tolist())
"""
REDEPLOY = TRAIN.replace("Linear(4, 2)", "Linear(4, 2, bias=False)")


@pytest.fixture
def kernel(home):
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(home / "k"))
    manager.start_kernel(cwd=str(home / "work"), env={**os.environ, "PYTHONWARNINGS": "ignore"})
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, code):
    said = []
    reply = client.execute_interactive(
        code, timeout=120, output_hook=lambda m: said.append(m["content"].get("text", "")), allow_stdin=False
    )
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(said)


def test_a_deployment_survives_a_restart_and_a_kill_of_the_kernel(kernel):
    manager, client = kernel
    told = run(client, TRAIN)
    manager.restart_kernel(now=False)
    client.wait_for_ready(timeout=60)
    assert run(client, FIND) == told
    manager.restart_kernel(now=True)  # kill -9, as the out-of-memory killer does
    client.wait_for_ready(timeout=60)
    assert run(client, FIND) == told
    again = run(client, REDEPLOY)
    assert again.split()[0] == told.split()[0]
    assert again != told
    assert run(client, "dep.rollback(); print(dep.url, dep.predict(x).round(5).tolist())") == told
    assert run(client, "dep.delete(); print(ml.deployments())") == "()\n"
