"""PyTorch modules to ONNX. There are three ways to capture a module, and which was right the proof says.

A trace is done in milliseconds and makes the smallest graphs. A module that branches on data is scripted, so that the
branches become ONNX's own. What neither captures goes through `torch.export`, which knows most operators and takes
seconds. Nothing that the exporters say on the way reaches the user, who could not act on it.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlopsnb import parity
from mlopsnb.errors import ExportError, MissingExtra, ParityError, telling_line
from mlopsnb.extras import need
from mlopsnb.formats import torch_binding, torchscript
from mlopsnb.formats.onnx_session import FILE, open_session, runner
from mlopsnb.tensors import rows_of, take_rows

if TYPE_CHECKING:
    from mlopsnb.formats.torch_binding import Call
    from mlopsnb.protocols import Bound

_AXIS = "rows"
_LOUD = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "torch.export", "onnxscript", "onnx_ir")
_EMBEDDED_BYTES = 1 << 30
"""Weights beyond this go into a file of their own: one protobuf message holds 2 GB at most."""

_OPERATOR = re.compile(r"operator '([\w:.]+)' to ONNX")

Found = ExportError | str | None
"""What is wrong with a capture: an error to raise, why there is none, or nothing."""


def write(bound: Bound, into: Path) -> tuple[str, ...]:
    """Write the module of *bound* to `model.onnx` in *into*, and return notes on how.

    Raises `ParityError` if none of the ways equals the original, `ExportError` if none can be gone.
    """
    with TemporaryDirectory(prefix=".draft-", dir=into) as scratch, _exporting():
        way, note = _captured(_Job.of(bound, Path(scratch)))
        for file in (Path(scratch) / way).iterdir():
            file.rename(into / file.name)
    return note, *bound.model.notes


def _captured(job: _Job) -> tuple[str, str]:
    """Return the way by which the module was captured, and a note on it."""
    traced, branches = job.trace()
    if traced is None and not branches:
        return "trace", "captured by tracing"
    why = f"forward depends on its data ({branches})" if branches else f"the trace differed: {traced}"
    scripted = job.script()
    if scripted is None:
        return "script", f"captured by scripting: {why}"
    exported = job.export()
    if exported is None:
        return "export", f"captured by torch.export: {why}"
    if traced is None:
        return (
            "trace",
            f"captured by tracing; {branches}, yet the trace equalled the original in every case tried",
        )
    raise _explained({"traced": traced, "scripted": scripted, "captured by torch.export": exported})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One module. Each way writes it into a directory of its own below `scratch`, and returns what is wrong with it."""

    bound: Bound
    scratch: Path
    tensors: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]
    following: frozenset[str]

    @classmethod
    def of(cls, bound: Bound, scratch: Path) -> _Job:
        # Sizes 0 and 1 are special to torch.export, which would then take the axis for fixed.
        rows = max(3, rows_of(bound.inputs))
        example = take_rows(bound.inputs, rows)
        outputs = bound.predict(example)
        more = bound.predict(take_rows(bound.inputs, rows + 1))
        return cls(
            bound=bound,
            scratch=scratch,
            tensors=tuple(torch_binding.to_tensor(a) for a in example.values()),
            inputs=list(example),
            outputs=list(outputs),
            following=frozenset(k for k, a in more.items() if a.shape[:1] == (rows + 1,)),
        )

    def trace(self) -> tuple[Found, str]:
        """Trace the module; return also where the trace turned a tensor into a Python value."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self._attempt("trace", lambda file: self._translate(self.bound.model.flat(), file))
        return found, torchscript.branch_told(caught)

    def script(self) -> Found:
        """Script the module, and trace only what brings its inputs and outputs into order."""
        torch = need("torch", extra="torch")
        call: Call = self.bound.model
        if isinstance(call.module, torch.jit.ScriptModule):
            scripted = call.module
        else:
            try:
                scripted = torch.jit.script(call.module)
            except Exception as exc:  # noqa: BLE001  the compiler raises many kinds
                return telling_line(exc, first=True)

        def capture(file: Path) -> None:
            flat = replace(call, module=scripted).flat()
            self._translate(torch.jit.trace(flat, self.tensors, check_trace=False), file)

        return self._attempt("script", capture)

    def export(self) -> Found:
        """Capture the module by `torch.export`, and translate that."""
        torch = need("torch", extra="torch")

        def capture(file: Path) -> None:
            need("onnxscript", extra="onnx")
            rows = torch.export.Dim(_AXIS, min=1)
            program = torch.onnx.export(
                self.bound.model.flat(),
                self.tensors,
                dynamo=True,
                dynamic_shapes={"tensors": tuple({0: rows} if t.dim() else None for t in self.tensors)},
                input_names=self.inputs,
                output_names=self._graph_outputs(),
                verbose=False,
            )
            module = self.bound.model.module
            size = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
            program.save(str(file), external_data=size > _EMBEDDED_BYTES)

        return self._attempt("export", capture)

    def _translate(self, module: Any, file: Path) -> None:
        torch = need("torch", extra="torch")
        outputs = self._graph_outputs()
        free = [name for name, t in zip(self.inputs, self.tensors, strict=True) if t.dim()]
        free += [graph for name, graph in zip(self.outputs, outputs, strict=True) if name in self.following]
        torch.onnx.export(
            module,
            self.tensors,
            str(file),
            dynamo=False,
            input_names=self.inputs,
            output_names=outputs,
            dynamic_axes={name: {0: _AXIS} for name in free},
        )

    def _graph_outputs(self) -> list[str]:
        """Return the outputs' names in the graph, where no two values have one name; the runner knows them by order."""
        return [f"{name}_out" if name in self.inputs else name for name in self.outputs]

    def _attempt(self, way: str, capture: Callable[[Path], None]) -> Found:
        torch = need("torch", extra="torch")
        file = self.scratch / way / FILE
        file.parent.mkdir()
        try:
            with torch.no_grad():
                capture(file)
        except MissingExtra as exc:
            return f"{exc.message}; {exc.hint}"
        except OSError:  # the disk, most likely; that is no matter of the module
            raise
        except Exception as exc:  # noqa: BLE001  forward is the user's code, and the exporters raise many kinds
            return _reason(exc)
        try:
            exported = runner(open_session(file), self.inputs, self.outputs)
        except Exception as exc:  # noqa: BLE001  ONNX Runtime's errors have no common base
            return telling_line(exc)
        return parity.difference(self.bound.predict, exported, self.bound.inputs)


