"""A server of TorchScript imports less of PyTorch; whatever uses the rest finds it."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import mlopsnb as ml
from mlopsnb.serving import lean_torch

torch = pytest.importorskip("torch")

seen = pytest.mark.skipif(
    not torch.__version__.startswith(lean_torch._SEEN),
    reason=f"PyTorch {torch.__version__} is imported whole",
)
LEAN = "import sys\nfrom mlopsnb.serving import lean_torch\nlean_torch.import_torch()\nimport torch\n"
WAITING = "[n for n, m in sys.modules.items() if isinstance(m, lean_torch._Waiting)]"


def said(code):
    """Run *code* in an interpreter of its own and return what it prints as JSON."""
    code = textwrap.dedent(code)
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    net = torch.nn.Sequential(
        torch.nn.Conv1d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(24, 3)
    )
    into = tmp_path_factory.mktemp("lean") / "package"
    return ml.export(net.eval(), np.random.default_rng(0).normal(size=(8, 2, 8)).astype("float32"), into=into)


@seen
def test_a_served_model_needs_nothing_that_waits(package):
    found = said(f"""
        import sys, json
        from pathlib import Path
        from mlopsnb.serving.engine import Engine
        from mlopsnb.serving import lean_torch
        engine = Engine.load(Path({str(package.path)!r}))
        answer = engine.golden_answer()["output"].tolist()
        print(json.dumps([answer, {WAITING}, len(sys.modules)]))
    """)
    whole = said("import sys, json, torch\nprint(json.dumps(len(sys.modules)))")
    from mlopsnb import manifest

    _, answers = manifest.read_example(package.path)
    np.testing.assert_allclose(found[0], answers["output"], atol=1e-5)
    assert set(found[1]) == lean_torch._LATER
    assert found[2] < 0.9 * whole


@seen
@pytest.mark.parametrize(
    "use",
    [
        "torch.vmap(lambda x: 2 * x)(torch.ones(3))",
        "torch.func.grad(lambda x: x * x)(torch.tensor(1.0))",
        "torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))",
        "torch.ao.quantization.get_default_qconfig()",
        "__import__('torch.ao.nn.quantized').ao.nn.quantized.Linear",
        "torch.cond(torch.tensor(True), lambda x: x + 1, lambda x: -x, (torch.ones(2),))",
        "torch.compiler.disable(torch.sin)(torch.ones(2))",
        "torch.distributions.Normal(0.0, 1.0).mean",
        "torch.utils.data.TensorDataset(torch.ones(2))[0]",
        "torch.nested.nested_tensor([torch.ones(2)])",
        "__import__('torch._dynamo')",
        "__import__('torch.onnx')",
    ],
)
def test_the_first_use_of_what_waits_brings_all_of_it(use):
    assert said(f"{LEAN}import json\n{use}\nprint(json.dumps({WAITING}))") == []


@seen
def test_then_everything_is_as_if_imported_at_once():
    names = "sorted(n for n in vars(torch) if not n.startswith('__'))"
    modules = "sorted(n for n in sys.modules if n.startswith('torch'))"
    after = "torch.cond is torch._higher_order_ops.cond and torch.vmap is torch.func.vmap"
    tell = f"import sys, json\nprint(json.dumps([{names}, {modules}, {after}, len(sys.meta_path)]))"
    lean = said(f"{LEAN}torch.vmap(torch.sin)(torch.ones(2))\n{tell}")
    whole = said(f"import torch\ntorch.vmap(torch.sin)(torch.ones(2))\n{tell}")
    assert lean == whole


@seen
def test_threads_that_use_it_at_once_all_find_it():
    found = said(f"""{LEAN}
import json
from concurrent.futures import ThreadPoolExecutor
uses = [lambda: torch.export.export, lambda: torch.func.grad, lambda: torch.ao.quantization, lambda: torch.vmap(torch.sin)(torch.ones(2))] * 4
with ThreadPoolExecutor(16) as pool:
    done = [pool.submit(use) for use in uses]
    print(json.dumps([str(d.exception()) for d in done if d.exception()]))
""")
    assert found == []


def test_who_has_imported_it_keeps_what_there_is_and_other_versions_come_whole(monkeypatch):
    before = set(sys.meta_path)
    lean_torch.import_torch()
    assert set(sys.meta_path) == before
    assert (
        said("""
        import sys, json
        from mlopsnb.serving import lean_torch
        lean_torch._SEEN = ("0.1.",)
        lean_torch.import_torch()
        print(json.dumps("torch" in sys.modules))
    """)
        is False
    )
