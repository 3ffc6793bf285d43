"""`torch.export`: PyTorch's successor of TorchScript, with a free batch axis."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from typing import TYPE_CHECKING

from mlopsnb.errors import ExportError
from mlopsnb.extras import need
from mlopsnb.formats import torch_binding
from mlopsnb.protocols import Exported
from mlopsnb.tensors import rows_of, take_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlopsnb.protocols import Bound, Predict
    from mlopsnb.records import Signature
    from mlopsnb.tensors import Example

FILE = "model.pt2"


class TorchExport:
    """Format `torch_export`: one file, `model.pt2`, as `torch.export.save` writes it."""

    def accepts(self, model: object) -> bool:
        """Accept every `torch.nn.Module` that Python defines; TorchScript has lost what is needed."""
        torch_module = torch_binding.is_module(model)
        return torch_module and not type(model).__module__.startswith("torch.jit")

    def bind(self, model: object, example: Example) -> AbstractContextManager[Bound]:
        """See `torch_binding.bind`."""
        return torch_binding.bind(model, example)

    def export(self, bound: Bound, into: Path) -> Exported:
        """Export with the first axis of every input free.

        Raises `ExportError` if forward branches on data, fixes the number of rows, or uses what
        `torch.export` does not know.
        """
        torch = need("torch", extra="torch")
        # Sizes 0 and 1 are special to the exporter, which would then take the axis for fixed.
        inputs = take_rows(bound.inputs, max(3, rows_of(bound.inputs)))
        tensors = tuple(torch_binding.to_tensor(a) for a in inputs.values())
        rows = torch.export.Dim("rows", min=1)
        shapes = {"tensors": tuple({0: rows} if t.dim() else None for t in tensors)}
        with _quiet(), torch.no_grad():
            try:
                program = torch.export.export(
                    bound.model.flat(), tensors, dynamic_shapes=shapes, strict=False
                )
            except ExportError:
                raise
            except Exception as exc:
                raise _explained(exc) from exc
            with (into / FILE).open("wb") as file:  # a Python file reports a full disk as what it is
                torch.export.save(program, file)
        return Exported(
            requirements=(f"torch=={torch.__version__}",),
            notes=("captured by torch.export", *bound.model.notes),
        )

    def load(self, path: Path, signature: Signature) -> Predict:
        """Load `model.pt2`."""
        torch = need("torch", extra="torch")
        with _quiet():
            module = torch.export.load(str(path / FILE)).module()
        return torch_binding.runner(
            module, [s.name for s in signature.inputs], [s.name for s in signature.outputs]
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the graphs and guards that torch prints beside its error; the error says what a person can use."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _explained(exc: Exception) -> ExportError:
    """Say what kept `torch.export` from exporting, for people who have not read its guards."""
    text = str(exc)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = f"{type(exc).__name__}: {lines[0] if lines else ''}"[:300]
    if "data-dependent" in text or "Could not guard" in text:
        return ExportError(
            f"forward branches on data, which torch.export cannot capture: {told}",
            hint="use torch.where or torch.cond for the branch, or format='torchscript', which scripts it",
        )
    if "Constraints violated" in text or "specialized" in text:
        return ExportError(
            f"forward fixes the number of rows: {told}",
            hint="read the number of rows from the input (x.shape[0], or -1 in a reshape), not from len() or a constant",
        )
    return ExportError(f"torch.export failed: {told}", hint="try format='torchscript'")
