"""Computes PEFT's LoRA layers with fewer copies, operation by operation in PEFT's order.

PEFT copies the output of a 4-bit layer before it adds to it, and makes new tensors of the scaled
update and of the sum. Here both are done in place. Each value is the same product or sum of the
same two numbers, so no bit differs. Only the plain layers are changed: DoRA and other variants
compute as PEFT does, and every part is still called as the module it is, hooks included.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from trainer.kernels.lora_over_rows import over_rows


def use_fewer_copies(model: Any) -> int:
    """Let every plain LoRA layer of `model` add its update in place; return how many there are."""
    from peft.tuners.lora import Linear
    from peft.tuners.lora.bnb import Linear4bit

    found = 0
    for module in model.modules():
        if type(module) in {Linear, Linear4bit} and "forward" not in vars(module):
            module.forward = partial(_forward, module)
            found += 1
    return found


def _forward(layer: Any, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Compute what the layer would: the base's output and the scaled update of one adapter."""
    name = plain_adapter(layer)
    by_peft = partial(type(layer).forward, layer, inputs, *args, **kwargs)
    if name is None or args or kwargs or torch.is_autocast_enabled(inputs.device.type):
        return by_peft()
    first, second, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    if not _drops(layer.lora_dropout[name]):
        found = over_rows(inputs, layer.base_layer, first, second, scaling)
        if found is not None:
            return found
    output: torch.Tensor = layer.base_layer(inputs)
    if not output.dtype is inputs.dtype is first.weight.dtype:
        return by_peft()
    update: torch.Tensor = second(first(layer.lora_dropout[name](inputs)))
    update = update * scaling if _is_view(update) else update.mul_(scaling)
    return output + update if _is_view(output) else output.add_(update)


def _drops(dropout: Any) -> bool:
    """Tell whether a module may change what goes through it."""
    usual = type(dropout) is torch.nn.Dropout
    inert = usual and (dropout.p == 0 or not dropout.training)
    return not (type(dropout) is torch.nn.Identity or inert)


def _is_view(tensor: torch.Tensor) -> bool:
    """Tell whether autograd sees a view, as of a layer with a bias: in place would cost a copy."""
    return tensor._is_view()  # noqa: SLF001  # torch has no other name for it


def plain_adapter(layer: Any) -> str | None:
    """Return the name of the one adapter that a layer adds to its base, None if it does otherwise.

    Otherwise are: no adapter, several, one that is merged or switched off, or a variant of LoRA.
    """
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or layer.disable_adapters or layer.merged:
        return None
    return active[0] if active[0] not in layer.lora_variant else None
