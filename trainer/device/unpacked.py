"""Keeps the values of a base's 4-bit linear layers unpacked where memory is plenty.

bitsandbytes unpacks the values of a layer in each forward pass and again in each backward pass,
although a frozen base never changes. Kept, they give the same bits: the same products of the same
values. They are given back as soon as memory runs short (`trainer.training.saving_order`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

SHARE_MAX = 0.5
"""The values may take so much of the memory that is free."""


class UnpackedBase:
    """The unpacked values of a model's 4-bit layers, which compute with them until `release`."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self.bytes = 0
        for layer in layers:
            values = unpack(layer)
            self.bytes += values.nbytes
            layer.forward = partial(_forward, layer, layer.weight, values)

    @property
    def is_held(self) -> bool:
        """Whether the values are still there."""
        return bool(self._layers)

    def release(self) -> None:
        """Let every layer compute from its 4-bit values again; nothing if that was done before."""
        for layer in self._layers:
            del layer.forward
        self._layers = []


def unpack_base(model: Any, *, free_bytes: int | None) -> UnpackedBase | None:
    """Unpack a model's 4-bit layers; None if it has none, or if memory is not plenty.

    `free_bytes` is what its device has left, None if that is not said.
    """
    layers = list(unpackable(model))
    if not layers or free_bytes is None or unpacked_bytes(layers) > SHARE_MAX * free_bytes:
        return None
    return UnpackedBase(layers)


def unpackable(model: Any) -> Iterator[Any]:
    """Yield the 4-bit layers whose forward and backward pass multiply with the same values.

    A base that was stored in 4 bits may have been rounded to another type than it computes in: then
    they are unpacked to the one for the forward pass, and to the other for the backward pass.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if type(module) is not Linear4bit or "forward" in vars(module):
            continue
        state = getattr(module.weight, "quant_state", None)
        if state is None or tuple(state.shape) != (module.out_features, module.in_features):
            continue
        if state.dtype is module.compute_dtype and not module.weight.requires_grad:
            yield module


def unpacked_bytes(layers: list[Any]) -> int:
    """Return the bytes that the values of these layers take unpacked."""
    sizes = (one.weight.quant_state for one in layers)
    return sum(state.shape[0] * state.shape[1] * state.dtype.itemsize for state in sizes)


def unpack(layer: Any) -> torch.Tensor:
    """Return the values of a 4-bit layer, [out, in], in the type that it computes in."""
    from bitsandbytes.functional import dequantize_4bit

    with torch.no_grad():
        values: torch.Tensor = dequantize_4bit(
            layer.weight.data.view(-1, 1), layer.weight.quant_state
        )
    return values


def _forward(layer: Any, packed: Any, values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Compute what the layer would, from the values of its weight as it was unpacked."""
    bias = layer.bias
    same_types = inputs.dtype is values.dtype and (bias is None or bias.dtype is values.dtype)
    if layer.weight is not packed or not same_types or inputs.numel() == 0:
        found: torch.Tensor = type(layer).forward(layer, inputs)  # merged, or a rare case
        return found
    if torch.is_grad_enabled() and inputs.requires_grad:
        product: torch.Tensor = _FrozenLinear.apply(inputs, values, bias)  # type: ignore[no-untyped-call]
        return product
    return linear(inputs, values, bias)


class _FrozenLinear(torch.autograd.Function):
    """A linear layer whose weight and bias are frozen: the products of `bitsandbytes.MatMul4Bit`.

    The values are no saved tensor of the graph: those may be moved to the host until the backward
    pass (`trainer.device.activations.offloaded`).
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.values = values
        return linear(inputs, values, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = gradients[0]
        return torch.matmul(gradient, ctx.values.to(gradient.dtype)), None, None
