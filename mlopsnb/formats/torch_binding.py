"""What the formats of PyTorch share: naming a module's inputs, calling it on numpy arrays, flattening its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlopsnb.errors import ExportError, UnsupportedModel, UserError
from mlopsnb.extras import loaded, need
from mlopsnb.protocols import Bound
from mlopsnb.tensors import STRING, Example, dtype_name, flatten_outputs

if TYPE_CHECKING:
    from mlopsnb.protocols import Predict, Tensors

Style = Literal["positional", "keyword", "mapping"]


def is_module(model: object) -> bool:
    """Say whether *model* is a `torch.nn.Module`."""
    torch = loaded("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a module takes its inputs: by position, by keyword, or all in one dict.

    `prefix` says that the inputs are the first parameters of `forward` in order, so that a scripted module can
    be called by position too.
    """

    module: Any
    names: tuple[str, ...]
    style: Style
    prefix: bool
    notes: tuple[str, ...] = ()

    def __call__(self, *tensors: Any) -> Any:
        """Call the model on *tensors*, which are in the order of `names`."""
        if self.style == "positional":
            return self.module(*tensors)
        named = dict(zip(self.names, tensors, strict=True))
        return self.module(named) if self.style == "mapping" else self.module(**named)

    def flat(self) -> Any:
        """Return a module that takes the tensors by position and gives a tensor, or a tuple if there are several."""
        torch = need("torch", extra="torch")
        call = self

        class Flat(torch.nn.Module):  # type: ignore[name-defined,misc]  # a late import has no types
            def __init__(self) -> None:
                super().__init__()
                self.module = call.module

            def forward(self, *tensors: Any) -> Any:
                found = tuple(named_outputs(call(*tensors)).values())
                return found[0] if len(found) == 1 else found

        return Flat().eval()


@contextmanager
def bind(module: Any, example: Example) -> Iterator[Bound]:
    """Name the inputs of *module* and put it, on the CPU, into eval mode; both are as they were afterwards."""
    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped; the export is compiled anew
    call, arrays, features = _name_inputs(module, example)
    arrays, note = _cast_floats(module, arrays)
    with _on_cpu(module), _eval_mode(module):
        if not note:
            arrays, note = _cast_integers(call, arrays)
        yield Bound(
            model=Call(
                module=module,
                names=call.names,
                style=call.style,
                prefix=call.prefix,
                notes=(note,) if note else (),
            ),
            inputs=arrays,
            predict=lambda inputs: run(call, inputs, tuple(arrays)),
            feature_names=features,
        )


def run(call: Any, inputs: Tensors, order: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Call *call* with the arrays of *inputs* in *order*, and return its outputs by name."""
    torch = need("torch", extra="torch")
    with torch.inference_mode():
        outputs = named_outputs(call(*(to_tensor(inputs[name]) for name in order)))
    return {name: to_numpy(t) for name, t in outputs.items()}


def runner(module: Any, inputs: Sequence[str], outputs: Sequence[str], *, frozen: bool = False) -> Predict:
    """Return *module*, which gives tensors in the order of *outputs*, as a callable on named arrays.

    A *frozen* module has no parameters that would need gradients, and saves the cost of switching them off.
    """
    torch = need("torch", extra="torch")
    call = module.forward if frozen else torch.inference_mode()(module)
    tensor_type = torch.Tensor
    only = outputs[0] if len(outputs) == 1 else None

    def predict(arrays: Tensors) -> Tensors:
        raw = call(*[_tensor(torch, arrays[name]) for name in inputs])
        if only is not None and isinstance(raw, tensor_type):
            return {only: _array(torch, raw)}
        found = [raw] if isinstance(raw, tensor_type) else named_outputs(raw).values()
        return {name: _array(torch, t) for name, t in zip(outputs, found, strict=True)}

    return predict


def to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Return *array* as a tensor; shares memory where torch can."""
    return _tensor(need("torch", extra="torch"), array)


def _tensor(torch: Any, array: np.ndarray[Any, Any]) -> Any:
    flags = array.flags
    if not flags.writeable or not flags.c_contiguous:
        array = np.array(array, order="C")  # torch warns of read-only memory and refuses negative strides
    return torch.from_numpy(array)


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """Return *tensor* as an array; bfloat16, which numpy does not have, as float32."""
    return _array(need("torch", extra="torch"), tensor)


def _array(torch: Any, tensor: Any) -> np.ndarray[Any, Any]:
    if tensor.requires_grad or tensor.device.type != "cpu":
        tensor = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def named_outputs(raw: Any) -> dict[str, Any]:
    """Name the tensors that a module returned; see `flatten_outputs`."""
    torch = need("torch", extra="torch")
    return flatten_outputs(raw, lambda value: isinstance(value, torch.Tensor))


def _parameters(module: Any) -> tuple[list[str], bool, bool]:
    """Return the names of forward's parameters, and whether it takes more by position and by keyword."""
    torch = need("torch", extra="torch")
    if isinstance(module, torch.jit.ScriptModule):
        return [a.name for a in module.forward.schema.arguments[1:]], False, False
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = {p.kind for p in parameters}
    plain = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    return plain, inspect.Parameter.VAR_POSITIONAL in kinds, inspect.Parameter.VAR_KEYWORD in kinds


def _name_inputs(module: Any, example: Example) -> tuple[Call, dict[str, Any], dict[str, tuple[str, ...]]]:
    known, more, any_keyword = _parameters(module)
    if example.named:
        return _named(module, example, known, any_keyword)
    count = len(example.positional)
    if count > len(known) and not more:
        raise UserError(
            f"forward takes {len(known)} inputs ({', '.join(known) or 'none'}); the example has {count}",
            hint="give a tuple with one part for each input, or an array if there is only one",
        )
    names = tuple([*known, *(f"input_{i}" for i in range(len(known), count))][:count])
    features = {names[i]: columns for i, columns in example.feature_names.items() if isinstance(i, int)}
    call = Call(module=module, names=names, style="positional", prefix=True)
    return call, dict(zip(names, example.positional, strict=True)), features


def _named(
    module: Any, example: Example, known: list[str], any_keyword: bool
) -> tuple[Call, dict[str, Any], dict[str, tuple[str, ...]]]:
    given = dict(example.named)
    features = {str(k): v for k, v in example.feature_names.items()}
    if any_keyword or set(given) <= set(known):
        ordered = {k: given[k] for k in known if k in given} | {
            k: v for k, v in given.items() if k not in known
        }
        call = Call(
            module=module,
            names=tuple(ordered),
            style="keyword",
            prefix=list(ordered) == known[: len(ordered)],
        )
        return call, ordered, features
    if len(known) == 1:
        return Call(module=module, names=tuple(given), style="mapping", prefix=False), given, features
    unknown = sorted(set(given) - set(known))
    raise UserError(
        f"forward has no input {', '.join(unknown)}; it takes {', '.join(known)}",
        hint="name the parts of the example as forward's parameters are named",
    )


def _float_type(module: Any) -> Any:
    tensors = [*module.parameters(), *module.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), None)


