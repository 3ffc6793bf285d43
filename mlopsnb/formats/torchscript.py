"""TorchScript: traced, or scripted where a trace is not the whole model.

TorchScript is deprecated upstream and still the fastest way to run a small PyTorch model from Python. Its
deprecation warnings are kept from users, who can do nothing about them.
"""

from __future__ import annotations

import linecache
import warnings
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlopsnb import parity
from mlopsnb.errors import ExportError, telling_line
from mlopsnb.extras import need
from mlopsnb.formats import torch_binding
from mlopsnb.protocols import Exported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlopsnb.formats.torch_binding import Call
    from mlopsnb.protocols import Bound, Predict, Tensors
    from mlopsnb.records import Signature
    from mlopsnb.tensors import Example

FILE = "model.pt"
_OPTIMIZE = "mlopsnb_optimize"
"""A file within `model.pt`: whether the optimized model was proven, as the export is, to equal the original."""

_FEW_ROWS = 64


class TorchScript:
    """Format `torchscript`: one file, `model.pt`, as `torch.jit.save` writes it."""

    def accepts(self, model: object) -> bool:
        """Accept every `torch.nn.Module`, scripted ones too."""
        return torch_binding.is_module(model)

    def bind(self, model: object, example: Example) -> AbstractContextManager[Bound]:
        """See `torch_binding.bind`."""
        return torch_binding.bind(model, example)

    def export(self, bound: Bound, into: Path) -> Exported:
        """Trace the model; where the trace differs or depends on the data, script it.

        Raises `ParityError` if neither equals the original, `ExportError` if neither can be made.
        """
        torch = need("torch", extra="torch")
        with _quiet():
            module, note = _capture(bound)
            extra = {_OPTIMIZE: "yes" if _stands_optimizing(bound, module) else "no"}
            with (into / FILE).open("wb") as file:  # a Python file reports a full disk as what it is
                torch.jit.save(module, file, _extra_files=extra)
        return Exported(requirements=(f"torch=={torch.__version__}",), notes=(note, *bound.model.notes))

    def load(self, path: Path, signature: Signature) -> Predict:
        """Load `model.pt` onto the CPU.

        If the export was proven to stand it, the model runs optimized from its second call on; the first one
        shows whether the answers are the same on this machine as well.
        """
        torch = need("torch", extra="torch")
        names = [s.name for s in signature.inputs], [s.name for s in signature.outputs]
        extra: dict[str, Any] = {_OPTIMIZE: ""}  # torch puts bytes there
        with _quiet():
            module = torch.jit.load(str(path / FILE), map_location="cpu", _extra_files=extra).eval()
        plain = torch_binding.runner(module, *names)
        if extra[_OPTIMIZE] != b"yes":
            return plain
        chosen: Predict

        def first(inputs: Tensors) -> Tensors:
            nonlocal chosen
            outputs = plain(inputs)
            fewer = [(less, _outcome(plain, less)) for less in _fewer(inputs, signature)]
            chosen = _faster(module, names, [(inputs, outputs), *fewer]) or plain
            return outputs

        chosen = first
        return lambda inputs: chosen(inputs)  # noqa: PLW0108  what is chosen changes with the first call


def _fewer(inputs: Tensors, signature: Signature) -> list[Tensors]:
    """Return one row of *inputs*, and none, where rows may be taken: what a faster model must get right as well."""
    if not all(s.shape and s.shape[0] is None for s in signature.inputs):
        return []
    return [{name: a[:rows] for name, a in inputs.items()} for rows in (1, 0)]


def _faster(
    module: Any, names: tuple[list[str], list[str]], known: list[tuple[Tensors, Tensors | None]]
) -> Predict | None:
    """Return *module* frozen and optimized; None if that cannot be done or does not answer as is *known* of it.

    Frozen weights need no gradients, so that there is nothing to switch off at each call. The optimizer transposes
    weights that no convolution takes, which gains with a few rows, and costs with many: those go without.
    """
    torch = need("torch", extra="torch")
    try:
        with _quiet():
            frozen = torch.jit.freeze(module)
            few = torch_binding.runner(torch.jit.optimize_for_inference(module), *names, frozen=True)
            same = not names[0] or _has_convolution(frozen)
            many = few if same else torch_binding.runner(frozen, *names, frozen=True)
            for inputs, wanted in known:
                if not all(_same(wanted, _outcome(predict, inputs)) for predict in {few, many}):
                    return None
    except Exception:  # noqa: BLE001  what cannot be frozen, a model with state for one, runs as it is
        return None
    return few if many is few else _by_rows(few, many, names[0][0])


