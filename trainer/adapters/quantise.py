"""Quantises every linear layer of a base that is loaded in four or eight bits, or refuses it.

transformers 5.23 converts only layers that are exactly `torch.nn.Linear`. Falcon's are of a class
of their own that computes the same, so they would stay in 16 bits, with one line in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

from trainer.errors import ConfigError


class _Enough(Exception):  # noqa: N818 - no error, a way out
    """The empty model is there, and no more is wanted."""


@contextmanager
def all_linears(*, only: list[Any] | None = None) -> Iterator[None]:
    """While inside, transformers also quantises layers that are linear under another name.

    They are renamed on the still empty model, before any weight is read, so a base never lies in
    memory in 16 bits. There is no hook for this but the function that transformers calls.
    With `only` a list, the model is put in there once its layers are the quantised ones, still
    empty, and the block ends before a weight is read.
    """
    from transformers import integrations

    original = integrations.replace_with_bnb_linear

    def replace(model: Any, *arguments: Any, **named: Any) -> Any:
        simplify(model)
        replaced = original(model, *arguments, **named)
        if only is not None:
            only.append(model)
            raise _Enough
        return replaced

    integrations.replace_with_bnb_linear = replace
    try:
        yield
    except _Enough:
        return
    finally:
        integrations.replace_with_bnb_linear = original


def simplify(model: Any) -> int:
    """Make plain `torch.nn.Linear`s of layers that compute just that; return how many it were."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and type(module) is not torch.nn.Linear
    ]
    plain = [module for module in found if _computes_a_linear(module)]
    for module in plain:
        module.__class__ = torch.nn.Linear
    return len(plain)


def require_quantised(model: Any) -> int:
    """Return how many layers are quantised; raise `ConfigError` if none is."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    found = sum(isinstance(module, Linear4bit | Linear8bitLt) for module in model.modules())
    if not found:
        kinds = sorted({type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__})
        reason = (
            f"method.quant: no layer of this {type(model).__name__} could be quantised (its linear "
            f"layers are {', '.join(kinds) or 'of an unknown kind'}), so it would need the memory "
            "of 16 bits; use `kind: lora`, or another base"
        )
        raise ConfigError([reason])
    return found


def _computes_a_linear(module: torch.nn.Linear) -> bool:
    """Tell whether the class of `module` computes x·Wᵀ + b and nothing else, by trying it.

    Only a layer without attributes of its own is tried, as a small twin: what it does then follows
    from its class alone.
    """
    twin = torch.nn.Linear(3, 2, bias=module.bias is not None, device="cpu", dtype=torch.float32)
    if vars(module).keys() - {"_is_hf_initialized"} != vars(twin).keys():
        return False
    if set(dict(module.named_parameters())) != set(dict(twin.named_parameters())):
        return False
    # The type is said: while a base is loaded, new tensors are of the one that it is loaded in.
    rows = [[[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]]
    inputs = torch.tensor(rows, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        expected = linear(inputs, twin.weight, twin.bias)
        twin.__class__ = type(module)
        try:
            found = twin(inputs)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False  # it wants something else than a batch of vectors
    return isinstance(found, torch.Tensor) and torch.allclose(expected, found)
