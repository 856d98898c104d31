"""Computes a base's 4-bit linear layers from their values, kept unpacked where memory is plenty.

bitsandbytes unpacks the values of a layer in each forward pass and again in each backward pass,
although a frozen base never changes. Kept, they give the same bits: the same products of the same
values. They are given back as soon as memory runs short (`trainer.training.saving_order`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from trainer.device.token_rows import RowWatch, TokenRows

SHARE_MAX = 0.5
"""The values may take so much of the memory that is free."""


class LayerValues:
    """The values of one 4-bit layer, [out, in], in the type that it computes in."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._packed = layer.weight
        self._kept: torch.Tensor | None = None
        self.watch = RowWatch()
        """Of which tokens a product suffices; it watches nothing unless it is replaced."""

    def keep(self) -> int:
        """Unpack the values for all uses to come, and return their bytes."""
        self._kept = self._unpack()
        return self._kept.nbytes

    def drop(self) -> None:
        """Unpack them anew for each use from now on."""
        self._kept = None

    def get(self) -> torch.Tensor:
        """Return the values, unpacked now if they are not kept; the bits are the same."""
        return self._unpack() if self._kept is None else self._kept

    def _unpack(self) -> torch.Tensor:
        from bitsandbytes.functional import dequantize_4bit

        with torch.no_grad():
            values: torch.Tensor = dequantize_4bit(
                self._packed.data.view(-1, 1), self._packed.quant_state
            )
        return values

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute what the layer does, always as one product with all values."""
        layer = self.layer
        if layer.weight is not self._packed or inputs.numel() == 0:
            found: torch.Tensor = type(layer).forward(layer, inputs)  # merged, or a rare case
            return found
        dtype = self._packed.quant_state.dtype
        given = inputs.to(dtype)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        if torch.is_grad_enabled() and given.requires_grad:
            rows = self.rows_of(given)
            product: torch.Tensor = _FrozenLinear.apply(given, self, bias, rows)  # type: ignore[no-untyped-call]
        else:
            product = _product(given, self.get(), bias)
        return product.to(inputs.dtype)

    def rows_of(self, inputs: torch.Tensor) -> TokenRows | None:
        """Return the rows of the batch that suffice, None if all are to be computed."""
        plain = self._kept is not None and self._kept.dtype is torch.float32
        casting = torch.is_autocast_enabled(inputs.device.type)
        return self.watch.rows_of(inputs) if plain and not casting else None


class UnpackedBase:
    """The values of 4-bit layers, all of them kept until `release`."""

    def __init__(self, layers: Sequence[LayerValues], *, installed: bool = True) -> None:
        """Unpack them; if `installed`, each layer has a forward of its own as long as they are."""
        self._layers = list(layers)
        self._installed = installed
        self.bytes = sum(one.keep() for one in self._layers)
        for one in self._layers if installed else ():
            one.layer.forward = one.forward

    @property
    def is_held(self) -> bool:
        """Whether the values are still there."""
        return bool(self._layers)

    def release(self) -> None:
        """Let every layer compute from its 4-bit values again; nothing if that was done before."""
        for one in self._layers:
            one.drop()
            if self._installed:
                del one.layer.forward
        self._layers = []


def unpack_base(
    layers: Sequence[LayerValues], *, free_bytes: int | None, installed: bool = True
) -> UnpackedBase | None:
    """Keep the values of these layers; None if there are none, or if memory is not plenty.

    `free_bytes` is what their device has left, None if that is not said.
    """
    if not layers or free_bytes is None or unpacked_bytes(layers) > SHARE_MAX * free_bytes:
        return None
    return UnpackedBase(layers, installed=installed)


def unpackable(model: Any) -> Iterator[LayerValues]:
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
            yield LayerValues(module)


def unpacked_bytes(layers: Sequence[LayerValues]) -> int:
    """Return the bytes that the values of these layers take unpacked."""
    states = (one.layer.weight.quant_state for one in layers)
    return sum(state.shape[0] * state.shape[1] * state.dtype.itemsize for state in states)


def _product(inputs: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply in the type of the values, whatever autocast would choose."""
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is not values.dtype:
        with torch.autocast(kind, enabled=False):
            return linear(inputs, values, bias)
    return linear(inputs, values, bias)


class _FrozenLinear(torch.autograd.Function):
    """A linear layer whose weight and bias are frozen: the products of `bitsandbytes.MatMul4Bit`.

    The values are no saved tensor of the graph: those may be moved to the host until the backward
    pass (`trainer.device.activations.offloaded`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        values: LayerValues,
        bias: torch.Tensor | None,
        rows: TokenRows | None,
    ) -> torch.Tensor:
        ctx.values, ctx.rows = values, rows
        if rows is None:
            return _product(inputs, values.get(), bias)
        found = rows.product(rows.take_shared(inputs), values.get().t(), bias)
        return rows.put(found)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gradient, rows = gradients[0], ctx.rows
        values = ctx.values.get().to(gradient.dtype)
        if rows is None:
            return torch.matmul(gradient, values), None, None, None
        return rows.put(rows.product(rows.take(gradient), values)), None, None, None