def _has_convolution(module: Any) -> bool:
    """Say whether *module*, frozen, has what the optimizer gives to oneDNN."""
    kinds = ("_convolution", *(f"conv{axes}d" for axes in (1, 2, 3)))
    return any(module.graph.findAllNodes(f"aten::{kind}", True) for kind in kinds)


def _by_rows(few: Predict, many: Predict, counted: str) -> Predict:
    """Return *few* for up to `_FEW_ROWS` rows of the input *counted*, and *many* for more."""

    def predict(inputs: Tensors) -> Tensors:
        shape = inputs[counted].shape
        return (many if shape and shape[0] > _FEW_ROWS else few)(inputs)

    return predict


def _outcome(predict: Predict, inputs: Tensors) -> Tensors | None:
    """Return the answer, None if there is none: not every model takes a batch of no rows."""
    try:
        return predict(inputs)
    except RuntimeError:
        return None


def _same(one: Tensors | None, other: Tensors | None) -> bool:
    if one is None or other is None:
        return one is other
    return parity.failure(parity.compare(one, other)) is None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _capture(bound: Bound) -> tuple[Any, str]:
    torch = need("torch", extra="torch")
    call: Call = bound.model
    if isinstance(call.module, torch.jit.ScriptModule):
        return call.module, "the model was TorchScript already"
    traced, trace_problem, branches = _trace(bound)
    if trace_problem is None and not branches:
        return traced, "captured by tracing"
    scripted, script_problem = _script(bound)
    if script_problem is None:
        why = (
            f"forward depends on its data ({branches})"
            if branches
            else f"the trace differed: {trace_problem}"
        )
        return scripted, f"captured by scripting: {why}"
    if trace_problem is None:
        return (
            traced,
            f"captured by tracing; {branches}, yet the trace equalled the original in every case tried",
        )
    if isinstance(trace_problem, ExportError):
        trace_problem.hint = f"scripting failed too ({script_problem}); try format='torch_export'"
        raise trace_problem
    raise ExportError(
        f"forward can be neither traced ({trace_problem}) nor scripted ({script_problem})",
        hint="use tensor operations in place of Python ones on the data, or try format='torch_export'",
    )


def _trace(bound: Bound) -> tuple[Any, ExportError | str | None, str]:
    """Return the trace, what is wrong with it, and where it turned a tensor into a Python value."""
    torch = need("torch", extra="torch")
    tensors = tuple(torch_binding.to_tensor(a) for a in bound.inputs.values())
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        try:
            traced = torch.jit.trace(bound.model.flat(), tensors, check_trace=False)
        except ExportError:
            raise
        except Exception as exc:  # noqa: BLE001  forward is the user's code and may raise anything
            return None, telling_line(exc, first=True), ""
    return traced, _difference(bound, traced), branch_told(caught)


def _script(bound: Bound) -> tuple[Any, ExportError | str | None]:
    """Return the scripted module and what is wrong with it."""
    torch = need("torch", extra="torch")
    call: Call = bound.model
    if call.style == "mapping" or not call.prefix:
        return None, "its inputs cannot be given by position"
    try:
        scripted = torch.jit.script(call.module)
    except Exception as exc:  # noqa: BLE001  the compiler raises many kinds
        return None, telling_line(exc, first=True)
    return scripted, _difference(bound, scripted)


def _stands_optimizing(bound: Bound, module: Any) -> bool:
    torch = need("torch", extra="torch")
    try:
        optimized = torch.jit.optimize_for_inference(module.eval())
        return _difference(bound, optimized) is None
    except Exception:  # noqa: BLE001  what cannot be frozen, a model with state for one, runs as it is
        return False


def _difference(bound: Bound, module: Any) -> ExportError | None:
    outputs = tuple(bound.predict(bound.inputs))
    exported = torch_binding.runner(module, tuple(bound.inputs), outputs)
    return parity.difference(bound.predict, exported, bound.inputs)


def branch_told(caught: list[warnings.WarningMessage]) -> str:
    """Return where a trace turned a tensor into a Python value, by the warnings it gave; nothing if it did not."""
    torch = need("torch", extra="torch")
    told = [w for w in caught if issubclass(w.category, torch.jit.TracerWarning) and not _of_torch(w)]
    return _place(told[0]) if told else ""


def _of_torch(warning: warnings.WarningMessage) -> bool:
    """Say whether torch's own code is meant: its layers check shapes that way, and do not branch on data."""
    return Path(warning.filename).is_relative_to(Path(need("torch", extra="torch").__file__).parent)


def _place(warning: warnings.WarningMessage) -> str:
    """Shorten a tracer warning to what was done to a tensor, and where."""
    what = str(warning.message).split(" might cause")[0].strip()
    source = linecache.getline(warning.filename, warning.lineno).strip()
    return f"{what[:1].lower()}{what[1:]} in line {warning.lineno}{f': {source}' if source else ''}"
