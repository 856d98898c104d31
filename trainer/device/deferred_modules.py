"""Keeps modules that a training does not need out of memory until something uses them.

Two of them cost a third of a start's imports. Nothing is compiled here (`TORCHDYNAMO_DISABLE=1`,
see `prepare_environment`), but libraries mark functions for torch's compiler while they are
imported, and the marks alone load all of it: while it is disabled a mark means nothing, so it is
given without loading. And transformers imports `scipy.optimize` with every model, for one function
that the losses of object detection call.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"
MARKS = ("disable", "assume_constant_result", "allow_in_graph", "disallow_in_graph")
"""Of the compiler: what returns the function that it gets, while nothing is compiled."""
ASSIGNMENT = "linear_sum_assignment"


def defer_modules() -> None:
    """Let torch's compiler and `scipy.optimize` be loaded when they are needed first.

    Call it before transformers or bitsandbytes are imported; what is loaded already stays so. The
    compiler is deferred only where it is disabled.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        given: dict[str, Any] = {**dict.fromkeys(MARKS, _mark), "graph_break": _do_nothing}
        if defer(COMPILER, given):  # AdamW asks for `graph_break` in each step
            torch.compile = _compile_later(torch.compile)
    defer("scipy.optimize", {ASSIGNMENT: _assign})


def defer(name: str, given: Mapping[str, Any]) -> bool:
    """Put a module in its place that is executed later; tell whether it was not there before.

    Until then it has the attributes in `given`, and those alone.
    """
    if name in sys.modules:
        return False
    try:
        spec = importlib.util.find_spec(name)  # imports the packages around it
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        return False
    module = importlib.util.module_from_spec(spec)
    module.__class__ = DeferredModule
    vars(module).update(given)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    setattr(sys.modules[parent], last, module)
    return True


class DeferredModule(ModuleType):
    """A module that is executed when an attribute is wanted that it has not been given.

    Its submodules can be imported before that.
    """

    _lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # asked for by whoever looks through all
            raise AttributeError(name)
        execute(self)
        return getattr(self, name)


def execute(module: ModuleType) -> None:
    """Execute a deferred module, once; any other one is left alone."""
    with DeferredModule._lock:  # noqa: SLF001 - its own
        if type(module) is not DeferredModule:
            return
        module.__class__ = ModuleType  # type: ignore[assignment]  # a module like others
        if module.__spec__ is not None and module.__spec__.loader is not None:
            module.__spec__.loader.exec_module(module)


def _mark(function: Any = None, *_: Any, **__: Any) -> Any:
    """Return the function that is marked; without one, what marks the next."""
    return (lambda marked: marked) if function is None else function


def _do_nothing(*_: Any, **__: Any) -> None:
    """Take a mark within a function, which says where not to compile."""


def _assign(*arguments: Any, **named: Any) -> Any:
    """Do what scipy's function of the name in `ASSIGNMENT` does, by loading it."""
    module = sys.modules["scipy.optimize"]
    execute(module)
    return getattr(module, ASSIGNMENT)(*arguments, **named)


def _compile_later(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `torch.compile` that gives a function back as it is, which is all it would do."""

    def compile_nothing(model: Any = None, **settings: Any) -> Any:
        if model is None or (callable(model) and not isinstance(model, torch.nn.Module)):
            return _mark(model)
        return original(model, **settings)

    return compile_nothing