def _cast_floats(module: Any, arrays: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Give floats in the type of the module's parameters: frames and numpy hold float64, modules seldom do."""
    torch = need("torch", extra="torch")
    text = [name for name, a in arrays.items() if dtype_name(a) == STRING]
    if text:
        raise UserError(
            f"input {text[0]!r} holds text; a torch module takes numbers", hint="give the encoded tensor"
        )
    dtype = _float_type(module)
    if dtype is None:
        return arrays, ""
    if dtype == torch.bfloat16:
        raise UnsupportedModel(
            module, supported="its parameters are bfloat16, which numpy has not; use model.float()"
        )
    wanted = str(dtype).removeprefix("torch.")
    cast = [name for name, a in arrays.items() if a.dtype.kind == "f" and a.dtype.name != wanted]
    if not cast:
        return arrays, ""
    changed = {name: a.astype(wanted) if name in cast else a for name, a in arrays.items()}
    was = arrays[cast[0]].dtype.name
    return changed, f"{', '.join(cast)} given as {was}, taken as {wanted} like the model's parameters"


def _cast_integers(call: Call, arrays: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Give whole numbers as floats if the model takes them only so: columns of counts or pixels, typed or read as such."""
    torch = need("torch", extra="torch")
    dtype = _float_type(call.module)
    whole = [name for name, a in arrays.items() if a.dtype.kind in "iu"]
    if not whole or dtype is None or _runs(call, arrays):
        return arrays, ""
    wanted = str(dtype).removeprefix("torch.")
    changed = {name: a.astype(wanted) if name in whole else a for name, a in arrays.items()}
    if dtype == torch.bfloat16 or not _runs(call, changed):
        return arrays, ""
    return changed, f"{', '.join(whole)} given as whole numbers, taken as {wanted}: the model takes no others"


def _runs(call: Call, arrays: dict[str, Any]) -> bool:
    try:
        run(call, {name: a[:1] if a.ndim else a for name, a in arrays.items()}, tuple(arrays))
    except Exception:  # noqa: BLE001  forward may raise anything; what it raises is told when the example is run
        return False
    return True


@contextmanager
def _eval_mode(module: Any) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was in modes:
            part.training = was


@contextmanager
def _on_cpu(module: Any) -> Iterator[None]:
    """Exports are made on the CPU, where they are served; a module on an accelerator goes back afterwards."""
    devices = {t.device for t in (*module.parameters(), *module.buffers())}
    away = [d for d in devices if d.type != "cpu"]
    if len(devices) > 1 or any(d.type == "meta" for d in away):
        raise ExportError(
            f"the model's parameters are on {', '.join(sorted(map(str, devices)))}",
            hint="move it to one device first: model.to('cpu')",
        )
    if not away:
        yield
        return
    module.to("cpu")
    try:
        yield
    finally:
        module.to(away[0])