def _reason(exc: BaseException) -> str:
    """Return the line that says what an exporter missed: its newest one wraps that in advice to its authors."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return telling_line(exc, first=True)


def _explained(problems: dict[str, Found]) -> ExportError:
    """Return the error for a module that no way captures: a capture that differed says more than one that failed."""
    hint = "use tensor operations in place of Python ones on the data, or give another format: 'torchscript', 'torch_export'"
    for problem in problems.values():
        if isinstance(problem, ParityError):
            problem.hint = f"no way to ONNX is left; {hint}"
            return problem
    if lacking := _OPERATOR.search(str(problems["traced"])):
        return ExportError(f"forward uses {lacking[1]}, for which ONNX has no operator", hint=hint)
    told = "; ".join(f"not {how}: {str(problem).splitlines()[0]}" for how, problem in problems.items())
    return ExportError(f"forward cannot be turned into ONNX: {told}", hint=hint)


@contextmanager
def _exporting() -> Iterator[None]:
    """Keep back what the exporters print, log and warn of, and the graph that one of them writes past Python.

    Attention is taken apart meanwhile: what torch runs it by is one operator for a whole layer, which ONNX has not.
    """
    torch = need("torch", extra="torch")
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    write_graph = getattr(torch._C, "_jit_onnx_log", None)
    fast = torch.backends.mha.get_fastpath_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        if write_graph is not None:
            torch._C._jit_onnx_log = lambda *_: None
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if write_graph is not None:
            torch._C._jit_onnx_log = write_graph
