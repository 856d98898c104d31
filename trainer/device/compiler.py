"""Keeps torch's compiler out of memory until something wants more of it than being left alone.

Nothing is compiled here (`TORCHDYNAMO_DISABLE=1`, see `prepare_environment`), but libraries mark
functions for the compiler while they are imported, and the marks alone load it: 800 modules, a
second of every start. While it is disabled a mark means nothing, so it is given without loading.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"
MARKS = ("disable", "assume_constant_result", "allow_in_graph", "disallow_in_graph")
"""Of the compiler: what returns the function that it gets, while nothing is compiled."""


def defer_compiler() -> bool:
    """Let torch's compiler be loaded when it is needed first; tell whether it is not loaded yet.

    Call it before transformers or bitsandbytes are imported. Without `TORCHDYNAMO_DISABLE=1`, or if
    the compiler is loaded already, nothing is changed.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") != "1":
        return False
    if COMPILER in sys.modules:
        return isinstance(sys.modules[COMPILER], DeferredModule)
    spec = importlib.util.find_spec(COMPILER)
    if spec is None:
        return False
    module = importlib.util.module_from_spec(spec)
    module.__class__ = DeferredModule
    for name in MARKS:
        setattr(module, name, _mark)
    module.graph_break = lambda *_, **__: None  # type: ignore[attr-defined]  # each step of AdamW
    sys.modules[COMPILER] = module
    torch._dynamo = module  # noqa: SLF001 - as its import would
    torch.compile = _compile_later(torch.compile)
    return True


class DeferredModule(ModuleType):
    """A package that is executed when an attribute is wanted that it has not been given.

    Its submodules can be imported before that.
    """

    _lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks through all modules asks for such
            raise AttributeError(name)
        with DeferredModule._lock:
            if type(self) is DeferredModule:
                self.__class__ = ModuleType  # type: ignore[assignment]  # a module like others
                if self.__spec__ is not None and self.__spec__.loader is not None:
                    self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _mark(function: Any = None, *_: Any, **__: Any) -> Any:
    """Return the function that is marked; without one, what marks the next."""
    return (lambda marked: marked) if function is None else function


def _compile_later(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `torch.compile` that gives a function back as it is, which is all it would do."""

    def compile_nothing(model: Any = None, **settings: Any) -> Any:
        if model is None or (callable(model) and not isinstance(model, torch.nn.Module)):
            return _mark(model)
        return original(model, **settings)

    return compile_nothing
