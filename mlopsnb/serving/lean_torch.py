"""Imports PyTorch for a server of TorchScript: in about half the time, and with less memory.

`import torch` runs a thousand modules. Those that only training, quantizing, exporting and compiling use are put off: each
is found, and runs when something of it is asked for, or more of PyTorch is imported, and the others with it. So nothing is
missing for code that does use them; it waits for what it would have waited for anyway.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from threading import get_ident
from types import ModuleType
from typing import Any

from mlopsnb.extras import loaded

_bootstrap: Any = importlib.import_module("importlib._bootstrap")
"""The import system's own locks know when threads wait for each other; a lock of ours would not."""

_SEEN = ("2.13.",)
"""Versions of PyTorch of which it was seen that these modules may come later."""

_LATER = frozenset(
    f"torch.{name}"
    for name in (
        *("_higher_order_ops", "_meta_registrations", "ao", "compiler", "distributed._meta_registrations"),
        *("distributions", "export", "func", "masked", "nested", "nn.intrinsic", "nn.qat", "nn.quantizable"),
        *("nn.quantized", "quantization", "utils.data"),
    )
)

_TAKEN = {"torch._higher_order_ops": ("cond", "while_loop"), "torch.func": ("vmap",)}
"""Functions that `torch` itself takes out of these while it is imported; they bring their module when they are called."""

_KNOWN = {"torch.compiler": {"is_compiling": lambda: False, "is_exporting": lambda: False}}
"""What is asked of these when a model is called, and what they say before anything has been compiled."""


def import_torch() -> None:
    """Import PyTorch, if nobody has, without what a server of TorchScript does not use where that is known of its version."""
    if loaded("torch") is None and _is_seen():
        with _Putting():
            importlib.import_module("torch")


def _is_seen() -> bool:
    try:
        return version("torch").startswith(_SEEN)
    except PackageNotFoundError:
        return False


class _Putting:
    """Puts modules off while the block lasts. After it the first use of one runs them all, in the order they had."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._running: dict[str, int] = {}
        self._importing = True

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *exc: object) -> None:
        self._importing = False
        if any(exc):  # PyTorch cannot be imported, and who tries again shall have all of it
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module that is put off. Any other one of PyTorch may need that those it lies in, and later all, were run."""
        if not self._importing or name not in _LATER:
            if self._importing or name.startswith("torch."):
                self.run(name.rpartition(".")[0])
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Put(spec.loader, self)
        return spec

    def put(self, module: ModuleType, loader: Loader) -> None:
        """Have *module* wait."""
        module.__class__ = _Waiting
        assert isinstance(module, _Waiting)
        module.__dict__["__putting__"] = self
        module.__dict__["__later__"] = loader
        module.__dict__.update(_KNOWN.get(module.__name__, {}))
        for name in _TAKEN.get(module.__name__, ()):
            module.__dict__[name] = self._function(module, name)
        self._waiting[module.__name__] = module

    def attribute(self, module: _Waiting, name: str) -> Any:
        """Return what *name* is in *module*, which is run for it."""
        self.run(module.__name__)
        if not isinstance(module, _Waiting):
            return getattr(module, name)
        raise AttributeError(f"partially initialized module {module.__name__!r} has no attribute {name!r}")

    def run(self, name: str) -> None:
        """Run all that wait; for one of them, or for `torch` itself, no more than the module *name*, if that waits."""
        alone = self._importing or get_ident() in self._running.values()
        for each in [name] if alone else [*self._waiting]:
            self._run(each)
        if not (self._waiting or self._importing) and self in sys.meta_path:
            sys.meta_path.remove(self)
            for module, names in _TAKEN.items():
                for taken in names:
                    setattr(sys.modules["torch"], taken, getattr(sys.modules[module], taken))

    def _run(self, name: str) -> None:
        """Run one that waits, as an import does: other threads wait, unless they wait for each other."""
        if name not in self._waiting:
            return
        with suppress(_bootstrap._DeadlockError), _bootstrap._ModuleLockManager(name):
            module = self._waiting.get(name)
            if module is None or name in self._running:
                return
            self._running[name] = get_ident()
            try:
                module.__dict__["__later__"].exec_module(module)
            finally:
                del self._running[name]
            del module.__dict__["__later__"], module.__dict__["__putting__"]
            module.__class__ = ModuleType  # type: ignore[assignment]
            del self._waiting[name]

    def _function(self, module: ModuleType, name: str) -> Callable[..., Any]:
        def later(*args: Any, **options: Any) -> Any:
            self.run(module.__name__)
            return getattr(module, name)(*args, **options)

        later.__name__ = later.__qualname__ = name
        return later


class _Put(Loader):
    """Loads a module as one that waits."""

    def __init__(self, loader: Loader, putting: _Putting) -> None:
        self._loader = loader
        self._putting = putting

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the module's own loader makes."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing yet."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._putting.put(module, self._loader)


class _Waiting(ModuleType):
    """A module that has not been run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # asked for by whoever looks through all modules
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return self.__dict__["__putting__"].attribute(self, name)
