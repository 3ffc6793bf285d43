"""ONNX, run by ONNX Runtime on the CPU: PyTorch modules, scikit-learn estimators, and ONNX models as they are.

How each becomes ONNX stands in `onnx_torch`, `onnx_sklearn` and `onnx_graph`, which are imported when something is
exported: a server starts with this module, `onnx_session`, onnxruntime and numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlopsnb.errors import ExportError, telling_line
from mlopsnb.extras import need
from mlopsnb.formats.onnx_session import FILE, open_session, runner
from mlopsnb.protocols import THREADS, Exported

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from mlopsnb.protocols import Bound, Predict
    from mlopsnb.records import Signature
    from mlopsnb.tensors import Example

EXTRA = "onnx"


class Onnx:
    """Format `onnx`: `model.onnx`, and beside it the weights if they are too large for one file."""

    def accepts(self, model: object) -> bool:
        """Accept every `torch.nn.Module`, scikit-learn estimators, an `onnx.ModelProto`, and a path to a `.onnx` file."""
        from mlopsnb.formats import onnx_graph, onnx_sklearn, torch_binding

        return (
            torch_binding.is_module(model) or onnx_sklearn.is_estimator(model) or onnx_graph.is_graph(model)
        )

    def bind(self, model: object, example: Example) -> AbstractContextManager[Bound]:
        """Name the inputs as the module, the estimator's columns or the graph do."""
        from mlopsnb.formats import onnx_graph, onnx_sklearn, torch_binding

        need("onnxruntime", extra=EXTRA)
        need("onnx", extra=EXTRA)
        if onnx_graph.is_graph(model):
            return onnx_graph.bind(model, example)
        if onnx_sklearn.is_estimator(model):
            return onnx_sklearn.bind(model, example)
        return torch_binding.bind(model, example)

    def export(self, bound: Bound, into: Path) -> Exported:
        """Write `model.onnx` with the first axis of every input free.

        Raises `ExportError` if the model uses what ONNX has not, or if ONNX Runtime cannot run what came out;
        `ParityError` if no way to capture a module answers as that does.
        """
        from mlopsnb.formats import onnx_torch, torch_binding

        if isinstance(bound.model, torch_binding.Call):
            notes = onnx_torch.write(bound, into)
        else:
            notes = bound.model.write(into)
        opset = _checked(into / FILE)
        return Exported(
            requirements=(f"onnxruntime=={need('onnxruntime', extra=EXTRA).__version__}",),
            notes=(*notes, f"ONNX opset {opset}"),
        )

    def load(self, path: Path, signature: Signature) -> Predict:
        """Open a session on `model.onnx`."""
        session = open_session(path / FILE, threads=THREADS.get())
        return runner(session, [s.name for s in signature.inputs], [s.name for s in signature.outputs])


def _checked(file: Path) -> int:
    """Return the opset of the ONNX model in *file*; `ExportError` if it breaks ONNX's own rules."""
    onnx: Any = need("onnx", extra=EXTRA)
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as exc:
        raise ExportError(f"the export is no valid ONNX: {telling_line(exc, first=True)}") from exc
    model = onnx.load(str(file), load_external_data=False)
    opset: int = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return opset
